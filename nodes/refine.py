"""Sharpen scores by the colours of the image or by segments of the model's self-attention."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..goca_core.capture.source import recorded
from ..goca_core.pipeline import refined
from ..goca_core.refine.methods import REFINEMENTS, GuidedFilter, Pamr, ProposalMerge
from . import inputs, types
from .inputs import with_tooltip

_PAMR = [
    with_tooltip(
        io.Int.Input("iterations", default=Pamr.iterations, min=1, max=100),
        "How many times each pixel is averaged with its neighbours of similar colour. More iterations move the "
        "scores further.",
    ),
    with_tooltip(
        io.Int.Input("reach", default=Pamr.reach, min=0, max=256),
        "Distance to the furthest neighbours, in pixels of the image. Other neighbours are at a half, a quarter "
        "and so on of this distance. 0: the size of one cell of the scores, at least 8.",
    ),
]
_GUIDED_FILTER = [
    with_tooltip(
        io.Int.Input("radius", default=GuidedFilter.radius, min=0, max=256),
        "Radius of the window in which the scores are fitted to the colours, in pixels of the image. 0: two cells "
        "of the scores, at least 4.",
    ),
    with_tooltip(
        io.Float.Input("eps", default=GuidedFilter.eps, min=0.00001, max=1.0, step=0.0001, round=False),
        "Where colours (0 to 1) vary less than this, measured as a variance, scores are smoothed. Lower values "
        "follow finer edges.",
    ),
]
_PROPOSAL_MERGE = [
    with_tooltip(
        io.Float.Input("tolerance", default=ProposalMerge.tolerance, min=0.001, max=20.0, step=0.01),
        "How much the self-attention of two places in one segment may differ (symmetric Kullback-Leibler "
        "divergence, in nats). Higher values give fewer and larger segments.",
    ),
    with_tooltip(
        io.Int.Input("stride", default=ProposalMerge.stride, min=1, max=64),
        "Distance between segment proposals along both axes, in cells of the self-attention grid. Lower values "
        "find smaller segments but take longer.",
    ),
    with_tooltip(
        io.Float.Input("threshold", default=ProposalMerge.threshold, min=0.0, max=1.0, step=0.01),
        "The mean score, from 0 to 1, that a segment must exceed to be assigned to a phrase or to the background.",
    ),
]


class Refine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Refine",
            display_name="Refine (GoCA)",
            category=types.CATEGORY,
            search_aliases=["sharpen mask", "edge", "guided filter", "pamr", "diffcut"],
            description=(
                "Sharpens masks: aligns the scores with the edges of the image or with segments of the model's "
                "self-attention. You can connect several Refine nodes in a row."
            ),
            inputs=[
                inputs.source(
                    "source",
                    [types.Scores, types.Maps],
                    "Scores from Rescale or another Refine. Maps or attention work too; the missing steps are then "
                    "done with the paper's settings.",
                ),
                with_tooltip(
                    io.Image.Input("image", optional=True),
                    "The decoded image or images that the scores belong to, at any size. Required by pamr and "
                    "guided filter. A single image can serve a whole batch.",
                ),
                with_tooltip(
                    io.DynamicCombo.Input(
                        "method",
                        options=[
                            io.DynamicCombo.Option(Pamr.name, _PAMR),
                            io.DynamicCombo.Option(GuidedFilter.name, _GUIDED_FILTER),
                            io.DynamicCombo.Option(ProposalMerge.name, _PROPOSAL_MERGE),
                        ],
                    ),
                    "pamr: scores are averaged over neighbouring pixels of similar colour; sharp and thorough. "
                    "guided filter: scores are fitted to the colours around each pixel; soft and fast. proposal "
                    "merge: whole segments of the model's self-attention are assigned to one phrase; needs no "
                    "image.",
                ),
                inputs.latent(),
            ],
            outputs=[
                types.Scores.Output(
                    display_name="scores",
                    tooltip="The refined scores. Connect them to Mask From Tokens, Overlay or another Refine.",
                )
            ],
        )

    @classmethod
    def execute(cls, source: Any, method: dict[str, Any], image: Any = None, latent: Any = None) -> io.NodeOutput:
        source = recorded(source, latent)
        options = dict(method)
        return io.NodeOutput(refined(source, REFINEMENTS[options.pop("method")](**options), image))
