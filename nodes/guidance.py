"""Guidance that looks at what the words mean where."""

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


class SemanticCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_SemanticCFG",
            display_name="Semantic CFG (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "s-cfg", "guidance", "cfg", "classifier-free guidance"],
            description=(
                "Classifier-free guidance pushes some words of a prompt harder than others. This one weighs it for each "
                "word's region, so that all are pushed as hard as the foreground is on average."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide. It is copied; the original stays as it is."),
                io.Combo.Input(
                    "regions",
                    options=list(REGION_RULES),
                    default=REGION_RULES[0],
                    tooltip="Whose regions: GoCA's, from all layers weighed by merit, or those of the S-CFG paper, from an "
                    "average of the coarse layers.",
                ),
                io.Float.Input(
                    "minimum",
                    default=0.8,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="The least that the guidance scale is multiplied with. Minimum and maximum 1: plain guidance.",
                ),
                io.Float.Input(
                    "maximum",
                    default=3.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="The most that the guidance scale is multiplied with.",
                ),
                io.Float.Input(
                    "ceiling",
                    default=15.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="The largest guidance scale that any place gets, whatever the minimum says.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="From which share of sampling on guidance is weighed; before it is plain.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Up to which share of sampling guidance is weighed; after it is plain.",
                ),
                io.Boolean.Input(
                    "smooth",
                    default=True,
                    advanced=True,
                    tooltip="Smooth the edges between regions a little, as published.",
                ),
                io.Combo.Input(
                    "ties",
                    options=["first", "all"],
                    default="first",
                    advanced=True,
                    tooltip="A place where two words win alike goes to the first, or to all of them, as in the released "
                    "code, where their weights then add up.",
                ),
                io.Combo.Input(
                    "head_method",
                    options=[AUTO, *HEAD_METHODS],
                    default=AUTO,
                    advanced=True,
                    tooltip="How heads are weighed for GoCA's regions. auto: the paper's choice for this model.",
                ),
                io.Combo.Input(
                    "layer_method",
                    options=[AUTO, *LAYER_CHOICES],
                    default=AUTO,
                    advanced=True,
                    tooltip="How layers are weighed for GoCA's regions. auto: the paper's choice.",
                ),
                io.Combo.Input(
                    "rescale_method",
                    options=[AUTO, *RESCALE_METHODS],
                    default=AUTO,
                    advanced=True,
                    tooltip="How the maps of words are made comparable for GoCA's regions. auto: the paper's choice.",
                ),
                io.Int.Input(
                    "propagation",
                    default=-1,
                    min=-1,
                    max=20,
                    advanced=True,
                    tooltip="How often GoCA's regions spread to places that look alike to the model. -1: the paper's choice.",
                ),
                types.Words.Input(
                    "words",
                    optional=True,
                    tooltip="From Prompt Words, for GoCA's regions when the positive prompt was not encoded with Encode "
                    "Prompt (GoCA).",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The guided model: wire it into the sampler.")],
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
        )
        return io.NodeOutput(guide(model, settings, start_percent, end_percent, words))
