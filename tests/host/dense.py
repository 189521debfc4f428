"""The method written out densely in double precision, over attention captured by a `Probe`, and what is recorded
compared with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import Attention
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Window, record

from .device import EXACT, STORED
from .helpers import Job, names
from .probe import Evaluation, Probe, Seen


def dense_weights(seen: Seen, method: str) -> Tensor:
    """Head weights [B, N, H] by their definition, with every head's output written out."""
    given, values = seen.given(), seen.values()
    heads, width = values.shape[1], values.shape[3]
    if method == "average" or seen.weight is None:
        return torch.full((given.shape[0], given.shape[2], heads), 1 / heads, dtype=torch.float64)
    weight = seen.weight.double().reshape(-1, heads, width)
    each = torch.einsum("bhnd,ohd->bnho", given, weight)
    whole = each.sum(2, keepdim=True)
    dot = (each * whole).sum(-1)
    length = each.norm(dim=-1)
    cosine = dot / length.clamp_min(1e-8) / whole.norm(dim=-1).clamp_min(1e-8)
    size = torch.linalg.matrix_norm(torch.einsum("bhtd,ohd->bhto", values, weight), ord=2)[:, None]
    raw = {
        "l2-norm": length,
        "cosine": cosine,
        "dot-product": dot.clamp_min(0),
        "dot-product w/o clamp": dot,
        "cosine + VW": cosine * size,
        "dot-product + VW": dot.clamp_min(0) * size,
    }[method]
    total = raw.sum(-1, keepdim=True)
    usable = total > 1e-6 * raw.abs().amax(-1, keepdim=True)
    return torch.where(usable, raw / total, 1 / heads)


def dense_map(seen: Seen, method: str, length: int) -> Tensor:
    """The layer's map [B, N, length] after head-wise aggregation; repeats of the prompt are added up."""
    chances = seen.to_text()
    # Some networks cut padding off.
    chances = F.pad(chances, (0, max(0, length - chances.shape[-1])))
    folded = chances.reshape(*chances.shape[:3], -1, length).sum(3)
    return torch.einsum("bhnt,bnh->bnt", folded, dense_weights(seen, method))


def dense_resize(own: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, N, N] to another grid: keys bilinear, queries nearest, one query at a time."""
    height, width = grid
    keys = F.interpolate(
        own.reshape(-1, height * width, height, width), size=size, mode="bilinear", align_corners=False
    )
    rows = [
        keys[:, (y * height // size[0]) * width + x * width // size[1]].flatten(1)
        for y in range(size[0])
        for x in range(size[1])
    ]
    return torch.stack(rows, 1)


def dense_reference(call: Evaluation, channel0: bool = False) -> Tensor:
    """P of the reference layer's feature."""
    assert call.feature is not None
    q = call.feature.double()
    q = q[..., :1] if channel0 else q
    return torch.softmax(q @ q.transpose(1, 2) / q.shape[-1] ** 0.5, -1)


def dense_scores(call: Evaluation, reference: str, method: str, channel0: bool = False) -> dict[str, Tensor]:
    """Unnormalised layer scores [B] by the direct way."""
    p = dense_reference(call, channel0)
    scores = {}
    for name, seen in call.own.items():
        s = dense_resize(seen.to_itself().mean(1), call.grids[name], call.grids[reference])
        if method == "dot-product similarity":
            scores[name] = (p * s).sum((1, 2))
        elif method == "mse":
            scores[name] = 1 / ((p - s) ** 2).sum(-1).sqrt().sum(-1)
        else:
            scores[name] = torch.minimum(p, s).sum((1, 2)) / (torch.maximum(p, s).sum((1, 2)) + 1e-4)
    return scores


def dense_global(maps: dict[str, Tensor], scores: dict[str, Tensor], grids: dict[str, tuple[int, int]]) -> Tensor:
    """The global map [B, T, h, w] on the finest grid."""
    size = max(grids.values(), key=lambda grid: grid[0] * grid[1])
    total = sum(scores[name].clamp_min(0) for name in maps)
    mixed: Any = 0
    for name, layer in maps.items():
        image = layer.transpose(1, 2).reshape(layer.shape[0], -1, *grids[name])
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        mixed = mixed + (scores[name].clamp_min(0) / total)[:, None, None, None] * image
    mixed = mixed.clamp_min(0)
    return mixed / mixed.sum(1, keepdim=True)


def dense_affinity(probe: Probe, call: Evaluation, size: tuple[int, int]) -> Tensor:
    layers = [dense_resize(call.own[name].to_itself().mean(1), call.grids[name], size) for name in probe.plan.affinity]
    return torch.stack(layers).mean(0)


# -- what is recorded, compared --------------------------------------------------------------------------------------


def probe_and_record(
    model: Any,
    work: Job,
    window: Window | None = None,
    entry: int = 0,
    layout: dict[str, int] | None = None,
    **options: Any,
) -> tuple[Probe, Attention]:
    probe = Probe(model, **(layout or {}))
    probe.run(work)
    recording, recorder = record(model, window or Window(), RecordOptions(**options))
    return probe, recorder.collect(work.run(recording)["samples"], entry)


def assert_near(recorded: Tensor, dense: Tensor, tolerance: float = EXACT) -> None:
    """Within `tolerance` of the largest value."""
    assert recorded.shape == dense.shape
    assert recorded.dtype == torch.float32
    difference = (recorded.double() - dense).abs().max() / dense.abs().max()
    assert difference < tolerance, f"off by {difference:.2g}"


def check_maps(
    attention: Attention, call: Evaluation, method: str = "auto", tolerance: float = EXACT
) -> dict[str, Tensor]:
    """Every layer's map; returns the dense ones."""
    method = attention.defaults.head if method == "auto" else method
    assert names(attention.layers) == list(call.cross)
    dense = {name: dense_map(seen, method, attention.tokens.length) for name, seen in call.cross.items()}
    for layer in attention.layers:
        assert (layer.height, layer.width) == call.grids[layer.name]
        assert_near(layer.maps[method], dense[layer.name], tolerance)
    return dense


def check_scores(
    attention: Attention, scores: dict[str, Tensor], method: str = "auto", tolerance: float = STORED
) -> None:
    method = attention.defaults.layer if method == "auto" else method
    for layer in attention.layers:
        recorded, dense = layer.scores[method].double(), scores[layer.name]
        assert recorded.shape == dense.shape
        assert torch.all((recorded / dense - 1).abs() < tolerance), layer.name


def check(attention: Attention, probe: Probe, number: int = 0, tolerance: float = EXACT) -> None:
    """Maps, scores and the global map of the family's own methods."""
    (sigma,) = attention.sigmas
    attention = by_token(attention, probe.plan.frame_patch)
    call = probe.positive(sigma, number)
    maps = check_maps(attention, call, tolerance=tolerance)
    # The demo model's own choice has no scores to compare; the paper's are recorded too.
    method = "dot-product similarity" if attention.defaults.layer == "vanilla" else attention.defaults.layer
    if not attention.layers[0].scores:  # nothing is compared with a reference
        equal = {name: torch.ones(len(dense)) for name, dense in maps.items()}
        expected = dense_global(maps, equal, call.grids)
        assert_near(aggregate(attention, layer_method="vanilla").maps, expected, tolerance)
        return
    scores = dense_scores(call, probe.plan.reference, method)
    stored = max(tolerance, STORED)
    check_scores(attention, scores, method, tolerance=stored)
    videos = {name: s.reshape(-1, call.frames).mean(1).repeat_interleave(call.frames) for name, s in scores.items()}
    assert_near(aggregate(attention, layer_method=method).maps, dense_global(maps, videos, call.grids), stored)


def by_token(attention: Attention, patch: int) -> Attention:
    """A recording of a video with one sample for each frame of tokens, of which each may span several of the latent."""
    if patch <= 1:
        return attention

    def once(values: Tensor) -> Tensor:
        videos = values.unflatten(0, (-1, attention.frames))
        for later in range(1, patch):
            assert torch.equal(videos[:, later::patch], videos[:, ::patch][:, : videos[:, later::patch].shape[1]])
        return videos[:, ::patch].flatten(0, 1)

    layers = [
        replace(
            layer,
            maps={name: once(part) for name, part in layer.maps.items()},
            scores={name: once(part) for name, part in layer.scores.items()},
        )
        for layer in attention.layers
    ]
    assert attention.affinity is not None
    affinity = replace(attention.affinity, matrix=once(attention.affinity.matrix))
    frames = -(-attention.frames // patch)
    return replace(attention, layers=tuple(layers), affinity=affinity, frames=frames)
