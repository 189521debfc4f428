from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from goca_core import rescale
from goca_core import tensors as resize

OBJECTS = [[1], [2, 4]]
CONTENT = [1, 2, 4, 5]


@pytest.fixture
def maps(rng: torch.Generator) -> Tensor:
    return (2 * torch.randn(2, 7, 6, 9, generator=rng)).softmax(1)


@pytest.mark.parametrize("method", rescale.RESCALE_METHODS)
def test_properties(maps: Tensor, method: str) -> None:
    before = maps.clone()
    actual = rescale.rescale(maps, OBJECTS, CONTENT, method)
    assert torch.equal(maps, before)
    assert actual.shape == (2, 2, 6, 9)
    for i in (0, 1):
        assert torch.equal(rescale.rescale(maps[i : i + 1], OBJECTS, CONTENT, method)[0], actual[i])
    torch.testing.assert_close(rescale.rescale(maps.mT, OBJECTS, CONTENT, method).mT, actual)
    repeated = rescale.rescale(maps, [[1, 1], [4, 2, 4]], [5, *CONTENT], method)
    torch.testing.assert_close(repeated, actual)
    if method.endswith(("renorm", "renorm+")):
        assert torch.equal(actual.amax((2, 3)), torch.ones(2, 2))
    if method.endswith("renorm+"):
        assert torch.equal(actual.amin((2, 3)), torch.zeros(2, 2))
    for dtype in (torch.float16, torch.bfloat16):
        half = rescale.rescale(maps.to(dtype), OBJECTS, CONTENT, method)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, rescale.rescale(maps.to(dtype).float(), OBJECTS, CONTENT, method))
    assert rescale.rescale(maps.double(), OBJECTS, CONTENT, method).dtype == torch.float64


def test_scale_of_a_pixel_is_free_once_divided(maps: Tensor) -> None:
    """What the division is for: attention drawn away by special tokens, different at each pixel."""
    drawn = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(1)) + 0.1
    for method in ("sum-1 rescaling", "sum-1 rescaling + per-token renorm+"):
        torch.testing.assert_close(
            rescale.rescale(maps * drawn, OBJECTS, CONTENT, method), rescale.rescale(maps, OBJECTS, CONTENT, method)
        )
    changed = rescale.rescale(maps * drawn, OBJECTS, CONTENT, "per-token renorm+")
    assert not torch.allclose(changed, rescale.rescale(maps, OBJECTS, CONTENT, "per-token renorm+"), atol=1e-2)


def test_the_method_of_the_paper_is_the_default(maps: Tensor) -> None:
    expected = rescale.rescale(maps, OBJECTS, CONTENT, "sum-1 rescaling + per-token renorm+", "mean", "full", 1)
    assert torch.equal(rescale.rescale(maps, OBJECTS, CONTENT), expected)


def test_pooling(maps: Tensor) -> None:
    mean = rescale.rescale(maps, OBJECTS, CONTENT, "raw")
    torch.testing.assert_close(mean[:, 1], maps[:, [2, 4]].mean(1))
    torch.testing.assert_close(rescale.rescale(maps, OBJECTS, CONTENT, "raw", pool="sum")[:, 1], 2 * mean[:, 1])


@pytest.mark.parametrize("method", rescale.RESCALE_METHODS)
def test_no_content(maps: Tensor, method: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = rescale.rescale(maps, OBJECTS, [], method)
    assert len(caught) == ("sum-1" in method)
    for warning in caught:
        assert str(warning.message).startswith(f"Rescale method {method!r} got no content tokens")
        assert str(warning.message).endswith("pass the positions of the prompt's words as content.")
    assert torch.isfinite(actual).all()
    if method.startswith("sum-1 rescaling + per-token"):
        plain = method.removeprefix("sum-1 rescaling + ")
        if plain in rescale.RESCALE_METHODS:
            torch.testing.assert_close(actual, rescale.rescale(maps, OBJECTS, CONTENT, plain))


@pytest.mark.parametrize("method", rescale.RESCALE_METHODS)
@pytest.mark.parametrize("fill", [0.0, 0.3, torch.nan, torch.inf, -torch.inf])
def test_degenerate_maps_are_finite(method: str, fill: float) -> None:
    for shape in ((1, 7, 1, 1), (1, 7, 2, 5), (2, 7, 5, 1), (1, 7, 4, 4)):
        actual = rescale.rescale(torch.full(shape, fill), OBJECTS, CONTENT, method)
        assert torch.isfinite(actual).all()
        if "renorm" in method and "x raw" not in method:
            assert not actual.any(), "a constant map shows no object"


def test_pixel_without_content_mass(maps: Tensor) -> None:
    maps[:, CONTENT, 0, 0] = 0
    actual = rescale.rescale(maps, OBJECTS, CONTENT, "sum-1 rescaling")
    assert not actual[:, :, 0, 0].any() and torch.isfinite(actual).all()


@pytest.mark.parametrize("method", [m for m in rescale.RESCALE_METHODS if "sum-1" in m])
def test_pixels_with_next_to_no_content_mass_say_nothing(maps: Tensor, method: str, rng: torch.Generator) -> None:
    """Where all attention goes to special tokens, the quotient of what is left of the words is noise."""
    lost = torch.rand(2, 1, 6, 9, generator=rng) < 0.4
    words = torch.isin(torch.arange(7), torch.tensor(CONTENT))[:, None, None]
    faint = torch.where(lost & words, maps * 1e-9, maps)
    nothing = torch.where(lost & words, 0.0, maps)
    found = rescale.rescale(faint, OBJECTS, CONTENT, method)
    torch.testing.assert_close(found, rescale.rescale(nothing, OBJECTS, CONTENT, method), rtol=0, atol=1e-6)
    # A thousandth of the attention is enough to go by.
    weak = torch.where(lost & words, maps * 1e-3, maps)
    if "x raw" not in method:
        torch.testing.assert_close(
            rescale.rescale(weak, OBJECTS, CONTENT, method), rescale.rescale(maps, OBJECTS, CONTENT, method)
        )


def test_rounding_noise_is_not_stretched() -> None:
    nearly = torch.ones(1, 4, 4)
    nearly[0, 1, 1] += torch.finfo(torch.float32).eps
    assert not resize.minmax(nearly).any()
    nearly[0, 1, 1] += 1e-3
    assert resize.minmax(nearly)[0, 1, 1] == 1


def test_blur_borders() -> None:
    """Reflection does not repeat the edge; a side of two or less repeats it instead."""
    column = torch.tensor([[0.0, 1.0, 2.0]]).T.expand(3, 3)
    weights = torch.tensor([0.070766, 0.244460, 0.369546, 0.244460, 0.070766])
    expected = (weights * torch.tensor([2.0, 1.0, 0.0, 1.0, 2.0])).sum()
    torch.testing.assert_close(rescale.blur(column)[0, 0], expected, rtol=0, atol=1e-5)
    short = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    expected = (weights * torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])).sum()
    torch.testing.assert_close(rescale.blur(short)[0, 0], expected, rtol=0, atol=1e-5)


# -- the robust range --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (37, 41)])
def test_clip_tails_leaves_out_the_extremes(size: tuple[int, int], rng: torch.Generator) -> None:
    pixels = size[0] * size[1]
    cut = -(-pixels // 100)
    maps = torch.stack([torch.randperm(pixels, generator=rng) for _ in range(6)]).reshape(2, 3, *size).float()
    before = maps.clone()
    assert torch.equal(resize.clip_tails(maps), before.clamp(cut, pixels - 1 - cut)) and torch.equal(maps, before)
    stretched = resize.stretch(maps, "robust")
    expected = ((before - cut) / (pixels - 1 - 2 * cut)).clamp(0, 1)
    torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-6)
    assert torch.equal(resize.stretch(maps), resize.minmax(maps))
    # Only the order of values counts for what is left out, and each map is for itself.
    assert torch.equal(resize.clip_tails(maps[1:, 2:])[0, 0], resize.clip_tails(maps)[1, 2])


def test_clip_tails_keeps_an_object_of_a_few_pixels() -> None:
    maps = torch.zeros(1, 1, 16, 16)
    maps[..., 5, 5:7] = 1
    assert torch.equal(resize.clip_tails(maps), maps)
    assert torch.equal(resize.stretch(maps, "robust"), maps)
    for shape in ((1, 1), (1, 2), (1, 3)):
        small = torch.rand(2, *shape)
        assert torch.isfinite(resize.stretch(small, "robust")).all()
        assert resize.clip_tails(small).shape == small.shape


def sink() -> tuple[Tensor, Tensor]:
    """Maps of an image in which an object fills a rectangle, and one corner draws fifty times as much; and the object."""
    inside = torch.zeros(16, 20, dtype=torch.bool)
    inside[4:10, 6:15] = True
    maps = torch.zeros(1, 3, 16, 20)
    maps[0, 1] = torch.where(inside, 0.02, 0.004)
    maps[0, 1, -1, -1] = 50 * 0.02
    maps[0, 2] = 0.98
    maps[0, 2, -1, -1] = 0.0
    return maps / maps.sum(1, keepdim=True), inside


@pytest.mark.parametrize("method", [m for m in rescale.RESCALE_METHODS if "renorm" in m])
def test_a_sink_in_a_corner_does_not_decide_the_robust_scale(method: str) -> None:
    maps, inside = sink()
    bar = 0.5 if "x raw" not in method or method.endswith("renorm") else 0.01
    lost = rescale.rescale(maps, [[1]], [1, 2], method)[0, 0] > bar
    found = rescale.rescale(maps, [[1]], [1, 2], method, range_="robust")[0, 0] > bar
    assert not lost[inside].any(), "the object is there with the full range, so the test shows nothing"
    # All but what a blur does to the rim, and the corner itself.
    assert found[5:9, 7:14].all()
    outside = ~inside
    outside[-3:, -3:] = False
    assert not found[outside].any()


def test_the_robust_range_in_other_cases(maps: Tensor) -> None:
    for method in rescale.RESCALE_METHODS:
        robust = rescale.rescale(maps, OBJECTS, CONTENT, method, range_="robust")
        assert robust.shape == (2, 2, 6, 9) and torch.isfinite(robust).all()
        full = rescale.rescale(maps, OBJECTS, CONTENT, method)
        assert torch.equal(robust, full) == ("renorm" not in method)
        if "x raw" not in method and "renorm" in method:
            assert robust.min() >= 0 and robust.max() == 1
    with pytest.raises(ValueError, match="Unknown range 'wide'"):
        rescale.rescale(maps, OBJECTS, CONTENT, "raw", range_="wide")  # type: ignore[arg-type]


def test_merge_background(maps: Tensor) -> None:
    torch.testing.assert_close(rescale.merge_background(maps[:, :2]), torch.maximum(maps[:, 0], maps[:, 1]))
    assert torch.equal(rescale.merge_background(maps[:, :0]), torch.zeros(2, 6, 9))


def test_errors(maps: Tensor) -> None:
    with pytest.raises(ValueError, match="Unknown rescale method 'renorm'"):
        rescale.rescale(maps, OBJECTS, CONTENT, "renorm")
    with pytest.raises(ValueError, match="Unknown pool 'max'"):
        rescale.rescale(maps, OBJECTS, CONTENT, "raw", pool="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="object 1 has no tokens"):
        rescale.rescale(maps, [[1], []], CONTENT, "raw")
    with pytest.raises(ValueError, match=r"object 0 names token positions \[7\], outside 0\.\.6"):
        rescale.rescale(maps, [[7]], CONTENT, "raw")
    with pytest.raises(ValueError, match=r"content names token positions \[-1\], outside 0\.\.6"):
        rescale.rescale(maps, OBJECTS, [-1], "raw")
    with pytest.raises(ValueError, match=r"^objects is empty: .*\.$"):
        rescale.rescale(maps, [], CONTENT, "raw")
