"""LoRAs that act only where something is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..goca_core.capture.lora.file import LoRAError
from ..goca_core.capture.lora.patch import lora_by_mask
from ..goca_core.capture.lora.text import clip_with_lora
from ..goca_core.capture.lora.word import WordPlan, lora_by_word
from ..goca_core.capture.weights import DEMO_LORAS
from ..goca_core.pipeline import MaskRequest
from . import inputs, types
from .inputs import with_tooltip


def lora_files() -> list[str]:
    """The LoRAs in ComfyUI's folder, and those of the demo model."""
    return list(dict.fromkeys((*folder_paths.get_filename_list("loras"), *(path.name for path in _demo_files()))))


def lora_path(name: str) -> Path:
    """The file of a LoRA in the list. Raises LoRAError when it is missing."""
    found = folder_paths.get_full_path("loras", name)
    if found is not None:
        return Path(found)
    own = next((path for path in _demo_files() if path.name == name), None)
    if own is None:
        raise LoRAError(
            f'The LoRA "{name}" is not in the folder models/loras; choose one from the list, or add the file.'
        )
    return own


def _demo_files() -> list[Path]:
    return sorted(DEMO_LORAS.glob("*.safetensors"))


def _lora_name() -> io.Input:
    return with_tooltip(
        io.Combo.Input("lora_name", options=lora_files()),
        "The LoRA file, from the folder models/loras. LoRA, LoKr, LoHa and GLoRA files work.",
    )


def _strength() -> io.Input:
    return with_tooltip(
        io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01),
        "How strongly the LoRA changes the model inside its mask, as strength_model in Load LoRA. It can be negative.",
    )


def _clip_inputs() -> list[io.Input]:
    return [
        with_tooltip(
            io.Clip.Input("clip", optional=True),
            "The text encoder, if the LoRA changes it too. Encode the prompt with the clip that comes out.",
        ),
        with_tooltip(
            io.Float.Input("strength_clip", default=1.0, min=-100.0, max=100.0, step=0.01, optional=True),
            "How strongly the LoRA changes the text encoder. Used only if clip is connected.",
        ),
    ]


def _clip_output() -> io.Output:
    return io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA, if clip is connected.")


class LoRAByMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_LoRAByMask",
            display_name="LoRA by Mask (GoCA)",
            category=types.CATEGORY,
            search_aliases=["lora mask", "masked lora", "regional lora", "lora region", "two characters"],
            description=(
                "Applies a LoRA only inside a mask. Several of these nodes one after another give each LoRA its own mask, "
                "without mixing them. Works with any sampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model. The node works on a copy; the original stays unchanged."),
                _lora_name(),
                _strength(),
                with_tooltip(
                    io.Mask.Input("mask"),
                    "Where the LoRA acts, at any size. Soft values apply it partly. One mask for all images, or one for each. "
                    "For a video: one, or one for each frame.",
                ),
                with_tooltip(
                    io.Float.Input("feather", default=0.0, min=0.0, max=512.0, step=1.0),
                    "Width of the soft edge, in pixels of the mask. 0: as the mask is.",
                ),
                *_clip_inputs(),
                with_tooltip(
                    io.String.Input("phrase", default="", optional=True),
                    "Words of the prompt that the LoRA belongs to, such as its trigger word and the name of the thing. Only "
                    "their text is changed by it. Empty: all of the prompt is, more if the mask is larger.",
                ),
                with_tooltip(
                    io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True),
                    "When the LoRA starts, as a fraction of sampling from 0 to 1. 0: from the first step. 0.1 keeps more of "
                    "the layout of an image without LoRA, of which the mask may be.",
                ),
                with_tooltip(
                    types.Words.Input("words", optional=True),
                    "From Prompt Words. Needed only for a phrase, and only where the conditioning does not know its words by "
                    "itself.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA. Connect it to the sampler."),
                _clip_output(),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora_name: str,
        strength: float,
        mask: Any,
        feather: float = 0.0,
        clip: Any = None,
        strength_clip: float = 1.0,
        phrase: str = "",
        start_percent: float = 0.0,
        words: Any = None,
    ) -> io.NodeOutput:
        path = lora_path(lora_name)
        patched, lora = lora_by_mask(model, path, strength, mask, feather, phrase, words, start_percent)
        changed = None if clip is None else clip_with_lora(clip, path, strength_clip, phrase)
        return io.NodeOutput(patched, changed, ui=ui.PreviewText(lora.report()))


class LoRAByWord(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_LoRAByWord",
            display_name="LoRA by Word (GoCA)",
            category=types.CATEGORY,
            search_aliases=["lora by word", "lora per character", "regional lora", "two characters", "freefuse"],
            description=(
                "Applies a LoRA only to what a phrase of the prompt names, in a single sampling run. Sampling starts without "
                "the LoRA, then a mask is made from the attention recorded so far, and from there on the LoRA acts inside it. "
                "Use one of these nodes after another for several LoRAs."
            ),
            inputs=[
                with_tooltip(
                    io.Model.Input("model"),
                    "The model, also one that comes out of another LoRA by Word. The node works on a copy; the original stays "
                    "unchanged.",
                ),
                _lora_name(),
                with_tooltip(
                    io.String.Input("phrase", default=""),
                    "What the LoRA belongs to, in words of the sampler's positive prompt, such as its trigger word and the "
                    "name of the thing. Commas combine several phrases into one. cat#2 means the second cat of the prompt.",
                ),
                _strength(),
                with_tooltip(
                    io.Float.Input("start_percent", default=0.3, min=0.0, max=1.0, step=0.01),
                    "When the masks are made and the LoRAs start, as a fraction of sampling from 0 to 1. Higher values give "
                    "better masks, but less of the image can still change. 0: after the first step. 1: never.",
                ),
                *_clip_inputs(),
                with_tooltip(
                    io.Float.Input(
                        "strength_before", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True
                    ),
                    "Share of its strength with which each LoRA acts on the whole image before start_percent, from 0 to 1. 0: "
                    "not at all. Small values help LoRAs that change the shape of a thing.",
                ),
                with_tooltip(
                    io.Float.Input("feather", default=0.0, min=0.0, max=512.0, step=1.0, optional=True, advanced=True),
                    "Width of the soft transition between masks, in pixels of the image. 0: hard edges.",
                ),
                inputs.theta(optional=True),
                inputs.background_phrases(optional=True, advanced=True),
                with_tooltip(
                    io.Int.Input("evaluations", default=2, min=1, max=1000, optional=True, advanced=True),
                    "How many model evaluations the masks are averaged over. The last ones before start_percent are used.",
                ),
                with_tooltip(
                    io.Int.Input("renew_every", default=0, min=0, max=1000, optional=True, advanced=True),
                    "Make new masks every so many evaluations after start_percent. 0: the first masks stay.",
                ),
                with_tooltip(
                    types.Words.Input("words", optional=True),
                    "From Prompt Words. Needed only where the conditioning does not know its words by itself.",
                ),
            ],
            outputs=[
                with_tooltip(
                    io.Model.Output(display_name="model"),
                    "The model with the LoRA. Connect it to the sampler, or to the next LoRA by Word.",
                ),
                _clip_output(),
                with_tooltip(
                    types.Regions.Output(display_name="regions"),
                    "Receives the masks of this LoRA and of those before it. Connect it to Collect Masks.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora_name: str,
        phrase: str,
        strength: float,
        start_percent: float,
        clip: Any = None,
        strength_clip: float = 1.0,
        strength_before: float = 0.0,
        feather: float = 0.0,
        theta: float = 0.0,
        background: str = "auto",
        evaluations: int = 2,
        renew_every: int = 0,
        words: Any = None,
    ) -> io.NodeOutput:
        path = lora_path(lora_name)
        request = MaskRequest("", background, theta=theta)
        plan = WordPlan(request, (), start_percent, strength_before, evaluations, renew_every, feather)
        patched, regions, lora = lora_by_word(model, path, phrase, strength, plan, words)
        changed = None if clip is None else clip_with_lora(clip, path, strength_clip, phrase)
        return io.NodeOutput(patched, changed, regions, ui=ui.PreviewText(lora.report()))
