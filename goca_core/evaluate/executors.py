"""Who does the tasks: this process, some processes of this machine, or a Ray cluster. The results are the same.

A executor hands out results as they come, in any order. What a worker raises ends the run with that error.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from .results_log import Record
from .worker import Job, Prediction, Task, Worker

# Tasks given out ahead for each worker: enough to keep it busy, few enough to stop at once.
_AHEAD = 2


class ExecutorError(RuntimeError):
    """The workers cannot go on; one sentence that says what to do."""


class Executor(Protocol):
    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        """The results of all tasks, in any order."""


class _Alone:
    """This process."""

    def __init__(self, job: Job) -> None:
        self.worker = Worker(job)

    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        return map(self.worker.do, tasks)


class _Processes:
    """Processes of this machine, started afresh; each opens its own model, on the graphics cards in turn."""

    def __init__(self, job: Job, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ahead = _AHEAD * count
        self.pool = ProcessPoolExecutor(count, context, _begin, (job, context.Value("i", 0)))

    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        left = deque(tasks)
        running: set[Future[Record | Prediction]] = set()
        try:
            while left or running:
                while left and len(running) < self.ahead:
                    running.add(self.pool.submit(_do, left.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise ExecutorError(
                "A worker process ended before its time, most likely for want of memory: run again with fewer workers; what "
                "was counted is kept."
            ) from None

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


_worker: Worker | None = None
_job: Job | None = None


def _begin(job: Job, started: Any) -> None:
    """In a new process; nothing that can fail, because its error would be lost."""
    global _job
    _job = job
    # An interrupt from the keyboard reaches every process; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if not job.cpu:
        _choose_device(number)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its workers; they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _choose_device(number: int) -> None:
    """Give this process one graphics card of several. Asked for before anything starts CUDA."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else [str(card) for card in range(torch.cuda.device_count())]
    if len(cards) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]


def _do(task: Task) -> Record | Prediction:
    global _worker
    if _worker is None:
        assert _job is not None
        _worker = Worker(_job)
    return _worker.do(task)


class _Ray:
    """Actors of a Ray cluster. Every machine needs the pack, the host and the data at the same paths."""

    def __init__(self, job: Job, count: int, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ExecutorError(
                "Ray is not installed in this Python: install it (pip install ray), or leave out --ray and use the processes "
                "of this machine with --workers."
            ) from None
        self.ray = ray
        root = str(Path(__file__).resolve().parents[2])
        variables = {"PYTHONPATH": root} | {
            name: os.environ[name] for name in ("COMFYUI_DIR", "OMP_NUM_THREADS") if name in os.environ
        }
        try:
            ray.init(None if address == "local" else address, runtime_env={"env_vars": variables}, log_to_driver=False)
        except Exception as error:
            why = str(error).strip().splitlines()
            raise ExecutorError(
                f'Ray cannot be reached or started at "{address}" ({why[0] if why else type(error).__name__}): check the '
                "address, or use the processes of this machine with --workers alone."
            ) from error
        cards = 0 if job.cpu else min(1.0, ray.cluster_resources().get("GPU", 0) / count)
        actor = ray.remote(Worker).options(num_cpus=job.threads, num_gpus=cards)
        self.actors = [actor.remote(job) for _ in range(count)]

    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        left = deque(tasks)
        running: dict[Any, Any] = {}
        for actor in self.actors * _AHEAD:
            if left:
                running[actor.do.remote(left.popleft())] = actor
        while running:
            done, _ = self.ray.wait(list(running))
            for result in done:
                actor = running.pop(result)
                if left:
                    running[actor.do.remote(left.popleft())] = actor
                try:
                    yield self.ray.get(result)
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except self.ray.exceptions.RayActorError as error:
                    raise ExecutorError(f"A Ray worker was lost; what was counted is kept: {error}") from None

    def close(self) -> None:
        self.ray.shutdown()


@contextlib.contextmanager
def executor(job: Job, workers: int = 1, ray: str | None = None) -> Iterator[Executor]:
    """The workers of a run, gone when the block ends.

    workers: how many; one without Ray is this process. ray: address of a Ray cluster ("auto" for the one this machine
    belongs to, "local" for one made on the spot).
    """
    if workers < 1:
        raise ExecutorError(f"{workers} workers cannot work: use 1 or more.")
    if ray is None and workers == 1:
        yield _Alone(job)
        return
    made = _Processes(job, workers) if ray is None else _Ray(job, workers, ray)
    try:
        yield made
    finally:
        made.close()
