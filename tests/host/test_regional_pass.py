"""Regional prompts in one pass: what the same regional prompts give whose masks were made beforehand, and nothing else changed.

The reference records a plain run, cuts its masks, and samples again with a regional prompt from the same share of sampling
on. In one pass the same comes out, because until then both see the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.capture.recorder import Window, record
from goca_core.capture.regional.run import RegionalPlan
from goca_core.pipeline import MaskRequest
from goca_core.regional import delayed

from . import tiny
from .device import repeated
from .helpers import Job, count_hooks, plain
from .passes import CLOSE, PLAN, Asked, speaking, work

pytestmark = pytest.mark.usefixtures("host")


def same_as_two_passes(asked: Asked, run: Job) -> None:
    expected, found = asked.reference(run)
    model, made = asked.install()
    samples = run.run(model)["samples"]
    torch.testing.assert_close(samples, expected, **CLOSE)
    used, _ = made.masks(samples)
    assert torch.equal(used.masks, found.masks) and used.labels == found.labels
    away = (samples - expected).abs().mean()
    unchanged = run.run(asked.built.model)["samples"]
    assert (samples - unchanged).abs().mean() > max(1e-3, 20 * away), "the regions changed nothing, so nothing is shown"
    assert count_hooks(asked.built.model) == 0


# -- what is sampled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced"])
def test_one_pass_is_what_two_passes_are(node: str) -> None:
    """Two images at once, of an odd size."""
    built = tiny.build("sd15")
    same_as_two_passes(Asked(built), work(built, 2, (17, 25), node=node))


@pytest.mark.parametrize(
    ("sampler", "plan"),
    [
        ("heun", PLAN),
        ("dpmpp_2m", replace(PLAN, strength=0.6, feather=24.0)),
        (
            "euler",
            replace(
                PLAN, start=0.3, evaluations=3, request=MaskRequest("grass\nred cat\nsky", theta=0.1, fill_holes=True)
            ),
        ),
    ],
)
def test_samplers_and_options(sampler: str, plan: RegionalPlan) -> None:
    built = tiny.build("sd15")
    same_as_two_passes(Asked(built, plan), work(built, sampler=sampler))


@pytest.mark.parametrize("name", ["sdxl", "pixart_sigma", "hunyuan_dit", "flux", "qwen_image", "wan21"])
def test_families(name: str) -> None:
    """Also latents with an axis of frames: one of them, or those of a video, each with masks of its own."""
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


def steps(model: Any, run: Job) -> Tensor:
    """What each step predicts."""
    kept: list[Tensor] = []
    with torch.inference_mode():
        comfy.sample.sample(
            model, comfy.sample.prepare_noise(run.latent, run.seed), run.steps, run.cfg, run.sampler, run.scheduler,
            run.positive, run.negative, run.latent, denoise=1.0, disable_pbar=True, seed=run.seed,
            callback=lambda _step, denoised, *_rest: kept.append(denoised),
        )  # fmt: skip
    return torch.stack(kept)


@pytest.mark.parametrize(("start", "alike"), [(0.5, 2), (0.0, 1)])
def test_before_the_start_nothing_changes_by_a_bit(start: float, alike: int) -> None:
    """With a start of 0 the first step is plain all the same, because masks are made of it."""
    built = tiny.build("sd15")
    run = work(built)
    model, _ = Asked(built, replace(PLAN, start=start)).install()
    expected = repeated(lambda: steps(built.model, run))
    found = [torch.equal(a, b) for a, b in zip(expected, steps(model, run), strict=True)]
    assert found == [True] * alike + [False] * (4 - alike)


def test_a_mask_of_the_whole_image_is_the_plain_prompt() -> None:
    built = tiny.build("sd15")
    whole = RegionalPlan(MaskRequest("red cat", "", rule="offset", theta=-1.0), (), start=0.5)
    own, run = built.conditioning(seed=11), work(built)
    model, made = Asked(built, whole, (own,)).install()
    expected = plain(built.model, replace(run, positive=delayed(run.positive, own, 0.5)))
    samples = run.run(model)["samples"]
    assert made.masks(samples)[0].masks.min() == 1
    assert torch.equal(samples, expected)


def test_empty_masks_are_the_base_alone() -> None:
    built = tiny.build("sd15")
    run = work(built)
    model, made = Asked(built, replace(PLAN, request=replace(PLAN.request, rule="offset", theta=1.0))).install()
    samples = run.run(model)["samples"]
    used, told = made.masks(samples)
    assert used.masks.max() == 0 and used.background.min() == 1 and "red cat (0.0%): one" in told
    assert torch.equal(samples, plain(built.model, run))


def test_one_empty_mask_costs_no_call() -> None:
    """Only the first of the phrases has a place; the prompt of the other is not asked for."""
    built = tiny.build("sd15")
    model, made = Asked(built, replace(PLAN, request=MaskRequest("red cat\nsky", "", rule="offset", theta=-1.0)), (
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
    expected = plain(built.model, run)
    once, made = Asked(built).install()
    assert all(not keys for keys in built.model.wrappers.values())
    twice, other = Asked(built).install(once)
    samples = run.run(twice)["samples"]
    assert torch.equal(samples, plain(once, run))
    assert other.masks(samples)[0].labels == ("red cat", "grass", "sky")
    assert made._active == other._active == []
    assert torch.equal(run.run(built.model)["samples"], expected)
    # The graph's own conditioning is as it was, too.
    assert len(run.positive) == 1 and "mask" not in run.positive[0][1]


@pytest.mark.parametrize("first", [True, False], ids=["recorder first", "pass first"])
def test_a_recorder_beside_it(first: bool) -> None:
    built = tiny.build("sd15")
    run, window = work(built), Window(False, 0.0, 0.4, 9)
    alone, recorder = record(built.model, window)
    plain(Asked(built).install()[0], run)
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
    # ComfyUI may have forgotten the node and still remember the sampler's result.
    assert torch.equal(Asked(built).install()[1].masks(latents[0])[0].masks, masks[0])
    with pytest.raises(AttentionError, match="not made by a sampler with this regional pass"):
        made.masks(torch.zeros(1, 4, 16, 24))
    with pytest.raises(AttentionError, match="not made by a sampler with this regional pass"):
        Asked(built, replace(PLAN, start=0.6)).install()[1].masks(latents[0])
