"""Layer-wise aggregation of a recording: the weights of its layers, and the global map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..heads import HEAD_METHODS
from ..layers import (
    INFORMATION,
    LAYER_METHODS,
    LAYER_WEIGHTINGS,
    MASS_PRESERVING,
    aggregate_layers,
    information,
    normalise_scores,
)
from ..tensors import CPUS, index_on
from .record import AUTO, Affinity, Attention, AttentionError, Tokens


@dataclass(frozen=True)
class Maps:
    """The global map of a recording.

    ``maps``: [B, T, h, w], not negative, summing to one over T at each pixel. ``source``: the recording. ``weights``: [B, L]
    of its layers.
    """

    maps: Tensor
    source: Attention
    weights: Tensor = field(repr=False)

    @property
    def tokens(self) -> Tokens:
        return self.source.tokens

    def to(self, device: torch.device) -> Maps:
        """The same with the maps on another device; the recording stays where it is."""
        return replace(self, maps=self.maps.to(device))


def _resolve_method(
    what: str, method: str, default: str, available: Sequence[str], known: Sequence[str], choices: Sequence[str] = ()
) -> str:
    """Replace "auto" by the default, and raise AttentionError for a method that is unknown or was not recorded.

    ``choices``: the methods that the error lists, if there are more than those that can be recorded.
    """
    method = default if method == AUTO else method
    if method not in known:
        raise AttentionError(f"Unknown {what} method {method!r}: use one of {', '.join(choices or known)}.")
    if method not in available:
        raise AttentionError(
            f"The {what} method {method!r} was not recorded ({', '.join(available)} were); set "
            f"{what}_methods to 'all' in Record Attention or Segment Image and run again."
        )
    return method


def layer_weights(
    attention: Attention, method: str = AUTO, head: str = AUTO, device: torch.device | None = None
) -> Tensor:
    """Compute the normalised weights [B, L] of the layers. A layer without a score counts as the mean of the others.

    method: one of layers.LAYER_WEIGHTINGS, or "auto" for the family's. "mass-preserving" is the dot-product score as if
    resizing self-attention to the reference grid had kept the sum of its rows. Resizing keeps values, so rows that summed to
    one sum to Nr / Nl afterwards, and the score, which is linear in them, is too large by that factor. Nr is the same for
    all layers and cancels when the weights are normalised.
    "information" (`layers.information`) needs no recorded score. It is computed from the maps of the head method ``head``
    and the propagation map, on ``device`` (None = where the recording is); without a propagation map, from the maps alone.
    As the recording's default, it gives way to equal weights where the words are not known.
    All frames of a video use the mean of their scores, so that weights do not change over time.
    Raises AttentionError for a method that is unknown or was not recorded, and for "information" if the recording does not
    know the words of the prompt.
    """
    if method == AUTO:
        method = attention.defaults.layer
        if method == INFORMATION and attention.tokens.words is None:
            method = "vanilla"
    mass_preserving = method == MASS_PRESERVING
    method = "dot-product similarity" if mass_preserving else method
    computed = (*attention.layer_methods, INFORMATION)
    known = (*LAYER_METHODS, INFORMATION)
    method = _resolve_method("layer", method, attention.defaults.layer, computed, known, LAYER_WEIGHTINGS)
    if method == "vanilla":
        scores = torch.ones(attention.batch, len(attention.layers), device=attention.device)
    else:
        if method == INFORMATION:
            scores = _information(attention, head, device or attention.device)
        else:
            scores = torch.stack([layer.scores[method].float() for layer in attention.layers], -1)
        if attention.frames > 1:
            videos = scores.unflatten(0, (-1, attention.frames)).nanmean(1, keepdim=True)
            scores = videos.expand(-1, attention.frames, -1).flatten(0, 1)
    if mass_preserving:
        scores = scores * index_on(scores.device, [layer.height * layer.width for layer in attention.layers])
    mean = torch.nanmean(scores, -1, keepdim=True)
    return normalise_scores(torch.where(torch.isnan(scores), mean, scores))


def _information(attention: Attention, head: str, device: torch.device) -> Tensor:
    """The information [B, L] in the maps of the content words (`layers.information`)."""
    head = _resolve_method("head", head, attention.defaults.head, attention.head_methods, HEAD_METHODS)
    words = attention.tokens.words
    if words is None:
        raise AttentionError(
            f"The layer method {INFORMATION!r} needs the words of the prompt, which this recording does not know; encode "
            "the prompt with Encode Prompt (GoCA) and record again, or choose another layer method."
        )
    columns = index_on(device, attention.tokens.columns(words.content()))
    grids = [(layer.height, layer.width) for layer in attention.layers]
    maps = [layer.maps[head].to(device)[..., columns] for layer in attention.layers]
    affinity = attention.affinity
    size = max(grids, key=lambda grid: grid[0] * grid[1]) if affinity is None else (affinity.height, affinity.width)
    matrix = None if affinity is None else affinity.matrix.to(device)
    return information(maps, grids, size, matrix, frames=attention.frames)


def weighted_affinity(attention: Attention, method: str = "dot-product similarity") -> Affinity:
    """Average the self-attention of the propagation layers, weighted by their scores instead of equally.

    Not part of the paper. Raises AttentionError when the recording holds only the mean, or not this layer method.
    """
    affinity = attention.affinity
    parts = {} if affinity is None else affinity.parts
    layers = tuple(layer for layer in attention.layers if layer.name in parts)
    if affinity is None or not layers:
        raise AttentionError(
            "The recording does not hold the self-attention of each propagation layer, which is needed to weight them by "
            "score; record again with affinity_parts."
        )
    weights = layer_weights(replace(attention, layers=layers), method)
    matrix = torch.zeros_like(affinity.matrix, dtype=torch.float32)
    for layer, weight in zip(layers, weights.unbind(-1), strict=True):
        matrix.addcmul_(parts[layer.name].float(), weight.to(matrix)[:, None, None])
    return replace(affinity, matrix=matrix)


def aggregate(
    attention: Attention,
    head_method: str = AUTO,
    layer_method: str = AUTO,
    check: bool = True,
    device: torch.device | None = None,
) -> Maps:
    """Combine all layers of a recording into the global map (paper: layer-wise aggregation, "auto").

    The map has the size of the finest recorded layer. Raises AttentionError for a method that was not recorded, or a
    recording that is not finite. check: False leaves out the latter on an accelerator, because the CPU would have to wait for
    it; maps [B, T, h, w] are then NaN where the recording is not finite. device: where to compute, and where the maps
    are then; None = where the recording is.
    """
    head = _resolve_method("head", head_method, attention.defaults.head, attention.head_methods, HEAD_METHODS)
    if check or attention.device.type in CPUS:
        attention.check_finite()
    weights = layer_weights(attention, layer_method, head, device)
    grids = [(layer.height, layer.width) for layer in attention.layers]
    size = max(grids, key=lambda grid: grid[0] * grid[1])
    place = device or attention.device
    layers = [layer.maps[head].to(place) for layer in attention.layers]
    maps = aggregate_layers(layers, grids, weights.to(place), size, not check)
    return Maps(maps, attention, weights)
