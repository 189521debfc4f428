"""A real ComfyUI in this process, on the CPU or, with GOCA_DEVICE=cuda, on the GPU.

The path and the command line of ComfyUI are set when this file is imported, before any test module, so that test
modules may import `comfy` and `nodes` (ComfyUI's) at their top. Its node packs are loaded by the `host` fixture.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from scripts import host as provider
from scripts.comfy_server import PACK, REPEATABLE, device, device_problem, prepare_base

HOST = provider.locate()
# The tests run inside ComfyUI, so they need its interpreter, which has its packages.
READY = provider.is_ready(HOST) and os.path.normpath(sys.executable) == str(HOST.python) and not device_problem()

if READY:
    BASE = Path(tempfile.mkdtemp(prefix="goca-host-"))
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str:
    return (
        f"host: ComfyUI {_version()} on {device()}"
        if READY
        else "host: none here, tests/host is left out (see `make host`)"
    )


def _version() -> str:
    return (HOST.dir / "comfyui_version.py").read_text(encoding="utf-8").split('"')[-2]


def _boot() -> None:
    """Put ComfyUI first on the path and give it a command line; nothing of it is imported yet but its options."""
    atexit.register(shutil.rmtree, BASE, ignore_errors=True)
    prepare_base(BASE)
    # ComfyUI's tree may be a user's own checkout: not even bytecode is written there.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(HOST.dir))
    kept, sys.argv = (
        sys.argv,
        [
            str(HOST.dir / "main.py"),
            *(["--cpu"] if device() == "cpu" else []),
            *("--base-directory", str(BASE)),
            *("--database-url", "sqlite:///:memory:"),
            "--disable-api-nodes",
        ],
    )
    try:
        # The options are parsed once, when comfy.cli_args is first imported, and only if asked for before.
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        # As main.py does: nodes.py puts another module of this name on the path.
        importlib.import_module("utils")
    finally:
        sys.argv = kept


if READY:
    if device() == "cuda":
        # Before CUDA starts; the processes that tests start inherit it.
        os.environ.update(REPEATABLE)
    _boot()

    import torch

    # Exact comparisons need a device that repeats itself and rounds as float32 does. ComfyUI sets none of these but
    # `benchmark`, which it turns off too. Not all deterministic algorithms of torch are asked for: what the pack does
    # must repeat itself without them.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    # Two threads that wait for one another on a small busy machine make a tiny model fifty times slower.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def host() -> SimpleNamespace:
    """ComfyUI's modules, its own nodes loaded: `nodes`, `folder_paths`, `execution`, `comfy` and `dir`."""
    nodes = importlib.import_module("nodes")
    assert Path(nodes.__file__ or "").parent == HOST.dir
    names = (
        "comfy.model_management",
        "comfy.sample",
        "comfy.samplers",
        "comfy.supported_models",
        "comfy.sd",
        "comfy.ops",
    )
    for name in names:
        importlib.import_module(name)
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return SimpleNamespace(
        dir=HOST.dir,
        nodes=nodes,
        comfy=sys.modules["comfy"],
        folder_paths=importlib.import_module("folder_paths"),
        execution=importlib.import_module("execution"),
    )


@pytest.fixture(scope="session")
def pack(host: SimpleNamespace) -> ModuleType:
    """This pack, loaded as ComfyUI loads custom nodes; its node classes are in `host.nodes`."""
    folder = str(BASE / "custom_nodes" / PACK)
    assert asyncio.run(host.nodes.load_custom_node(folder, module_parent="custom_nodes")), "the pack did not load"
    # ComfyUI names the module after its path, with dots replaced.
    return sys.modules[folder.replace(".", "_x_")]


DISPATCH = os.environ.get("GOCA_DISPATCH", "")
if DISPATCH not in ("", "newer"):
    raise pytest.UsageError(f"GOCA_DISPATCH={DISPATCH} is unknown; set it to newer, or not at all.")


@pytest.fixture(autouse=True)
def dispatch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With GOCA_DISPATCH=newer every network calls attention as in a newer ComfyUI (see `newer`)."""
    if READY and DISPATCH and not request.module.__name__.endswith("test_newer"):
        importlib.import_module(f"{__package__}.newer").switch_on(monkeypatch)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], list[str]]]:
    """The warnings so far that name something."""
    with caplog.at_level(logging.WARNING):
        yield lambda name: [r.getMessage() for r in caplog.records if name in r.getMessage()]
