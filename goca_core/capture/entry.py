"""What one model call leaves of one conditioning: every attention call reduced to small maps while its tensors live."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..attention import Layer, Tokens
from ..heads import head_weights
from ..layers import LAYER_METHODS, reference_affinity, resize_self_map
from ..resize import Grid, resize_bilinear
from .family import Block, Plan, Site, Spans
from .film import FilmMaps, by_frame, film_self_maps
from .joint import FUSED, joint_maps, log_total
from .reduce import Call, Columns, cross_maps
from .rows import Agreement, Kept, Mean, Reference, Take
from .weights import effective_weight

# The reference affinity, and a self map held until it is known, are kept in half precision from this many tokens on; what
# is held is then not on an accelerator.
_HOLD_EXACT = 1024


@dataclass(frozen=True)
class Options:
    """What to reduce to, chosen in the node. ``grid_limit``: at most so many tokens in the reference grid; 0 = any. All
    frames of a film together get no more memory than a picture on that grid. ``affinity_parts``: keep the self-attention of
    each propagation layer beside their mean."""

    head_methods: tuple[str, ...]
    layer_methods: tuple[str, ...]
    reference_channel0: bool = False
    full_affinity: bool = False
    grid_limit: int = 64 * 64
    affinity_parts: bool = False

    @property
    def scored(self) -> tuple[str, ...]:
        """The layer methods that look at self-attention."""
        return tuple(method for method in LAYER_METHODS if method in self.layer_methods and method != "vanilla")


class Aim:
    """What the layers of one model call are reduced to: the plan, the options and the grids they lead to."""

    def __init__(self, plan: Plan, options: Options, size: Grid, frames: int = 1) -> None:
        self.plan, self.options, self.frames = plan, options, frames
        levels = {block.name: block.level for block in plan.blocks}
        # A matrix has the square of its grid's tokens, for each frame.
        share = 1 / math.sqrt(frames)
        bound = max(1, int(options.grid_limit * share)) if options.grid_limit else 0
        self.reference_grid = _bounded(plan.grid(levels[plan.reference], *size), bound)
        # The paper propagates on the finest grid; unless asked to, no grid finer than the reference's is held when it
        # has more than 1,024 tokens: full self-attention there would cost more than all the rest of recording.
        finest = plan.grid(min((levels[name] for name in plan.affinity), default=0), *size)
        limit = max(_HOLD_EXACT * share, math.prod(self.reference_grid))
        fine = options.full_affinity or math.prod(finest) <= limit
        self.affinity_grid = finest if fine else self.reference_grid

    def targets(self, block: Block) -> list[Grid]:
        """The grids that self-attention of a layer is wanted for."""
        scored = [self.reference_grid] if self.options.scored else []
        return scored + ([self.affinity_grid] if block.name in self.plan.affinity else [])


def _bounded(grid: Grid, limit: int) -> Grid:
    """The grid itself, or one of its shape with at most ``limit`` tokens."""
    tokens = math.prod(grid)
    if not limit or tokens <= limit:
        return grid
    share = math.sqrt(limit / tokens)
    return max(1, int(grid[0] * share)), max(1, int(grid[1] * share))


@dataclass
class EntryResult:
    """What one call recorded for one conditioning."""

    layers: dict[str, Layer] = field(default_factory=dict)
    affinity: Tensor | None = None
    affinity_grid: Grid = (0, 0)
    affinity_parts: dict[str, Tensor] = field(default_factory=dict)


class Entry:
    """The rows of one conditioning within a call, and its layers so far."""

    def __init__(self, rows: slice, tokens: Tokens) -> None:
        self.rows, self.tokens = rows, tokens
        self.result = EntryResult()
        self._reference: Reference | None = None
        self._held: list[tuple[str, Tensor, Grid]] = []
        self._scores: dict[str, dict[str, Tensor]] = {}
        self._mean: Mean | None = None
        self._made: dict[int, Columns] = {}

    # -- attention ----------------------------------------------------------------------------------------------------

    def take_text(
        self, aim: Aim, block: Block, call: Call, post: Tensor | None, grid: Grid, image: slice = slice(None)
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
        weights = _weights(block.text, value, call.v, aim)
        self._keep(aim, block, cross_maps(call, weights, columns), grid)

    def take_self(self, aim: Aim, block: Block, call: Call, grid: Grid, image: slice) -> None:
        """Self-attention of a layer, whose keys and queries are the picture's at ``image``."""
        with self._self_maps(aim, block, grid) as maps:
            if maps is None:
                return
            call = call.rows(self.rows).queries(image)
            # Of a film only each frame's own part is wanted, so knowing the denominators saves most of the work.
            total = log_total(call) if aim.frames > 1 and call.q.device.type in FUSED else None
            film_self_maps(call, image, maps, total)

    def take_joint(self, aim: Aim, block: Block, call: Call, post: Tensor, grid: Grid, spans: Spans) -> None:
        """Text and self-attention of a layer in one."""
        call = call.rows(self.rows)
        columns = self._columns(spans.text.stop - spans.text.start, call.q.device)
        value = post[self.rows, spans.image]
        weights = _weights(block.text, value, call.v[:, :, spans.image], aim)
        call = call.queries(spans.image)
        with self._self_maps(aim, block, grid) as selves:
            self._keep(aim, block, joint_maps(call, spans, weights, columns, selves), grid)

    def take_feature(self, aim: Aim, feature: Tensor, grid: Grid) -> None:
        """The feature [B, N, C] of the reference layer, for the whole call: what all layers are measured by."""
        affinities = []
        dtype = torch.float16 if _large(aim.reference_grid, aim.frames) else None
        for frame in feature[self.rows].chunk(aim.frames, 1):  # one by one: in full precision they are large
            picture = resize_bilinear(frame.transpose(-1, -2).unflatten(-1, grid).float(), aim.reference_grid)
            affinities.append(reference_affinity(picture, aim.options.reference_channel0, dtype))
        whole = affinities[0] if aim.frames == 1 else torch.stack(affinities, 1).flatten(0, 1)
        self._reference = Reference(whole, aim.reference_grid)
        for name, layer, layer_grid in self._held:
            self._score_whole(aim, name, layer.to(feature.device), layer_grid)
        self._held.clear()

    # -- what is made of it -------------------------------------------------------------------------------------------

    def _columns_for(self, keys: int, device: torch.device) -> Columns | None:
        return None if keys % self.tokens.length else self._columns(keys, device)

    def _columns(self, keys: int, device: torch.device) -> Columns:
        """Of as many keys; fewer than there are tokens where the model cuts padding off."""
        tokens = self.tokens
        if keys not in self._made:
            self._made[keys] = Columns.make(keys, tokens.length, tokens.positions, tokens.rest, device)
        return self._made[keys]

    def _keep(self, aim: Aim, block: Block, maps: dict[str, Tensor], grid: Grid) -> None:
        small = {name: by_frame(part, aim.frames).cpu() for name, part in maps.items()}
        self.result.layers[block.name] = Layer(block.name, *grid, small, {})

    @contextmanager
    def _self_maps(self, aim: Aim, block: Block, grid: Grid) -> Iterator[FilmMaps | None]:
        """The self-attention of a layer, to be filled; then scored or held, and averaged. None if it is not wanted."""
        targets, frames = aim.targets(block), aim.frames
        if not targets:
            yield None
            return
        takers: dict[Grid, list[Take]] = {target: [] for target in targets}
        scored, averaged = bool(aim.options.scored), block.name in aim.plan.affinity
        agreement, part = None, Kept(frames)
        held = Kept(frames, torch.float16 if _large(aim.reference_grid, frames) else None)
        if scored:
            if self._reference is not None:
                agreement = Agreement(self._reference.affinity, frames, aim.options.scored)
            takers[aim.reference_grid].append(held.take if agreement is None else agreement.take)
        averages: list[Take] = []
        if averaged:
            self._mean = self._mean or Mean(frames)
            self._mean.next_layer()
            averages = [self._mean.take, *([part.take] if aim.options.affinity_parts else [])]
            takers[aim.affinity_grid] += averages
        maps = FilmMaps(grid, targets, frames, {target: partial(_each, takes) for target, takes in takers.items()})
        yield maps
        if scored:
            whole = maps.result(aim.reference_grid)
            if whole is not None:
                self._score_whole(aim, block.name, *whole)
            elif agreement is not None:
                self._scores[block.name] = {method: score.cpu() for method, score in agreement.result().items()}
            else:
                self._hold(aim, block.name, held.result(), aim.reference_grid)
        if averaged:
            whole = maps.result(aim.affinity_grid)
            if whole is not None:
                layer = resize_self_map(*whole, aim.affinity_grid).unflatten(0, (-1, frames))
                for frame in range(frames):
                    _each(averages, frame, slice(None), layer[:, frame])
            if aim.options.affinity_parts:
                self.result.affinity_parts[block.name] = part.result().cpu()

    def _score_whole(self, aim: Aim, name: str, layer: Tensor, grid: Grid) -> None:
        if self._reference is None:
            self._hold(aim, name, layer, grid)
            return
        self._scores[name] = {method: self._reference.score(layer, grid, method).cpu() for method in aim.options.scored}

    def _hold(self, aim: Aim, name: str, layer: Tensor, grid: Grid) -> None:
        self._held.append((name, layer.to("cpu", torch.float16) if _large(grid, aim.frames) else layer, grid))

    def finish(self, aim: Aim) -> EntryResult:
        """What was recorded; the layers in the order of the plan. A layer that could not be measured scores NaN."""
        layers = {}
        for block in aim.plan.blocks:
            layer = self.result.layers.get(block.name)
            if layer is not None:
                batch = next(iter(layer.maps.values())).shape[0]
                unknown = {method: torch.full((batch,), torch.nan) for method in aim.options.scored}
                scores = self._scores.get(block.name) or unknown
                layers[block.name] = Layer(layer.name, layer.height, layer.width, layer.maps, scores)
        self.result.layers = layers
        if self._mean is not None:
            self.result.affinity, self.result.affinity_grid = self._mean.result().cpu(), aim.affinity_grid
        return self.result


def _each(takes: Sequence[Take], frame: int, rows: slice, part: Tensor) -> None:
    for take in takes:
        take(frame, rows, part)


def _large(grid: Grid, frames: int) -> bool:
    return frames * math.prod(grid) ** 2 > _HOLD_EXACT**2


def _weights(site: Site, post: Tensor, value: Tensor, aim: Aim) -> dict[str, Tensor]:
    """Head weights [B, N, H] by each method, from what attention gave [B, N, C] and its values [B, H, T, d]."""
    methods = aim.options.head_methods
    # The average does not look at the projection, so a model whose projection cannot be read still records it.
    plain = not site.weighted or set(methods) == {"average"}
    weight = post.new_zeros(1, post.shape[-1]) if plain else effective_weight(site.out, post.device)

    def of(method: str, frame: Tensor) -> Tensor:
        seen = value if "VW" in method else None
        return head_weights(frame.float(), weight, site.heads, method if site.weighted else "average", seen)

    # Frame by frame, because what attention gave is large in full precision.
    return {method: torch.cat([of(method, frame) for frame in post.chunk(aim.frames, 1)], 1) for method in methods}
