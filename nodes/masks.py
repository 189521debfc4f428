"""Masks for phrases of the prompt, and overlays that show them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.attention.record import AUTO
from ..goca_core.batches import Workplace
from ..goca_core.capture.source import recorded
from ..goca_core.capture.workplace import on_device
from ..goca_core.masks import MASK_RULES
from ..goca_core.picture.batch import ORDERS, draw, flatten, overlay_layers
from ..goca_core.pipeline import MODES, MaskRequest, as_scoring, make_masks, sharpened
from . import inputs, types
from . import ui as browser
from .inputs import with_tooltip


class MaskFromTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_MaskFromTokens",
            display_name="Mask From Tokens (GoCA)",
            category=types.CATEGORY,
            search_aliases=[
                "mask from text",
                "text to mask",
                "mask from prompt",
                "prompt mask",
                "prompt to mask",
                "dog mask",
                "word mask",
                "attention mask",
                "clipseg",
                "segmentation",
            ],
            description=(
                "Makes one mask for each phrase of the prompt. By default each pixel goes to one phrase or to the "
                "background, so masks never overlap."
            ),
            inputs=[
                inputs.source(
                    "source",
                    [types.Scores, types.Maps],
                    "Scores from Rescale or Refine. Maps or attention work too; the missing steps are then done "
                    "with the settings that auto stands for.",
                ),
                inputs.phrases(),
                inputs.background_phrases(),
                with_tooltip(
                    io.Combo.Input("mode", options=list(MODES), default="partition"),
                    "How scores become masks. partition: each pixel goes to its best phrase or to the background; "
                    "exactly 0 or 1, no overlap. threshold: each phrase is decided on its own; exactly 0 or 1, "
                    "masks may overlap. soft: the scores themselves, from 0 to 1.",
                ),
                with_tooltip(
                    io.Combo.Input("background_rule", options=[AUTO, *MASK_RULES], default=AUTO, advanced=True),
                    "Where the background begins. auto: clearest classes, or offset if it was recorded with method paper. "
                    "clearest classes: the scores minus those of the background are divided into two classes, with the "
                    "evidence for the background that divides them best, and a phrase begins half-way between its own "
                    "mean score and that of the background; theta shifts this level. two classes: the same with the score "
                    "of the background alone. The others give the score that a phrase must exceed, where b is the score "
                    "of the background. offset: b + theta. vanilla: theta. max: the larger of b and theta. exact: b. avg: "
                    "the mean of b and theta. With vanilla, max and avg, set theta to about 0.4 to 0.6. Not used when mode "
                    "is soft.",
                ),
                inputs.theta(),
                inputs.propagation(),
                with_tooltip(
                    io.Float.Input("smooth", default=0.0, min=0.0, max=256.0, step=0.5, advanced=True),
                    "Standard deviation of a Gaussian blur on the scores, in pixels of the mask. It is applied "
                    "before the masks are made. 0: no blur.",
                ),
                with_tooltip(
                    io.Boolean.Input("largest_component", default=False, advanced=True),
                    "Keep only the largest connected part of each mask; the rest becomes background. Not used when "
                    "mode is soft.",
                ),
                with_tooltip(
                    io.Combo.Input("size", options=["image", "latent", "custom"], default="image"),
                    "Size of the masks. image: the size of the image. latent: the size of the latent. custom: the "
                    "width and height below. For a video, latent gives one mask per latent frame; image and custom "
                    "give one per frame of the video.",
                ),
                with_tooltip(
                    io.Int.Input("width", default=512, min=0, max=16384, advanced=True),
                    "Width of the masks in pixels; 0: that of the image. Used only when size is custom.",
                ),
                with_tooltip(
                    io.Int.Input("height", default=512, min=0, max=16384, advanced=True),
                    "Height of the masks in pixels; 0: that of the image. Used only when size is custom.",
                ),
                with_tooltip(
                    types.Words.Input("words", optional=True),
                    "From Prompt Words. Needed only where the conditioning does not know its words by itself, as it does "
                    "after CLIP Text Encode and other nodes that encode a prompt.",
                ),
                inputs.remove_small(optional=True),
                with_tooltip(
                    io.Boolean.Input("fill_holes", default=False, optional=True, advanced=True),
                    "Fill areas that a mask fully encloses. When mode is partition, only background is filled, "
                    "never another mask. Not used when mode is soft.",
                ),
                with_tooltip(
                    io.Image.Input("image", optional=True),
                    "The image that the masks belong to. Their outlines then follow its edges, as with Refine and its "
                    "method pamr. Not needed after a Refine that uses the image.",
                ),
                with_tooltip(
                    io.Boolean.Input("skip_absent", default=True, optional=True, advanced=True),
                    "With the background rule clearest classes (and auto): give an empty mask to a phrase whose thing "
                    "does not seem to be in the image. Off: every phrase gets the pixels that suit it best.",
                ),
                inputs.latent(),
                with_tooltip(
                    io.Combo.Input("order", options=list(ORDERS), default=ORDERS[0], optional=True, advanced=True),
                    "Order of the masks of several images or frames. image by image: all masks of the first image, then those "
                    "of the second. phrase by phrase: the masks of the first phrase in all images, then those of the second, as "
                    "nodes for video and identity adapters want them. Overlay, Regional Prompt and Box From Mask expect image "
                    "by image.",
                ),
            ],
            outputs=inputs.masks_and_labels(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        source: Any,
        phrases: str,
        background: str,
        mode: str,
        background_rule: str = AUTO,
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
        image: Any = None,
        skip_absent: bool = True,
        latent: Any = None,
        order: str = ORDERS[0],
    ) -> io.NodeOutput:
        source = recorded(source, latent)
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
            skip_absent=skip_absent,
        )

        def make(place: Workplace) -> tuple[Any, Any, str, dict[str, Any]]:
            scoring = as_scoring(source, place.device)
            scoring = scoring if image is None else sharpened(scoring, image)
            result = make_masks(scoring, request, words, each_word=True, place=place)
            shown = browser.masks(result, scoring, words, image)
            masks, background = (part.to(place.results) for part in (result.masks, result.background))
            return flatten(masks, order), background, "\n".join(result.labels), shown

        *outputs, shown = on_device(make)
        return io.NodeOutput(*outputs, ui=shown)


class Overlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_Overlay",
            display_name="Overlay (GoCA)",
            category=types.CATEGORY,
            search_aliases=["heatmap", "heat map", "attention map", "daam", "preview mask", "legend"],
            description=(
                "Shows masks in colours over the image, with a legend. With scores, maps or attention as the source, "
                "it shows a heat map for each word."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The image or batch of images that the masks belong to."),
                inputs.source(
                    "source",
                    [io.Mask, types.Scores, types.Maps],
                    "Masks from Mask From Tokens, or scores, maps or attention to see heat maps of words.",
                ),
                with_tooltip(
                    io.String.Input("labels", multiline=True, default=""),
                    "Names of the masks, one per line: connect the labels output of Mask From Tokens. For heat "
                    "maps: the phrases to show, or empty for every content word.",
                ),
                with_tooltip(
                    io.Float.Input("opacity", default=0.55, min=0.0, max=1.0, step=0.05),
                    "Opacity of the colours over the image, from 0 (invisible) to 1 (opaque).",
                ),
                with_tooltip(
                    types.Words.Input("words", optional=True),
                    "From Prompt Words. Needed only for heat maps, and only where the conditioning does not know its "
                    "words by itself.",
                ),
                inputs.latent(),
            ],
            outputs=[
                with_tooltip(
                    io.Image.Output(display_name="image"),
                    "One image for each input image, with the legend below. Images less than 256 pixels wide are "
                    "enlarged.",
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, image: Any, source: Any, labels: str, opacity: float, words: Any = None, latent: Any = None
    ) -> io.NodeOutput:
        source = recorded(source, latent)
        found = on_device(lambda place: overlay_layers(image, source, labels, words, place))
        pictures = draw(image, found, opacity)
        shown = {**ui.PreviewImage(pictures, cls=cls).as_dict(), **browser.overlay(image, found)}
        return io.NodeOutput(pictures, ui=shown)
