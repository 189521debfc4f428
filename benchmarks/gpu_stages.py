"""The stages of gpu.py. Each prints its figures with `report`, one line each, and runs in a process of its own."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import median_of, seconds_of
from scripts.boot import boot
from scripts.graphs.files import api_file

MARK = "figure: "
STEPS = 20


def report(what: str, *values: str) -> None:
    print(f"{MARK}{what} | {', '.join(values)}", flush=True)


@dataclass(frozen=True)
class Stage:
    """``run`` gets whether this is a smoke run. ``limit``: seconds. ``smoke``: whether it is part of a smoke run."""

    run: Callable[[bool], None]
    limit: float
    smoke: bool = False


@dataclass(frozen=True)
class Text:
    """The prompt of a full-size model. ``pooled``: width of its pooled text. ``cfg``: the guidance that it is used with."""

    pooled: int = 0
    cfg: float = 1.0


TEXTS = {
    "sd15": Text(cfg=7.0),
    "sdxl": Text(1280, 7.0),
    "flux": Text(768),
    "wan_1b": Text(cfg=5.0),
    "qwen_image": Text(cfg=4.0),
    "sd35": Text(2048, 4.5),
    "z_image": Text(),
}


# -- a full-size model --------------------------------------------------------------------------------------------------


class Sampled:
    """A full-size model on the GPU with random weights, sampled from noise of its usual size."""

    def __init__(self, name: str, batch: int = 1) -> None:
        from benchmarks.full_size import SIZES
        from benchmarks.random_models import clip_prompt, full_size, long_prompt

        size, text = SIZES[name], TEXTS[name]
        self.name, self.cfg = name, text.cfg
        self.model = full_size(name)
        self.latent = torch.zeros(batch, *size.latent[1:])
        prompt = clip_prompt if name == "sd15" else partial(long_prompt, *size.text, text.pooled)
        self.positive, self.negative = prompt(), prompt(seed=2) if text.cfg != 1 else []
        self.seconds: list[float] = []

    @property
    def one_step(self) -> tuple[float, float]:
        from goca_core.capture.families import plan_of

        return plan_of(self.model.model).noise_level, 0.0

    def schedule(self, steps: int) -> list[float]:
        import comfy.samplers

        found: list[float] = comfy.samplers.calculate_sigmas(
            self.model.get_model_object("model_sampling"), "normal", steps
        ).tolist()
        return found

    def timed(self) -> Any:
        """A copy of the MODEL that notes the seconds of each forward pass, with all that is put on the copy later."""
        from comfy.patcher_extension import WrappersMP

        def forward(executor: Any, *args: Any, **kwargs: Any) -> Any:
            torch.cuda.synchronize()
            start = time.perf_counter()
            out = executor(*args, **kwargs)
            torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - start)
            return out

        timed = self.model.clone()
        timed.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "timing", forward)
        return timed

    def sample(self, model: Any, sigmas: Any, callback: Any = None) -> torch.Tensor:
        from benchmarks.random_models import sample_latent

        return sample_latent(
            model, self.positive, sigmas, self.latent, negative=self.negative, cfg=self.cfg, callback=callback
        )

    def forward_seconds(self, model: Any) -> float:
        self.seconds.clear()
        self.sample(model, self.one_step)
        return sum(self.seconds)


def recorded(model: Any, **options: Any) -> tuple[Any, Any]:
    from goca_core.capture.options import RecordOptions
    from goca_core.capture.recorder import record
    from goca_core.capture.window import Window

    return record(model, Window(), RecordOptions(**{"method": "auto", **options}))


def peak_mb(action: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def full(name: str, smoke: bool, batch: int = 1, steps: bool = True, finer: bool = False) -> None:
    """A recorded forward pass against a plain one, its memory, a whole run, and the time to masks."""
    boot()
    run = Sampled(name, batch)
    plain = run.timed()
    models = {"plain": plain, "recorded": recorded(plain)[0]}
    if not smoke:
        models["recorded by the paper"] = recorded(plain, method="paper")[0]
    if finer and not smoke:
        models["recorded 64x64"] = recorded(plain, grid_limit=64 * 64)[0]
    repeat = 3 if smoke else 5
    seconds = median_of({key: partial(run.forward_seconds, model) for key, model in models.items()}, repeat, warm=2)
    what = f"forward pass, {batch} image{'s' if batch > 1 else ''}, cfg {run.cfg:g}"
    ratios = [f"{key} {seconds[key] * 1e3:.0f} ms = {seconds[key] / seconds['plain']:.2f}x" for key in models][1:]
    report(what, f"plain {seconds['plain'] * 1e3:.0f} ms", *ratios)
    peaks = {key: peak_mb(lambda of=model: run.sample(of, run.one_step)) for key, model in models.items()}  # type: ignore[misc]
    report("extra memory", *(f"{key} {peaks[key] - peaks['plain']:+.0f} MB" for key in models if key != "plain"))
    recording, recorder = recorded(run.model)
    ended = run.sample(recording, run.one_step)
    same = bool(torch.equal(ended, run.sample(run.model, run.one_step)))
    twice = bool(torch.equal(run.sample(run.model, run.one_step), run.sample(run.model, run.one_step)))
    report("latent", f"equal to the plain run: {same}", f"two plain runs equal: {twice}")
    report("masks of three phrases", *(f"{value:.3f} s" for value in masks_seconds(recorder.collect(ended))))
    if steps and not smoke:
        schedule = run.schedule(STEPS)

        def whole(model: Any) -> float:
            return seconds_of(lambda: run.sample(model, schedule))

        # The quickest of each: between repeats, a run varies by more than recording one of its steps takes.
        turns = [(whole(run.model), whole(recording)) for _ in range(4)]
        seconds_plain, seconds_recorded = (min(column) for column in zip(*turns, strict=True))
        ratio = seconds_recorded / seconds_plain
        report(f"{STEPS} steps", f"plain {seconds_plain:.2f} s", f"recorded {seconds_recorded:.2f} s = {ratio:.3f}x")


def masks_seconds(attention: Any) -> list[float]:
    """Seconds from a recording to masks on the CPU, as Mask From Tokens makes them: the first time and once more."""
    from goca_core.batches import Workplace
    from goca_core.capture.workplace import on_device
    from goca_core.pipeline import MaskRequest, as_scoring, make_masks

    def masks(place: Workplace) -> torch.Tensor:
        made = make_masks(as_scoring(attention, place.device), MaskRequest("word1\nword2 word3\nword4"), place=place)
        return made.masks.cpu()

    return [seconds_of(lambda: on_device(masks)) for _ in range(2)]


# -- the stages ---------------------------------------------------------------------------------------------------------


def identity(smoke: bool) -> None:
    """Latents of all tiny families with and without recording, in three precisions."""
    importlib.import_module("tests.host")  # before ComfyUI, which has a folder of this name as well
    boot()
    from goca_core.attention.global_map import aggregate
    from goca_core.attention.record import AttentionError

    tiny, helpers = (importlib.import_module(f"tests.host.{name}") for name in ("tiny", "helpers"))

    names = ["sd15", "sdxl", "flux", "sd3", "wan21", "qwen_image", "z_image"] if smoke else list(tiny.MODELS)
    dtypes = (torch.float16,) if smoke else (torch.float32, torch.float16, torch.bfloat16)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    counts, problems = {"equal": 0, "not repeatable": 0}, list[str]()
    for name in names:
        for dtype in dtypes:
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            try:
                built = tiny.build(name, dtype=dtype)
                work = helpers.job(built, steps=2)
                work.run(built.model)  # the first pass chooses algorithms
                plain, again = (work.run(built.model)["samples"] for _ in range(2))
                if not torch.equal(plain, again):
                    counts["not repeatable"] += 1
                    continue
                recording, recorder = recorded(built.model)
                out = work.run(recording)["samples"]
                same = torch.equal(out, plain) or bool(torch.isnan(plain).any())
                maps = aggregate(recorder.collect(out)).maps
                if same and torch.isfinite(maps).all():
                    counts["equal"] += 1
                else:
                    problems.append(f"{label}: latent differs by {(out - plain).abs().max():.3g}")
            except AttentionError as error:
                problems.append(f"{label}: {error}")
            except Exception as error:
                problems.append(f"{label}: {type(error).__name__}: {str(error)[:150]}")
    report("tiny families", *(f"{key}: {count}" for key, count in counts.items()), f"problems: {len(problems)}")
    for problem in problems:
        report("problem", problem)


def guidance(smoke: bool) -> None:
    """A step of Semantic CFG against one of plain guidance, at the published resolution of SD 1.5."""
    boot()
    from goca_core.capture.guidance.patch import guide
    from goca_core.guidance.semantic import REGION_RULES, Settings

    run = Sampled("sd15")

    def step(model: Any) -> float:
        return seconds_of(lambda: run.sample(model, schedule)) / (len(schedule) - 1)

    schedule = run.schedule(4 if smoke else STEPS // 2)
    models = {"plain": run.model} | {rule: guide(run.model, Settings(rule)) for rule in REGION_RULES}
    seconds = median_of({key: partial(step, model) for key, model in models.items()}, 3, 1)
    values = [f"{key} {value * 1e3:.1f} ms = {value / seconds['plain']:.2f}x" for key, value in seconds.items()]
    report(f"one of {len(schedule) - 1} steps, cfg 7", *values)
    plain = run.sample(run.model, schedule)
    for rule in REGION_RULES:
        report(
            "guided latent", f"{rule} differs from plain: {not torch.equal(run.sample(models[rule], schedule), plain)}"
        )
    peaks = {key: peak_mb(lambda of=model: run.sample(of, schedule)) for key, model in models.items()}  # type: ignore[misc]
    report("extra memory", *(f"{key} {peaks[key] - peaks['plain']:+.0f} MB" for key in models if key != "plain"))


def profile(smoke: bool, names: tuple[str, ...] = ("sd15", "sdxl", "flux")) -> None:
    """What a recorded forward pass does more than a plain one, by operator."""
    boot()
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    for name in names:
        run = Sampled(name)
        tables = []
        for model in (run.model, recorded(run.model)[0]):
            for _ in range(2):
                run.sample(model, run.one_step)
            with watch(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                run.sample(model, run.one_step)
            tables.append(
                {e.key: (e.count, e.self_cpu_time_total, e.self_device_time_total) for e in seen.key_averages()}
            )
        plain, more = tables
        extra = {
            key: tuple(a - b for a, b in zip(found, plain.get(key, (0, 0, 0)), strict=True))
            for key, found in more.items()
        }
        for title, column in (("CPU", 1), ("GPU", 2)):
            total = [sum(found[column] for found in table.values()) / 1e3 for table in tables]
            report(f"{name} profile", f"{title} plain {total[0]:.1f} ms, recorded {total[1]:.1f} ms")
            for key, found in sorted(extra.items(), key=lambda item: -item[1][column])[:22]:
                report(f"{name} profile", f"{title} {found[column] / 1e3:+.2f} ms, {found[0]:+d} times {key[:110]}")
        del run
        torch.cuda.empty_cache()


def server(smoke: bool) -> None:
    """The bundled model in ComfyUI's server, with the memory management that it chooses itself."""
    from scripts.comfy_server import ComfyServer

    file = api_file("Every step")
    graph = json.loads(file.read_text(encoding="utf-8"))
    with ComfyServer(arguments=("--front-end-root", str(_empty_page()))) as running:
        dynamic = "DynamicVRAM support detected and enabled" in running.tail(1000)
        first = running.run(graph)
        for node in graph.values():
            if "seed" in node["inputs"] and not isinstance(node["inputs"]["seed"], list):
                node["inputs"]["seed"] += 1
        second = running.run(graph)
        report("demo graph", f"dynamic loading: {dynamic}", f"{first.seconds:.1f} s, then {second.seconds:.1f} s")


def _empty_page() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="goca-page-"))
    (folder / "index.html").write_text("<html></html>", encoding="utf-8")
    return folder


STAGES = {
    "identity": Stage(identity, 70, True),
    "sd15": Stage(partial(full, "sd15"), 30, True),
    "sdxl": Stage(partial(full, "sdxl", finer=True), 45, True),
    "sdxl_4": Stage(partial(full, "sdxl", batch=4, steps=False), 40),
    "flux": Stage(partial(full, "flux", finer=True), 60),
    "wan": Stage(partial(full, "wan_1b", steps=False), 45),
    "qwen_image": Stage(partial(full, "qwen_image", steps=False), 60),
    "guidance": Stage(guidance, 40, True),
    "server": Stage(server, 60),
    "profile": Stage(profile, 60),
}
