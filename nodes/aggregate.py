"""The two steps between a recording and masks: layers into one map, token maps into scores."""

from __future__ import annotations

from typing import Any, Literal

from comfy_api.latest import io

from ..goca_core.attention.global_map import aggregate
from ..goca_core.attention.record import AUTO
from ..goca_core.heads import HEAD_METHODS
from ..goca_core.layers import LAYER_CHOICES
from ..goca_core.pipeline import Scoring
from ..goca_core.rescale import RESCALE_METHODS
from ..goca_core.tensors import RANGES
from . import types


class Aggregate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Aggregate",
            display_name="Aggregate (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "auto aggregation"],
            description=(
                "Auto aggregation: combines the maps of all heads and layers into one, weighted by what "
                "the model itself did at each of them."
            ),
            inputs=[
                types.Attention.Input("attention", tooltip="From Collect Attention, Segment Image or Load Attention."),
                io.Combo.Input(
                    "head_method",
                    options=[AUTO, *HEAD_METHODS],
                    default=AUTO,
                    tooltip=(
                        "How much each head counts at each pixel. auto: the paper's choice for this model. "
                        "Methods beyond it and the average must have been recorded."
                    ),
                ),
                io.Combo.Input(
                    "layer_method",
                    options=[AUTO, *LAYER_CHOICES],
                    default=AUTO,
                    tooltip=(
                        "How much each layer counts. auto: by agreement of its self-attention with a dense "
                        "feature, as in the paper. mass-preserving: the same without its preference for coarse layers. "
                        "vanilla: all alike."
                    ),
                ),
            ],
            outputs=[types.Maps.Output(display_name="maps", tooltip="One map per word, summing to one at each pixel.")],
        )

    @classmethod
    def execute(cls, attention: Any, head_method: str, layer_method: str) -> io.NodeOutput:
        return io.NodeOutput(aggregate(attention, head_method, layer_method))


class Rescale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Rescale",
            display_name="Rescale (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "per-pixel rescaling"],
            description=(
                "Per-pixel rescaling: divides each pixel's maps by its attention to content words, so "
                "that places which mostly attend to the start token count too."
            ),
            inputs=[
                types.Maps.Input("maps", tooltip="From Aggregate."),
                io.Combo.Input(
                    "method",
                    options=[AUTO, *RESCALE_METHODS],
                    default=AUTO,
                    tooltip=(
                        "auto: the paper's: divide, smooth slightly, stretch each object to 0..1. raw: leave the "
                        "maps as they are."
                    ),
                ),
                io.Combo.Input(
                    "pool",
                    options=["mean", "sum"],
                    default="mean",
                    advanced=True,
                    tooltip=(
                        "How the tokens of one object are pooled. It matters only for methods that do not stretch"
                        " each object."
                    ),
                ),
                io.Combo.Input(
                    "range",
                    options=list(RANGES),
                    default="full",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "What each object is stretched by, here and after propagation. full: its smallest and largest "
                        "score. robust: leaves out the hundredth of the pixels at either end, for models that pile "
                        "attention up in a few places such as the corners."
                    ),
                ),
            ],
            outputs=[types.Scores.Output(display_name="scores", tooltip="Scores, comparable between objects.")],
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
