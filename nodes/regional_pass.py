"""Give each phrase its own prompt within one sampling run."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.regional.recorder import regional_pass
from ..goca_core.picture.batch import flatten
from ..goca_core.pipeline import MaskRequest
from . import inputs, types
from .inputs import with_tooltip
from .words import NO_CLIP


class RegionalPass(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_RegionalPass",
            display_name="Regional Pass (GoCA)",
            category=types.CATEGORY,
            search_aliases=["regional prompting", "one pass", "attention couple"],
            description=(
                "Regional prompts in a single sampling run. Sampling starts with the plain prompt, then masks are made "
                "from the attention recorded so far, and from there on each mask follows its own prompt."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model used for sampling. The node works on a copy; the original stays unchanged.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder for the prompts below."),
                with_tooltip(
                    io.String.Input("phrases", multiline=True, default=""),
                    "One object per line, in words of the sampler's positive prompt, as in Mask From Tokens. "
                    "Commas combine several phrases into one object. cat means every cat of the prompt, cat#2 only "
                    "the second one. Click words of the prompt below to add or remove them.",
                ),
                with_tooltip(
                    io.String.Input("prompts", multiline=True, default="", dynamic_prompts=True),
                    "One line for each object: its phrase, a colon and its prompt, in any order. Objects without a "
                    "line follow the positive prompt. Or write only prompts without phrases, one per line, in the "
                    "order of the phrases.",
                ),
                with_tooltip(
                    io.Float.Input("start_percent", default=0.2, min=0.0, max=1.0, step=0.01),
                    "When the masks are made and the regional prompts start, as a fraction of sampling from 0 to "
                    "1. Higher values give better masks, but less of the image can still change. 0: after the "
                    "first step. 1: never.",
                ),
                with_tooltip(
                    io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01),
                    "Weight of an object's own prompt within its mask, from 0 to 1; the positive prompt gets the "
                    "rest. 1: only its own prompt. 0: only the positive prompt.",
                ),
                with_tooltip(
                    io.Float.Input("feather", default=0.0, min=0.0, max=512.0, step=1.0),
                    "Width of the soft transition between regions, in pixels of the image. 0: hard edges.",
                ),
                inputs.theta(),
                inputs.background_phrases(advanced=True),
                with_tooltip(
                    io.Int.Input("evaluations", default=2, min=1, max=1000, advanced=True),
                    "How many model evaluations the masks are averaged over. The last ones before start_percent "
                    "are used.",
                ),
                inputs.propagation(advanced=True),
                inputs.remove_small(),
                with_tooltip(
                    io.Boolean.Input("fill_holes", default=False, advanced=True),
                    "Fill areas that a mask fully encloses. Only background is filled, never another mask.",
                ),
                with_tooltip(
                    types.Words.Input("words", optional=True),
                    "From Prompt Words. Needed only where the conditioning does not know its words by itself.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with regional prompts. Connect it to the sampler."
                ),
                types.Regions.Output(
                    display_name="regions", tooltip="Receives the masks. Connect it to Collect Masks."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        phrases: str,
        prompts: str,
        start_percent: float,
        strength: float = 1.0,
        feather: float = 0.0,
        theta: float = 0.0,
        background: str = "auto",
        evaluations: int = 2,
        propagation: int = -1,
        remove_small: float = 0.0,
        fill_holes: bool = False,
        words: Any = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise RuntimeError(NO_CLIP)
        request = MaskRequest(
            phrases,
            background,
            theta=theta,
            propagation_steps=propagation,
            remove_small=remove_small,
            fill_holes=fill_holes,
        )
        return io.NodeOutput(
            *regional_pass(model, clip, request, prompts, start_percent, evaluations, strength, feather, words)
        )


class CollectMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_CollectMasks",
            display_name="Collect Masks (GoCA)",
            category=types.CATEGORY,
            search_aliases=["collect masks", "regional"],
            description="Waits for the sampler and returns the masks that Regional Pass or LoRA by Word used for this latent.",
            has_intermediate_output=True,
            inputs=[
                types.Regions.Input("regions", tooltip="From Regional Pass, or from the last LoRA by Word."),
                with_tooltip(
                    io.Latent.Input("latent"),
                    "The LATENT output of the sampler, unchanged. It identifies the sampling run when several "
                    "samplers share one node.",
                ),
            ],
            outputs=inputs.masks_and_labels(),
        )

    @classmethod
    def execute(cls, regions: Any, latent: dict) -> io.NodeOutput:
        found, report = regions.masks(latent["samples"])
        return io.NodeOutput(flatten(found.masks), found.background, "\n".join(found.labels), ui=ui.PreviewText(report))
