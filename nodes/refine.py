"""Sharper scores: along the colours of the picture, or by segments of the model's self-attention."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..goca_core.pipeline import refined
from ..goca_core.refine.methods import REFINEMENTS, GuidedFilter, Pamr, ProposalMerge
from . import types

_PAMR = [
    io.Int.Input(
        "iterations",
        default=Pamr.iterations,
        min=1,
        max=100,
        tooltip="How often each pixel takes the mean of its neighbours of like colour. More moves scores further.",
    ),
    io.Int.Input(
        "reach",
        default=Pamr.reach,
        min=0,
        max=256,
        tooltip=(
            "How far the furthest neighbours are, in pixels of the picture. 0: as far as the cells of the scores are large."
        ),
    ),
]
_GUIDED_FILTER = [
    io.Int.Input(
        "radius",
        default=GuidedFilter.radius,
        min=0,
        max=256,
        tooltip=(
            "Radius of the window in which scores follow the colours, in pixels of the picture. 0: two cells of the scores."
        ),
    ),
    io.Float.Input(
        "eps",
        default=GuidedFilter.eps,
        min=0.00001,
        max=1.0,
        step=0.0001,
        round=False,
        tooltip=(
            "What counts as an edge: colours (0..1) that vary less than this, as a variance, are smoothed over. Lower "
            "follows finer edges."
        ),
    ),
]
_PROPOSAL_MERGE = [
    io.Float.Input(
        "tolerance",
        default=ProposalMerge.tolerance,
        min=0.001,
        max=20.0,
        step=0.01,
        tooltip=(
            "How much the self-attention of two places may differ within a segment (Kullback-Leibler divergence). Higher "
            "gives fewer, larger segments."
        ),
    ),
    io.Int.Input(
        "stride",
        default=ProposalMerge.stride,
        min=1,
        max=64,
        tooltip="One proposal for a segment at every so many cells of both axes. Lower finds smaller segments; slower.",
    ),
    io.Float.Input(
        "threshold",
        default=ProposalMerge.threshold,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Mean score that a segment needs to belong to a phrase or to the background.",
    ),
]


class Refine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Refine",
            display_name="Refine (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "sharpen mask", "edge", "guided filter", "pamr", "diffcut"],
            description=(
                "Sharper masks: lets scores follow the edges of the picture, or whole segments of the model's "
                "self-attention. Several can follow one another."
            ),
            inputs=[
                io.MultiType.Input(
                    "source",
                    types=[types.Scores, types.Maps, types.Attention],
                    tooltip=(
                        "Scores from Rescale or another Refine. Maps or attention work too: the missing steps are done "
                        "with the paper's choices."
                    ),
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The decoded picture or pictures that the scores belong to, at any size. Needed by pamr and guided "
                        "filter."
                    ),
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(Pamr.name, _PAMR),
                        io.DynamicCombo.Option(GuidedFilter.name, _GUIDED_FILTER),
                        io.DynamicCombo.Option(ProposalMerge.name, _PROPOSAL_MERGE),
                    ],
                    tooltip=(
                        "pamr: scores spread among neighbours of like colour; sharp and thorough. guided filter: scores "
                        "follow the colours of their surroundings; soft and fast. proposal merge: segments of the model's "
                        "self-attention go whole to one phrase; needs no picture."
                    ),
                ),
            ],
            outputs=[
                types.Scores.Output(
                    display_name="scores", tooltip="Scores for Mask From Tokens, Overlay or another Refine."
                )
            ],
        )

    @classmethod
    def execute(cls, source: Any, method: dict[str, Any], image: Any = None) -> io.NodeOutput:
        options = dict(method)
        return io.NodeOutput(refined(source, REFINEMENTS[options.pop("method")](**options), image))
