"""Refinement by the image: closed forms, the rules of every function, and what it is worth on drawn scenes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from goca_core.demo.scenes import draw
from goca_core.refine import image as refine_image
from goca_core.refine.image import guided_filter, pamr
from goca_core.refine.methods import REFINEMENTS, apply
from goca_core.tensors import resize_bilinear

Method = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, Method] = {
    "pamr": lambda scores, image: pamr(scores, image, 3, (1, 3)),
    "guided filter": lambda scores, image: guided_filter(scores, image, 3),
    "guided filter, sub-sampled": lambda scores, image: guided_filter(scores, image, 9),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture
def image(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 13, 18, 3, generator=rng)


@pytest.fixture
def scores(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 5, 7, generator=rng)


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4)])
def test_pamr_of_an_even_image_is_a_local_mean(rng: torch.Generator, dilations: tuple[int, ...]) -> None:
    scores = torch.rand(1, 2, 9, 14, generator=rng)
    reach = max(dilations)
    kernel = torch.zeros(1, 1, 2 * reach + 1, 2 * reach + 1)
    for step in dilations:
        kernel[..., reach - step :: step, reach - step :: step][..., :3, :3] = 1
    kernel[..., reach, reach] = 0
    expected = scores
    for _ in range(2):
        padded = F.pad(expected, (reach,) * 4, mode="replicate").transpose(0, 1)
        expected = F.conv2d(padded, kernel / kernel.sum()).transpose(0, 1)
    actual = pamr(scores, torch.full((1, 9, 14, 3), 0.4), 2, dilations)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_pamr_by_hand(rng: torch.Generator) -> None:
    """One iteration, pixel by pixel, from the formula."""
    scores, image = torch.rand(1, 2, 4, 5, generator=rng), torch.rand(1, 4, 5, 3, generator=rng)
    actual = pamr(scores, image, 1, (1, 2))[0]
    colours = image[0].double().numpy()
    for y in range(4):
        for x in range(5):
            places = [
                (min(max(y + a * step, 0), 3), min(max(x + b * step, 0), 4))
                for step in (1, 2)
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                if a or b
            ]
            spread = np.stack([colours[place] for place in [(y, x), *places]]).std(0)
            alike = [-(abs(colours[place] - colours[y, x]) / (0.1 * spread + 1 / 255)).mean() for place in places]
            weights = np.exp(alike) / np.exp(alike).sum()
            mean = sum(weight * scores[0, :, place[0], place[1]] for weight, place in zip(weights, places, strict=True))
            torch.testing.assert_close(actual[:, y, x], mean.float(), rtol=0, atol=1e-5)


def box(maps: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.uniform_filter(maps, (0,) * (maps.ndim - 2) + (2 * radius + 1,) * 2, mode="nearest")


def test_guided_filter_of_an_even_image_is_a_mean_of_means(rng: torch.Generator) -> None:
    scores = torch.rand(1, 2, 15, 22, generator=rng)
    actual = guided_filter(scores, torch.full((1, 15, 22, 3), 0.7), 4)
    expected = torch.from_numpy(box(box(scores.double().numpy(), 4), 4)).float()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_guided_filter_by_hand(rng: torch.Generator) -> None:
    """He, Sun and Tang's equations in double precision, with the same border."""
    scores, image = torch.rand(1, 1, 9, 11, generator=rng), torch.rand(1, 9, 11, 3, generator=rng)
    guide, values, eps, radius = image[0].double().numpy().transpose(2, 0, 1), scores[0, 0].double().numpy(), 0.05, 2
    mean, level = box(guide, radius), box(values, radius)
    products = np.stack([[box(a * b, radius) for a in guide] for b in guide]) - mean[:, None] * mean[None]
    shared = np.stack([box(a * values, radius) for a in guide]) - mean * level
    slope = np.linalg.solve(products.transpose(2, 3, 0, 1) + eps * np.eye(3), shared.transpose(1, 2, 0)[..., None])[
        ..., 0
    ]
    slope = slope.transpose(2, 0, 1)
    offset = level - (slope * mean).sum(0)
    expected = (box(slope, radius) * guide).sum(0) + box(offset, radius)
    expected = expected.clip(values.min(), values.max())
    actual = guided_filter(scores, image, radius, eps)[0, 0]
    torch.testing.assert_close(actual, torch.from_numpy(expected).float(), rtol=0, atol=1e-4)


def test_sub_sampling_changes_little() -> None:
    """An odd size, so that the sides are no multiples of the step of 5."""
    scene = draw(4, 91, 117)
    image = torch.from_numpy(scene.image).float()[None] / 255
    scores = coarse(scene.labels, (11, 14))
    guide, maps = image.movedim(-1, 1), resize_bilinear(scores, (91, 117))
    from kornia.filters import guided_blur

    whole = guided_blur(guide, maps, 41, 1e-3, border_type="replicate").clamp(0, 1)
    sampled = guided_filter(scores, image, 20, 1e-3)
    assert sampled.shape == whole.shape
    assert (sampled - whole).abs().mean() < 0.02 and (sampled.argmax(1) == whole.argmax(1)).float().mean() > 0.98


@every_method
def test_an_edge_of_the_image_holds_scores_back(method: Method) -> None:
    """Scores that change with the image keep their edge; on an even image the same scores blur across it."""
    right = (torch.arange(24) >= 12).float().expand(16, 24)
    edge = torch.stack([0.2 + 0.5 * right, 0.8 - 0.5 * right, torch.full((16, 24), 0.3)], -1)[None]
    scores = right[None, None]
    kept, lost = method(scores, edge), method(scores, torch.full_like(edge, 0.5))
    assert (kept[..., 12] - kept[..., 11]).min() > 0.85
    assert (lost[..., 12] - lost[..., 11]).max() < 0.5
    # And scores that change a little beside the edge move to it.
    beside = torch.roll(right, 1, 1)[None, None]
    beside[..., 0] = 0
    moved = method(beside, edge)[..., 12]
    assert moved.min() > beside[..., 12].max() + 0.4


# -- the rules ---------------------------------------------------------------------------------------------------------


@every_method
def test_shape_range_samples_and_inputs(method: Method, scores: Tensor, image: Tensor) -> None:
    before = scores.clone(), image.clone()
    actual = method(scores, image)
    assert torch.equal(scores, before[0]) and torch.equal(image, before[1])
    assert actual.shape == (2, 3, 13, 18) and actual.dtype == torch.float32
    maps = resize_bilinear(scores, (13, 18))
    assert (actual >= maps.amin((2, 3), keepdim=True)).all() and (actual <= maps.amax((2, 3), keepdim=True)).all()
    assert (actual - maps).abs().mean() > 1e-3
    for i in (0, 1):
        single = method(scores[i : i + 1], image[i : i + 1])
        torch.testing.assert_close(single[0], actual[i], rtol=0, atol=1e-4)
        torch.testing.assert_close(method(scores, image[i : i + 1])[i], actual[i], rtol=0, atol=1e-4)
        torch.testing.assert_close(method(scores[:, i : i + 1], image)[:, 0], actual[:, i], rtol=0, atol=1e-4)
    extra = torch.cat((image, torch.rand(2, 13, 18, 1)), -1)
    assert torch.equal(method(scores, extra), actual), "an alpha channel is no colour"


@every_method
def test_axes_can_be_exchanged(method: Method, scores: Tensor) -> None:
    # Sides that are multiples of the step of the sub-sampling: it starts at the first pixel of either axis.
    image = torch.rand(2, 12, 20, 3, generator=torch.Generator().manual_seed(3))
    turned = method(scores.mT, image.transpose(1, 2)).mT
    torch.testing.assert_close(turned, method(scores, image), rtol=0, atol=1e-4)


@every_method
def test_precision(method: Method, scores: Tensor, image: Tensor) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        half = method(scores.to(dtype), image.to(dtype))
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, method(scores.to(dtype).float(), image.to(dtype).float()), rtol=0, atol=1e-5)
    double = method(scores.double(), image)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), method(scores, image), rtol=0, atol=1e-3)


@every_method
def test_scores_that_are_the_same_everywhere_stay(method: Method, image: Tensor) -> None:
    for value in (0.0, 0.37, 1.0):
        even = torch.full((2, 1, 5, 7), value)
        torch.testing.assert_close(method(even, image), torch.full((2, 1, 13, 18), value), rtol=0, atol=1e-6)


@every_method
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finite_output(method: Method, scores: Tensor, image: Tensor, bad: float) -> None:
    scores[0, 0, 0, 0] = bad
    image[1, 2, 3] = bad
    assert torch.isfinite(method(scores, image)).all()


@every_method
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_images_smaller_than_the_window(method: Method, scores: Tensor, size: tuple[int, int]) -> None:
    actual = method(scores, torch.rand(2, *size, 3))
    assert actual.shape == (2, 3, *size) and torch.isfinite(actual).all()


def test_pamr_with_less_memory_gives_the_same(scores: Tensor, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pamr(scores, image, 3, (1, 2))
    monkeypatch.setattr(refine_image, "_BAND", 3 * 16 * 18 * 4)  # four rows at once
    for kept in (0, 2**20):
        torch.testing.assert_close(pamr(scores, image, 3, (1, 2), kept=kept), expected, rtol=0, atol=1e-6)


def test_errors(scores: Tensor, image: Tensor) -> None:
    with pytest.raises(ValueError, match="0 iterations"):
        pamr(scores, image, 0)
    with pytest.raises(ValueError, match=r"dilations \(0, 1\)"):
        pamr(scores, image, 1, (0, 1))
    with pytest.raises(ValueError, match="radius 0"):
        guided_filter(scores, image, 0)
    with pytest.raises(ValueError, match="positive eps"):
        guided_filter(scores, image, 3, 0.0)
    for method in METHODS.values():
        with pytest.raises(ValueError, match="There are 3 images but scores for 2"):
            method(scores, torch.rand(3, 13, 18, 3))
        with pytest.raises(ValueError, match="image has shape"):
            method(scores, image[0])
        with pytest.raises(ValueError, match="image has 1 channels"):
            method(scores, image[..., :1])
        with pytest.raises(ValueError, match="scores has shape"):
            method(scores[0], image)


def test_a_missing_kornia_is_named(scores: Tensor, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(ImportError, match="pip install kornia") as caught:
        guided_filter(scores, image)
    assert "\n" not in str(caught.value)


# -- what it is worth --------------------------------------------------------------------------------------------------


def coarse(labels: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """The true masks, the background among them, as a model of few cells would have them at best: [1, K, *grid]."""
    masks = F.one_hot(torch.from_numpy(labels).long()).movedim(-1, 0)[None].float()
    return F.interpolate(masks, grid, mode="area")


def miou(scores: Tensor, labels: np.ndarray) -> float:
    found = scores[0].argmax(0).numpy()
    ious = [((found == k) & (labels == k)).sum() / ((found == k) | (labels == k)).sum() for k in range(scores.shape[1])]
    return float(np.mean(ious))


@pytest.mark.parametrize("name", [name for name, kind in REFINEMENTS.items() if kind.guide == "image"])
@pytest.mark.parametrize(("height", "width", "noise"), [(64, 64, 0.0), (96, 160, 0.04)])
def test_masks_of_drawn_scenes_get_better(name: str, height: int, width: int, noise: float) -> None:
    before, after = [], []
    for seed in range(6):
        scene = draw(seed, height, width, texture=1.0)
        grain = torch.randn(1, height, width, 3, generator=torch.Generator().manual_seed(seed))
        image = (torch.from_numpy(scene.image).float()[None] / 255 + noise * grain).clamp(0, 1)
        scores = coarse(scene.labels, (16, 16 * width // height))
        before.append(miou(resize_bilinear(scores, (height, width)), scene.labels))
        after.append(miou(apply(REFINEMENTS[name](), scores, image), scene.labels))
    assert all(new > old for new, old in zip(after, before, strict=True))
    # At least half of what is wrong is put right.
    assert 1 - np.mean(after) < 0.5 * (1 - np.mean(before)), (np.mean(before), np.mean(after))
