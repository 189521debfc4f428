"""Regional prompts in one pass when something is wrong or stops it, and their nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.pipeline import MaskRequest

from . import tiny
from .helpers import Job, count_hooks, plain, words_of
from .passes import PLAN, TEXT, Asked, speaking, work

pytestmark = pytest.mark.usefixtures("host")


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_word_that_is_not_there_is_told_before_sampling() -> None:
    built = tiny.build("sd15")
    calls: list[int] = []
    handle = built.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    model, made = Asked(built, replace(PLAN, request=MaskRequest("dog\ngrass\nsky"))).install()
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
    assert torch.equal(silent.run(model)["samples"], plain(Asked(built).install()[0], work(built)))
    with pytest.raises(ValueError, match="tokens"):
        silent.run(Asked(built, words=words_of(TEXT, 154)).install()[0])


def test_a_prompt_for_a_part_of_the_image_stays_plain(warned: Callable[[str], list[str]]) -> None:
    built = tiny.build("sd15")
    run = work(built, positive=speaking(built, area=(8, 8, 0, 4)))
    model, made = Asked(built).install()
    samples = run.run(model)["samples"]
    assert torch.equal(samples, plain(built.model, run))
    with pytest.raises(AttentionError, match="limited to an area"):
        made.masks(samples)


def test_trouble_costs_the_regions_but_never_the_image(
    warned: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tiny.build("sd15")
    run = work(built)
    model, made = Asked(built).install()

    def fail(*_args: Any, **_named: Any) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr("goca_core.capture.regional.masking.make_masks", fail)
    samples = run.run(model)["samples"]
    assert torch.equal(samples, plain(built.model, run))
    assert len(warned("Regional Pass")) == 1 and "no memory is left" in warned("Regional Pass")[0]
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
    assert torch.equal(samples, plain(built.model, run))
    with pytest.raises(AttentionError, match="let it run more steps"):
        made.masks(samples)


@pytest.mark.parametrize("at", [1, 3], ids=["while recording", "among regions"])
def test_an_interrupt_leaves_no_trace(at: int) -> None:
    built = tiny.build("sd15")
    run = work(built)
    model, made = Asked(built).install()
    expected = plain(model, run)
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
