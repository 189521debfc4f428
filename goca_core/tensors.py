"""Shared tensor helpers: working precision, argument checks, resizing, smoothing and normalising of maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
"""Height and width, in tokens or pixels."""

# So many maps or more are resized by matrix products on an accelerator.
_MANY = 256
# Elements that are resized at a time.
_ELEMENTS = 1 << 24

CPUS = {"cpu"}
"""Devices on which a kernel starts at once. Elsewhere few large kernels are best, and nothing should wait for the device."""

Range = Literal["full", "robust"]
"""The range that a map is stretched from: "full" is its minimum to maximum, "robust" ignores its most extreme pixels."""
RANGES: tuple[Range, ...] = ("full", "robust")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision to compute in: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def finite(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a new tensor in working precision, with NaN replaced by 0 and infinities by large numbers of the same sign.

    The large number is 1e24, with which float32 can still sum and divide, or the maximum of the input dtype if that is
    smaller (an overflow of float16 becomes 65504). dtype: result type, None for `working_dtype`.

    >>> finite(torch.tensor([1.0, float("nan")])).tolist()
    [1.0, 0.0]
    """
    large = min(torch.finfo(tensor.dtype).max, 1e24) if tensor.is_floating_point() else None
    return torch.nan_to_num(tensor, nan=0.0, posinf=large, neginf=None if large is None else -large).to(
        dtype or working_dtype(tensor)
    )


def check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"Unknown {what} {value!r}: use one of {', '.join(repr(a) for a in allowed)}.")


def check_number(what: str, value: float) -> None:
    """Raise ValueError if `value` is not a number."""
    if math.isnan(value):
        raise ValueError(f"{what} is not a number (NaN): choose a number.")


def check_ndim(what: str, tensor: Tensor, axes: str) -> None:
    """Raise ValueError unless `tensor` has the axes named in `axes`, such as "B K h w"."""
    if tensor.ndim != len(axes.split()):
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)}: expected the axes [{axes}]; add or remove axes to match."
        )


def check_tokens(what: str, tokens: int, grid: Grid) -> None:
    """Raise ValueError unless a token axis of length `tokens` fits `grid`."""
    height, width = grid
    if height < 1 or width < 1 or height * width != tokens:
        raise ValueError(
            f"{what} has {tokens} image tokens but its grid is {height} x {width} = {height * width}: "
            "pass the grid (height, width) that this tensor was recorded at."
        )


def resize_bilinear(maps: Tensor, size: Grid) -> Tensor:
    """Resize [B, K, h, w] to [B, K, *size]: bilinear, half-pixel centres, no antialiasing. Keeps values, not sums."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.device.type not in CPUS and maps.shape[0] * maps.shape[1] >= _MANY:
        # That kernel computes each pixel of all maps in sequence, so it takes long for many small maps.
        if tuple(maps.shape[-2:]) == (2 * size[0], 2 * size[1]):
            return F.avg_pool2d(maps, 2)
        down, across = (
            bilinear_matrix(*sides, maps.device).to(maps.dtype) for sides in zip(maps.shape[-2:], size, strict=True)
        )
        several = max(1, _ELEMENTS // maps[:1].numel())
        parts = [down @ (part @ across.T) for part in maps.split(several)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@lru_cache(maxsize=128)
def bilinear_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """The matrix [target, source] of bilinear resizing along one axis, in float32.

    >>> bilinear_matrix(4, 2, torch.device("cpu")).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    with torch.inference_mode(False):
        identity = torch.eye(source, device=device)[None]
        return F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T


def index_on(device: torch.device, positions: Sequence[int] | Tensor) -> Tensor:
    """Return positions, given as numbers or as a tensor on the CPU, as an int64 index [n] on a device.

    The copy on another device is kept, because each copy makes the CPU wait for the device. Indexing with a list copies
    it every time.

    >>> index_on(torch.device("cpu"), (2, 0)).tolist()
    [2, 0]
    """
    if device.type in CPUS:
        return positions if isinstance(positions, Tensor) else torch.tensor(positions, dtype=torch.long)
    return _uploaded(tuple(positions.tolist() if isinstance(positions, Tensor) else positions), device)


@lru_cache(maxsize=128)
def _uploaded(positions: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is used in other runs, which may not be in inference mode
        return torch.tensor(positions, dtype=torch.long).to(device)


def nearest_index(grid: Grid, size: Grid, device: torch.device | None = None) -> Tensor:
    """Index in `grid` of the source of every pixel of `size`, both in raster order: floor(target * source side / target side).

    Uses integer arithmetic, because a floating-point scale is off by one for some pairs of sizes.
    Returns int64 [size[0] * size[1]].

    >>> nearest_index((1, 2), (1, 4)).tolist()
    [0, 0, 1, 1]
    """
    rows = torch.arange(size[0], device=device) * grid[0] // size[0]
    columns = torch.arange(size[1], device=device) * grid[1] // size[1]
    return (rows[:, None] * grid[1] + columns).flatten()


def resize_nearest(maps: Tensor, size: Grid) -> Tensor:
    """Resize [..., h, w] to [..., *size] by the rule of `nearest_index`. Any dtype; 0/1 masks stay 0/1."""
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    index = nearest_index((height, width), size, maps.device)
    return maps.flatten(-2)[..., index].unflatten(-1, tuple(size))


def gaussian_blur(maps: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Blur [..., h, w] with a separable Gaussian: an odd `kernel_size` for both axes, `sigma` in pixels.

    Borders are reflected without repeating the edge. Where a side is not longer than half the kernel, reflection is
    undefined and both axes repeat the edge instead. This is a sum of shifted slices instead of a convolution, because
    cuDNN convolutions round to TF32 by default, and because it gives the same bits for any batch size.
    """
    half = kernel_size // 2
    height, width = maps.shape[-2:]
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-half, half + 1)]
    weights = [weight / sum(weights) for weight in weights]
    mode = "reflect" if min(height, width) > half else "replicate"
    padded = F.pad(maps.reshape(-1, 1, height, width), (half, half, half, half), mode=mode)
    across = sum_slices(padded, weights, -1, width)
    return sum_slices(across, weights, -2, height).reshape(maps.shape)


def sum_slices(padded: Tensor, weights: Sequence[float], axis: int, length: int) -> Tensor:
    """Correlate one axis of a padded tensor with `weights`; the result has `length` entries along it."""
    total = padded.narrow(axis, 0, length) * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        part = padded.narrow(axis, offset, length)
        # In one kernel on an accelerator; on a CPU that would round otherwise, depending on the processor.
        total = total + part * weight if padded.device.type in CPUS else total.add_(part, alpha=weight)
    return total


def _extremes(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum and maximum of each map, and whether they differ by more than rounding."""
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    noise = max(1e-8, 8 * torch.finfo(maps.dtype).eps) * high.abs()
    # halved, so that the range is finite even for a map from -max to +max of its dtype
    varies = (high / 2 - low / 2) * 2 > noise.clamp_min(1e-8)
    return low, high, varies


def minmax(maps: Tensor) -> Tensor:
    """Stretch each map of [..., h, w] to [0, 1] by its own minimum and maximum.

    A map that is constant up to rounding says nothing about where its object is, so it becomes zero: never NaN, and
    never amplified rounding noise.

    >>> minmax(torch.tensor([[[2.0, 3.0, 4.0]], [[5.0, 5.0, 5.0]]])).tolist()
    [[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    low, high, varies = _extremes(maps)
    span = torch.where(varies, high / 2 - low / 2, 1.0)
    return torch.where(varies, (maps / 2 - low / 2) / span, 0.0)


def clip_tails(maps: Tensor, share: float = 0.01) -> Tensor:
    """Clip the extremes of each map of [..., h, w]: the fraction `share` of its pixels with the smallest and with the largest
    values, rounded up to whole pixels, is set to the nearest remaining value.

    Keeps a few pixels, such as attention sinks in the corners, from setting the scale. A map that is constant except in
    those pixels stays as it is.
    """
    pixels = maps.shape[-2] * maps.shape[-1]
    cut = min(math.ceil(share * pixels), (pixels - 1) // 2)
    # Sorts, because torch.quantile does not accept large maps.
    ordered = maps.flatten(-2).sort(-1).values
    low, high = (ordered[..., place, None, None] for place in (cut, pixels - 1 - cut))
    return torch.where(low < high, maps.clamp(low, high), maps)


def stretch(maps: Tensor, range_: Range = "full") -> Tensor:
    """Stretch each map of [..., h, w] to [0, 1] by `minmax`; for the range "robust", after `clip_tails`.

    Raises ValueError for an unknown range.
    """
    return minmax(within(maps, range_))


def within(maps: Tensor, range_: Range) -> Tensor:
    """Return the maps unchanged for the range "full", after `clip_tails` for "robust". Raises ValueError otherwise."""
    check_choice("range", range_, RANGES)
    return clip_tails(maps) if range_ == "robust" else maps


def stack_frames(maps: Tensor, frames: int) -> Tensor:
    """Stack the frames of each video below one another, so that they share a scale.

    [B * frames, K, h, w] -> [B, K, frames * h, w]
    """
    return maps if frames == 1 else maps.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)


def unstack_frames(maps: Tensor, frames: int) -> Tensor:
    """Undo `stack_frames`: [B, K, frames * h, w] -> [B * frames, K, h, w]."""
    return maps if frames == 1 else maps.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)


def maxnorm(maps: Tensor) -> Tensor:
    """Divide each map of [..., h, w] by its own maximum. Constant maps become zero, as in `minmax`."""
    _, high, varies = _extremes(maps)
    usable = varies & (high > torch.finfo(maps.dtype).tiny)
    return torch.where(usable, maps / torch.where(usable, high, 1.0), 0.0)
