"""Semantic guidance in the host's samplers: exactly the formula, exactly nothing where it should be nothing, no traces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from goca_core import guidance, refine, rescale, resize
from goca_core.attention import AttentionError
from goca_core.capture.family import UnknownFamily
from goca_core.capture.recorder import Window, record
from goca_core.capture.scfg import KEY, SemanticGuidance, guide
from goca_core.capture.tokens import length_of
from goca_core.regional import compose, shares
from goca_core.semantic import REGION_RULES, Settings
from goca_core.wordbuild import Token, build
from goca_core.words import WordMap

from . import tiny
from .dense import dense_global, dense_map, dense_resize, dense_scores
from .helpers import Job, count_hooks, global_map, job, words_of
from .probe import Evaluation, Probe

pytestmark = pytest.mark.usefixtures("host")

TEXT = "a red cat on grass"
DEFAULT_HEAD, DEFAULT_LAYER = "dot-product w/o clamp", "dot-product similarity"
PLAIN = {"minimum": 1.0, "maximum": 1.0}


@pytest.fixture(params=REGION_RULES)
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING):
        yield lambda: [r.getMessage() for r in caplog.records if "Semantic CFG" in r.getMessage()]


def speaking(built: tiny.Tiny, seed: int = 1, text: str = TEXT, **extra: Any) -> Any:
    return built.conditioning(seed=seed, goca_words=words_of(text), **extra)


def work(built: tiny.Tiny, batch: int = 1, size: tuple[int, int] = (16, 24), **options: Any) -> Job:
    return job(built, batch, size, **{"positive": speaking(built), "cfg": 5.0, "steps": 2, **options})


class Notes:
    """A post-CFG function that only takes notes."""

    def __init__(self) -> None:
        self.args: list[dict[str, Any]] = []

    def __call__(self, args: dict[str, Any]) -> Tensor:
        self.args.append(dict(args))
        denoised: Tensor = args["denoised"]
        return denoised

    def on(self, model: Any) -> Any:
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(self)
        return patched


def push(args: dict[str, Any]) -> Tensor:
    difference: Tensor = args["cond_denoised"] - args["uncond_denoised"]
    return difference


def rate_of(args: dict[str, Any]) -> Tensor:
    """The rate [B, h, w] that guidance had, read from what came out: denoised = u + w r (c - u). 1 where nothing pushes."""
    delta = push(args).flatten(1, -3)  # some models have an axis of one frame before rows and columns
    pushed = (args["denoised"] - args["uncond_denoised"]).flatten(1, -3)
    found = (pushed * delta).sum(1) / args["cond_scale"]
    size = delta.square().sum(1)
    return torch.where(size > 0, found / size.clamp_min(1e-30), 1.0)


# -- nothing where nothing is to be done ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_a_rate_of_one_is_plain_guidance(rule: str, sampler: str) -> None:
    built = tiny.build("sd15")
    run = work(built, 2, sampler=sampler)
    guided = guide(built.model, Settings(rule, **PLAIN))
    assert torch.equal(run.run(guided)["samples"], run.run(built.model)["samples"])


def test_without_a_negative_pass_nothing_is_weighed(rule: str) -> None:
    built = tiny.build("sd15")
    run = work(built, cfg=1.0)
    assert torch.equal(run.run(guide(built.model, Settings(rule)))["samples"], run.run(built.model)["samples"])


def test_outside_its_window_guidance_is_plain(rule: str) -> None:
    built = tiny.build("sd15")
    notes = Notes()
    work(built, steps=4).run(notes.on(guide(built.model, Settings(rule), 0.5, 1.0)))
    plain = [torch.equal(a["denoised"], a["uncond_denoised"] + push(a) * a["cond_scale"]) for a in notes.args]
    assert plain == [True, True, False, False]


# -- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sd20", "sdxl"])
def test_each_evaluation_has_its_own_rate(rule: str, name: str) -> None:
    built = tiny.build(name)
    notes = Notes()
    run = work(built, 2, (17, 25), sampler="heun", steps=3)
    run.run(notes.on(guide(built.model, Settings(rule))))
    assert len(notes.args) == 5, "heun looks twice at every step but the last"
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
    behind = dense_maps(negative, probe.plan.reference)[:, :1]
    own = [dense_resize(positive.own[n].chances().mean(1), positive.grids[n], (16, 24)) for n in probe.plan.affinity]
    affinity = torch.stack(own).mean(0)
    masks = guidance.regions(refine.propagate(scores, affinity, 2))
    fore = guidance.foreground(refine.propagate(behind, affinity, 2)[:, 0])
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
                notes.on(guide(built.model, Settings(rule))), latent, one.positive, one.negative, 5.0, tiny.CPU,
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
def test_families_beside_the_unet(rule: str, name: str, warnings: Callable[[], list[str]]) -> None:
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
    assert not warnings()
    plain = run.run(built.model)["samples"]
    assert torch.equal(run.run(guide(built.model, Settings(rule, **PLAIN)))["samples"], plain)
    assert count_hooks(built.model) == 0


# -- with other nodes -------------------------------------------------------------------------------------------------


def test_it_adds_to_what_other_post_cfg_functions_did(rule: str) -> None:
    built = tiny.build("sd15")
    changed = built.model.clone()
    changed.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.5 + 1)
    plain, added = Notes(), Notes()
    work(built).run(plain.on(guide(built.model, Settings(rule))))
    work(built).run(added.on(guide(changed, Settings(rule))))
    first, second = plain.args[0], added.args[0]
    weighed = first["denoised"] - (first["uncond_denoised"] + 5.0 * push(first))
    before = (second["uncond_denoised"] + 5.0 * push(second)) * 0.5 + 1
    torch.testing.assert_close(second["denoised"], before + weighed, rtol=1e-4, atol=1e-2)


def test_the_single_cfg_slot_stays_free(rule: str) -> None:
    built = tiny.build("sd15")
    rescaled = built.model.clone()
    rescaled.set_model_sampler_cfg_function(lambda args: args["uncond"] + 2.0 * (args["cond"] - args["uncond"]))
    guided = guide(rescaled, Settings(rule))
    assert guided.model_options["sampler_cfg_function"] is rescaled.model_options["sampler_cfg_function"]
    one, other = work(built).run(guided)["samples"], work(built).run(rescaled)["samples"]
    assert torch.isfinite(one).all() and not torch.equal(one, other)


def test_recording_and_guiding_at_once(rule: str) -> None:
    """Either first; the picture is the guided one, bit for bit, and the recording that of the same run."""
    built = tiny.build("sd15")
    run = work(built, 2)
    alone = run.run(guide(built.model, Settings(rule)))["samples"]
    window = Window(False, 0.0, 0.01, 1)
    plain, own = record(built.model, window)
    expected = global_map(own, run.run(plain)["samples"])
    recording, recorder = record(built.model, window)
    both = guide(recording, Settings(rule))
    later, last = record(guide(built.model, Settings(rule)), window)
    for model, kept in ((both, recorder), (later, last)):
        samples = run.run(model)["samples"]
        assert torch.equal(samples, alone)
        # The first step is the same with and without guidance.
        assert torch.equal(global_map(kept, samples), expected)
    assert count_hooks(built.model) == 0


def test_a_second_one_takes_the_place_of_the_first() -> None:
    built = tiny.build("sd15")
    once = guide(built.model, Settings("S-CFG"))
    twice = guide(guide(built.model, Settings("GoCA")), Settings("S-CFG"))
    functions = twice.model_options["sampler_post_cfg_function"]
    assert [type(function) for function in functions] == [SemanticGuidance]
    assert all(len(keys[KEY]) == 1 for keys in twice.wrappers.values() if KEY in keys)
    assert torch.equal(work(built).run(twice)["samples"], work(built).run(once)["samples"])


def test_extra_passes_of_guidance_are_not_looked_at(rule: str) -> None:
    """Perturbed-attention guidance before it lets the model run once more with its attention switched off."""

    def again(args: dict[str, Any]) -> Tensor:
        options = args["model_options"].copy()
        options["transformer_options"] = {
            **options.get("transformer_options", {}),
            "patches_replace": {"attn1": {("middle", 0, 0): lambda q, k, v, extra: v}},
        }
        comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        denoised: Tensor = args["denoised"]
        return denoised

    built = tiny.build("sd15")
    perturbed = built.model.clone()
    perturbed.set_model_sampler_post_cfg_function(again)
    run = work(built)
    assert torch.equal(
        run.run(guide(perturbed, Settings(rule)))["samples"], run.run(guide(built.model, Settings(rule)))["samples"]
    )


def test_halves_in_calls_of_their_own(rule: str) -> None:
    built, apart = tiny.build("sd15"), tiny.build("sd15")
    apart.model.model.memory_required = lambda *_args, **_kwargs: 1e30
    notes = [Notes(), Notes()]
    for taken, one in zip(notes, (built, apart), strict=True):
        work(one).run(taken.on(guide(one.model, Settings(rule))))
    same = (rate_of(notes[0].args[0]) - rate_of(notes[1].args[0])).abs() < 5e-3
    assert same.float().mean() > 0.97


def test_regional_prompts_have_regions_of_their_own(rule: str) -> None:
    built = tiny.build("sd15")
    mask = torch.zeros(1, 16, 24)
    mask[..., :11] = 1
    positive = compose(speaking(built), [speaking(built, 7, "two blue dogs")], shares(mask, 1))
    rates = []
    for prompt in (positive, speaking(built)):
        notes = Notes()
        work(built, positive=prompt).run(notes.on(guide(built.model, Settings(rule))))
        rates.append(rate_of(notes.args[0]))
    assert torch.isfinite(rates[0]).all() and rates[0].std() > 0.01
    assert not torch.allclose(*rates, atol=1e-2)


def test_words_from_prompt_words(host: SimpleNamespace) -> None:
    built = tiny.build("sd15")
    silent = work(built, positive=built.conditioning(seed=1))
    heard = silent.run(guide(built.model, Settings(), words=words_of(TEXT)))["samples"]
    assert torch.equal(heard, work(built).run(guide(built.model, Settings()))["samples"])


# -- what cannot work -------------------------------------------------------------------------------------------------


def test_words_are_asked_for_before_anything_is_sampled() -> None:
    built = tiny.build("sd15")
    calls: list[Any] = []
    handle = built.model.model.diffusion_model.register_forward_pre_hook(lambda *args: calls.append(args))
    try:
        for words in (None, words_of(TEXT, length=154)):
            guided = guide(built.model, Settings(), words=words)
            with pytest.raises(
                AttentionError, match=r"encode the positive prompt with Encode Prompt.*S-CFG's regions\.$"
            ):
                work(built, positive=built.conditioning(seed=1)).run(guided)
    finally:
        handle.remove()
    assert not calls
    # The published regions need no words.
    assert torch.isfinite(
        work(built, positive=built.conditioning(seed=1)).run(guide(built.model, Settings("S-CFG")))["samples"]
    ).all()


def test_a_picture_too_large_for_the_published_regions() -> None:
    built = tiny.build("sd15")  # two levels only, so both of them count as coarse
    with pytest.raises(AttentionError, match="at most 1024 tokens"):
        work(built, size=(72, 72)).run(guide(built.model, Settings("S-CFG")))


def test_an_empty_prompt_is_plain_guidance() -> None:
    built = tiny.build("sd15")
    run = work(built, positive=speaking(built, text=""))
    assert torch.equal(run.run(guide(built.model, Settings()))["samples"], run.run(built.model)["samples"])


def test_trouble_costs_guidance_but_never_the_picture(
    rule: str, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tiny.build("sd15")
    run = work(built, steps=3)

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise MemoryError("not enough memory")

    name = "goca_regions" if rule == "GoCA" else "published_regions"
    monkeypatch.setattr(f"goca_core.capture.scfg_run.{name}", fail)
    assert torch.equal(run.run(guide(built.model, Settings(rule)))["samples"], run.run(built.model)["samples"])
    assert len(warnings()) == 1 and "not enough memory" in warnings()[0]


def test_attention_out_of_sight(rule: str, warnings: Callable[[], list[str]]) -> None:
    """A conditioning for a part of the picture only."""
    built = tiny.build("sd15")
    area = speaking(built, area=(8, 8, 0, 4))
    run = work(built, positive=area)
    assert torch.equal(run.run(guide(built.model, Settings(rule)))["samples"], run.run(built.model)["samples"])
    assert len(warnings()) == 1 and "not to be seen" in warnings()[0]


def test_a_step_that_is_not_seen_is_plain_and_the_next_one_is_not(rule: str, warnings: Callable[[], list[str]]) -> None:
    """A cache skips the model in the first step."""
    built = tiny.build("sd15")
    skipping = guide(built.model, Settings(rule))
    calls: list[int] = []

    def skip(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return x * 0.5 if len(calls) == 1 else executor(x, *args, **kwargs)

    # Before the other wrappers, as caches are that come first in the graph.
    kind = "apply_model"
    wrappers = skipping.wrappers.setdefault(kind, {})
    skipping.wrappers[kind] = {"cache": [skip], **wrappers}
    notes = Notes()
    work(built, steps=3).run(notes.on(skipping))
    first, second, _ = notes.args
    assert torch.equal(first["denoised"], first["uncond_denoised"] + push(first) * first["cond_scale"])
    assert rate_of(second).std() > 0.01
    assert len(warnings()) == 1


def test_other_families_are_named() -> None:
    from .test_bad_input import cascade

    with pytest.raises(UnknownFamily, match="cannot be recorded"):
        guide(cascade(), Settings())


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_a_window_the_wrong_way_round(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="start must be below end"):
        guide(tiny.build("sd15").model, Settings(), start, end)


# -- traces -----------------------------------------------------------------------------------------------------------


def state_of(model: Any) -> tuple[Any, ...]:
    wrappers = {kind: list(keys) for kind, keys in model.wrappers.items() if any(keys.values())}
    return count_hooks(model), wrappers, repr(model.model_options), dict(model.object_patches), list(model.patches)


def test_the_model_that_was_guided_stays_as_it_was(rule: str) -> None:
    built = tiny.build("sd15")
    before = state_of(built.model)
    plain = work(built).run(built.model)["samples"]
    guided = guide(built.model, Settings(rule))
    work(built).run(guided)
    assert state_of(built.model) == before
    assert torch.equal(work(built).run(built.model)["samples"], plain)


@pytest.mark.parametrize(
    "error", [comfy.model_management.InterruptProcessingException, RuntimeError, KeyboardInterrupt]
)
def test_an_interrupted_run_leaves_nothing(rule: str, error: type[BaseException]) -> None:
    built = tiny.build("sd15")
    guided = guide(built.model, Settings(rule))
    (guidance_,) = guided.model_options["sampler_post_cfg_function"]

    def fail(_module: Any, _args: Any) -> None:
        if count_hooks(built.model) > 2:
            raise error("in the middle")

    handle = built.model.model.diffusion_model.out[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(error, match="in the middle"):
            work(built).run(guided)
        assert count_hooks(built.model) == 1
    finally:
        handle.remove()
    assert guidance_._active == []
    assert torch.isfinite(work(built).run(guided)["samples"]).all()


# -- the node ---------------------------------------------------------------------------------------------------------


def test_the_node(host: SimpleNamespace, pack: ModuleType) -> None:
    built = tiny.build("sd15")
    node = host.nodes.NODE_CLASS_MAPPINGS["GOCA_SemanticCFG"]
    (guided,) = node.execute(built.model, "GoCA", 0.8, 3.0, 15.0).result
    expected = work(built).run(guide(built.model, Settings()))["samples"]
    assert torch.equal(work(built).run(guided)["samples"], expected)
    with pytest.raises(ValueError, match="minimum must not be above maximum"):
        node.execute(built.model, "GoCA", 2.0, 1.0, 15.0)
