"""Masks made on a device, and a few samples at a time. On torch's meta device, whatever waits for a device is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import ndimage

from benchmarks.meter import Meter
from goca_core.attention.record import Attention
from goca_core.batches import Workplace
from goca_core.capture.options import RecordOptions
from goca_core.masks import _gaussian_matrix
from goca_core.picture.batch import overlay_layers
from goca_core.pipeline import MaskRequest, MaskResult, Scoring, as_scoring, make_masks, refined, word_scores
from goca_core.refine.methods import Pamr, ProposalMerge

from .recordings import recording

CPU, META = torch.device("cpu"), torch.device("meta")
FRAMES = 3
REQUESTS = [
    MaskRequest("red cat\ngrass"),
    MaskRequest("red cat\ngrass", "", mode="soft", smooth=1.5),
    MaskRequest("cat\ngrass", mode="threshold", rule="vanilla", theta=0.4, largest=True, fill_holes=True),
    MaskRequest("cat\ngrass", latent_size=True),
    MaskRequest("cat\ngrass", size=(20, 30)),
    MaskRequest("red cat\ngrass", rule="clearest classes"),
    MaskRequest("red cat\ngrass", "", rule="clearest classes", skip_absent=False),
]
AUTO = RecordOptions(method="auto")


def videos() -> Attention:
    return replace(recording(batch=2 * FRAMES), frames=FRAMES, temporal_compression=4)


def scorings(record: Attention) -> list[Scoring]:
    """Without refinement, and with refinements by the images and by self-attention."""
    count = record.batch // record.frames * record.images
    images = torch.rand(count, 24, 36, 3, generator=torch.Generator().manual_seed(3))
    plain, pamr = as_scoring(record), Pamr(iterations=2, reach=2)
    merged = refined(record, ProposalMerge(tolerance=2.0, stride=1))
    return [plain, refined(record, pamr, images), refined(merged, pamr, images), refined(record, pamr, images[:1])]


def assert_equal(one: MaskResult, other: MaskResult) -> None:
    for name, value in vars(one).items():
        same = torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        assert same, name


@pytest.mark.parametrize("record", [recording(batch=5), videos()], ids=["images", "videos"])
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_batches_change_nothing(record: Attention, request_: MaskRequest, samples: int) -> None:
    for scoring in scorings(record):
        whole = make_masks(scoring, request_, each_word=True, place=Workplace(CPU, 2**40))
        channels = 3 * 8 * 4 * (4 if scoring.steps and record.frames > 1 else 1)
        room = samples * channels * 32 * 48
        assert_equal(make_masks(scoring, request_, each_word=True, place=Workplace(CPU, room)), whole)
        assert_equal(make_masks(scoring, request_, each_word=True), whole)


def test_heat_maps_in_batches() -> None:
    for record in (recording(batch=5), videos()):
        for scoring in scorings(record):
            whole, names = word_scores(scoring)
            parts, same = word_scores(scoring, place=Workplace(CPU, 1))
            assert torch.equal(whole, parts) and names == same


def by_activations(record: Attention) -> Attention:
    return replace(record, defaults=AUTO.defaults(record.defaults))


@pytest.mark.parametrize(
    "record", [recording(), videos(), by_activations(videos())], ids=["images", "videos", "videos, method auto"]
)
@pytest.mark.parametrize("request_", [request for request in REQUESTS if not request.fill_holes])
@pytest.mark.parametrize("room", [None, 1])
def test_nothing_waits_between_a_recording_and_masks(
    record: Attention, request_: MaskRequest, room: int | None
) -> None:
    """Only what is copied to the device the first time is copied from the CPU."""
    assert record.affinity is not None
    there = replace(record, affinity=replace(record.affinity, matrix=record.affinity.matrix.to(META)))
    place = Workplace(META, room, META)
    images = torch.empty(record.batch // record.frames * record.images, 24, 36, 3, device=META)
    for source in (as_scoring(there, META), refined(as_scoring(there, META), Pamr(iterations=2, reach=2), images)):
        make_masks(source, request_, each_word=True, place=place)
        with Meter() as meter:
            result = make_masks(source, request_, each_word=True, place=place)
        assert meter.uploads == 0
        assert all(value.device == META for value in vars(result).values() if isinstance(value, torch.Tensor))
        whole = make_masks(as_scoring(record), request_)
        assert result.masks.shape == whole.masks.shape


def test_layers_are_combined_on_the_device() -> None:
    scores, _ = word_scores(as_scoring(recording(), META), place=Workplace(META))
    assert scores.device == META
    images = torch.zeros(2, 32, 48, 3)
    assert overlay_layers(images, recording(), "", place=Workplace(CPU, 1, CPU)).maps.device == CPU


@pytest.mark.parametrize(("side", "sigma"), [(1, 2.0), (7, 0.6), (40, 3.5), (5, 30.0)])
def test_a_matrix_blurs_as_the_filter_does(side: int, sigma: float) -> None:
    values = torch.rand(side, 3, dtype=torch.float64)
    expected = torch.from_numpy(ndimage.gaussian_filter1d(values.numpy(), sigma, axis=0, mode="reflect"))
    assert torch.allclose(_gaussian_matrix(side, sigma, CPU).double() @ values, expected, atol=1e-6)
