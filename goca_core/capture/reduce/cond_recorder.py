"""Record one conditioning in one model call: reduce each attention call to small maps while its tensors are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...attention.record import Layer, Tokens
from ...heads import head_weights, head_weights_of_layers
from ...layers import reference_affinity
from ...tensors import CPUS, Grid, resize_bilinear
from ..families.base import Block, JointSpans, Site
from .call import AttentionCall, block_elements
from .fused import compute_total
from .layer_scores import LayerScores, MeanSink, PartsSink, PerplexitySink, ScoreSink
from .one_pass import ALL, joint_pass, self_pass, text_pass
from .projection import effective_weight
from .self_maps import SelfMaps, Sink, by_frame, picked_rows
from .spec import ReductionSpec
from .stack import LayerStack, Room
from .text_maps import TextMaps, token_columns


@dataclass(frozen=True)
class Waiting:
    """A layer that is to be reduced; ``weight``: that of its output projection, if it is needed."""

    block: Block
    weight: Tensor | None = None

    def kept(self) -> Waiting:
        """The same for later: ComfyUI may use the memory of a weight that it has cast or loaded for this layer again."""
        own = getattr(self.block.cross_attn.out, "weight", None)
        if self.weight is None or (
            own is not None and own.device == self.weight.device and own.data_ptr() == self.weight.data_ptr()
        ):
            return self
        return Waiting(self.block, self.weight.clone())


# Reduces layers, from their tensors with an axis for the layers in front.
Reduction = Callable[[Sequence[Waiting], Sequence[Tensor]], None]


@dataclass
class CondRecording:
    """The recording of one conditioning in one call. ``unscored``: recorded layers whose self-attention was not seen."""

    layers: dict[str, Layer] = field(default_factory=dict)
    affinity: Tensor | None = None
    affinity_grid: Grid = (0, 0)
    affinity_parts: dict[str, Tensor] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()

    def tensors(self) -> list[Tensor]:
        """Everything that was recorded, in the order that ``with_tensors`` takes."""
        layers = [part for layer in self.layers.values() for part in (*layer.maps.values(), *layer.scores.values())]
        return [*layers, *self.affinity_parts.values(), *([] if self.affinity is None else [self.affinity])]

    def with_tensors(self, moved: Iterator[Tensor]) -> CondRecording:
        """The recording with copies of its tensors."""

        def take(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: next(moved) for name in parts}

        layers = {
            name: replace(layer, maps=take(layer.maps), scores=take(layer.scores))
            for name, layer in self.layers.items()
        }
        parts = take(self.affinity_parts)
        affinity = None if self.affinity is None else next(moved)
        return CondRecording(layers, affinity, self.affinity_grid, parts, self.unscored)


def without_right(result: CondRecording, share: float) -> CondRecording:
    """A recording of the left ``share`` of its columns."""

    def kept(grid: Grid) -> Tensor:
        columns = torch.arange(grid[0] * grid[1]) % grid[1]
        return columns < round(grid[1] * share)

    def cut(matrix: Tensor) -> Tensor:
        own = kept(result.affinity_grid).to(matrix.device)
        return matrix[:, own][:, :, own]

    layers = {}
    for name, layer in result.layers.items():
        own = kept((layer.height, layer.width))
        maps = {method: values[:, own.to(values.device)] for method, values in layer.maps.items()}
        layers[name] = replace(layer, width=round(layer.width * share), maps=maps)
    height, width = result.affinity_grid
    return replace(
        result,
        layers=layers,
        affinity=None if result.affinity is None else cut(result.affinity),
        affinity_grid=(height, round(width * share)),
        affinity_parts={name: cut(part) for name, part in result.affinity_parts.items()},
    )


class CondRecorder:
    """Records the rows of one conditioning in a call, layer by layer, or several layers at once (see ``stack``)."""

    def __init__(self, spec: ReductionSpec, rows: slice, tokens: Tokens) -> None:
        self.spec, self.rows, self.tokens = spec, rows, tokens
        self._maps: dict[str, Layer] = {}
        self._scores = LayerScores()
        self._mean: MeanSink | PerplexitySink | None = None
        self._parts: dict[str, Tensor] = {}
        self._elements = 0
        self._compared: set[str] = set()
        # The layers that wait to be reduced, with what is done then.
        self._stacks: dict[tuple[Any, ...], tuple[LayerStack[Waiting], Reduction]] = {}
        self._room = Room()

    # -- attention ----------------------------------------------------------------------------------------------------

    def take_text(
        self, block: Block, call: AttentionCall, output: Tensor | None, grid: Grid, image: slice = ALL
    ) -> None:
        """Record the cross-attention of a layer.

        ``output``: its output, for the whole call; None where another node replaced it. ``image``: the image's queries.
        """
        if call.k.shape[2] % self.tokens.length:
            return  # other conditionings were appended to the keys, so the columns of this one are unknown
        call = replace(call.rows(self.rows).queries(image), total=None)
        site, weighted = block.cross_attn, self._weighted(block.cross_attn)
        # Only weights of heads need the output, and a stack would copy it for each layer.
        value = self._output(call, output, image) if weighted else None
        extra = [] if value is None else [value]
        if any("VW" in method for method in weighted):
            extra.append(call.v)

        def reduce(layers: Sequence[Waiting], parts: Sequence[Tensor]) -> None:
            q, k, *kept = (part.flatten(0, 1) for part in parts)
            weights = [layer.weight for layer in layers if layer.weight is not None]
            weight = weights[0] if len(weights) == 1 else torch.stack(weights) if weights else None
            output, v = (*kept, None, None)[:2]
            heads = self._head_weights(site.heads, output, v, weight)
            text = self._text_maps(heads, call.k.shape[2], q.device)
            whole = AttentionCall(q, k, k, call.mask, call.scale)
            text_pass(whole, text, self._block_elements(whole))
            self._keep(layers, text, grid)

        kind = ("text", grid, site.heads, call.scale, bool(weighted))
        with nullcontext() if value is None else effective_weight(site.out, value) as weight:
            self._reduce(kind, call, Waiting(block, weight), [call.q, call.k, *extra], reduce)

    def _output(self, call: AttentionCall, output: Tensor | None, image: slice) -> Tensor:
        """The attention output [B, N, C] of the rows and queries of ``call``; computed where another node replaced it."""
        if output is not None:
            return output[self.rows, image]
        value = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
        return value.transpose(1, 2).flatten(2)

    def take_self(self, block: Block, call: AttentionCall, grid: Grid, image: slice) -> None:
        """Record the self-attention of a layer; ``image``: the image's queries and keys."""
        spec = self.spec
        targets = self._targets(block)
        if not targets:
            return
        self._compared.add(block.name)
        call = call.rows(self.rows)
        # Without known denominators, each row of an image's map gets its softmax over all keys, which costs no more.
        call = (compute_total(call) if spec.frames > 1 else call).queries(image)
        if call.total is not None:
            maps = SelfMaps(grid, self._sinks((Waiting(block),)), spec.frames)
            self_pass(call, image, maps, self._block_elements(call))
            maps.finish()
            return
        call = picked_rows(call, grid, targets, spec.frames)

        def reduce(layers: Sequence[Waiting], parts: Sequence[Tensor]) -> None:
            q, k = (part.flatten(0, 1) for part in parts)
            maps = SelfMaps(grid, self._sinks(layers), spec.frames)
            whole = AttentionCall(q, k, k, call.mask, call.scale)
            self_pass(whole, image, maps, self._block_elements(whole), picked=True)
            maps.finish()

        kind = ("self", grid, targets, call.scale, image.start)
        self._reduce(kind, call, Waiting(block), [call.q, call.k], reduce)

    def take_joint(self, block: Block, call: AttentionCall, output: Tensor, grid: Grid, spans: JointSpans) -> None:
        """Record the joint attention of a layer, as cross-attention and self-attention."""
        self._compared.add(block.name)
        call = compute_total(call.rows(self.rows))
        value, site = output[self.rows, spans.asking], block.cross_attn
        weighted = self._weighted(site)
        with effective_weight(site.out, value) if weighted else nullcontext() as weight:
            heads = self._head_weights(site.heads, value, call.v[:, :, spans.image], weight)
        text = self._text_maps(heads, spans.text.stop - spans.text.start, value.device)
        sinks = self._sinks((Waiting(block),))
        maps = SelfMaps(grid, sinks, self.spec.frames) if sinks else None
        joint_pass(call.queries(spans.asking), spans, text, maps, self._block_elements(call))
        self._keep((Waiting(block),), text, grid)
        if maps is not None:
            maps.finish()

    def take_feature(self, feature: Tensor, grid: Grid) -> None:
        """Take the feature [B, N, C] of the reference layer, for the whole call; all layers are scored against it."""
        if not self.spec.scored:
            return
        image = by_frame(feature[self.rows], self.spec.frames).mT.unflatten(-1, grid).float()
        image = resize_bilinear(image, self.spec.reference_grid)
        channel0 = self.spec.options.reference_channel0
        self._scores.set_reference(self.spec, reference_affinity(image, channel0, self.spec.reference_dtype))

    # -- layers at once -------------------------------------------------------------------------------------------------

    def _reduce(
        self, kind: tuple[Any, ...], call: AttentionCall, layer: Waiting, tensors: Sequence[Tensor], reduce: Reduction
    ) -> None:
        """Reduce a layer: at once, or on an accelerator together with others of its ``kind`` and size.

        ``reduce`` gets the layers, and their tensors with an axis for the layers in front.
        """
        key = (*kind, *((tensor.shape, tensor.dtype) for tensor in tensors))
        stack = self._stacks[key][0] if key in self._stacks else self._new_stack(call, layer, tensors)
        if stack is None:
            reduce((layer,), [tensor[None] for tensor in tensors])
            return
        self._stacks[key] = stack, reduce
        if stack.add(layer.kept(), tensors):
            self._reduce_stack(key)

    def _new_stack(self, call: AttentionCall, layer: Waiting, tensors: Sequence[Tensor]) -> LayerStack[Waiting] | None:
        """An empty stack for layers like this one, with room made for it; None where layers are reduced one by one."""
        if call.q.device.type in CPUS or call.mask is not None:
            return None
        self._room.see(call.q.numel() * call.q.element_size())
        most = sum(block.level == layer.block.level for block in self.spec.plan.blocks)
        stack = LayerStack[Waiting](tensors, most, self._room.limit)
        if stack.capacity == 1:
            return None
        while self._stacks and stack.bytes + sum(other.bytes for other, _ in self._stacks.values()) > self._room.total:
            self._reduce_stack(next(iter(self._stacks)))
        return stack

    def _reduce_stack(self, key: tuple[Any, ...]) -> None:
        stack, reduce = self._stacks.pop(key)
        reduce(*stack.take())

    def finish(self) -> None:
        """Reduce the layers that still wait. Call this when the model call is over."""
        while self._stacks:
            self._reduce_stack(next(iter(self._stacks)))

    # -- accumulators and results -------------------------------------------------------------------------------------

    def _weighted(self, site: Site) -> list[str]:
        """The head methods that need the projection after the attention of a site."""
        return self._weighted_methods if site.weighted else []

    @property
    def _weighted_methods(self) -> list[str]:
        return [method for method in self.spec.heads if method != "average"]

    def _head_weights(
        self, heads: int, output: Tensor | None, values: Tensor | None, weight: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Head weights [B, N, H] for each method, from the attention output [B, N, C] and the values [B, H, T, d].

        ``weight``: [C_out, C] of the projection, or one for each of several layers. None for the plain average, which needs
        neither the projection nor the output. So it also works where its weight cannot be read.
        """
        found: dict[str, Tensor | None] = dict.fromkeys(self.spec.heads)
        if weight is None or output is None:
            return found
        # In full precision the attention output is large, so a CPU takes frame by frame.
        exact = output.device.type in CPUS
        frames = output.chunk(self.spec.frames if exact else 1, 1)
        for method in self._weighted_methods:
            given = values if "VW" in method else None
            if weight.ndim == 3:
                found[method] = head_weights_of_layers(output, weight, heads, method, given)
                continue
            parts = [head_weights(frame, weight, heads, method, given, exact) for frame in frames]
            found[method] = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return found

    def _text_maps(self, heads: Mapping[str, Tensor | None], keys: int, device: torch.device) -> TextMaps:
        """An empty accumulator for ``keys`` text keys; these are fewer than the tokens if the model drops padding."""
        tokens = self.tokens
        return TextMaps(heads, token_columns(keys, tokens.length, tokens.positions, tokens.rest, device))

    def _block_elements(self, call: AttentionCall) -> int:
        """Size of the largest block, measured once: it takes longer than starting a kernel."""
        self._elements = self._elements or block_elements(call)
        return self._elements

    def _keep(self, layers: Sequence[Waiting], text: TextMaps, grid: Grid) -> None:
        found = {name: by_frame(part, self.spec.frames).chunk(len(layers)) for name, part in text.result().items()}
        for number, layer in enumerate(layers):
            name = layer.block.name
            self._maps[name] = Layer(name, *grid, {method: parts[number] for method, parts in found.items()}, {})

    def compares(self, block: Block) -> bool:
        """Whether the self-attention of a layer is needed."""
        return bool(self._targets(block))

    def _targets(self, block: Block) -> tuple[Grid, ...]:
        """The grids on which the self-attention of a layer is needed."""
        scored = (self.spec.reference_grid,) if self.spec.scored else ()
        return (*scored, self.spec.affinity_grid) if block.name in self.spec.propagation else scored

    def _sinks(self, layers: Sequence[Waiting]) -> list[Sink]:
        """What receives the self-attention of layers; these are all used for propagation, or none of them."""
        spec, sinks, names = self.spec, list[Sink](), tuple(layer.block.name for layer in layers)
        if spec.scored:
            sinks.append(ScoreSink(self._scores, spec, names))
        if names[0] in spec.propagation:
            kind = PerplexitySink if spec.late else MeanSink
            self._mean = self._mean or kind(spec.affinity_grid, spec.frames)
            sinks.append(self._mean.of(len(names)))
            if spec.options.affinity_parts:
                sinks.append(PartsSink(spec.affinity_grid, spec.frames, names, self._parts))
        return sinks

    def result(self) -> CondRecording:
        """The recording, on the model's device, with layers in the order of the plan.

        A layer that could not be scored gets NaN.
        """
        self.finish()
        layers, unscored = {}, []
        for block in self.spec.plan.blocks:
            layer = self._maps.get(block.name)
            if layer is not None:
                scores = self._scores.scores.get(block.name)
                if (self.spec.scored and scores is None) or (self._targets(block) and block.name not in self._compared):
                    unscored.append(block.name)
                if scores is None:
                    like = next(iter(layer.maps.values()))
                    scores = {method: like.new_full(like.shape[:1], torch.nan) for method in self.spec.scored}
                layers[block.name] = replace(layer, scores=scores)
        if self._mean is None:
            return CondRecording(layers, unscored=tuple(unscored))
        parts = {block.name: self._parts[block.name] for block in self.spec.plan.blocks if block.name in self._parts}
        return CondRecording(layers, self._mean.result(), self.spec.affinity_grid, parts, tuple(unscored))
