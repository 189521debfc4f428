"""A real ComfyUI server with this pack installed, for the demo and the tests.

    with ComfyServer() as server:
        run = server.run(prompt)                 # an API-format prompt
        run.outputs["9"]["images"]               # the images of node 9
        server.fetch(run.outputs["9"]["images"][0])

The server gets its own base directory, where the pack is a link in `custom_nodes`. Nothing is written into ComfyUI's folder.
Run this with ComfyUI's interpreter, which has aiohttp.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts import host as provider

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui-goca"

Prompt = dict[str, dict[str, Any]]
# All timeouts are multiplied by this, for busy machines.
PATIENCE = float(os.environ.get("GOCA_PATIENCE", "").strip() or 1)
# Where ComfyUI computes (GOCA_DEVICE), and what it is started with there. On a GPU, with what makes it repeat its results.
DEVICES = {"cpu": ("--cpu",), "cuda": ("--deterministic",)}
# For a GPU: cuBLAS does not choose anew in each call, and no library rounds float32 to TF32.
REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0"}
# Called with the type and the data of each event that the server sends.
Listener = Callable[[str, dict[str, Any]], None]


def device() -> str:
    """Where ComfyUI computes: GOCA_DEVICE, by default the CPU."""
    return os.environ.get("GOCA_DEVICE", "").strip().lower() or "cpu"


def device_problem() -> str:
    """Why ComfyUI cannot compute on that device, as a sentence; empty if it can."""
    name = device()
    if name not in DEVICES:
        return f"GOCA_DEVICE={name} is not known; choose {' or '.join(DEVICES)}."
    if name == "cpu":
        return ""
    import torch

    return "" if torch.cuda.is_available() else "GOCA_DEVICE=cuda was set, but torch finds no CUDA GPU; unset it."


class ServerError(Exception):
    """The server did not start, died, or refused a prompt."""


class NodeError(ServerError):
    """A node failed, or got invalid inputs."""

    def __init__(self, node_id: str, node_type: str, message: str) -> None:
        super().__init__(f"{node_type} (node {node_id}): {message.strip()}")
        self.node_id, self.node_type, self.message = node_id, node_type, message.strip()


@dataclass
class Run:
    """One finished prompt."""

    prompt_id: str
    seconds: float
    outputs: dict[str, dict[str, Any]]
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)


def prepare_base(base: Path, more: tuple[Path, ...] = ()) -> None:
    """Make `base` a base directory for ComfyUI, with this pack and the packs in the folders of ``more``."""
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, folder in ((PACK, ROOT), *((folder.name, folder) for folder in more)):
        link = base / "custom_nodes" / name
        if not link.is_symlink():
            link.symlink_to(folder, target_is_directory=True)


class ComfyServer:
    """Starts ComfyUI's main.py; `stop` ends it with all its child processes.

    ``arguments``: of its command line; by default those of the device that GOCA_DEVICE names. ``packs``: folders of other
    custom nodes that it loads too.
    """

    def __init__(
        self,
        *,
        output: Path | None = None,
        arguments: tuple[str, ...] | None = None,
        environment: dict[str, str] | None = None,
        startup_seconds: float = 300.0,
        packs: tuple[Path, ...] = (),
    ) -> None:
        self.host = provider.locate()
        self.base = Path(tempfile.mkdtemp(prefix="goca-server-"))
        self.output = output or self.base / "output"
        self.arguments = DEVICES.get(device(), ()) if arguments is None else arguments
        self.environment = environment or {}
        self.startup_seconds = startup_seconds
        self.packs = packs
        self.log = self.base / "server.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    # -- start and stop ------------------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not provider.is_ready(self.host):
            raise ServerError("ComfyUI is not set up yet: run `make host` first.")
        if problem := device_problem():
            raise ServerError(problem)
        atexit.register(self.stop)
        prepare_base(self.base, self.packs)
        self.output.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        command = [str(self.host.python), "-u", str(self.host.dir / "main.py"), *self.arguments]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        command += ["--base-directory", str(self.base), "--output-directory", str(self.output)]
        command += ["--database-url", "sqlite:///:memory:"]
        environment = {
            # On a small or busy machine, several threads make a tiny model slower.
            "OMP_NUM_THREADS": "1",
            **(REPEATABLE if device() == "cuda" else {}),
            **os.environ,
            # Keep bytecode out of ComfyUI's folder, which may be the user's own checkout.
            "PYTHONPYCACHEPREFIX": str(provider.STORE / "pycache"),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.base,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        patience = self.startup_seconds * PATIENCE
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not self.alive:
                raise ServerError(f"ComfyUI exited during startup:\n{self.tail()}")
            with contextlib.suppress(OSError):
                self.get("/system_stats", timeout=5)
                break
            time.sleep(0.25)
        else:
            raise ServerError(f"ComfyUI did not answer within {patience:.0f} s:\n{self.tail()}")
        if "(IMPORT FAILED)" in self.tail(lines=10_000):
            raise ServerError(f"ComfyUI could not import the pack:\n{self._import_problem()}")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server and all its child processes. Calling it twice is fine."""
        process, self._process = self._process, None
        if process is not None:
            _end_group(process)
        shutil.rmtree(self.base, ignore_errors=True)
        atexit.unregister(self.stop)

    def tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        if not self.log.is_file():
            return "(no log)"
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _import_problem(self) -> str:
        lines = self.tail(lines=10_000).splitlines()
        starts = [i for i, line in enumerate(lines) if "Traceback" in line or "Error while calling" in line]
        ends = [i for i, line in enumerate(lines) if "Import times for custom nodes" in line]
        return "\n".join(lines[starts[0] : ends[0]] if starts and ends else lines[-30:])

    # -- requests ------------------------------------------------------------------------------------------------

    def get(self, path: str, timeout: float = 30.0) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=timeout * PATIENCE) as answer:
            content: bytes = answer.read()
        return content

    def get_json(self, path: str, timeout: float = 30.0) -> Any:
        return json.loads(self.get(path, timeout))

    def object_info(self, node_type: str = "") -> dict[str, Any]:
        info: dict[str, Any] = self.get_json("/object_info" + (f"/{node_type}" if node_type else ""))
        return info

    def fetch(self, image: dict[str, str]) -> bytes:
        """The file content of one entry of an output's `images`."""
        return self.get("/view?" + urllib.parse.urlencode(image))

    def run(self, prompt: Prompt, listener: Listener | None = None, timeout: float = 600.0) -> Run:
        """Queue a prompt, wait until it is done, and return the outputs of its nodes."""
        try:
            return asyncio.run(asyncio.wait_for(self._run(prompt, listener), timeout * PATIENCE))
        except asyncio.TimeoutError:
            raise ServerError(f"The prompt did not finish within {timeout * PATIENCE:.0f} s:\n{self.tail()}") from None

    async def _run(self, prompt: Prompt, listener: Listener | None) -> Run:
        import aiohttp

        client, started = uuid.uuid4().hex, time.monotonic()
        executed, cached = list[str](), list[str]()
        # Connect before queueing the prompt, so that no event is missed.
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as events,
        ):
            async with session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
                body = await answer.json()
            if "prompt_id" not in body:
                raise _refusal(body)
            prompt_id: str = body["prompt_id"]
            async for message in events:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue  # previews are binary
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data", {})
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                if listener:
                    listener(kind, data)
                if kind == "executing" and data.get("node"):
                    executed.append(data["node"])
                elif kind == "execution_cached":
                    cached += data["nodes"]
                elif kind == "execution_error":
                    raise NodeError(data["node_id"], data["node_type"], data["exception_message"])
                elif kind == "execution_interrupted":
                    raise ServerError("The prompt was interrupted.")
                elif kind == "execution_success":
                    break
            else:
                raise ServerError(f"ComfyUI exited during the prompt:\n{self.tail()}")
            outputs = await self._history(session, prompt_id)
        return Run(prompt_id, time.monotonic() - started, outputs, executed, cached)

    async def _history(self, session: Any, prompt_id: str) -> dict[str, dict[str, Any]]:
        # ComfyUI writes the entry shortly after it sends the last event.
        for _ in range(100):
            async with session.get(f"{self.url}/history/{prompt_id}") as answer:
                history = await answer.json()
            if prompt_id in history:
                outputs: dict[str, dict[str, Any]] = history[prompt_id]["outputs"]
                return outputs
            await asyncio.sleep(0.05)
        raise ServerError("The finished prompt is not in the server's history.")


def _refusal(body: dict[str, Any]) -> ServerError:
    for node_id, problem in body.get("node_errors", {}).items():
        errors = problem.get("errors", [])
        details = [f"{error.get('message', '')}: {error.get('details', '')}".strip(": ") for error in errors]
        return NodeError(node_id, problem.get("class_type", "?"), "; ".join(details))
    error = body.get("error", body)
    text = f"{error.get('message', '')} {error.get('details', '')}" if isinstance(error, dict) else str(error)
    return ServerError(f"ComfyUI refused the prompt: {text.strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _die_with_parent() -> None:
    """Let the kernel end the server if this process is killed without cleaning up."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if os.name == "nt":
        process.kill()
        process.wait()
        return
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            # The server has exited. End what is left of its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return
