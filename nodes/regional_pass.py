"""Give each phrase a prompt of its own while the picture is being painted."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.regional.recorder import regional_pass
from ..goca_core.picture.batch import flatten
from ..goca_core.pipeline import MaskRequest
from . import parts, types
from .words import NO_CLIP


class RegionalPass(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_RegionalPass",
            display_name="Regional Pass (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "regional prompting", "one pass", "attention couple"],
            description=(
                "Regional prompts without a second sampling run: the plain prompt paints first, masks are made of what it "
                "has recorded so far, and from there on each mask follows its own prompt."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to paint with. It is copied; the original stays as it is."),
                io.Clip.Input("clip", tooltip="The text encoder, for the prompts below."),
                io.String.Input(
                    "phrases",
                    multiline=True,
                    default="",
                    tooltip="One object per line, in words of the sampler's positive prompt, as in Mask From Tokens. Commas "
                    "pool several phrases into one object. Click words of the prompt below to add or remove them.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="One line for each object: its phrase, a colon, its prompt. Phrases that are left out follow the "
                    "positive prompt. Without phrases: one prompt per line, in the same order.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of sampling after which the masks are made and used. Later, the masks are better, but "
                    "less of the picture can still change.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far a mask follows its own prompt; the rest is the positive prompt. 1: only its own.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=512.0,
                    step=1.0,
                    tooltip="Width of the soft seam between regions, in pixels of the picture.",
                ),
                parts.theta(),
                parts.background_phrases(advanced=True),
                io.Int.Input(
                    "evaluations",
                    default=2,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="The masks are made of the mean of so many evaluations, the last ones before start_percent.",
                ),
                parts.propagation(advanced=True),
                parts.remove_small(),
                io.Boolean.Input(
                    "fill_holes",
                    default=False,
                    advanced=True,
                    tooltip="Fill what a mask encloses, where that is background.",
                ),
                types.Words.Input(
                    "words",
                    optional=True,
                    tooltip="From Prompt Words, when the positive prompt was not encoded with Encode Prompt (GoCA).",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Wire it into the sampler."),
                types.Regions.Output(
                    display_name="regions", tooltip="The masks end up here: wire it into Collect Masks."
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
            search_aliases=[*types.ALIASES, "collect", "regional"],
            description="Waits for the sampler and hands out the masks that a Regional Pass used for this latent.",
            has_intermediate_output=True,
            inputs=[
                types.Regions.Input("regions", tooltip="From Regional Pass."),
                io.Latent.Input(
                    "latent",
                    tooltip="The sampler's own LATENT output, unchanged. It tells which run is meant when samplers share a "
                    "Regional Pass.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    tooltip="All masks of the first picture in the order of the phrases, then those of the second, and so on.",
                ),
                *parts.background_and_labels(),
            ],
        )

    @classmethod
    def execute(cls, regions: Any, latent: dict) -> io.NodeOutput:
        found, report = regions.masks(latent["samples"])
        return io.NodeOutput(flatten(found.masks), found.background, "\n".join(found.labels), ui=ui.PreviewText(report))
