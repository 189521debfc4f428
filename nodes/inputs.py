"""Inputs and outputs that several nodes share, with the same limits and the same tooltips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..goca_core.capture.options import GRIDS, RECORD_METHODS, RecordOptions
from ..goca_core.picture.colours import tables
from ..goca_core.words.text import STOP_WORDS
from . import types

_AUTO_OR_ALL = ["auto", "all"]


def with_tooltip(part: Any, text: str) -> Any:
    """An input or output whose tooltip needs lines of its own."""
    part.tooltip = text
    return part


def recording() -> list[io.Input]:
    """The advanced inputs of a recording node; `options` reads their values."""
    return [
        with_tooltip(
            io.Combo.Input("head_methods", options=_AUTO_OR_ALL, default="auto", advanced=True),
            "Which ways of weighting attention heads are recorded. auto: the plain average and, if method is paper, the "
            "paper's choice for this kind of model. all: all seven methods, so that you can compare them in Aggregate; "
            "slightly slower.",
        ),
        with_tooltip(
            io.Combo.Input("layer_methods", options=_AUTO_OR_ALL, default="auto", advanced=True),
            "Which ways of weighting layers are recorded, besides equal weights (vanilla) and information, which need "
            "nothing more. auto: if method is paper, dot-product similarity. all: also mse and iou-like, so that you can "
            "compare them in Aggregate; slower.",
        ),
        with_tooltip(
            io.Combo.Input("propagation_grid", options=["auto", "full"], default="auto", advanced=True),
            "Resolution of the self-attention used for propagation, which refines the masks. auto: limited, fast. "
            "full: the resolution of the finest layer, as in the paper; needs more time and memory.",
        ),
        with_tooltip(
            io.Boolean.Input("reference_channel0", default=False, advanced=True),
            "Compute the layer weights as the paper's released code does, from one channel of the reference "
            "feature. Off: from all channels, as the paper's formula says.",
        ),
        with_tooltip(
            io.Combo.Input(
                "reference_grid",
                options=list(GRIDS),
                default="auto",
                optional=True,  # older graphs in API format do not have it
                advanced=True,
            ),
            "Resolution, in tokens, at which self-attention is compared (method paper) and limited for propagation. auto: "
            "up to 32x32. 64x64: up to 64x64 (in most models an image of 1024x1024 pixels); slower, needs more memory. "
            "full: no limit for the comparison. The heat maps of the words keep their own resolution.",
        ),
        with_tooltip(
            io.Combo.Input("method", options=list(RECORD_METHODS), default="auto", optional=True, advanced=True),
            "What auto stands for in the nodes that follow. auto: one rule for every kind of model, in which the model's "
            "own activations say which layers count and where the background begins. paper: the published GoCA method, "
            "with the paper's settings for this kind of model.",
        ),
    ]


def options(
    head_methods: str,
    layer_methods: str,
    propagation_grid: str,
    reference_channel0: bool,
    reference_grid: str,
    method: str,
    prompt: str = "positive",
) -> RecordOptions:
    """The values of `recording` as one object."""
    return RecordOptions(
        head_methods,
        layer_methods,
        reference_channel0,
        propagation_grid == "full",
        GRIDS[reference_grid],
        method=method,
        prompt=prompt,
    )


def source(id: str, kinds: Sequence[Any], tooltip: str) -> io.Input:
    """A recording or what was made of it. A recorder works too, with `latent`."""
    return with_tooltip(
        io.MultiType.Input(id, types=[*kinds, types.Attention, types.Recorder]),
        f"{tooltip} Or the recorder of Record Attention, with the sampler's LATENT in latent.",
    )


def latent() -> io.Input:
    return with_tooltip(
        io.Latent.Input("latent", optional=True),
        "The LATENT output of the sampler, unchanged. Needed only with a recorder: it says which sampling run to use.",
    )


def phrases() -> io.Input:
    return with_tooltip(
        io.String.Input(
            "phrases",
            multiline=True,
            default="",
            # The browser colours words before there are masks. The colours come with the node definition.
            extra_dict={"goca": {**tables(), "stop": sorted(STOP_WORDS)}},
        ),
        "One object per line, in words of the prompt. Commas combine several phrases into one object. "
        "cat means every cat of the prompt, cat#2 only the second one. Click words of the prompt below "
        "to add or remove them.",
    )


def background_phrases(**more: Any) -> io.Input:
    return with_tooltip(
        io.String.Input("background", default="auto", **more),
        "Phrases that are not objects, separated by commas. auto: everything else that the prompt names. "
        "Empty: no background phrases; every pixel then has a background score of 0.5.",
    )


def theta(**more: Any) -> io.Input:
    return with_tooltip(
        io.Float.Input("theta", default=0.0, min=-1.0, max=1.0, step=0.01, **more),
        "Shifts the score that a phrase must exceed at a pixel. Higher values give smaller masks, lower values "
        "give larger ones. Change it in steps of about 0.1.",
    )


def seed(**more: Any) -> io.Input:
    """Of the noise that an image gets to be segmented."""
    return with_tooltip(
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=io.ControlAfterGenerate.fixed,
            **more,
        ),
        "Seed of the noise. The same seed gives the same masks.",
    )


def flip(**more: Any) -> io.Input:
    return with_tooltip(
        io.Boolean.Input("flip", default=False, **more),
        "Also evaluate the horizontally flipped image and average both results. Takes twice as long.",
    )


def propagation(**more: Any) -> io.Input:
    return with_tooltip(
        io.Int.Input("propagation", default=-1, min=-1, max=20, **more),
        "Number of propagation steps. Each step spreads the scores along the model's self-attention, to pixels "
        "that the model treats as similar. -1: the number that suits the recording (2; with method paper, the paper's "
        "number for this kind of model, 2 to 5). 0: no propagation.",
    )


def remove_small(**more: Any) -> io.Input:
    return with_tooltip(
        io.Float.Input("remove_small", default=0.0, min=0.0, max=1.0, step=0.001, advanced=True, **more),
        "Remove connected parts of a mask that cover less than this fraction of the image, from 0 to 1; 0.002 is "
        "0.2 % of it. Soft masks are not affected. 0: remove nothing.",
    )


def masks_and_labels() -> list[io.Output]:
    """The outputs of a node that gives a mask per phrase."""
    return [
        with_tooltip(
            io.Mask.Output(display_name="masks"),
            "All masks of the first image in the order of the phrases, then those of the second image, and so on. The "
            "frames of a video count as images.",
        ),
        io.Mask.Output(
            display_name="background",
            tooltip="One mask per image: what belongs to no phrase. With soft masks it is 1 minus the best score.",
        ),
        io.String.Output(
            display_name="labels",
            tooltip="The phrases, one per line, in the order of the masks. Connect them to Overlay or Regional Prompt.",
        ),
    ]
