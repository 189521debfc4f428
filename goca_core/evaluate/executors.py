"""Where tasks run: in this process, in several local processes, or on a Ray cluster. The results are the same.

An executor yields results as they finish, in any order. An exception raised in a worker ends the evaluation.
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

# Tasks queued for each worker: enough to keep it busy, few enough that an interrupt takes effect at once.
_AHEAD = 2


class ExecutorError(RuntimeError):
    """The workers cannot continue. The message is one sentence that says what to do."""


class Executor(Protocol):
    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        """Yield the results of all tasks, in any order."""


class _ProcessPool:
    """Runs the tasks in new local processes. Each loads its own model; GPUs are assigned in turn."""

    def __init__(self, job: Job, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ahead = _AHEAD * count
        self.pool = ProcessPoolExecutor(count, context, _start_worker, (job, context.Value("i", 0)))

    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        pending = deque(tasks)
        running: set[Future[Record | Prediction]] = set()
        try:
            while pending or running:
                while pending and len(running) < self.ahead:
                    running.add(self.pool.submit(_run_task, pending.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise ExecutorError(
                "A worker process died, most likely because memory ran out: run the same command again with fewer workers. "
                "Everything counted so far is kept."
            ) from None

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


_worker: Worker | None = None
_job: Job | None = None


def _start_worker(job: Job, started: Any) -> None:
    """Initialise a new worker process. Nothing here may fail, because the error would be lost."""
    global _job
    _job = job
    # Ctrl+C reaches every process, but only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if not job.cpu:
        _choose_device(number)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent process ends: a parent that was killed cannot stop its workers itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _choose_device(number: int) -> None:
    """Assign one GPU to this process if there are several. Must run before anything initialises CUDA."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else [str(card) for card in range(torch.cuda.device_count())]
    if len(cards) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]


def _run_task(task: Task) -> Record | Prediction:
    global _worker
    if _worker is None:
        assert _job is not None
        _worker = Worker(_job)
    return _worker.do(task)


class _RayActors:
    """Runs the tasks in actors of a Ray cluster. Every machine needs the pack, ComfyUI and the data at the same paths."""

    def __init__(self, job: Job, count: int, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ExecutorError(
                "Ray is not installed in this Python: install it (pip install ray), or leave out --ray and use local processes "
                "with --workers."
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
                "address, or leave out --ray and use local processes with --workers."
            ) from error
        cards = 0 if job.cpu else min(1.0, ray.cluster_resources().get("GPU", 0) / count)
        actor = ray.remote(Worker).options(num_cpus=job.threads, num_gpus=cards)
        self.actors = [actor.remote(job) for _ in range(count)]

    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        pending = deque(tasks)
        running: dict[Any, Any] = {}
        for actor in self.actors * _AHEAD:
            if pending:
                running[actor.do.remote(pending.popleft())] = actor
        while running:
            done, _ = self.ray.wait(list(running))
            for result in done:
                actor = running.pop(result)
                if pending:
                    running[actor.do.remote(pending.popleft())] = actor
                try:
                    yield self.ray.get(result)
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except self.ray.exceptions.RayActorError as error:
                    raise ExecutorError(
                        f"A Ray worker was lost; run the same command again to continue, everything counted so far is kept: {error}"
                    ) from None

    def close(self) -> None:
        self.ray.shutdown()


@contextlib.contextmanager
def make_executor(job: Job, workers: int = 1, ray: str | None = None) -> Iterator[Executor]:
    """Start the workers of an evaluation and stop them when the block ends.

    workers: number of workers; a single one without Ray is this process. ray: address of a Ray cluster: "auto" for the one
    that this machine belongs to, "local" to start one here.
    Raises ExecutorError for fewer than one worker, or when Ray is missing or cannot be reached.
    """
    if workers < 1:
        raise ExecutorError(f"Got {workers} workers: use 1 or more.")
    if ray is None and workers == 1:
        yield Worker(job)
        return
    executor = _ProcessPool(job, workers) if ray is None else _RayActors(job, workers, ray)
    try:
        yield executor
    finally:
        executor.close()
