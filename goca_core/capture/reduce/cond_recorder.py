"""What one model call leaves of one conditioning: every attention call reduced to small maps while its tensors live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...attention.record import Layer, Tokens
from ...heads import head_weights
from ...layers import reference_affinity, resize_self_map
from ...tensors import Grid, resize_bilinear
from ..families.base import Block, Site, Spans
from .call import AttentionCall, TokenColumns, cross_maps
from .layer_scores import Agreement, Kept, Mean, Reference, Take
from .one_pass import FUSED, joint_maps, log_total
from .projection import effective_weight
from .self_maps import FilmMaps, by_frame, film_self_maps
from .spec import ReductionSpec, _large


@dataclass
class CondRecording:
    """What one call recorded for one conditioning."""

    layers: dict[str, Layer] = field(default_factory=dict)
    affinity: Tensor | None = None
    affinity_grid: Grid = (0, 0)
    affinity_parts: dict[str, Tensor] = field(default_factory=dict)


class CondRecorder:
    """The rows of one conditioning within a call, and its layers so far."""

    def __init__(self, rows: slice, tokens: Tokens) -> None:
        self.rows, self.tokens = rows, tokens
        self.result = CondRecording()
        self._reference: Reference | None = None
        self._held: list[tuple[str, Tensor, Grid]] = []
        self._scores: dict[str, dict[str, Tensor]] = {}
        self._mean: Mean | None = None
        self._made: dict[int, TokenColumns] = {}

    # -- attention ----------------------------------------------------------------------------------------------------

    def take_text(
        self,
        spec: ReductionSpec,
        block: Block,
        call: AttentionCall,
        post: Tensor | None,
        grid: Grid,
        image: slice = slice(None),
    ) -> None:
        """Cross-attention of a layer. ``post``: what it gave, for the whole call; None where that was replaced.
        ``image``: the queries that are the picture's."""
        call = call.rows(self.rows).queries(image)
        columns = self._columns_for(call.k.shape[2], call.q.device)
        if columns is None:
            return  # other conditionings were appended to the keys; which columns are ours cannot be told
        if post is None:
            value = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
            value = value.transpose(1, 2).flatten(2)
        else:
            value = post[self.rows, image]
        weights = _weights(block.cross_attn, value, call.v, spec)
        self._keep(spec, block, cross_maps(call, weights, columns), grid)

    def take_self(self, spec: ReductionSpec, block: Block, call: AttentionCall, grid: Grid, image: slice) -> None:
        """Self-attention of a layer, whose keys and queries are the picture's at ``image``."""
        with self._self_maps(spec, block, grid) as maps:
            if maps is None:
                return
            call = call.rows(self.rows).queries(image)
            # Of a film only each frame's own part is wanted, so knowing the denominators saves most of the work.
            total = log_total(call) if spec.frames > 1 and call.q.device.type in FUSED else None
            film_self_maps(call, image, maps, total)

    def take_joint(
        self, spec: ReductionSpec, block: Block, call: AttentionCall, post: Tensor, grid: Grid, spans: Spans
    ) -> None:
        """Text and self-attention of a layer in one."""
        call = call.rows(self.rows)
        columns = self._columns(spans.text.stop - spans.text.start, call.q.device)
        value = post[self.rows, spans.image]
        weights = _weights(block.cross_attn, value, call.v[:, :, spans.image], spec)
        call = call.queries(spans.image)
        with self._self_maps(spec, block, grid) as selves:
            self._keep(spec, block, joint_maps(call, spans, weights, columns, selves), grid)

    def take_feature(self, spec: ReductionSpec, feature: Tensor, grid: Grid) -> None:
        """The feature [B, N, C] of the reference layer, for the whole call: what all layers are measured by."""
        affinities = []
        dtype = torch.float16 if _large(spec.reference_grid, spec.frames) else None
        for frame in feature[self.rows].chunk(spec.frames, 1):  # one by one: in full precision they are large
            picture = resize_bilinear(frame.transpose(-1, -2).unflatten(-1, grid).float(), spec.reference_grid)
            affinities.append(reference_affinity(picture, spec.options.reference_channel0, dtype))
        whole = affinities[0] if spec.frames == 1 else torch.stack(affinities, 1).flatten(0, 1)
        self._reference = Reference(whole, spec.reference_grid)
        for name, layer, layer_grid in self._held:
            self._score_whole(spec, name, layer.to(feature.device), layer_grid)
        self._held.clear()

    # -- what is made of it -------------------------------------------------------------------------------------------

    def _columns_for(self, keys: int, device: torch.device) -> TokenColumns | None:
        return None if keys % self.tokens.length else self._columns(keys, device)

    def _columns(self, keys: int, device: torch.device) -> TokenColumns:
        """Of as many keys; fewer than there are tokens where the model cuts padding off."""
        tokens = self.tokens
        if keys not in self._made:
            self._made[keys] = TokenColumns.make(keys, tokens.length, tokens.positions, tokens.rest, device)
        return self._made[keys]

    def _keep(self, spec: ReductionSpec, block: Block, maps: dict[str, Tensor], grid: Grid) -> None:
        small = {name: by_frame(part, spec.frames).cpu() for name, part in maps.items()}
        self.result.layers[block.name] = Layer(block.name, *grid, small, {})

    @contextmanager
    def _self_maps(self, spec: ReductionSpec, block: Block, grid: Grid) -> Iterator[FilmMaps | None]:
        """The self-attention of a layer, to be filled; then scored or held, and averaged. None if it is not wanted."""
        targets, frames = spec.targets(block), spec.frames
        if not targets:
            yield None
            return
        takers: dict[Grid, list[Take]] = {target: [] for target in targets}
        scored, averaged = bool(spec.options.scored), block.name in spec.plan.affinity
        agreement, part = None, Kept(frames)
        held = Kept(frames, torch.float16 if _large(spec.reference_grid, frames) else None)
        if scored:
            if self._reference is not None:
                agreement = Agreement(self._reference.affinity, frames, spec.options.scored)
            takers[spec.reference_grid].append(held.take if agreement is None else agreement.take)
        averages: list[Take] = []
        if averaged:
            self._mean = self._mean or Mean(frames)
            self._mean.next_layer()
            averages = [self._mean.take, *([part.take] if spec.options.affinity_parts else [])]
            takers[spec.affinity_grid] += averages
        maps = FilmMaps(grid, targets, frames, {target: partial(_each, takes) for target, takes in takers.items()})
        yield maps
        if scored:
            whole = maps.result(spec.reference_grid)
            if whole is not None:
                self._score_whole(spec, block.name, *whole)
            elif agreement is not None:
                self._scores[block.name] = {method: score.cpu() for method, score in agreement.result().items()}
            else:
                self._hold(spec, block.name, held.result(), spec.reference_grid)
        if averaged:
            whole = maps.result(spec.affinity_grid)
            if whole is not None:
                layer = resize_self_map(*whole, spec.affinity_grid).unflatten(0, (-1, frames))
                for frame in range(frames):
                    _each(averages, frame, slice(None), layer[:, frame])
            if spec.options.affinity_parts:
                self.result.affinity_parts[block.name] = part.result().cpu()

    def _score_whole(self, spec: ReductionSpec, name: str, layer: Tensor, grid: Grid) -> None:
        if self._reference is None:
            self._hold(spec, name, layer, grid)
            return
        self._scores[name] = {
            method: self._reference.score(layer, grid, method).cpu() for method in spec.options.scored
        }

    def _hold(self, spec: ReductionSpec, name: str, layer: Tensor, grid: Grid) -> None:
        self._held.append((name, layer.to("cpu", torch.float16) if _large(grid, spec.frames) else layer, grid))

    def finish(self, spec: ReductionSpec) -> CondRecording:
        """What was recorded; the layers in the order of the plan. A layer that could not be measured scores NaN."""
        layers = {}
        for block in spec.plan.blocks:
            layer = self.result.layers.get(block.name)
            if layer is not None:
                batch = next(iter(layer.maps.values())).shape[0]
                unknown = {method: torch.full((batch,), torch.nan) for method in spec.options.scored}
                scores = self._scores.get(block.name) or unknown
                layers[block.name] = Layer(layer.name, layer.height, layer.width, layer.maps, scores)
        self.result.layers = layers
        if self._mean is not None:
            self.result.affinity, self.result.affinity_grid = self._mean.result().cpu(), spec.affinity_grid
        return self.result


def _each(takes: Sequence[Take], frame: int, rows: slice, part: Tensor) -> None:
    for take in takes:
        take(frame, rows, part)


def _weights(site: Site, post: Tensor, value: Tensor, spec: ReductionSpec) -> dict[str, Tensor]:
    """Head weights [B, N, H] by each method, from what attention gave [B, N, C] and its values [B, H, T, d]."""
    methods = spec.options.head_methods
    # The average does not look at the projection, so a model whose projection cannot be read still records it.
    plain = not site.weighted or set(methods) == {"average"}
    weight = post.new_zeros(1, post.shape[-1]) if plain else effective_weight(site.out, post.device)

    def of(method: str, frame: Tensor) -> Tensor:
        seen = value if "VW" in method else None
        return head_weights(frame.float(), weight, site.heads, method if site.weighted else "average", seen)

    # Frame by frame, because what attention gave is large in full precision.
    return {method: torch.cat([of(method, frame) for frame in post.chunk(spec.frames, 1)], 1) for method in methods}
