"""What every node that records can be asked to keep: the same inputs, in the same words."""

from __future__ import annotations

from comfy_api.latest import io

from ..goca_core.capture.options import GRIDS, RecordOptions

_AUTO_OR_ALL = ["auto", "all"]


def inputs() -> list[io.Input]:
    """The advanced inputs of a node that records; `chosen` reads their values."""
    return [
        io.Combo.Input(
            "head_methods",
            options=_AUTO_OR_ALL,
            default="auto",
            advanced=True,
            tooltip=(
                "auto: keep the paper's way of weighting heads and the plain average. all: keep all "
                "seven, so that Aggregate can compare them; a little slower."
            ),
        ),
        io.Combo.Input(
            "layer_methods",
            options=_AUTO_OR_ALL,
            default="auto",
            advanced=True,
            tooltip=(
                "auto: measure the paper's layer weights. all: also the other two, so that Aggregate can "
                "compare them; slower."
            ),
        ),
        io.Combo.Input(
            "propagation_grid",
            options=["auto", "full"],
            default="auto",
            advanced=True,
            tooltip=(
                "Resolution of the self-attention used to refine masks. auto: bounded, fast. full: that "
                "of the finest layer, as in the paper; slower and larger."
            ),
        ),
        io.Boolean.Input(
            "reference_channel0",
            default=False,
            advanced=True,
            tooltip=(
                "Weigh layers as the paper's released code does, by one channel of the reference feature instead of all."
            ),
        ),
        io.Combo.Input(
            "reference_grid",
            options=list(GRIDS),
            default="auto",
            optional=True,  # graphs for the API that were made before it run on
            advanced=True,
            tooltip=(
                "Resolution on which the self-attention of layers is compared. auto: the reference layer's own, "
                "up to 64x64 (a picture of 1024 pixels). 32x32: faster, with less memory. full: however fine."
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
