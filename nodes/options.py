"""The recording options that all recording nodes share."""

from __future__ import annotations

from comfy_api.latest import io

from ..goca_core.capture.options import GRIDS, RecordOptions

_AUTO_OR_ALL = ["auto", "all"]


def inputs() -> list[io.Input]:
    """The advanced inputs of a recording node; `chosen` reads their values."""
    return [
        io.Combo.Input(
            "head_methods",
            options=_AUTO_OR_ALL,
            default="auto",
            advanced=True,
            tooltip=(
                "Which ways of weighting attention heads are recorded. auto: the paper's method for this kind of model "
                "and the plain average. all: all seven methods, so that you can compare them in Aggregate; slightly "
                "slower."
            ),
        ),
        io.Combo.Input(
            "layer_methods",
            options=_AUTO_OR_ALL,
            default="auto",
            advanced=True,
            tooltip=(
                "Which ways of weighting layers are recorded. auto: the paper's method; equal weights (vanilla) are "
                "always available. all: also mse and iou-like, so that you can compare them in Aggregate; slower."
            ),
        ),
        io.Combo.Input(
            "propagation_grid",
            options=["auto", "full"],
            default="auto",
            advanced=True,
            tooltip=(
                "Resolution of the self-attention used for propagation, which refines the masks. auto: limited, fast. "
                "full: the resolution of the finest layer, as in the paper; needs more time and memory."
            ),
        ),
        io.Boolean.Input(
            "reference_channel0",
            default=False,
            advanced=True,
            tooltip=(
                "Compute the layer weights as the paper's released code does, from one channel of the reference "
                "feature. Off: from all channels, as the paper's formula says."
            ),
        ),
        io.Combo.Input(
            "reference_grid",
            options=list(GRIDS),
            default="auto",
            optional=True,  # older graphs in API format do not have it
            advanced=True,
            tooltip=(
                "Resolution, in tokens, at which the self-attention of the layers is compared. auto: the reference "
                "layer's own resolution, up to 64x64 (in most models an image of 1024x1024 pixels). 32x32: faster, "
                "needs less memory. full: no limit. The heat maps of the words keep their own resolution."
            ),
        ),
    ]


def chosen(
    head_methods: str, layer_methods: str, propagation_grid: str, reference_channel0: bool, reference_grid: str
) -> RecordOptions:
    """The values of `inputs` as one object."""
    return RecordOptions(
        head_methods, layer_methods, reference_channel0, propagation_grid == "full", GRIDS[reference_grid]
    )
