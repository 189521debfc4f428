"""Record one conditioning in one model call: reduce each attention call to small maps while its tensors are in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...attention.record import Layer, Tokens
from ...heads import head_weights
from ...layers import reference_affinity
from ...tensors import Grid, resize_bilinear
from ..families.base import Block, JointSpans, Site
from .call import AttentionCall
from .layer_scores import LayerScores, MapSink, MeanSink, ScoreSink
from .one_pass import ALL, joint_pass, one_pass, self_pass, video_total
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


class CondRecorder:
    """Records the rows of one conditioning in a call, layer by layer."""

    def __init__(self, spec: ReductionSpec, rows: slice, tokens: Tokens) -> None:
        self.spec, self.rows, self.tokens = spec, rows, tokens
        self._maps: dict[str, Layer] = {}
        self._scores = LayerScores()
        self._mean: MeanSink | None = None
        self._parts: dict[str, MapSink] = {}
        self._columns: dict[int, Tensor] = {}

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
        one_pass(call, (text, ALL))
        self._keep(block, text, grid)

    def take_self(self, block: Block, call: AttentionCall, grid: Grid, image: slice) -> None:
        """Record the self-attention of a layer; ``image``: the image's queries and keys."""
        maps = self._self_maps(block, grid)
        if maps is not None:
            call = call.rows(self.rows).queries(image)
            self_pass(call, image, maps, video_total(call, maps.frames))
            maps.finish()

    def take_joint(self, block: Block, call: AttentionCall, output: Tensor, grid: Grid, spans: JointSpans) -> None:
        """Record the joint attention of a layer, as cross-attention and self-attention."""
        call = call.rows(self.rows)
        value = output[self.rows, spans.image]
        text = self._text_maps(block, value, call.v[:, :, spans.image], spans.text.stop - spans.text.start)
        maps = self._self_maps(block, grid)
        joint_pass(call.queries(spans.image), spans, text, maps)
        self._keep(block, text, grid)
        if maps is not None:
            maps.finish()

    def take_feature(self, feature: Tensor, grid: Grid) -> None:
        """Take the feature [B, N, C] of the reference layer, for the whole call; all layers are scored against it."""
        affinities = []
        for frame in feature[self.rows].chunk(self.spec.frames, 1):  # one at a time: in full precision they are large
            image = resize_bilinear(frame.transpose(-1, -2).unflatten(-1, grid).float(), self.spec.reference_grid)
            channel0 = self.spec.options.reference_channel0
            affinities.append(reference_affinity(image, channel0, self.spec.reference_dtype))
        whole = affinities[0] if len(affinities) == 1 else torch.stack(affinities, 1).flatten(0, 1)
        self._scores.set_reference(self.spec, whole)

    # -- accumulators and results -------------------------------------------------------------------------------------

    def _text_maps(self, block: Block, output: Tensor, value: Tensor, keys: int) -> TextMaps:
        """An empty accumulator for ``keys`` text keys; these are fewer than the tokens if the model drops padding."""
        tokens = self.tokens
        if keys not in self._columns:
            self._columns[keys] = token_columns(keys, tokens.length, tokens.positions, tokens.rest, output.device)
        return TextMaps(_head_weights(block.cross_attn, output, value, self.spec), self._columns[keys])

    def _keep(self, block: Block, text: TextMaps, grid: Grid) -> None:
        maps = {name: by_frame(part, self.spec.frames).cpu() for name, part in text.result().items()}
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
        """The recording, with layers in the order of the plan. A layer that could not be scored gets NaN."""
        layers = {}
        for block in self.spec.plan.blocks:
            layer = self._maps.get(block.name)
            if layer is not None:
                batch = next(iter(layer.maps.values())).shape[0]
                unknown = {method: torch.full((batch,), torch.nan) for method in self.spec.scored}
                scores = self._scores.scores.get(block.name) or unknown
                layers[block.name] = replace(layer, scores=scores)
        if self._mean is None:
            return CondRecording(layers)
        parts = {name: part.result().cpu() for name, part in self._parts.items()}
        return CondRecording(layers, self._mean.result().cpu(), self.spec.affinity_grid, parts)


def _head_weights(site: Site, output: Tensor, value: Tensor, spec: ReductionSpec) -> dict[str, Tensor]:
    """Head weights [B, N, H] for each method, from the attention output [B, N, C] and the values [B, H, T, d]."""
    # The average does not need the projection, so it also works where the projection's weight cannot be read.
    averaged = not site.weighted or set(spec.heads) == {"average"}
    weight = output.new_zeros(1, output.shape[-1]) if averaged else effective_weight(site.out, output.device)

    def frame_weights(method: str, frame: Tensor) -> Tensor:
        values = value if "VW" in method else None
        return head_weights(frame.float(), weight, site.heads, method if site.weighted else "average", values)

    # Frame by frame, because the attention output is large in full precision.
    return {
        method: torch.cat([frame_weights(method, frame) for frame in output.chunk(spec.frames, 1)], 1)
        for method in spec.heads
    }
