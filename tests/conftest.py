"""What all tests share: where things are found, and what happens when ComfyUI or a browser is missing.

Without ComfyUI, tests/host and tests/browser are left out with a word about it, so that the method can be tested
anywhere; without a browser, tests/browser is. With GOCA_REQUIRE_HOST=1 (set by `make test`) a missing ComfyUI is a failure,
with GOCA_REQUIRE_BROWSER=1 (set by `.ci/run`) a missing browser too, and then so is a group of which nothing ran.

With GOCA_DEVICE=cuda ComfyUI computes on the GPU, in the process of the tests and on the server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scripts.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = os.environ.get("GOCA_REQUIRE_HOST", "") not in ("", "0")
# Folders whose tests need something outside of the project, and whether it was promised to be there.
GROUPS = {"host": REQUIRED, "browser": os.environ.get("GOCA_REQUIRE_BROWSER", "") not in ("", "0")}

# ComfyUI has top-level modules of its own named `nodes` and `tests`. The project comes last, so that `import nodes`
# is ComfyUI's; `goca_core` and `scripts` are ours alone.
sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT] + [str(ROOT)]

from scripts.comfy_server import device_problem  # noqa: E402 - found only now

_passed: dict[str, int] = {}
_expected: set[str] = set()


def need(ready: bool, reason: str) -> None:
    """Skip the test when something is missing; fail it when it was promised to be there."""
    if ready:
        return
    if REQUIRED:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _group(nodeid: str) -> str | None:
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "tests" and parts[1] in GROUPS else None


def _asked_for(config: pytest.Config) -> set[str]:
    """The groups that the command line names, by whole folders."""
    folders = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    return {
        group
        for group in GROUPS
        if (ROOT / "tests" / group).is_dir()
        and any((ROOT / "tests" / group).is_relative_to(folder) for folder in folders)
    }


def pytest_configure(config: pytest.Config) -> None:
    if problem := device_problem():
        raise pytest.UsageError(problem)
    narrowed = config.option.keyword or config.option.markexpr or config.option.collectonly
    # A worker of pytest-xdist runs only some of the tests. The process that started it sees all their reports.
    if not narrowed and not hasattr(config, "workerinput"):
        _expected.update(group for group in _asked_for(config) if GROUPS[group])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    group = _group(report.nodeid)
    if group and report.when == "call" and report.passed:
        _passed[group] = _passed.get(group, 0) + 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and (_expected - _passed.keys()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for group in sorted(_expected):
        count = _passed.get(group, 0)
        terminalreporter.write_line(f"tests/{group}: {count} passed" if count else f"FAILED tests/{group}: nothing ran")


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """A real server with the pack in it, started when the first test asks for it.

    It has the nodes of tests/host/tiny_nodes too, which make tiny models.
    """
    from scripts.comfy_server import ComfyServer  # needs ComfyUI's interpreter

    with ComfyServer(packs=(ROOT / "tests" / "host" / "tiny_nodes",)) as running:
        yield running
