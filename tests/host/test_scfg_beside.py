"""Semantic guidance beside other nodes, in trouble, interrupted: the image is never lost, and no traces are left."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.capture.families import UnknownFamily
from goca_core.capture.guidance.patch import SemanticGuidance, guide
from goca_core.capture.recorder import Window, record
from goca_core.guidance.semantic import REGION_RULES, Settings
from goca_core.regional import compose, region_weights

from . import tiny
from .guided import TEXT, Notes, push, rate_of, speaking, work
from .helpers import count_hooks, global_map, plain, words_of

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(params=REGION_RULES)
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- with other nodes -------------------------------------------------------------------------------------------------


def test_it_adds_to_what_other_post_cfg_functions_did(rule: str) -> None:
    built = tiny.build("sd15")
    changed = built.model.clone()
    changed.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.5 + 1)
    without, added = Notes(), Notes()
    work(built).run(without.on(guide(built.model, Settings(rule))))
    work(built).run(added.on(guide(changed, Settings(rule))))
    first, second = without.args[0], added.args[0]
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
    """Either first; the image is the guided one, bit for bit, and the recording that of the same run."""
    built = tiny.build("sd15")
    run = work(built, 2)
    alone = plain(guide(built.model, Settings(rule)), run)
    window = Window(False, 0.0, 0.01, 1)
    unguided, own = record(built.model, window)
    expected = global_map(own, run.run(unguided)["samples"])
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
    assert all(len(keys[SemanticGuidance.key]) == 1 for keys in twice.wrappers.values() if SemanticGuidance.key in keys)
    assert torch.equal(work(built).run(twice)["samples"], plain(once, work(built)))


def test_extra_passes_of_guidance_are_not_read(rule: str) -> None:
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
    expected = plain(guide(built.model, Settings(rule)), run)
    assert torch.equal(run.run(guide(perturbed, Settings(rule)))["samples"], expected)


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
    positive = compose(speaking(built), [speaking(built, 7, "two blue dogs")], region_weights(mask, 1))
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
    assert torch.equal(heard, plain(guide(built.model, Settings()), work(built)))


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


def test_an_image_too_large_for_the_published_regions() -> None:
    built = tiny.build("sd15")  # two levels only, so both of them count as coarse
    with pytest.raises(AttentionError, match="at most 1024 tokens"):
        work(built, size=(72, 72)).run(guide(built.model, Settings("S-CFG")))


def test_an_empty_prompt_is_plain_guidance() -> None:
    built = tiny.build("sd15")
    run = work(built, positive=speaking(built, text=""))
    assert torch.equal(run.run(guide(built.model, Settings()))["samples"], plain(built.model, run))


def test_trouble_costs_guidance_but_never_the_image(
    rule: str, warned: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tiny.build("sd15")
    run = work(built, steps=3)

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise MemoryError("not enough memory")

    name = "goca_regions" if rule == "GoCA" else "published_regions"
    monkeypatch.setattr(f"goca_core.capture.guidance.run.{name}", fail)
    assert torch.equal(run.run(guide(built.model, Settings(rule)))["samples"], plain(built.model, run))
    assert len(warned("Semantic CFG")) == 1 and "not enough memory" in warned("Semantic CFG")[0]


def test_attention_out_of_sight(rule: str, warned: Callable[[str], list[str]]) -> None:
    """A conditioning for a part of the image only."""
    built = tiny.build("sd15")
    area = speaking(built, area=(8, 8, 0, 4))
    run = work(built, positive=area)
    assert torch.equal(run.run(guide(built.model, Settings(rule)))["samples"], plain(built.model, run))
    assert len(warned("Semantic CFG")) == 1 and "was not recorded" in warned("Semantic CFG")[0]


def test_a_step_that_is_not_seen_is_plain_and_the_next_one_is_not(
    rule: str, warned: Callable[[str], list[str]]
) -> None:
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
    assert len(warned("Semantic CFG")) == 1


def test_other_families_are_named() -> None:
    from .test_bad_input import cascade

    with pytest.raises(UnknownFamily, match="cannot be recorded"):
        guide(cascade(), Settings())


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_a_window_the_wrong_way_round(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="start below end"):
        guide(tiny.build("sd15").model, Settings(), start, end)


# -- traces -----------------------------------------------------------------------------------------------------------


def state_of(model: Any) -> tuple[Any, ...]:
    wrappers = {kind: list(keys) for kind, keys in model.wrappers.items() if any(keys.values())}
    return count_hooks(model), wrappers, repr(model.model_options), dict(model.object_patches), list(model.patches)


def test_the_model_that_was_guided_stays_as_it_was(rule: str) -> None:
    built = tiny.build("sd15")
    before = state_of(built.model)
    expected = plain(built.model, work(built))
    guided = guide(built.model, Settings(rule))
    work(built).run(guided)
    assert state_of(built.model) == before
    assert torch.equal(work(built).run(built.model)["samples"], expected)


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
    expected = plain(guide(built.model, Settings()), work(built))
    assert torch.equal(work(built).run(guided)["samples"], expected)
    with pytest.raises(ValueError, match="minimum rate 2 is above the maximum 1"):
        node.execute(built.model, "GoCA", 2.0, 1.0, 15.0)
