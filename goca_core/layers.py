"""Layer-wise aggregation: the weight of each layer, and the global map (paper: layer-wise aggregation).

A layer gets a large weight if its self-attention agrees with a reference affinity P, which is made from one dense feature
of the model. Self-attention maps are first resized to the grid of P: keys bilinear, queries nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .tensors import (
    CPUS,
    Grid,
    check_choice,
    check_ndim,
    check_tokens,
    finite,
    index_on,
    nearest_index,
    resize_bilinear,
    working_dtype,
)

LAYER_METHODS: tuple[str, ...] = ("dot-product similarity", "mse", "iou-like", "vanilla")
MASS_PRESERVING = "mass-preserving"
"""Dot-product similarity of self-attention whose rows keep their sum on any grid; computed from the recorded score."""
LAYER_CHOICES: tuple[str, ...] = (*LAYER_METHODS, MASS_PRESERVING)
"""Every method that weights layers by recorded scores: the recorded ones, and the one computed from them."""
INFORMATION = "information"
"""How much the propagated maps of a layer say about which words belong to a pixel; computed from a recording's maps."""
LAYER_WEIGHTINGS: tuple[str, ...] = (*LAYER_CHOICES, INFORMATION)
"""Everything that layers can be weighted by when they are aggregated."""

_ROWS_AT_ONCE = 512  # query rows compared at a time, so that memory is bounded by 512 x Nr


def reference_affinity(feature: Tensor, reference_channel0: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """Compute P, the row-wise softmax of q q^T / sqrt(C), where q are the pixels of the reference feature.

    feature: [B, C, h, w]. reference_channel0: use only channel 0, at scale 1, as the released benchmark code does; the
    default is the paper's, all channels. dtype: type to store P in, None for the precision it is computed in.
    Returns [B, N, N], N = h*w in raster order; rows (queries) sum to one. Raises ValueError for a feature without 4 axes.

    >>> reference_affinity(torch.zeros(1, 3, 1, 2)).tolist()  # pixels without a difference
    [[[0.5, 0.5], [0.5, 0.5]]]
    """
    check_ndim("feature", feature, "B C h w")
    pixels = finite(feature).flatten(2).mT
    if reference_channel0:
        pixels = pixels[..., :1]
    affinity = pixels.new_empty(*pixels.shape[:2], pixels.shape[1], dtype=dtype)
    for start in range(0, pixels.shape[1], _ROWS_AT_ONCE):  # all logits beside the affinity would double the memory
        rows = slice(start, start + _ROWS_AT_ONCE)
        scaled = pixels[:, rows] / pixels.shape[-1] ** 0.5
        affinity[:, rows] = torch.nan_to_num_(scaled @ pixels.mT).softmax(-1)
    return affinity


def resize_keys(rows: Tensor, grid: Grid, size: Grid, mass_preserving: bool = False) -> Tensor:
    """Resize the key axis of self-attention rows to another grid.

    rows: [B, M, N], any M query rows over the keys of `grid`, N = grid[0]*grid[1]. mass_preserving: rescale so that each
    row keeps its sum. Otherwise, as in the reference, values are kept: rows that summed to one then sum to N_size / N_grid,
    and coarse layers score higher.
    Returns [B, M, size[0]*size[1]]. Raises ValueError when the shapes do not fit.

    >>> resize_keys(torch.tensor([[[0.25, 0.75]]]), (1, 2), (2, 2)).tolist()
    [[[0.25, 0.75, 0.25, 0.75]]]
    """
    check_ndim("rows", rows, "B M N")
    check_tokens("rows", rows.shape[-1], grid)
    rows = finite(rows)
    if tuple(grid) == tuple(size):
        return rows
    resized = resize_bilinear(rows.unflatten(-1, tuple(grid)), size).flatten(2)
    return resized * (grid[0] * grid[1] / (size[0] * size[1])) if mass_preserving else resized


def resize_self_map(self_map: Tensor, grid: Grid, size: Grid, mass_preserving: bool = False) -> Tensor:
    """Resize a self-attention map to another grid: keys bilinear (`resize_keys`), queries nearest.

    self_map: [B, N, N] on `grid`, rows are queries. If only the rows at `nearest_index(grid, size)` were kept, call
    `resize_keys` on them instead.
    Returns [B, Ns, Ns], Ns = size[0]*size[1]. Raises ValueError when the shapes do not fit.

    >>> resize_self_map(torch.tensor([[[1.0]]]), (1, 1), (1, 2)).tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    _check_self_map(self_map, grid)
    if tuple(grid) == tuple(size):
        return finite(self_map)
    index = nearest_index(grid, size, self_map.device)
    if len(index) <= self_map.shape[1]:
        return resize_keys(self_map[:, index], grid, size, mass_preserving)
    # to a finer grid: resize the keys of each row once, then repeat the row
    return resize_keys(self_map, grid, size, mass_preserving)[:, index]


class LayerScore:
    """The unnormalised agreement of one layer with the reference affinity, accumulated over blocks of query rows.

    dot-product similarity: sum of P * S.  mse: 1 / sum over rows of |P_i - S_i| (inf on an exact match).
    iou-like: sum min(P, S) / (sum max(P, S) + 1e-4).  vanilla: 1.
    Raises ValueError for an unknown method.

    >>> score = LayerScore("dot-product similarity")
    >>> score.add(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1.0, 0.0]]]))  # the first row, then the second
    >>> score.add(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.0, 1.0]]]))
    >>> score.result().tolist()
    [1.0]
    """

    def __init__(self, method: str) -> None:
        check_choice("layer method", method, LAYER_METHODS)
        self.method = method
        self._sums: tuple[Tensor, ...] | None = None

    def add(self, reference: Tensor, resized: Tensor) -> None:
        """Add a block of rows: reference [B, M, Nr] and the layer's rows of the same queries, [B, M, Nr].

        Raises ValueError when the shapes differ.
        """
        check_ndim("reference", reference, "B M Nr")
        if reference.shape != resized.shape:
            raise ValueError(
                f"reference {tuple(reference.shape)} and resized {tuple(resized.shape)} differ: "
                "resize the layer to the reference grid and take the same query rows of both."
            )
        dtype = working_dtype(reference, resized)
        self.accumulate(finite(reference, dtype), finite(resized, dtype))

    def accumulate(self, p: Tensor, s: Tensor) -> None:
        """The same for blocks that are known to fit and to be finite, without a copy of them.

        ``s`` may have the samples of several layers, one layer after the other.
        """
        found: tuple[Tensor, ...]
        if self.method != "dot-product similarity" and len(p) != len(s):
            p = p.repeat(len(s) // len(p), 1, 1)
        if self.method == "dot-product similarity":
            found = (overlap(p, s),)
        elif self.method == "mse":
            found = ((p - s).norm(dim=-1).sum(-1),)
        elif self.method == "iou-like":
            found = torch.minimum(p, s).sum((1, 2)), torch.maximum(p, s).sum((1, 2))
        else:
            found = (p.new_ones(p.shape[0]),)
        self._sums = found if self._sums is None else tuple(a + b for a, b in zip(self._sums, found, strict=True))

    def result(self) -> Tensor:
        """Return the score of every sample, [B]. Raises ValueError if no rows were added."""
        if self._sums is None:
            raise ValueError("No rows were added: call add() with every block of query rows before result().")
        if self.method == "vanilla":
            return torch.ones_like(self._sums[0])
        first, *more = self._sums
        if self.method == "mse":
            return 1.0 / first
        return first / (more[0] + 1e-4) if more else first


def overlap(p: Tensor, s: Tensor) -> Tensor:
    """The sum of products of p [B, M, N] and s [B, M, N], or [layers * B, M, N]: [B], or [layers * B].

    >>> overlap(torch.ones(1, 1, 2), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])).tolist()
    [3.0, 7.0]
    """
    if len(p) == len(s):
        return torch.einsum("bmn,bmn->b", p, s)
    # Not a product of matrices: with one row, a few columns and a million terms for each, a GPU uses one of its cores.
    return (p * s.unflatten(0, (-1, len(p)))).sum((-2, -1)).flatten()


def layer_score(reference: Tensor, resized: Tensor, method: str) -> Tensor:
    """Compute the unnormalised score of one layer: reference [B, Nr, Nr], resized [B, Nr, Nr] -> [B]; see `LayerScore`.

    >>> layer_score(torch.eye(2)[None], torch.eye(2)[None], "dot-product similarity").tolist()
    [2.0]
    """
    score = LayerScore(method)
    score.add(reference, resized)
    return score.result()


def normalise_scores(scores: Tensor) -> Tensor:
    """Normalise scores [B, L] to weights that sum to one over the layers.

    Negative and NaN scores count as 0. Layers with an infinite score split all of the weight. If every score is 0, the
    weights are uniform. Raises ValueError without layers.

    >>> normalise_scores(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist()
    [[0.75, 0.25], [0.5, 0.5]]
    """
    check_ndim("scores", scores, "B L")
    if scores.shape[1] == 0:
        raise ValueError("scores has no layers: record at least one attention layer.")
    scores = scores.to(working_dtype(scores)).nan_to_num(nan=0.0, posinf=torch.inf, neginf=0.0).clamp_min(0)
    infinite = torch.isinf(scores)
    scores = torch.where(infinite.any(-1, keepdim=True), infinite.to(scores), scores)
    largest = scores.amax(-1, keepdim=True)
    scores = torch.where(
        largest > 0, scores / torch.where(largest > 0, largest, 1.0), 1.0
    )  # the sum cannot overflow now
    return scores / scores.sum(-1, keepdim=True)


def layer_scores(
    affinity: Tensor,
    grid: Grid,
    self_maps: Sequence[Tensor],
    grids: Sequence[Grid],
    method: str,
    mass_preserving: bool = False,
) -> Tensor:
    """Compute the normalised weights of all layers.

    affinity: [B, Nr, Nr] from `reference_affinity`, on `grid`. self_maps: one map [B, Nl, Nl] per layer, the mean over its
    heads, on `grids`. mass_preserving: remove the published rule's preference for coarse layers (`resize_keys`).
    Returns [B, L]. Raises ValueError for an unknown method or shapes that do not fit.

    >>> uniform, diagonal = torch.full((1, 2, 2), 0.5), torch.eye(2)[None]
    >>> weights = layer_scores(diagonal, (1, 2), [diagonal, uniform], [(1, 2)] * 2, "dot-product similarity")
    >>> [round(weight, 3) for weight in weights[0].tolist()]  # 2 to 1
    [0.667, 0.333]
    """
    check_choice("layer method", method, LAYER_METHODS)
    _check_self_map(affinity, grid, "affinity")
    _check_lengths(self_maps, grids)
    columns = []
    for self_map, map_grid in zip(self_maps, grids, strict=True):
        _check_self_map(self_map, map_grid)
        score = LayerScore(method)
        index = nearest_index(map_grid, grid, self_map.device)
        for start in range(0, len(index), _ROWS_AT_ONCE):
            rows = self_map[:, index[start : start + _ROWS_AT_ONCE]]
            score.add(affinity[:, start : start + _ROWS_AT_ONCE], resize_keys(rows, map_grid, grid, mass_preserving))
        columns.append(score.result())
    return normalise_scores(torch.stack(columns, -1))


def aggregate_layers(
    maps: Sequence[Tensor], grids: Sequence[Grid], weights: Tensor, size: Grid, pass_on: bool = False
) -> Tensor:
    """Compute the global map: the weighted sum of the layers' maps, clamped at zero and normalised over tokens.

    maps: one [B, Nl, T] per layer, on `grids`. weights: [B, L]. size: height and width of the result. pass_on: on an
    accelerator, let values that are not finite reach the result as NaN instead of counting as 0.
    Returns [B, T, *size], summing to one over T. Where every token is clamped to zero, a pixel takes the plain mean of the
    layers, or 1/T if that is zero as well. Raises ValueError when the shapes do not fit.

    >>> first, second = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.25, 0.75]]])  # one pixel, two tokens
    >>> aggregate_layers([first, second], [(1, 1)] * 2, torch.tensor([[0.5, 0.5]]), (1, 1)).flatten().tolist()
    [0.5, 0.5]
    """
    _check_lengths(maps, grids)
    batch, _, tokens = maps[0].shape
    if tuple(weights.shape) != (batch, len(maps)):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}: expected [B, L] = [{batch}, {len(maps)}], one per layer."
        )
    for layer, (layer_map, grid) in enumerate(zip(maps, grids, strict=True)):
        check_ndim(f"map {layer}", layer_map, "B N T")
        check_tokens(f"map {layer}", layer_map.shape[1], grid)
        if (layer_map.shape[0], layer_map.shape[2]) != (batch, tokens):
            raise ValueError(
                f"map {layer} has shape {tuple(layer_map.shape)}: expected batch {batch} and {tokens} tokens as in map 0."
            )
    dtype = working_dtype(weights, *maps)
    weights = finite(weights, dtype)
    tiny = torch.finfo(dtype).tiny
    equal = torch.full_like(weights, 1.0 / len(maps))
    if weights.device.type in CPUS:
        mixed = _mix(maps, grids, weights, size).clamp_min(0)
        total = mixed.sum(1, keepdim=True)
        if bool((total > tiny).all()):  # usual, and the second pass over the layers costs as much as the first
            return mixed / total
        plain = _mix(maps, grids, equal, size).clamp_min(0)
    else:
        both = torch.stack((weights, equal), 1)  # to look at the total would make the CPU wait for the device
        mixed, plain = _mix_by_grid(maps, grids, both, size, pass_on).clamp_min(0).unbind(1)
    plain = torch.where(plain.sum(1, keepdim=True) <= tiny, 1.0, plain)
    mixed = torch.where(mixed.sum(1, keepdim=True) <= tiny, plain, mixed)  # what is not a number stays so
    return mixed / mixed.sum(1, keepdim=True)


def averaging(affinity: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [B, N, N] that maps [B, K, N] are multiplied with so that each pixel becomes a mean of the pixels that it
    attends to: an affinity [B, N, N] with its rows divided by their sums, transposed.

    >>> (torch.tensor([[[1.0, 0.0]]]) @ averaging(torch.tensor([[[0.5, 0.5], [0.0, 0.1]]]), torch.float32)).tolist()
    [[[0.5, 0.0]]]
    """
    transposed = finite(affinity, dtype).mT
    return transposed / transposed.sum(1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)


def information(
    maps: Sequence[Tensor],
    grids: Sequence[Grid],
    size: Grid,
    affinity: Tensor | None = None,
    steps: int = 2,
    frames: int = 1,
) -> Tensor:
    """Compute how much each layer's maps say about where the words are, in nats (not part of the paper).

    With p the attention to a word after propagation: the sum over words of mean(p log(p / mean(p))), both means over pixels.
    It is the part of these words in the mutual information of words and pixels. It is 0 for a layer that attends to the
    same words everywhere, and large for one that separates them. Propagation comes first, because noise separates pixels
    too, but does not survive being averaged over pixels that the model treats as similar.
    maps: one [B, Nl, C] per layer, on `grids`, of the C words that count. affinity: [B, N, N], N = size[0]*size[1]; its rows
    are divided by their sum. None: no propagation. frames: this many consecutive samples are the frames of one video, and
    the second mean is that of the video.
    Returns [B, L], not normalised, not negative up to rounding for each image or video; 0 without words. Raises ValueError
    when the shapes do not fit.

    >>> same, apart = torch.full((1, 2, 2), 0.5), torch.eye(2)[None]  # two pixels, two words
    >>> [round(nats, 3) for nats in information([same, apart], [(1, 2)] * 2, (1, 2))[0].tolist()]  # log(2) for the second
    [0.0, 0.693]
    """
    _check_lengths(maps, grids)
    dtype = working_dtype(*maps)
    if maps[0].shape[-1] == 0:  # a prompt without words
        return maps[0].new_zeros(len(maps[0]), len(maps), dtype=dtype)
    transposed = None
    if affinity is not None and steps:
        _check_self_map(affinity, size, "affinity")
        transposed = averaging(affinity, dtype)
    found = []
    for layer, (layer_map, grid) in enumerate(zip(maps, grids, strict=True)):  # all at once would need the room of all
        check_ndim(f"map {layer}", layer_map, "B N C")
        check_tokens(f"map {layer}", layer_map.shape[1], grid)
        p = resize_bilinear(finite(layer_map, dtype).mT.unflatten(-1, tuple(grid)), size).flatten(2).clamp_min(0)
        if transposed is not None:
            for _ in range(steps):
                p = p @ transposed
        mean = p.mean(-1, keepdim=True)
        if frames > 1:
            mean = mean.unflatten(0, (-1, frames)).mean(1).repeat_interleave(frames, 0)
        ratio = p / torch.where(mean > 0, mean, 1.0)
        found.append(torch.xlogy(p, ratio).mean(-1).sum(-1))
    return torch.stack(found, -1)


def _mix(maps: Sequence[Tensor], grids: Sequence[Grid], weights: Tensor, size: Grid) -> Tensor:
    """Weighted sum of the layers' maps at `size`: [B, T, *size]."""
    total = weights.new_zeros(weights.shape[0], maps[0].shape[-1], *size)
    for layer, (layer_map, grid) in enumerate(zip(maps, grids, strict=True)):
        image = finite(layer_map, weights.dtype).mT.unflatten(-1, tuple(grid))
        total.addcmul_(resize_bilinear(image, size), weights[:, layer, None, None, None])
    return total


def _mix_by_grid(
    maps: Sequence[Tensor], grids: Sequence[Grid], weights: Tensor, size: Grid, pass_on: bool = False
) -> Tensor:
    """The same for several weights [B, W, L] at once: [B, W, T, *size]. Starts a few kernels per grid, not per layer."""
    tokens, found = maps[0].shape[-1], []
    for grid in dict.fromkeys(grids):
        layers = [layer for layer, other in enumerate(grids) if other == grid]
        maps_there = torch.stack([maps[layer] for layer in layers], 1)
        stacked = maps_there.to(weights.dtype) if pass_on else finite(maps_there, weights.dtype)
        mixed = weights[:, :, index_on(weights.device, layers)] @ stacked.flatten(2)
        images = mixed.unflatten(-1, (-1, tokens)).mT.flatten(1, 2)  # [B, W * T, N]
        found.append(resize_bilinear(images.unflatten(-1, tuple(grid)), size))
    return sum(found[1:], found[0]).unflatten(1, (-1, tokens))


def _check_self_map(self_map: Tensor, grid: Grid, what: str = "self_map") -> None:
    check_ndim(what, self_map, "B N N")
    check_tokens(what, self_map.shape[1], grid)
    check_tokens(what, self_map.shape[2], grid)


def _check_lengths(tensors: Sequence[Tensor], grids: Sequence[Grid]) -> None:
    if not tensors or len(tensors) != len(grids):
        raise ValueError(
            f"Got {len(tensors)} layers and {len(grids)} grids: pass at least one layer and one (height, width) for each."
        )
