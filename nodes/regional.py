"""Give each mask its own prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.regional.prompts import regional_prompt
from . import types
from .inputs import with_tooltip
from .words import NO_CLIP


class RegionalPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_RegionalPrompt",
            display_name="Regional Prompt (GoCA)",
            category=types.CATEGORY,
            search_aliases=["regional prompting", "area", "attention couple", "inpaint"],
            description=(
                "Gives each mask its own prompt; the rest of the image follows the base prompt. The result is one "
                "conditioning that works with any sampler."
            ),
            inputs=[
                with_tooltip(
                    io.Conditioning.Input("conditioning"),
                    "The base conditioning, which everything without its own prompt follows. Its ControlNets, "
                    "guidance, sizes, time ranges and mask also apply to the regions.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder for the prompts below."),
                io.Mask.Input(
                    "masks",
                    tooltip="Masks from Mask From Tokens, at any size. Where masks overlap, their prompts are mixed.",
                ),
                with_tooltip(
                    io.String.Input("labels", multiline=True, default=""),
                    "Names of the masks, one per line: connect the labels output of Mask From Tokens. Empty: the "
                    "masks are named 1, 2, 3 and so on.",
                ),
                with_tooltip(
                    io.String.Input("prompts", multiline=True, default="", dynamic_prompts=True),
                    "One line for each mask: its label, a colon and its prompt, in any order. Masks without a line "
                    "follow the base. Or write only prompts without labels, one per line, in the order of the "
                    "masks.",
                ),
                with_tooltip(
                    io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01),
                    "Weight of a mask's own prompt within the mask, from 0 to 1; the base gets the rest. 1: only "
                    "its own prompt. 0: only the base.",
                ),
                with_tooltip(
                    io.Float.Input("feather", default=0.0, min=0.0, max=512.0, step=1.0),
                    "Width of the soft transition between regions, in pixels of the masks. 0: hard edges.",
                ),
                with_tooltip(
                    io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01),
                    "When the regional prompts start, as a fraction of sampling from 0 to 1; until then only the "
                    "base is used. 0: from the first step. 0.1 to 0.3 keeps more of the base's layout.",
                ),
                with_tooltip(
                    io.Combo.Input(
                        "set_cond_area", options=["default", "mask bounds"], default="default", advanced=True
                    ),
                    "Where each prompt is evaluated, as in Conditioning (Set Mask). default: on the whole image. "
                    "mask bounds: only in the rectangle around its mask; faster, but without the context of the "
                    "rest.",
                ),
                with_tooltip(
                    io.Mask.Input("background", optional=True),
                    "The background output of Mask From Tokens: what belongs to no mask. Needed only with soft "
                    "masks. Not connected: what the masks leave over.",
                ),
            ],
            outputs=[
                with_tooltip(
                    io.Conditioning.Output(),
                    "The base and the regional prompts, each with its mask. At every pixel their weights sum to 1.",
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
