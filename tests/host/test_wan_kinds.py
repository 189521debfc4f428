"""Models built on Wan: what they attend to besides the prompt is no part of the video, and the video is recorded as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.capture.recorder import Window, record

from . import tiny
from .dense import check, probe_and_record
from .helpers import Job, blocks_of, identical, job
from .tiny_video import KINDS_OF_WAN

pytestmark = pytest.mark.usefixtures("host")

SIZE = (16, 24)
FRAME = 8 * 12
# The tokens of the past frames of Speech to Video: the last one as fine as the video, the others coarser.
MOTION = FRAME + 4 * 6 + 4 * 2 * 3


def latents(channels: int, frames: int, size: tuple[int, int] = SIZE, seed: int = 4) -> Tensor:
    return torch.randn(1, channels, frames, *size, generator=torch.Generator().manual_seed(seed))


# What a conditioning carries, how many tokens are before and after the video's own, and whether CLIP vision is asked.
KINDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "wan_animate": ({"pose_video_latent": latents(16, 2)}, 0, 0),
    "wan_humo": ({"reference_latents": [latents(16, 1)]}, 0, FRAME),
    "wan_s2v": ({"reference_latents": [latents(16, 1)], "reference_motion": latents(16, 5)}, 0, FRAME + MOTION),
    "wan_scail2": (
        {"reference_latents": [latents(16, 1), latents(16, 1)], "pose_video_latent": latents(16, 3, (8, 12))},
        2 * FRAME,
        3 * 4 * 6,
    ),
    "wan_dancer": ({"audio_embed": torch.randn(1, 11, 35)}, 0, 0),
    "wan_causal": ({}, 0, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_recorded(name: str) -> None:
    built = tiny.build(name)
    extra, before, after = KINDS[name]
    layout = {"before": before, "added": name in ("wan_animate", "wan_scail2", "wan_dancer")}
    work = job(built, 2, SIZE, cfg=4.0, positive=built.conditioning(seed=1, **extra), steps=1)
    probe, attention = probe_and_record(built.model, work, layout=layout)
    call = probe.positive(attention.sigmas[0])
    assert {seen.q.shape[1] for seen in call.own.values()} == {before + 3 * FRAME + after}
    check(attention, probe)
    attention = identical(built.model, work)
    assert (attention.family, attention.frames) == ("wan", 3) and "could not" not in attention.note
    assert len(attention.layers) == len(blocks_of(built.model).blocks)


@pytest.mark.parametrize("block", [1, 3])
def test_a_video_that_is_generated_piece_by_piece(block: int) -> None:
    """Each piece is a run of its own, so it is refused. A video of one piece is recorded."""
    nodes = pytest.importorskip("comfy_extras.nodes_ar_video")
    built = tiny.build("wan_causal")
    sampler = nodes.SamplerARVideo.execute(block).result[0]
    work = Job(built.conditioning(seed=1), built.conditioning(seed=2), tiny.latent(16, 2, *SIZE, 3), cfg=1.0)
    recording, recorder = record(built.model, Window())

    def run(model: Any) -> Any:
        return work.with_sampler(model, sampler)[0]["samples"]

    with torch.inference_mode():
        expected, latent = run(built.model), run(recording)
    assert torch.equal(latent, expected) and latent.std() > 0
    if block == 1:
        with pytest.raises(AttentionError, match=r"a few frames at a time.*choose another sampler"):
            recorder.collect(latent)
    else:
        assert recorder.collect(latent).frames == 3


def test_all_that_are_known_are_tested() -> None:
    assert set(KINDS) == set(KINDS_OF_WAN)
