"""Boxes around masks, for nodes that crop, and for SAM 3."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..goca_core import boxes
from . import types
from .inputs import with_tooltip


class BoxFromMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_BoxFromMask",
            display_name="Box From Mask (GoCA)",
            category=types.CATEGORY,
            search_aliases=[
                "bounding box",
                "bbox",
                "mask to bbox",
                "crop by mask",
                "detailer",
                "face detailer",
                "sam3",
                "points",
            ],
            description=(
                "Gives the box around a mask, with a margin, for nodes that crop an image or a mask, and boxes and points for "
                "SAM3 Detect."
            ),
            inputs=[
                io.Mask.Input("masks", tooltip="Masks from Mask From Tokens, or any others."),
                with_tooltip(
                    io.Float.Input("margin", default=0.25, min=0.0, max=4.0, step=0.05),
                    "What is added on each side of the mask, as a fraction of its longer side. A detailer needs some of what is "
                    "around the object; set 0 for SAM 3.",
                ),
                with_tooltip(
                    io.Combo.Input("shape", options=list(boxes.SHAPES), default="square"),
                    "tight: only as wide and as high as the mask with its margin. square: as high as wide. as the image: with the "
                    "image's aspect ratio. A box never leaves the image; at an edge it is moved, and where it is larger than the "
                    "image it is cut.",
                ),
                with_tooltip(
                    io.String.Input("labels", optional=True, force_input=True),
                    "The labels output of Mask From Tokens. Needed only if there are several masks for each image: it says how "
                    "many.",
                ),
            ],
            outputs=[
                with_tooltip(
                    types.BoundingBox.Output(display_name="box"),
                    "One box around all masks, for Crop By Bounding Boxes. Without a pixel in any mask it is the whole image.",
                ),
                with_tooltip(
                    types.BoundingBox.Output(display_name="boxes"),
                    "A box for each mask that is not empty, in a list for each image, for SAM3 Detect.",
                ),
                io.Int.Output(display_name="x", tooltip="Left edge of the box, in pixels of the mask."),
                io.Int.Output(display_name="y", tooltip="Upper edge of the box, in pixels of the mask."),
                io.Int.Output(display_name="width", tooltip="Width of the box in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the box in pixels."),
                with_tooltip(
                    io.String.Output(display_name="points"),
                    "A point well inside of each mask of the first image that is not empty, for positive_coords or "
                    "negative_coords of SAM3 Detect.",
                ),
            ],
        )

    @classmethod
    def execute(cls, masks: Any, margin: float = 0.25, shape: str = "square", labels: str = "") -> io.NodeOutput:
        found = boxes.boxes(masks, labels or "", margin, shape)
        box = found.around
        return io.NodeOutput(
            [[box.as_dict()]],
            [[each.as_dict() for each in image] for image in found.each],
            box.x,
            box.y,
            box.width,
            box.height,
            found.points_as_json(),
        )
