"""Segmenting leaves no trace, stops when asked to, and says in one sentence what it cannot do; and its node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.utils
import pytest
import torch

import nodes as host_nodes
from goca_core.attention.record import AttentionError
from goca_core.capture.families import UnknownFamily
from goca_core.capture.recorder import Recorder, Window, record
from goca_core.capture.segment import sigmas_at

from . import tiny
from .device import on_cpu
from .helpers import blocks_of, count_hooks, job, names
from .segmenting import PAPER, counted, difference, latents, recording_of, repeated_recording
from .test_bad_input import cascade, sentence

pytestmark = pytest.mark.usefixtures("host")

# -- it leaves no trace -----------------------------------------------------------------------------------------------


def test_model_conditioning_and_latent_stay_as_they_were() -> None:
    built = tiny.build("sd15")
    samples, positive = latents(), built.conditioning(seed=1)
    context, kept = positive[0][0].clone(), samples.clone()
    options, wrappers, weights = repr(built.model.model_options), repr(built.model.wrappers), blocks_of(built.model)
    before = [on_cpu(block.cross_attn.out.weight) for block in weights.blocks]
    Recorder.finished.clear()
    recording_of(built.model, samples, positive, draws=2, flip=True)
    assert count_hooks(built.model) == 0
    assert (repr(built.model.model_options), repr(built.model.wrappers)) == (options, wrappers)
    assert all(
        torch.equal(on_cpu(block.cross_attn.out.weight), w) for block, w in zip(weights.blocks, before, strict=True)
    )
    assert torch.equal(samples, kept) and torch.equal(positive[0][0], context) and set(positive[0][1]) == set()
    # The cache is for samplers: many draws would push their runs out of it.
    assert not len(Recorder.finished)


def test_a_recording_model_may_be_used_too() -> None:
    built = tiny.build("sd15")
    samples, positive = latents(), built.conditioning(seed=1)
    recording, recorder = record(built.model, Window())
    latent = job(built).run(recording)["samples"]
    assert (
        difference(recording_of(recording, samples, positive), repeated_recording(built.model, samples, positive)) == 0
    )
    assert names(recorder.collect(latent).layers) == names(blocks_of(built.model).blocks)


def test_an_interrupt_stops_within_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("sd15")
    seen: list[tuple[int, int]] = []
    layers = sum(1 for block in blocks_of(built.model).blocks for _ in block.sites)
    # ComfyUI leaves out progress that comes too soon after the last.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)

    def stop(value: int, total: int, *_rest: Any, **_more: Any) -> None:
        seen.append((value, total))
        comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with (
        counted(built.model) as rows,
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        recording_of(built.model, latents(), built.conditioning(seed=1), draws=3, flip=True)
    assert seen == [(1, 6 * layers)] and len(rows) == 1
    assert count_hooks(built.model) == 0
    assert not comfy.model_management.processing_interrupted()


# -- what cannot be segmented -----------------------------------------------------------------------------------------


def refused(words: str, samples: Any = None, model: Any = None, positive: Any = None, **options: Any) -> None:
    built = tiny.build("sd15")
    chosen = built.conditioning(seed=1) if positive is None else positive
    with counted(built.model) as rows, pytest.raises(AttentionError, match=words) as caught:
        recording_of(model or built.model, latents() if samples is None else samples, chosen, **options)
    sentence(caught)
    assert not rows, "the model ran for nothing"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.zeros(1, 4, 0, 8), r"empty \(its size is 1x4x0x8\).*at least one latent pixel"),
        (lambda: torch.zeros(1, 4, 8, 8), "Empty Latent Image.*VAE Encode"),
        (lambda: latents(channels=12), "has 12 channels but this model works with 4.*own VAE"),
        (lambda: torch.rand(1, 4, 5, 8, 8), "1x4x5x8x8 is not an image"),
        (lambda: torch.rand(1, 4, 1, 8, 8), "1x4x1x8x8 is not an image"),
        (lambda: torch.rand(4, 8, 8), "not an image"),
        (lambda: latents() * torch.nan, "not finite .*higher precision"),
        (lambda: latents() / 0, "not finite"),
        (lambda: comfy.nested_tensor.NestedTensor([latents(), latents()]), "holds several latents"),
    ],
)
def test_a_latent_that_is_no_image(make: Callable[[], Any], words: str) -> None:
    refused(words, make())


def test_a_model_that_needs_the_sound_too() -> None:
    built = tiny.build("minimax_h3")
    with pytest.raises(AttentionError, match=r"with MiniMax-H3, which needs both; use another model") as caught:
        recording_of(built.model, torch.rand(1, 24, 1, 8, 8), built.conditioning(seed=1))
    sentence(caught)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 15.0, 0.001])
def test_a_noise_level_that_the_model_does_not_know(sigma: float) -> None:
    refused(r"choose a sigma from 0\.0292 to 14\.6", sigmas=[0.5, sigma])


def test_numbers_that_make_no_sense() -> None:
    refused("at least 1", draws=0)
    refused("give at least one", sigmas=[])
    model = tiny.build("sd15").model
    for percent in (-0.1, 1.01, float("nan")):
        with pytest.raises(AttentionError, match=r"fraction of sampling cannot be .*; choose one from 0") as caught:
            sigmas_at(model, [0.5, percent])
        sentence(caught)


def test_a_conditioning_without_text() -> None:
    for positive in ([], [[None, {"pooled_output": torch.rand(1, 32)}]]):
        refused("no text.*CLIP Text Encode", positive=positive)


def test_a_conditioning_that_is_not_active_or_covers_a_part() -> None:
    built = tiny.build("sd15")
    for extra, words in (
        ({"end_percent": 0.3}, "not active in the recorded step.*noise level"),
        ({"area": (8, 8, 0, 4)}, "limited to an area"),
    ):
        with pytest.raises(AttentionError, match=words) as caught:
            recording_of(built.model, latents(), built.conditioning(seed=1, **extra))
        sentence(caught)


def test_what_cannot_be_flipped() -> None:
    built = tiny.build("sd15")
    whole = built.conditioning(seed=1)
    for extra in ({"area": (8, 8, 0, 4)}, {"gligen": ("position", None, [])}):
        refused("cannot be flipped; turn flip off", positive=whole + built.conditioning(seed=2, **extra), flip=True)
    refused("hint of object cannot be flipped", positive=built.conditioning(seed=1, control=object()), flip=True)


def test_another_node_in_place_of_the_sampler() -> None:
    built = tiny.build("sd15")
    model = built.model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model.add_wrapper_with_key(kind, "other", lambda _executor, noise, *_args, **_kwargs: noise)
    refused("replaces the sampler", model=model)


def test_a_model_of_another_family() -> None:
    with pytest.raises(UnknownFamily, match="cannot be recorded"):
        recording_of(cascade(), latents(channels=16), tiny.make_conditioning(48))


# -- the node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "sigmas"),
    [
        ({"noise_level": "auto"}, [PAPER]),
        ({"noise_level": "sigma", "sigma": 1.25}, [1.25]),
        ({"noise_level": "percent", "percent": 0.9}, [PAPER]),
        (
            {"noise_level": "percent range", "start_percent": 0.0, "end_percent": 1.0, "levels": 2},
            [14.61, 0.0292],
        ),
    ],
)
def test_the_node_reads_its_noise_level(pack: Any, level: dict[str, Any], sigmas: list[float]) -> None:
    built = tiny.build("sd15")
    node = host_nodes.NODE_CLASS_MAPPINGS["GOCA_SegmentImage"]
    with torch.inference_mode():
        output = node.execute(built.model, {"samples": latents(size=(8, 16))}, built.conditioning(seed=1), level, 3)
    (attention,) = output.result
    assert attention.sigmas == pytest.approx(sigmas, rel=0.01)
    assert output.ui.as_dict()["text"] == (attention.describe(),)


def test_the_node_hands_on_what_the_latent_says(pack: Any) -> None:
    built = tiny.build("sd15_inpaint")
    samples, positive = latents(size=(8, 16)), built.conditioning(seed=1)
    mask = torch.zeros(1, 64, 128)
    mask[:, :40] = 1
    latent = {"samples": samples, "noise_mask": mask, "batch_index": [2]}
    options = {"seed": 9, "draws": 2, "flip": True}
    node = host_nodes.NODE_CLASS_MAPPINGS["GOCA_SegmentImage"]
    with torch.inference_mode():
        (attention,) = node.execute(
            built.model, latent, positive, {"noise_level": "auto"}, **options, head_methods="all"
        ).result
    assert len(attention.head_methods) == 7
    expected = repeated_recording(
        built.model, samples, positive, **options, noise_mask=mask, batch_index=[2], head_methods="all"
    )
    assert difference(attention, expected) == 0
