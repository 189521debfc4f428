"""Masks named by words of the prompt, and pictures to look at them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.masks import BACKGROUND_RULES
from ..goca_core.picture.batch import draw, flatten, to_show
from ..goca_core.picture.colours import tables
from ..goca_core.pipeline import MODES, MaskRequest, as_scoring, make_masks
from ..goca_core.words.text import STOP_WORDS
from . import look, parts, types


class MaskFromTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_MaskFromTokens",
            display_name="Mask From Tokens (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "mask from prompt"],
            description="One mask for each phrase of the prompt. Pixels compete, so that masks never overlap.",
            inputs=[
                io.MultiType.Input(
                    "source",
                    types=[types.Scores, types.Maps, types.Attention],
                    tooltip=(
                        "Scores from Rescale or Refine. Maps or attention work too: the missing steps are done with the "
                        "paper's choices."
                    ),
                ),
                io.String.Input(
                    "phrases",
                    multiline=True,
                    default="",
                    tooltip=(
                        "One object per line, in words of the prompt. Commas pool several phrases into one "
                        "object; cat#2 means the second cat. Click words of the prompt below to add or remove them."
                    ),
                    # The browser colours words before there are masks; here it learns how, from every host.
                    extra_dict={"goca": {**tables(), "stop": sorted(STOP_WORDS)}},
                ),
                parts.background_phrases(),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="partition",
                    tooltip=(
                        "partition: each pixel goes to its best phrase or to the background, exactly 0 or 1. "
                        "threshold: each phrase by itself, exactly 0 or 1, may overlap. soft: the scores "
                        "themselves."
                    ),
                ),
                io.Combo.Input(
                    "background_rule",
                    options=list(BACKGROUND_RULES),
                    default="offset",
                    advanced=True,
                    tooltip=(
                        "What a phrase has to beat, with b the background's score: offset b + theta, vanilla "
                        "theta, max the larger, exact b, avg the mean."
                    ),
                ),
                parts.theta(),
                parts.propagation(),
                io.Float.Input(
                    "smooth",
                    default=0.0,
                    min=0.0,
                    max=256.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Gaussian smoothing of the scores before deciding, in pixels of the mask.",
                ),
                io.Boolean.Input(
                    "largest_component",
                    default=False,
                    advanced=True,
                    tooltip="Keep only the largest connected piece of each mask.",
                ),
                io.Combo.Input(
                    "size",
                    options=["image", "latent", "custom"],
                    default="image",
                    tooltip=(
                        "Size of the masks: the picture's, the latent's, or width and height below. For a film, latent "
                        "gives a mask for each frame of the latent, the others one for each frame of the film."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip="Width of the masks in pixels, with size = custom.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip="Height of the masks in pixels, with size = custom.",
                ),
                types.Words.Input(
                    "words",
                    optional=True,
                    tooltip=("From Prompt Words, for a prompt that was not encoded with Encode Prompt (GoCA)."),
                ),
                parts.remove_small(optional=True),
                io.Boolean.Input(
                    "fill_holes",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Fill what a mask encloses. In a partition only background is filled.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    tooltip=(
                        "All masks of the first picture in the order of the phrases, then those of the second, "
                        "and so on. The frames of a film are its pictures."
                    ),
                ),
                *parts.background_and_labels(),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        source: Any,
        phrases: str,
        background: str,
        mode: str,
        background_rule: str = "offset",
        theta: float = 0.0,
        propagation: int = -1,
        smooth: float = 0.0,
        largest_component: bool = False,
        size: str = "image",
        width: int = 512,
        height: int = 512,
        words: Any = None,
        remove_small: float = 0.0,
        fill_holes: bool = False,
    ) -> io.NodeOutput:
        request = MaskRequest(
            phrases,
            background,
            mode,
            background_rule,
            theta,
            propagation,
            smooth,
            largest_component,
            (height, width) if size == "custom" else None,
            latent_size=size == "latent",
            remove_small=remove_small,
            fill_holes=fill_holes,
        )
        scoring = as_scoring(source)
        result = make_masks(scoring, request, words, each_word=True)
        shown = look.masks(result, scoring, words)
        return io.NodeOutput(flatten(result.masks), result.background, "\n".join(result.labels), ui=shown)


class Overlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Overlay",
            display_name="Overlay (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "preview mask", "legend"],
            description=(
                "Shows masks in colours over the picture, with a legend; or, given scores, a heat map for each word."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The picture or pictures that the masks belong to."),
                io.MultiType.Input(
                    "source",
                    types=[io.Mask, types.Scores, types.Maps, types.Attention],
                    tooltip=("Masks from Mask From Tokens; or scores, maps or attention, to see heat maps of words."),
                ),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="",
                    tooltip=(
                        "Names of the masks, one per line: wire the labels of Mask From Tokens. For heat maps: "
                        "the phrases to show; empty shows every word."
                    ),
                ),
                io.Float.Input(
                    "opacity",
                    default=0.55,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How strongly colours cover the picture.",
                ),
                types.Words.Input(
                    "words",
                    optional=True,
                    tooltip=(
                        "From Prompt Words, for heat maps of a prompt that was not encoded with Encode Prompt (GoCA)."
                    ),
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="One picture for each input picture.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: Any, source: Any, labels: str, opacity: float, words: Any = None) -> io.NodeOutput:
        found = to_show(image, source, labels, words)
        pictures = draw(image, found, opacity)
        shown = {**ui.PreviewImage(pictures, cls=cls).as_dict(), **look.overlay(image, found)}
        return io.NodeOutput(pictures, ui=shown)
