"""Inputs and outputs that several nodes share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io


def background_phrases(**more: Any) -> io.Input:
    return io.String.Input(
        "background",
        multiline=True,
        default="auto",
        tooltip=(
            "Phrases that are not objects, one per line, as in phrases. auto: everything else that the prompt names. "
            "Empty: no background phrases; every pixel then has a background score of 0.5."
        ),
        **more,
    )


def theta() -> io.Input:
    return io.Float.Input(
        "theta",
        default=0.0,
        min=-1.0,
        max=1.0,
        step=0.01,
        tooltip=(
            "Shifts the score that a phrase must exceed at a pixel. Higher values give smaller masks, lower values "
            "give larger ones. Change it in steps of about 0.1."
        ),
    )


def propagation(**more: Any) -> io.Input:
    return io.Int.Input(
        "propagation",
        default=-1,
        min=-1,
        max=20,
        tooltip=(
            "Number of propagation steps. Each step spreads the scores along the model's self-attention, to pixels "
            "that the model treats as similar. -1: the paper's number for this kind of model (2 to 5). 0: no "
            "propagation."
        ),
        **more,
    )


def remove_small(**more: Any) -> io.Input:
    return io.Float.Input(
        "remove_small",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.001,
        advanced=True,
        tooltip=(
            "Remove connected parts of a mask that cover less than this fraction of the image, from 0 to 1; 0.002 is "
            "0.2 % of it. Soft masks are not affected. 0: remove nothing."
        ),
        **more,
    )


def background_and_labels() -> list[io.Output]:
    """The outputs after the masks."""
    return [
        io.Mask.Output(
            display_name="background",
            tooltip="One mask per image: what belongs to no phrase. With soft masks it is 1 minus the best score.",
        ),
        io.String.Output(
            display_name="labels",
            tooltip="The phrases, one per line, in the order of the masks. Connect them to Overlay or Regional Prompt.",
        ),
    ]
