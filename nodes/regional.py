"""Give each mask a prompt of its own."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.regional.prompts import regional_prompt
from . import types
from .words import NO_CLIP


class RegionalPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_RegionalPrompt",
            display_name="Regional Prompt (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "regional prompting", "area", "attention couple", "inpaint"],
            description=(
                "Gives each mask a prompt of its own, and the rest of the picture the base prompt: one conditioning for "
                "any sampler."
            ),
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The base: what everything without a prompt of its own follows. Its ControlNets, guidance "
                    "and sizes hold for the regions too.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder, for the prompts below."),
                io.Mask.Input("masks", tooltip="From Mask From Tokens. Where masks overlap, their prompts share."),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="",
                    tooltip="The names of the masks, one per line: wire the labels of Mask From Tokens. Empty: they are "
                    "called 1, 2, 3 and so on.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="One line for each mask: its label, a colon, its prompt. Labels that are left out follow the "
                    "base. Without labels: one prompt per line, in the order of the masks.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far a mask follows its own prompt; the rest is the base. 1: only its own.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=512.0,
                    step=1.0,
                    tooltip="Width of the soft seam between regions, in pixels of the masks.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of sampling in which the base still paints alone. A little of it (0.1 to 0.3) keeps the "
                    "layout of the base.",
                ),
                io.Combo.Input(
                    "set_cond_area",
                    options=["default", "mask bounds"],
                    default="default",
                    advanced=True,
                    tooltip="As in Conditioning Set Mask. default: each prompt sees the whole picture. mask bounds: only the "
                    "rectangle around its mask, which is faster.",
                ),
                io.Mask.Input(
                    "background",
                    optional=True,
                    tooltip="What belongs to no mask, from Mask From Tokens. Needed only for soft masks, which it then "
                    "competes with.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The base and the prompts, each with its mask. At every pixel their weights sum to one."
                )
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        conditioning: Any,
        clip: Any,
        masks: Any,
        labels: str,
        prompts: str,
        strength: float = 1.0,
        feather: float = 0.0,
        start_percent: float = 0.0,
        set_cond_area: str = "default",
        background: Any = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise RuntimeError(NO_CLIP)
        result, report = regional_prompt(
            conditioning,
            clip,
            masks,
            labels,
            prompts,
            background,
            strength,
            feather,
            start_percent,
            to_bounds=set_cond_area != "default",
        )
        return io.NodeOutput(result, ui=ui.PreviewText(report))
