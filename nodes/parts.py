"""Inputs and outputs that several nodes have: the same limits, in the same words."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io


def background_phrases(**more: Any) -> io.Input:
    return io.String.Input(
        "background",
        multiline=True,
        default="auto",
        tooltip=(
            "What is not an object, written like the phrases. auto: everything else that the prompt names. Empty: nothing."
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
        tooltip="Higher gives smaller masks, lower gives larger ones.",
    )


def propagation(**more: Any) -> io.Input:
    return io.Int.Input(
        "propagation",
        default=-1,
        min=-1,
        max=20,
        tooltip=(
            "How often scores spread to pixels that look alike to the model. -1: the paper's choice for this model. "
            "0: not at all."
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
        tooltip="Remove connected pieces that cover less than this share of the picture. 0: none.",
        **more,
    )


def background_and_labels() -> list[io.Output]:
    """What follows the masks."""
    return [
        io.Mask.Output(display_name="background", tooltip="One mask per picture: what belongs to no phrase."),
        io.String.Output(display_name="labels", tooltip="The phrases, one per line, in the order of the masks."),
    ]
