"""Average recordings of the same model, prompt and size (evaluations of a run, noise draws), and flip one left to right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .record import Attention, AttentionError


def merge(records: Iterable[Attention]) -> Attention:
    """Average several recordings of the same model, prompt and size (evaluations of a run, draws of noise).

    Takes them one by one, so with a generator no more than two recordings are in memory.
    Raises AttentionError without recordings, or for recordings that do not fit.

    >>> from goca_core.attention import Defaults, Layer, Tokens
    >>> def recording(value: float) -> Attention:
    ...     layer = Layer("mid", 1, 1, {"average": torch.tensor([[[value, 1 - value]]])}, {})
    ...     return Attention("sd", 1, 1, 8, (layer,), Tokens((1, 2), False, 3), Defaults("average", "vanilla", "raw", 0))
    >>> merge([recording(0.25), recording(0.75)]).layers[0].maps["average"].tolist()
    [[[0.5, 0.5]]]
    """
    merged: Attention | None = None
    for count, record in enumerate(records, start=1):
        merged = record if merged is None else blend(merged, record, 1 / count)
    if merged is None:
        raise AttentionError("There are no recordings to average: pass at least one.")
    return merged


def same_layout(first: Attention, second: Attention) -> bool:
    """Whether two recordings have the same layers, tokens and batch, so that they can be averaged."""
    layers = [[(layer.name, layer.height, layer.width) for layer in record.layers] for record in (first, second)]
    tokens = [(record.tokens.positions, record.tokens.rest, record.tokens.length) for record in (first, second)]
    sizes = [(record.batch, record.frames) for record in (first, second)]
    return layers[0] == layers[1] and tokens[0] == tokens[1] and sizes[0] == sizes[1]


def blend(mean: Attention, new: Attention, share: float) -> Attention:
    """Move ``mean`` towards ``new`` by the fraction ``share``: 1/n for the n-th recording of a running mean.

    Raises AttentionError for recordings that do not fit.
    """
    if not same_layout(mean, new):
        raise AttentionError(
            "Recordings of different models, sizes, batches or prompts cannot be averaged; use them separately."
        )

    def mix(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.lerp(first[name].float(), second[name].float(), share) for name in first if name in second}

    def mix_scores(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # NaN marks a score that could not be measured; then the other recording's score counts.
        return {
            name: torch.where(first[name].isnan(), second[name], torch.where(second[name].isnan(), first[name], mixed))
            for name, mixed in mix(first, second).items()
        }

    layers = tuple(
        replace(a, maps=mix(a.maps, b.maps), scores=mix_scores(a.scores, b.scores))
        for a, b in zip(mean.layers, new.layers, strict=True)
    )
    affinity = mean.affinity
    if affinity is not None and new.affinity is not None:
        matrix = torch.lerp(affinity.matrix.float(), new.affinity.matrix.float(), share)
        affinity = replace(affinity, matrix=matrix, parts=mix(affinity.parts, new.affinity.parts))
    return replace(mean, layers=layers, affinity=affinity, sigmas=mean.sigmas + new.sigmas)


def flip_recording(attention: Attention) -> Attention:
    """Flip a recording: that of a flipped image then fits the image itself.

    Flips cross-attention on each layer's own grid, and the affinity on both of its axes, in its own dtype. Layer scores stay
    the same, because they compare a layer with a reference affinity of the same image.
    """
    layers = tuple(
        replace(
            layer,
            maps={name: value[:, _flip_index(layer.height, layer.width, value)] for name, value in layer.maps.items()},
        )
        for layer in attention.layers
    )
    affinity = attention.affinity
    if affinity is not None:
        index = _flip_index(affinity.height, affinity.width, affinity.matrix)
        parts = {name: part[:, index][:, :, index] for name, part in affinity.parts.items()}
        affinity = replace(affinity, matrix=affinity.matrix[:, index][:, :, index], parts=parts)
    return replace(attention, layers=layers, affinity=affinity)


def _flip_index(height: int, width: int, like: Tensor) -> Tensor:
    """For each token of a grid in raster order, the index of the opposite token in its row, [height * width]."""
    return torch.arange(height * width, device=like.device).unflatten(0, (height, width)).flip(1).flatten()
