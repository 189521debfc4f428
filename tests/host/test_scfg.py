"""Semantic guidance in ComfyUI's samplers: exactly the formula, and exactly nothing where it should be nothing."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from goca_core import guidance, refine, rescale
from goca_core import tensors as resize
from goca_core.capture.conditioning import length_of
from goca_core.capture.guidance.patch import guide
from goca_core.capture.guidance.run import GuidanceRun
from goca_core.guidance.semantic import REGION_RULES, Settings
from goca_core.words.build import Token, build
from goca_core.words.word_map import WordMap

from . import tiny
from .dense import dense_global, dense_map, dense_resize, dense_scores
from .device import DEVICE
from .guided import PLAIN, TEXT, Notes, push, rate_of, speaking, work
from .helpers import count_hooks, job, plain
from .probe import Evaluation, Probe

pytestmark = pytest.mark.usefixtures("host")

DEFAULT_HEAD, DEFAULT_LAYER = "dot-product w/o clamp", "dot-product similarity"


@pytest.fixture(params=REGION_RULES)
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- nothing where nothing is to be done ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_a_rate_of_one_is_plain_guidance(rule: str, sampler: str) -> None:
    built = tiny.build("sd15")
    run = work(built, 2, sampler=sampler)
    guided = guide(built.model, Settings(rule, **PLAIN))
    assert torch.equal(run.run(guided)["samples"], plain(built.model, run))


def test_without_a_negative_pass_nothing_is_weighed(rule: str) -> None:
    built = tiny.build("sd15")
    run = work(built, cfg=1.0)
    assert torch.equal(run.run(guide(built.model, Settings(rule)))["samples"], plain(built.model, run))


def test_outside_its_window_guidance_is_plain(rule: str) -> None:
    built = tiny.build("sd15")
    notes = Notes()
    work(built, steps=4).run(notes.on(guide(built.model, Settings(rule), 0.5, 1.0)))
    alike = [torch.equal(a["denoised"], a["uncond_denoised"] + push(a) * a["cond_scale"]) for a in notes.args]
    assert alike == [True, True, False, False]


@pytest.mark.parametrize("every", [2, 3])
def test_regions_can_be_used_in_several_evaluations(rule: str, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    run = work(built, 2, (17, 25), steps=5)
    each, several, made = Notes(), Notes(), list[int]()
    run.run(each.on(guide(built.model, Settings(rule))))
    found = GuidanceRun._new_regions
    monkeypatch.setattr(GuidanceRun, "_new_regions", lambda *args: made.append(1) or found(*args))
    run.run(several.on(guide(built.model, Settings(rule, renew_every=every))))
    assert len(made) == -(-5 // every)
    assert torch.equal(each.args[0]["denoised"], several.args[0]["denoised"]), (
        "the first evaluation is the published one"
    )
    rates = [rate_of(args) for args in several.args]
    assert all(rate.std() > 0.01 for rate in rates), "the regions are used in every evaluation"
    assert count_hooks(built.model) == 0
    with pytest.raises(ValueError, match="use 1 or more"):
        Settings(rule, renew_every=0)


# -- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sd20", "sdxl"])
def test_each_evaluation_has_its_own_rate(rule: str, name: str) -> None:
    built = tiny.build(name)
    notes = Notes()
    run = work(built, 2, (17, 25), sampler="heun", steps=3)
    run.run(notes.on(guide(built.model, Settings(rule))))
    assert len(notes.args) == 5, "heun evaluates twice at every step but the last"
    for args in notes.args:
        rate = rate_of(args)
        torch.testing.assert_close(
            args["denoised"], args["uncond_denoised"] + 5.0 * rate[:, None] * push(args), rtol=1e-3, atol=2e-2
        )
        assert rate.min() > 0.79 and rate.max() < 3.01
        assert rate.std() > 0.01, "the rate is flat, so nothing was weighed"
    assert not torch.allclose(rate_of(notes.args[0]), rate_of(notes.args[-1]), atol=1e-2)


def dense_maps(call: Evaluation, reference: str) -> Tensor:
    maps = {name: dense_map(seen, DEFAULT_HEAD, 77) for name, seen in call.cross.items()}
    return dense_global(maps, dense_scores(call, reference, DEFAULT_LAYER), call.grids)


def test_regions_are_those_of_the_method_written_out_densely() -> None:
    """The rate of the first evaluation, from attention captured apart: other code for all of recording, in double
    precision, for the positive and the negative half."""
    built = tiny.build("sd15")
    run = work(built, 2)
    probe = Probe(built.model)
    call = probe.run(run)[0]
    assert call.chunks == [1, 0]
    negative, positive = call.rows(0), call.rows(1)
    spoken = list(range(1, 6))
    maps = dense_maps(positive, probe.plan.reference)
    scores = rescale.rescale(maps, [[t] for t in range(6)], spoken, "sum-1 rescaling + per-token renorm+")
    background = dense_maps(negative, probe.plan.reference)[:, :1]
    own = [dense_resize(positive.own[n].chances().mean(1), positive.grids[n], (16, 24)) for n in probe.plan.affinity]
    affinity = torch.stack(own).mean(0)
    masks = guidance.regions(refine.propagate(scores, affinity, 2))
    fore = guidance.foreground(refine.propagate(background, affinity, 2)[:, 0])
    notes = Notes()
    run.run(notes.on(guide(built.model, Settings())))
    args = notes.args[0]
    expected = guidance.rate_map(args["cond_denoised"], args["uncond_denoised"], masks, fore, 5.0)
    # A pixel at which two words are equal up to rounding may go either way, and colours its neighbours.
    same = (rate_of(args) - expected).abs() < 5e-3
    assert same.float().mean() > 0.97


def test_published_regions_are_those_of_the_coarse_layers() -> None:
    built = tiny.build("sd15_full")
    run = work(built, 1, (32, 48))
    probe = Probe(built.model)
    call = probe.run(run)[0]
    used = [b.name for b in probe.plan.blocks if b.level in (2, 3)]
    assert len(used) == 6

    def smoothed(place: int) -> list[Tensor]:
        found, rows = [], call.rows(place)
        for name in used:
            seen, own = rows.cross[name], rows.own[name].chances().mean(1)
            spread = (own + 3 * own @ own) / 4 @ seen.chances().mean(1)
            image = spread.mT.unflatten(-1, call.grids[name])
            found.append(resize.gaussian_blur(resize.resize_bilinear(image, call.grids[used[0]]), 3, 0.5**0.5))
        return found

    def mean(maps: list[Tensor]) -> Tensor:
        return torch.stack([m / m.mean((2, 3), keepdim=True) for m in maps]).mean(0)

    masks = guidance.regions(mean(smoothed(1)))
    versus = mean([torch.stack((m[:, 0], m[:, 1:].sum(1)), 1) for m in smoothed(0)])
    notes = Notes()
    run.run(notes.on(guide(built.model, Settings("S-CFG"))))
    args = notes.args[0]
    fore = (versus[:, 1] > versus[:, 0]).float()
    expected = guidance.rate_map(args["cond_denoised"], args["uncond_denoised"], masks, fore, 5.0)
    assert ((rate_of(args) - expected).abs() < 5e-3).float().mean() > 0.97


def test_samples_are_apart(rule: str) -> None:
    built = tiny.build("sd15")
    start = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(4)) * 10

    def first(latent: Tensor) -> Tensor:
        notes = Notes()
        one = work(built, latent.shape[0], positive=speaking(built))
        with torch.inference_mode():
            comfy.samplers.sample(
                notes.on(guide(built.model, Settings(rule))), latent, one.positive, one.negative, 5.0, DEVICE,
                comfy.samplers.ksampler("euler"), torch.tensor([10.0, 5.0]), latent_image=torch.zeros_like(latent),
            )  # fmt: skip
        return rate_of(notes.args[0])

    both = first(start)
    for sample in range(2):
        assert ((both[[sample]] - first(start[[sample]])).abs() < 5e-3).float().mean() > 0.97
    assert (both[0] - both[1]).abs().mean() > 0.01


FAMILIES = ("pixart_sigma", "hunyuan_dit", "flux", "sd3", "qwen_image", "z_image")


def ended(text: str, length: int) -> WordMap:
    """The word map of a text encoder without a start token."""
    tokens, at = [], 0
    for number, word in enumerate(text.split()):
        at = text.index(word, at)
        tokens.append(Token(number, number, word, "word", at, at + len(word)))
        at += len(word)
    end = len(tokens)
    tokens += [Token(place, 1, "</s>", "pad" if place > end else "end") for place in range(end, length)]
    return build(text, text, "t5xxl", length, tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_beside_the_unet(rule: str, name: str, warned: Callable[[str], list[str]]) -> None:
    """Those that hide their attention, those of joint attention, latents with an axis of frames. None of their prompts
    has a start token here."""
    built = tiny.build(name)
    positive = built.conditioning(seed=1)
    positive[0][1]["goca_words"] = ended(TEXT, length_of(*positive[0]))
    run = job(built, 2, positive=positive, cfg=4.0, steps=2)
    notes = Notes()
    run.run(notes.on(guide(built.model, Settings(rule))))
    # The first step: in the last one the prompts hardly differ any more, and rounding is all that there is to see.
    rate = rate_of(notes.args[0])
    assert rate.shape == (2, *run.latent.shape[-2:])
    assert rate.min() > 0.79 and rate.max() < 3.01 and rate.std() > 1e-3
    assert not warned("Semantic CFG")
    assert torch.equal(run.run(guide(built.model, Settings(rule, **PLAIN)))["samples"], plain(built.model, run))
    assert count_hooks(built.model) == 0
