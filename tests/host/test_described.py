"""Models that only newer versions of ComfyUI have, with networks that make the same calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goca_core.capture.families import find_family

from . import tiny
from .dense import assert_near, check, probe_and_record
from .described import DIRECT, animate2, kandinsky6, ming
from .helpers import blocks_of, identical, job
from .test_families import with_calls

pytestmark = pytest.mark.usefixtures("host")


def random(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(4))


# -- Wan Animate 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 3])
def test_a_driving_video(frames: int) -> None:
    """The frames ask one after another, each with another frame of the driving video among its keys."""
    built = animate2()._replace(frames=frames)
    size, image = (12, 16), 6 * 8
    extra = {"pose_video_latent": random(1, 16, frames - 1, *size)}
    work = job(built, 2, size, cfg=1.0, positive=built.conditioning(seed=1, **extra), steps=1)
    attention = identical(built.model, work)
    assert (attention.family, attention.frames) == ("wan", frames) and "could not" not in attention.note
    model, calls = with_calls(built.model)
    work.run(model)
    depth = len(blocks_of(built.model).blocks)
    # Of each layer: the driving video with itself, with the image and the text, then the frames, and the video with both.
    words = [call for call in calls if call[0].shape[2] == frames * image and call[1].shape[2] == 30][-depth:]
    sizes = {frames * image, (frames + 1) * image}
    own = [call for call in calls if call[0].shape[2] == image and call[1].shape[2] in sizes]
    pieces = [own[start : start + frames] for start in range(len(own) - depth * frames, len(own), frames)]
    for layer, (q, k), frame in zip(attention.layers, words, pieces, strict=True):
        text = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        maps = layer.maps["average"]
        assert maps.shape == (2 * frames, image, 30)
        assert_near(maps, text.mean(1).unflatten(1, (frames, -1)).flatten(0, 1))
        assert layer.scores and {call[1].shape[2] for call in frame} == sizes
    chosen = [[layer.name for layer in attention.layers].index(name) for name in blocks_of(built.model).affinity]
    dense = []
    for number in chosen:
        for place, (q, k) in enumerate(pieces[number]):
            whole = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)
            dense.append(whole[..., place * image : (place + 1) * image])
    expected = torch.stack(dense).unflatten(0, (-1, frames)).mean(0).transpose(0, 1).flatten(0, 1)
    assert attention.affinity is not None
    assert_near(attention.affinity.matrix, expected)


def test_without_a_driving_video() -> None:
    built = animate2()
    work = job(built, 2, (12, 16), cfg=4.0, steps=1)
    probe, attention = probe_and_record(built.model, work, layout={"added": True})
    check(attention, probe)
    identical(built.model, work)


# -- Kandinsky 6 ----------------------------------------------------------------------------------------------------------


def test_kandinsky6() -> None:
    built = kandinsky6()
    work = job(built, 2, cfg=4.0)
    probe, attention = probe_and_record(built.model, work)
    check(attention, probe)
    attention = identical(built.model, work)
    assert (attention.family, attention.frames, attention.images) == ("kandinsky6", 3, 17)


def test_the_image_that_kandinsky6_starts_from() -> None:
    built = kandinsky6({"k6_reference": random(1, 128, 1, 6, 10)})
    work = job(built, 1, cfg=1.0)
    probe, attention = probe_and_record(built.model, work)
    (tokens,) = {seen.q.shape[1] for seen in probe.positive(attention.sigmas[0]).own.values()}
    assert tokens == (3 + 1) * 3 * 5 and attention.frames == 3
    check(attention, probe)
    assert "could not" not in identical(built.model, work).note


# -- Ming-Image -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2])
def test_ming_image(frames: int) -> None:
    """Its text is that of the conditioning and then the prompt's own tokens; frames are the layers of one image."""
    built = ming(frames)
    work = job(built, 2, (12, 16), cfg=4.0)
    probe, attention = probe_and_record(built.model, work, layout={"more": DIRECT})
    assert attention.family == "ming-image" and attention.tokens.length == 30 + DIRECT
    check(attention, probe)
    assert attention.frames == frames and identical(built.model, work).images == frames


def test_reference_images_of_ming_image() -> None:
    built = ming()
    positive = built.conditioning(seed=1, reference_latents=[random(1, 16, 2, 8, 10)])
    model, calls = with_calls(built.model)
    attention = identical(model, job(built, 1, (12, 16), cfg=1.0, steps=1, positive=positive))
    text, image, more = 30 + DIRECT, 6 * 8, 2 * 4 * 5
    own = [call for call in calls if call[0].shape[2] == text + image + more][-len(attention.layers) :]
    for layer, (q, k) in zip(attention.layers, own, strict=True):
        dense = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)[:, text : text + image, :text]
        assert_near(layer.maps["average"], dense)


def test_ming_image_is_no_lumina() -> None:
    assert find_family(ming().model.model).name == "ming-image"
    assert find_family(tiny.build("z_image").model.model).name == "lumina"
