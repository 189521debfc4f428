"""Record one conditioning in one model call: reduce each attention call to small maps while its tensors are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...attention.record import Layer, Tokens
from ...heads import head_weights
from ...layers import reference_affinity
from ...tensors import Grid, resize_bilinear
from ..families.base import Block, JointSpans, Site
from .call import AttentionCall, block_elements
from .fused import compute_total
from .layer_scores import LayerScores, MapSink, MeanSink, ScoreSink
from .one_pass import ALL, joint_pass, self_pass, text_pass
from .projection import effective_weight
from .self_maps import SelfMaps, Sink, by_frame
from .spec import ReductionSpec
from .text_maps import TextMaps, token_columns


@dataclass
class CondRecording:
    """The recording of one conditioning in one call."""

    layers: dict[str, Layer] = field(default_factory=dict)
    affinity: Tensor | None = None
    affinity_grid: Grid = (0, 0)
    affinity_parts: dict[str, Tensor] = field(default_factory=dict)

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
        return CondRecording(layers, None if self.affinity is None else next(moved), self.affinity_grid, parts)


class CondRecorder:
    """Records the rows of one conditioning in a call, layer by layer."""

    def __init__(self, spec: ReductionSpec, rows: slice, tokens: Tokens) -> None:
        self.spec, self.rows, self.tokens = spec, rows, tokens
        self._maps: dict[str, Layer] = {}
        self._scores = LayerScores()
        self._mean: MeanSink | None = None
        self._parts: dict[str, MapSink] = {}
        self._elements = 0

    # -- attention ----------------------------------------------------------------------------------------------------

    def take_text(
        self, block: Block, call: AttentionCall, output: Tensor | None, grid: Grid, image: slice = ALL
    ) -> None:
        """Record the cross-attention of a layer.

        ``output``: its output, for the whole call; None where another node replaced it. ``image``: the image's queries.
        """
        if call.k.shape[2] % self.tokens.length:
            return  # other conditionings were appended to the keys, so the columns of this one are unknown
        call = call.rows(self.rows).queries(image)
        if output is None:
            value = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
            value = value.transpose(1, 2).flatten(2)
        else:
            value = output[self.rows, image]
        text = self._text_maps(block, value, call.v, call.k.shape[2])
        text_pass(replace(call, total=None), text, self._block_elements(call))
        self._keep(block, text, grid)

    def take_self(self, block: Block, call: AttentionCall, grid: Grid, image: slice) -> None:
        """Record the self-attention of a layer; ``image``: the image's queries and keys."""
        maps = self._self_maps(block, grid)
        if maps is not None:
            # Without known denominators, each row of an image's map gets its softmax over all keys, which costs no more.
            call = (compute_total(call) if maps.frames > 1 else call).rows(self.rows).queries(image)
            self_pass(call, image, maps, self._block_elements(call))
            maps.finish()

    def take_joint(self, block: Block, call: AttentionCall, output: Tensor, grid: Grid, spans: JointSpans) -> None:
        """Record the joint attention of a layer, as cross-attention and self-attention."""
        call = compute_total(call).rows(self.rows)
        value = output[self.rows, spans.image]
        text = self._text_maps(block, value, call.v[:, :, spans.image], spans.text.stop - spans.text.start)
        maps = self._self_maps(block, grid)
        joint_pass(call.queries(spans.image), spans, text, maps, self._block_elements(call))
        self._keep(block, text, grid)
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

    # -- accumulators and results -------------------------------------------------------------------------------------

    def _text_maps(self, block: Block, output: Tensor, value: Tensor, keys: int) -> TextMaps:
        """An empty accumulator for ``keys`` text keys; these are fewer than the tokens if the model drops padding."""
        tokens = self.tokens
        columns = token_columns(keys, tokens.length, tokens.positions, tokens.rest, output.device)
        return TextMaps(_head_weights(block.cross_attn, output, value, self.spec), columns)

    def _block_elements(self, call: AttentionCall) -> int:
        """Size of the largest block, measured once: it takes longer than starting a kernel."""
        self._elements = self._elements or block_elements(call)
        return self._elements

    def _keep(self, block: Block, text: TextMaps, grid: Grid) -> None:
        maps = {name: by_frame(part, self.spec.frames) for name, part in text.result().items()}
        self._maps[block.name] = Layer(block.name, *grid, maps, {})

    def _self_maps(self, block: Block, grid: Grid) -> SelfMaps | None:
        """An empty accumulator for the self-attention of a layer; None if that is not needed."""
        spec, sinks = self.spec, list[Sink]()
        if spec.scored:
            sinks.append(ScoreSink(self._scores, spec, block.name))
        if block.name in spec.plan.affinity:
            self._mean = self._mean or MeanSink(spec.affinity_grid, spec.frames)
            sinks.append(self._mean)
            if spec.options.affinity_parts:
                self._parts[block.name] = MapSink(spec.affinity_grid, spec.frames)
                sinks.append(self._parts[block.name])
        return SelfMaps(grid, sinks, spec.frames) if sinks else None

    def result(self) -> CondRecording:
        """The recording, on the model's device, with layers in the order of the plan.

        A layer that could not be scored gets NaN.
        """
        layers = {}
        for block in self.spec.plan.blocks:
            layer = self._maps.get(block.name)
            if layer is not None:
                scores = self._scores.scores.get(block.name)
                if scores is None:
                    like = next(iter(layer.maps.values()))
                    scores = {method: like.new_full(like.shape[:1], torch.nan) for method in self.spec.scored}
                layers[block.name] = replace(layer, scores=scores)
        if self._mean is None:
            return CondRecording(layers)
        parts = {name: part.result() for name, part in self._parts.items()}
        return CondRecording(layers, self._mean.result(), self.spec.affinity_grid, parts)


def _head_weights(site: Site, output: Tensor, value: Tensor, spec: ReductionSpec) -> dict[str, Tensor | None]:
    """Head weights [B, N, H] for each method, from the attention output [B, N, C] and the values [B, H, T, d].

    None for the plain average, which does not need the projection. So it also works where its weight cannot be read.
    """
    weighted = [method for method in spec.heads if method != "average"] if site.weighted else []
    found: dict[str, Tensor | None] = dict.fromkeys(spec.heads)
    # In full precision the attention output is large, so a CPU takes frame by frame.
    exact = output.device.type == "cpu"
    frames = output.chunk(spec.frames if exact else 1, 1)
    if weighted:
        with effective_weight(site.out, output) as weight:
            for method in weighted:
                values = value if "VW" in method else None
                parts = [head_weights(frame, weight, site.heads, method, values, exact) for frame in frames]
                found[method] = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return found
