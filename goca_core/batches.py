"""Finish maps a few samples at a time: refine them, bring them to the size of the masks, and decide each pixel.

Also how the samples of a recording relate to images: the frames of a video are fewer in the latent than after decoding, and the
tokens of a model may cover a little more than the latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention.record import Attention
from .refine.methods import Step, apply, cell_of
from .tensors import Grid, resize_bilinear

# Bytes of maps that are worked on at once where memory has no limit; more would leave the CPU's cache.
_BATCH = 1 << 25
_COPIES = 8  # tensors of the size of the maps that exist at once while masks are made


@dataclass(frozen=True)
class Workplace:
    """Where masks are made: a device, the bytes of its memory that may be used, and where results go.

    ``room``: None = no limit. ``results``: the device of what is handed back, None = that of the recording. Results that fit
    into the room beside the work stay on the device, so that more can be computed of them there (`MaskResult.to`).

    >>> Workplace(torch.device("cpu")).room is None
    True
    """

    device: torch.device
    room: int | None = None
    results: torch.device | None = None


def size_of(record: Attention, size: Grid | None, latent: bool = False) -> Grid:
    """The size of masks; ``size`` None, or 0 on a side, is the size of the image."""
    height, width = (0, 0) if size is None else size
    if latent:
        return record.height, record.width
    return height or record.height * record.vae_scale, width or record.width * record.vae_scale


def in_batches(
    maps: Tensor,
    record: Attention,
    steps: Sequence[Step],
    size: Grid,
    latent: bool,
    place: Workplace,
    work: Callable[[Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Finish the maps of a few samples at a time, and collect what ``work`` makes of them, for all samples or frames.

    ``work`` treats each sample by itself: for a video without refinement by its images it gets latent frames, because the
    frames that they decode to are equal, and what it returns is repeated.
    """
    images = [(step.image.shape[1], step.image.shape[2]) for step in steps if step.image is not None]
    pixels = max(height * width for height, width in (size, *images))
    each = maps.shape[1] * pixels * maps.element_size() * (record.temporal_compression if images else 1)
    most = max(1, (_BATCH if place.room is None else place.room // _COPIES) // each)
    count = maps.shape[0] if latent else maps.shape[0] // record.frames * record.images
    results: tuple[Tensor, ...] = ()
    for part in _parts(maps.shape[0], record.frames, most):
        made = work(_finish(maps[part], record, steps, size, latent, part.start))
        if made[0].shape[0] == count:
            return made
        if not results:
            needed = sum(value[0].numel() * value.element_size() for value in made) * count
            stay = place.room is None or needed <= place.room // 2
            device = place.device if stay else place.results or record.device
            results = tuple(value.new_empty(count, *value.shape[1:], device=device) for value in made)
        rows = part if latent else _decoded(record, part)
        for whole, value in zip(results, made, strict=True):
            if latent or images:
                whole[rows] = value
            else:
                source = _latent_of(record, rows, whole.device) - part.start
                torch.index_select(value.to(whole.device), 0, source, out=whole[rows])
    return results


def _parts(samples: int, frames: int, most: int) -> Iterator[slice]:
    """Consecutive samples, at most so many at once. Frames of different videos come together only as whole videos."""
    unit = max(1, most // frames) * frames if frames <= most else frames
    for first in range(0, samples, unit):
        last = min(first + unit, samples)
        for start in range(first, last, max(most, 1)):
            yield slice(start, min(start + most, last))


def _decoded(record: Attention, part: slice) -> slice:
    """The decoded frames of consecutive samples."""

    def begin(sample: int) -> int:
        video, frame = divmod(sample, record.frames)
        return video * record.images + record.decoded(frame)

    return slice(begin(part.start), begin(part.stop))


def _finish(maps: Tensor, record: Attention, steps: Sequence[Step], size: Grid, latent: bool, first: int) -> Tensor:
    """Carry out the refinements, and resize to ``size``.

    maps: of consecutive samples from ``first`` on. ``latent``: whether the results are for samples, even after a refinement
    by the image, from which on they are for decoded frames.
    """
    part = slice(first, first + maps.shape[0])
    affinity = record.affinity
    cell = 0
    for step in steps:
        image = step.image
        if image is not None:
            if not cell:
                # The first refinement by the image; from here on maps have its size, and cover no more than it.
                cell = cell_of(maps, image)
                maps = resize_maps(expand_frames(maps, record, first), record, (image.shape[1], image.shape[2]))
            image = image if image.shape[0] == 1 else image[_decoded(record, part)]
            maps = apply(step.refinement, maps, image, cell=cell)
        elif affinity is not None:
            maps = apply(step.refinement, maps, None, replace(affinity, matrix=affinity.matrix[part], parts={}))
    if not cell:
        return resize_maps(maps, record, size)
    if latent:
        maps = latent_frames(maps, record, first)
    return F.interpolate(maps, size, mode="bilinear", antialias=True) if tuple(maps.shape[2:]) != size else maps


def for_samples(values: Tensor, record: Attention, samples: int) -> Tensor:
    """Values of a record, [B, ...], for so many samples: of a video, for its latent frames or for all of its frames."""
    return values if values.shape[0] == samples else expand_frames(values, record)


def expand_frames(maps: Tensor, record: Attention, first: int = 0) -> Tensor:
    """Maps of latent frames for the frames they decode to (see ``Attention.decoded``).

    ``first``: the sample that the maps begin with, if they are not those of all samples.
    """
    if record.frames == 1:
        return maps
    decoded = _decoded(record, slice(first, first + maps.shape[0]))
    return maps[_latent_of(record, decoded, maps.device) - first]


def _latent_of(record: Attention, decoded: slice, device: torch.device) -> Tensor:
    """The sample that each of some decoded frames comes from."""
    frames = torch.arange(decoded.start, decoded.stop, device=device)
    each, group = record.temporal_compression, record.frame_group or record.frames
    whole, place = 1 + (group - 1) * each, frames % record.images
    latent = place // whole * group + (place % whole + each - 1) // each
    return latent + frames // record.images * record.frames


def latent_frames(maps: Tensor, record: Attention, first: int = 0) -> Tensor:
    """Maps of the frames of a video for its latent frames: the mean of those that a latent frame decodes to.

    ``first``: the latent frame that the maps begin with, of those of all videos; they are then of one video.
    """
    if record.frames == 1:
        return maps
    begin = first % record.frames == 0
    if record.frame_group:
        return _group_means(maps, record, first % record.frames)
    videos = maps.unflatten(0, (-1, record.images)) if begin and maps.shape[0] % record.images == 0 else maps[None]
    rest = videos[:, begin:].unflatten(1, (-1, record.temporal_compression)).mean(2)
    return torch.cat((videos[:, :begin], rest), 1).flatten(0, 1)


def _group_means(maps: Tensor, record: Attention, first: int) -> Tensor:
    """The same where latent frames come in groups; ``first``: the latent frame that the maps begin with."""
    videos = maps.unflatten(0, (-1, record.images)) if not first and maps.shape[0] % record.images == 0 else maps[None]
    means, start, frame = [], 0, first
    while start < videos.shape[1]:
        stop = start + record.decoded(frame + 1) - record.decoded(frame)
        means.append(videos[:, start:stop].mean(1))
        start, frame = stop, frame + 1
    return torch.stack(means, 1).flatten(0, 1)


def resize_maps(maps: Tensor, record: Attention, size: Grid) -> Tensor:
    """Resize maps from the grid of the tokens to pixels.

    The tokens of a model that works on patches cover a little more than an odd-sized latent; the excess is cropped.
    """
    height, width = size
    grid = max(((layer.height, layer.width) for layer in record.layers), key=lambda g: g[0] * g[1])
    covered = [
        side * math.ceil(latent / side) for side, latent in zip(grid, (record.height, record.width), strict=True)
    ]
    full = (round(height * covered[0] / record.height), round(width * covered[1] / record.width))
    return resize_bilinear(maps, full)[..., :height, :width]
