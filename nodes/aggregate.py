"""The two steps between a recording and masks: layers to one map per token, token maps to scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from comfy_api.latest import io

from ..goca_core.attention.global_map import Maps, aggregate
from ..goca_core.attention.record import AUTO
from ..goca_core.batches import Workplace
from ..goca_core.capture.source import recorded
from ..goca_core.capture.workplace import on_device
from ..goca_core.heads import HEAD_METHODS
from ..goca_core.layers import LAYER_WEIGHTINGS
from ..goca_core.pipeline import Scoring
from ..goca_core.rescale import RESCALE_METHODS
from ..goca_core.tensors import RANGES
from . import inputs, types
from .inputs import with_tooltip


class Aggregate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Aggregate",
            display_name="Aggregate (GoCA)",
            category=types.CATEGORY,
            search_aliases=["aggregate attention", "auto aggregation"],
            description=(
                "Auto aggregation: combines the attention maps of all heads and layers into one map per token. The "
                "weights come from the model's own activations."
            ),
            inputs=[
                inputs.source("attention", [], "From Collect Attention, Segment Image or Load Attention."),
                with_tooltip(
                    io.Combo.Input("head_method", options=[AUTO, *HEAD_METHODS], default=AUTO),
                    "How the heads of a layer are weighted at each pixel. auto: equally, or the paper's choice for this "
                    "kind of model if it was recorded with method paper. average: all heads equally. The other methods "
                    "must have been recorded: set head_methods to all in the node that records.",
                ),
                with_tooltip(
                    io.Combo.Input("layer_method", options=[AUTO, *LAYER_WEIGHTINGS], default=AUTO),
                    "How the layers are weighted. auto: information, or the paper's choice if it was recorded with method "
                    "paper. information: by how clearly a layer's maps separate the words after propagation. dot-product "
                    "similarity, the paper's choice: by how well a layer's self-attention agrees with a dense feature of "
                    "the model. mass-preserving: the same without its preference for coarse layers. vanilla: all layers "
                    "equally. Those that compare self-attention must have been recorded: set method to paper, or "
                    "layer_methods to all, in the node that records.",
                ),
                inputs.latent(),
            ],
            outputs=[
                types.Maps.Output(display_name="maps", tooltip="One map per token. At each pixel the maps sum to 1.")
            ],
        )

    @classmethod
    def execute(cls, attention: Any, head_method: str, layer_method: str, latent: Any = None) -> io.NodeOutput:
        attention = recorded(attention, latent)

        def combine(place: Workplace) -> Maps:
            maps = aggregate(attention, head_method, layer_method, device=place.device)
            results = place.results or attention.device
            return replace(maps.to(results), weights=maps.weights.to(results))

        return io.NodeOutput(on_device(combine))


class Rescale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Rescale",
            display_name="Rescale (GoCA)",
            category=types.CATEGORY,
            search_aliases=["rescale attention", "per-pixel rescaling"],
            description=(
                "Per-pixel rescaling: divides the maps at each pixel by the attention to all content words. Without "
                "it, pixels that mostly attend to the start token seem to belong to no word."
            ),
            inputs=[
                types.Maps.Input("maps", tooltip="From Aggregate."),
                with_tooltip(
                    io.Combo.Input("method", options=[AUTO, *RESCALE_METHODS], default=AUTO),
                    "How maps become scores. auto: the paper's method (sum-1 rescaling + per-token renorm+): "
                    "divide by the attention to content words, blur slightly, normalise each object to 0..1. raw: "
                    "the maps as they are. In the other names, sum-1 rescaling is the division, renorm divides by "
                    "the maximum, renorm+ blurs and normalises to 0..1, and x raw multiplies by the original map.",
                ),
                with_tooltip(
                    io.Combo.Input("pool", options=["mean", "sum"], default="mean", advanced=True),
                    "How the tokens of one object are combined: by their mean or their sum. This matters only for "
                    "methods that do not normalise each object.",
                ),
                with_tooltip(
                    io.Combo.Input("range", options=list(RANGES), default="full", optional=True, advanced=True),
                    "The range of scores that is normalised to 0..1 for each object, here and after propagation. "
                    "full: from the smallest to the largest score. robust: without the lowest and highest 1 % of "
                    "the pixels, for models that concentrate attention in a few places such as the corners; "
                    "objects smaller than 1 % of the image may be lost.",
                ),
            ],
            outputs=[
                with_tooltip(
                    types.Scores.Output(display_name="scores"),
                    "Scores that can be compared between objects. Connect them to Refine, Mask From Tokens or Overlay.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        maps: Any,
        method: str,
        pool: Literal["mean", "sum"] = "mean",
        range: Literal["full", "robust"] = "full",
    ) -> io.NodeOutput:
        return io.NodeOutput(Scoring(maps, method, pool, range))
