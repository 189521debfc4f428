"""Regional prompts in one pass: what the same regional prompts give whose masks were made beforehand, and nothing else changed.

The reference records a plain run, cuts its masks, and samples again with a regional prompt from the same share of sampling
on. In one pass the same comes out, because until then both see the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import torch
from torch import Tensor

from goca_core.attention import AttentionError
from goca_core.capture.recorder import Recorder, Window, options_for, record
from goca_core.capture.regional_pass import RegionalPass
from goca_core.capture.regional_run import RegionalPlan
from goca_core.capture.tokens import length_of
from goca_core.pipeline import Cut, Request, cut, latent_frames
from goca_core.regional import compose, delayed, shares
from goca_core.resize import resize_bilinear
from goca_core.show import flatten

from . import tiny
from .helpers import Job, blocks_of, count_hooks, job, words_of

pytestmark = pytest.mark.usefixtures("host")

TEXT = "a red cat on grass under a sky of blue"
PLAN = RegionalPlan(Request("red cat\ngrass\nsky"), (("red cat", "one"), ("sky", "two")), start=0.5)
# Latents of a random model reach several hundreds.
CLOSE = {"atol": 2e-3, "rtol": 1e-4}


def speaking(built: tiny.Tiny, seed: int = 1, **extra: Any) -> Any:
    positive = built.conditioning(seed=seed, **extra)
    words = words_of(TEXT, length_of(*positive[0]))
    return [[tensor, {**own, "goca_words": words}] for tensor, own in positive]


def work(built: tiny.Tiny, batch: int = 1, size: tuple[int, int] | None = None, **options: Any) -> Job:
    return job(built, batch, size, **{"positive": speaking(built), "steps": 4, **options})


@dataclass
class Asked:
    """A regional pass over a tiny model."""

    built: tiny.Tiny
    plan: RegionalPlan = PLAN
    own: tuple[Any, ...] | None = None
    words: Any = None

    def prompts(self) -> list[Any]:
        if self.own is not None:
            return list(self.own)
        return [self.built.conditioning(seed=11), None, self.built.conditioning(seed=12)]

    def install(self, model: Any = None) -> tuple[Any, RegionalPass]:
        options = options_for(blocks_of(self.built.model), False, False, False, False)
        made = RegionalPass(self.plan, self.prompts(), options, self.words)
        return made.install(model or self.built.model), made

    def reference(self, run: Job) -> tuple[Tensor, Cut]:
        """Two passes: the picture and the masks."""
        recorder = Recorder(self.plan.window, options_for(blocks_of(self.built.model), False, False, False, False))
        plain = run.run(recorder.install(self.built.model))["samples"]
        record = recorder.collect(plain)
        found = cut(record, self.plan.request, self.words)
        parts = shares(flatten(found.masks), len(found.labels), None, self.plan.feather)
        if self.built.frames:
            # The host takes masks of a film as they are only at the latent's own size.
            parts = latent_frames(resize_bilinear(parts, tuple(plain.shape[-2:])), record)
            parts = parts.unflatten(0, (-1, record.frames)).movedim(1, 2)
        regional = compose(run.positive, self.prompts(), parts, self.plan.strength)
        positive = delayed(run.positive, regional, self.plan.start)
        return replace(run, positive=positive).run(self.built.model)["samples"], found


def same_as_two_passes(asked: Asked, run: Job) -> None:
    expected, found = asked.reference(run)
    model, made = asked.install()
    samples = run.run(model)["samples"]
    torch.testing.assert_close(samples, expected, **CLOSE)
    used, _ = made.masks(samples)
    assert torch.equal(used.masks, found.masks) and used.labels == found.labels
    plain = run.run(asked.built.model)["samples"]
    away = (samples - expected).abs().mean()
    assert (samples - plain).abs().mean() > max(1e-3, 20 * away), "the regions changed nothing, so nothing is shown"
    assert count_hooks(asked.built.model) == 0


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING):
        yield lambda: [r.getMessage() for r in caplog.records if "Regional Pass" in r.getMessage()]


# -- what is painted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced"])
def test_one_pass_is_what_two_passes_are(node: str) -> None:
    """Two pictures at once, of an odd size."""
    built = tiny.build("sd15")
    same_as_two_passes(Asked(built), work(built, 2, (17, 25), node=node))


@pytest.mark.parametrize(
    ("sampler", "plan"),
    [
        ("heun", PLAN),
        ("dpmpp_2m", replace(PLAN, strength=0.6, feather=24.0)),
        (
            "euler",
            replace(PLAN, start=0.3, looks=3, request=Request("grass\nred cat\nsky", theta=0.1, fill_holes=True)),
        ),
    ],
)
def test_samplers_and_options(sampler: str, plan: RegionalPlan) -> None:
    built = tiny.build("sd15")
    same_as_two_passes(Asked(built, plan), work(built, sampler=sampler))


@pytest.mark.parametrize("name", ["sdxl", "pixart_sigma", "hunyuan_dit", "flux", "qwen_image", "wan21"])
def test_families(name: str) -> None:
    """Also latents with an axis of frames: one of them, or those of a film, each with masks of its own."""
    built = tiny.build(name)
    same_as_two_passes(Asked(built), work(built, cfg=2.0))


def test_what_the_base_says_holds_for_the_regions() -> None:
    """A mask of its own, a time range, and a second prompt beside it."""
    built = tiny.build("sd15")
    base = speaking(built, mask=torch.full((1, 16, 24), 0.5), mask_strength=0.7) + speaking(
        built, seed=5, end_percent=0.8
    )
    same_as_two_passes(Asked(built), work(built, positive=base))


def test_the_same_words_for_two_phrases_are_one_region() -> None:
    built = tiny.build("sd15")
    prompt = built.conditioning(seed=11)
    same_as_two_passes(Asked(built, own=(prompt, prompt, None)), work(built))


def steps(model: Any, run: Job) -> list[Tensor]:
    """What each step predicts."""
    kept: list[Tensor] = []
    with torch.inference_mode():
        comfy.sample.sample(
            model, comfy.sample.prepare_noise(run.latent, run.seed), run.steps, run.cfg, run.sampler, run.scheduler,
            run.positive, run.negative, run.latent, denoise=1.0, disable_pbar=True, seed=run.seed,
            callback=lambda _step, denoised, *_rest: kept.append(denoised),
        )  # fmt: skip
    return kept


@pytest.mark.parametrize(("start", "alike"), [(0.5, 2), (0.0, 1)])
def test_before_the_start_nothing_changes_by_a_bit(start: float, alike: int) -> None:
    """With a start of 0 the first step is plain all the same, because masks are made of it."""
    built = tiny.build("sd15")
    run = work(built)
    model, _ = Asked(built, replace(PLAN, start=start)).install()
    found = [torch.equal(a, b) for a, b in zip(steps(built.model, run), steps(model, run), strict=True)]
    assert found == [True] * alike + [False] * (4 - alike)


def test_a_mask_of_the_whole_picture_is_the_plain_prompt() -> None:
    built = tiny.build("sd15")
    whole = RegionalPlan(Request("red cat", "", theta=-1.0), (), start=0.5)
    own, run = built.conditioning(seed=11), work(built)
    model, made = Asked(built, whole, (own,)).install()
    samples = run.run(model)["samples"]
    assert made.masks(samples)[0].masks.min() == 1
    plain = replace(run, positive=delayed(run.positive, own, 0.5))
    assert torch.equal(samples, plain.run(built.model)["samples"])


def test_empty_masks_are_the_base_alone() -> None:
    built = tiny.build("sd15")
    run = work(built)
    model, made = Asked(built, replace(PLAN, request=replace(PLAN.request, theta=1.0))).install()
    samples = run.run(model)["samples"]
    used, told = made.masks(samples)
    assert used.masks.max() == 0 and used.background.min() == 1 and "red cat (0.0%): one" in told
    assert torch.equal(samples, run.run(built.model)["samples"])


def test_one_empty_mask_costs_no_call() -> None:
    """Only the first of the phrases has a place; the prompt of the other is not asked for."""
    built = tiny.build("sd15")
    model, made = Asked(built, replace(PLAN, request=Request("red cat\nsky", "", theta=-1.0)), (
        built.conditioning(seed=11), built.conditioning(seed=12)
    )).install()  # fmt: skip
    rows: list[int] = []
    network = built.model.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda _module, args: rows.append(args[0].shape[0]))
    try:
        run = work(built, cfg=1.0)
        samples = run.run(model)["samples"]
    finally:
        handle.remove()
    covered = int((made.masks(samples)[0].masks.amax((2, 3)) > 0).sum())
    assert sum(rows) == 2 + 2 * covered


# -- beside other nodes -----------------------------------------------------------------------------------------------


def test_the_model_stays_as_it_was_and_passes_do_not_add_up() -> None:
    built = tiny.build("sd15")
    run = work(built)
    plain = run.run(built.model)["samples"]
    once, made = Asked(built).install()
    assert all(not keys for keys in built.model.wrappers.values())
    twice, other = Asked(built).install(once)
    samples = run.run(twice)["samples"]
    assert torch.equal(samples, run.run(once)["samples"])
    assert other.masks(samples)[0].labels == ("red cat", "grass", "sky")
    assert made._active == other._active == []
    assert torch.equal(run.run(built.model)["samples"], plain)
    # The graph's own conditioning is as it was, too.
    assert len(run.positive) == 1 and "mask" not in run.positive[0][1]


@pytest.mark.parametrize("first", [True, False], ids=["recorder first", "pass first"])
def test_a_recorder_beside_it(first: bool) -> None:
    built = tiny.build("sd15")
    run, window = work(built), Window(False, 0.0, 0.4, 9)
    alone, recorder = record(built.model, window)
    expected = recorder.collect(run.run(alone)["samples"])
    if first:
        both, beside = record(built.model, window)
        both, _ = Asked(built).install(both)
    else:
        both, beside = record(Asked(built).install()[0], window)
    samples = run.run(both)["samples"]
    assert torch.equal(samples, run.run(Asked(built).install()[0])["samples"])
    found = beside.collect(samples)
    for own, theirs in zip(found.layers, expected.layers, strict=True):
        assert all(torch.equal(own.maps[name], theirs.maps[name]) for name in own.maps)


def test_samplers_may_share_it() -> None:
    built = tiny.build("sd15")
    model, made = Asked(built).install()
    latents = [work(built, seed=seed).run(model)["samples"] for seed in (1, 2)]
    masks = [made.masks(latent)[0].masks for latent in latents]
    assert not torch.equal(*masks)
    # The host may have forgotten the node and still remember the sampler's result.
    assert torch.equal(Asked(built).install()[1].masks(latents[0])[0].masks, masks[0])
    with pytest.raises(AttentionError, match="not made by a sampler with this regional pass"):
        made.masks(torch.zeros(1, 4, 16, 24))
    with pytest.raises(AttentionError, match="not made by a sampler with this regional pass"):
        Asked(built, replace(PLAN, start=0.6)).install()[1].masks(latents[0])


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_word_that_is_not_there_is_told_before_sampling() -> None:
    built = tiny.build("sd15")
    calls: list[int] = []
    handle = built.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    model, made = Asked(built, replace(PLAN, request=Request("dog\ngrass\nsky"))).install()
    try:
        with pytest.raises(ValueError, match="dog"):
            work(built).run(model)
    finally:
        handle.remove()
    assert not calls and made._active == [] and count_hooks(built.model) == 0


def test_a_prompt_without_words_is_told_and_may_get_them() -> None:
    built = tiny.build("sd15")
    silent = work(built, positive=built.conditioning(seed=1))
    with pytest.raises(AttentionError, match=r"Encode Prompt \(GoCA\)"):
        silent.run(Asked(built).install()[0])
    model, _ = Asked(built, words=words_of(TEXT)).install()
    assert torch.equal(silent.run(model)["samples"], work(built).run(Asked(built).install()[0])["samples"])
    with pytest.raises(ValueError, match="tokens"):
        silent.run(Asked(built, words=words_of(TEXT, 154)).install()[0])


def test_a_prompt_for_a_part_of_the_picture_stays_plain(warnings: Callable[[], list[str]]) -> None:
    built = tiny.build("sd15")
    run = work(built, positive=speaking(built, area=(8, 8, 0, 4)))
    model, made = Asked(built).install()
    samples = run.run(model)["samples"]
    assert torch.equal(samples, run.run(built.model)["samples"])
    with pytest.raises(AttentionError, match="limited to an area"):
        made.masks(samples)


def test_trouble_costs_the_regions_but_never_the_picture(
    warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tiny.build("sd15")
    run = work(built)
    model, made = Asked(built).install()

    def fail(*_args: Any) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr("goca_core.capture.regional_run.cut", fail)
    samples = run.run(model)["samples"]
    assert torch.equal(samples, run.run(built.model)["samples"])
    assert len(warnings()) == 1 and "no memory is left" in warnings()[0]
    with pytest.raises(AttentionError, match="with the base prompt alone: no memory is left"):
        made.masks(samples)


def test_steps_that_are_not_seen_put_off_the_masks() -> None:
    """A cache skips the model in the two steps that would have been recorded; the next one is."""
    built = tiny.build("sd15")
    run = work(built, steps=6)
    model, made = Asked(built).install()
    calls: list[int] = []

    def skip(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return x * 0.5 if len(calls) <= 3 else executor(x, *args, **kwargs)

    # Before the other wrappers, as caches are that come first in the graph.
    model.wrappers["apply_model"] = {"cache": [skip], **model.wrappers["apply_model"]}
    samples = run.run(model)["samples"]
    assert made.masks(samples)[0].masks.mean() > 0


def test_a_run_of_one_step_has_no_masks_to_use() -> None:
    built = tiny.build("sd15")
    run = work(built, steps=1)
    model, made = Asked(built).install()
    samples = run.run(model)["samples"]
    assert torch.equal(samples, run.run(built.model)["samples"])
    with pytest.raises(AttentionError, match="let it run more steps"):
        made.masks(samples)


@pytest.mark.parametrize("at", [1, 3], ids=["while recording", "among regions"])
def test_an_interrupt_leaves_nothing_behind(at: int) -> None:
    built = tiny.build("sd15")
    run = work(built)
    model, made = Asked(built).install()
    expected = run.run(model)["samples"]
    calls: list[int] = []

    def stop(_module: Any, _args: Any) -> None:
        calls.append(1)
        if len(calls) > at:
            raise comfy.model_management.InterruptProcessingException

    handle = built.model.model.diffusion_model.register_forward_pre_hook(stop)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run.run(model)
    finally:
        handle.remove()
    assert count_hooks(built.model) == 0 and made._active == []
    assert torch.equal(run.run(model)["samples"], expected)


# -- the nodes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(pack: ModuleType, host: SimpleNamespace) -> SimpleNamespace:
    nodes = host.nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        model, clip, vae = nodes["GOCA_DemoModel"].execute().result
    return SimpleNamespace(model=model, clip=clip, vae=vae, nodes=nodes)


def test_the_nodes(demo: SimpleNamespace) -> None:
    positive, negative = (
        demo.nodes["GOCA_EncodePrompt"].execute(demo.clip, text).result[0]
        for text in ("a red circle and a blue square on grass", "")
    )
    ask = "red circle\nblue square", "red circle: a green circle"
    with torch.inference_mode():
        model, regions = demo.nodes["GOCA_RegionalPass"].execute(demo.model, demo.clip, *ask, 0.3, theta=-0.1).result
        run = Job(positive, negative, torch.zeros(2, demo.model.model.latent_format.latent_channels, 32, 24))
        latent = run.run(model)
        done = demo.nodes["GOCA_CollectMasks"].execute(regions, latent)
    masks, background, labels = done.result
    assert labels == "red circle\nblue square"
    assert masks.shape[0] == 4 and background.shape == (2, *masks.shape[1:])
    assert torch.equal(masks.unflatten(0, (2, 2)).sum(1) + background, torch.ones_like(background))
    told = done.ui.as_dict()["text"][0].splitlines()
    assert told[0].startswith("red circle (") and told[0].endswith("a green circle")
    assert told[1].endswith("the base prompt") and told[2].startswith("everything else")


@pytest.mark.parametrize(
    ("phrases", "prompts", "message"),
    [
        ("", "a cat", "No phrase was given"),
        ("circle\ngrass", "dog: a cat", '"dog" is none of the masks, which are: circle, grass'),
        ("circle\ngrass", "a\nb\nc", "3 prompts for 2 masks"),
        ("circle\nCircle", "a", "is there twice"),
    ],
)
def test_what_does_not_fit_is_one_sentence(demo: SimpleNamespace, phrases: str, prompts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.nodes["GOCA_RegionalPass"].execute(demo.model, demo.clip, phrases, prompts, 0.3)


def test_a_missing_clip_is_said(demo: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="clip input is invalid"):
        demo.nodes["GOCA_RegionalPass"].execute(demo.model, None, "circle", "a", 0.3)
