"""Semantic guidance: classifier-free guidance with a factor for each region."""

from __future__ import annotations

from typing import Any, Literal

from comfy_api.latest import io

from ..goca_core.attention.record import AUTO
from ..goca_core.capture.guidance.patch import guide
from ..goca_core.guidance.semantic import REGION_RULES, Settings
from ..goca_core.heads import HEAD_METHODS
from ..goca_core.layers import LAYER_CHOICES
from ..goca_core.rescale import RESCALE_METHODS
from . import types
from .inputs import with_tooltip


class SemanticCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_SemanticCFG",
            display_name="Semantic CFG (GoCA)",
            category=types.CATEGORY,
            search_aliases=["s-cfg", "guidance", "cfg", "classifier-free guidance"],
            description=(
                "Semantic guidance (S-CFG). Classifier-free guidance affects some words of a prompt more than others. "
                "This node scales it in the region of each word, so that every region is guided as strongly as the "
                "foreground on average."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to guide. The node works on a copy; the original stays unchanged."
                ),
                with_tooltip(
                    io.Combo.Input("regions", options=list(REGION_RULES), default=REGION_RULES[0]),
                    "How the regions of the words are found. GoCA: from all heads and layers, weighted as in the "
                    "GoCA paper. S-CFG: from a plain average of the coarse layers, as in the S-CFG paper.",
                ),
                with_tooltip(
                    io.Float.Input("minimum", default=0.8, min=0.0, max=10.0, step=0.01),
                    "Smallest factor that the guidance scale (cfg) is multiplied by. Published value: 0.8. With "
                    "both minimum and maximum at 1, guidance is plain.",
                ),
                with_tooltip(
                    io.Float.Input("maximum", default=3.0, min=0.0, max=10.0, step=0.01),
                    "Largest factor that the guidance scale (cfg) is multiplied by; must not be below minimum. "
                    "Published value: 3.",
                ),
                with_tooltip(
                    io.Float.Input("ceiling", default=15.0, min=0.0, max=100.0, step=0.5),
                    "Largest guidance scale at any pixel. It overrides minimum: with cfg 7.5 and a ceiling of 15, "
                    "the factor is at most 2. Published value: 15.",
                ),
                with_tooltip(
                    io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01),
                    "When semantic guidance starts, as a fraction of sampling from 0 to 1. Before that, guidance "
                    "is plain. Must be below end_percent.",
                ),
                with_tooltip(
                    io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01),
                    "When semantic guidance ends, as a fraction of sampling from 0 to 1. After that, guidance is "
                    "plain. Must be above start_percent.",
                ),
                with_tooltip(
                    io.Boolean.Input("smooth", default=True, advanced=True),
                    "Smooth the edges between regions with a 3x3 Gaussian blur, as published.",
                ),
                with_tooltip(
                    io.Combo.Input("ties", options=["first", "all"], default="first", advanced=True),
                    "What happens at a pixel where two words have the same highest score. first: it belongs to the "
                    "first word. all: it belongs to all of them and their factors are added, as in the released "
                    "code.",
                ),
                with_tooltip(
                    io.Combo.Input("head_method", options=[AUTO, *HEAD_METHODS], default=AUTO, advanced=True),
                    "How attention heads are weighted for GoCA's regions, as in Aggregate. auto: the paper's "
                    "choice for this kind of model. Not used for S-CFG's regions.",
                ),
                with_tooltip(
                    io.Combo.Input("layer_method", options=[AUTO, *LAYER_CHOICES], default=AUTO, advanced=True),
                    "How layers are weighted for GoCA's regions, as in Aggregate. auto: the paper's choice for "
                    "this kind of model. Not used for S-CFG's regions.",
                ),
                with_tooltip(
                    io.Combo.Input("rescale_method", options=[AUTO, *RESCALE_METHODS], default=AUTO, advanced=True),
                    "How the maps of words are made comparable for GoCA's regions, as in Rescale. auto: the "
                    "paper's choice for this kind of model. Not used for S-CFG's regions.",
                ),
                with_tooltip(
                    io.Int.Input("propagation", default=-1, min=-1, max=20, advanced=True),
                    "Number of propagation steps for GoCA's regions, as in Mask From Tokens. -1: the paper's "
                    "number for this kind of model (2 to 5). 0: no propagation. Not used for S-CFG's regions.",
                ),
                with_tooltip(
                    types.Words.Input("words", optional=True),
                    "From Prompt Words. Needed only for GoCA's regions, and only where the conditioning does not "
                    "know its words by itself.",
                ),
                with_tooltip(
                    io.Int.Input("renew_every", default=1, min=1, max=100, optional=True, advanced=True),
                    "Find the regions in every so many evaluations of the model, and use them in those that follow. 1: in "
                    "each, as published. With 4, sampling is faster, and regions are up to three evaluations old.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The guided model. Connect it to the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        regions: str,
        minimum: float,
        maximum: float,
        ceiling: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        smooth: bool = True,
        ties: Literal["first", "all"] = "first",
        head_method: str = AUTO,
        layer_method: str = AUTO,
        rescale_method: str = AUTO,
        propagation: int = -1,
        words: Any = None,
        renew_every: int = 1,
    ) -> io.NodeOutput:
        settings = Settings(
            regions,
            head_method,
            layer_method,
            rescale_method,
            propagation,
            ties,
            minimum,
            maximum,
            ceiling,
            smooth,
            renew_every,
        )
        return io.NodeOutput(guide(model, settings, start_percent, end_percent, words))
