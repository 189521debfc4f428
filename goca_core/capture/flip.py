"""A conditioning for the mirror image of a picture: what lies over the picture is mirrored with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.record import AttentionError

# Tensors of a conditioning that lie over the picture, width last.
_PICTURES = ("mask", "concat_mask", "concat_image", "concat_latent_image")
# Parts that are placed by numbers: what they mean differs from one to the next.
_PLACED = {"area": "an area", "gligen": "boxes (GLIGEN)"}


def flip_conditioning(conditioning: list[Any]) -> list[Any]:
    """A copy of a CONDITIONING for the mirrored picture: its masks, inpaint pictures and ControlNet hints mirrored.

    Raises AttentionError with one sentence for parts that cannot be mirrored.
    """
    return [[context, {**extra, **_over_the_picture(extra)}] for context, extra in conditioning]


def _over_the_picture(extra: dict[str, Any]) -> dict[str, Any]:
    for name, what in _PLACED.items():
        if extra.get(name) is not None:
            raise AttentionError(
                f"The conditioning is tied to a place by {what}, which cannot be mirrored; turn flip off, or use a mask instead."
            )
    parts = {name: extra[name].flip(-1) for name in _PICTURES if isinstance(extra.get(name), Tensor)}
    if extra.get("control") is not None:
        parts["control"] = _control(extra["control"])
    return parts


def _control(control: Any) -> Any:
    """A copy of a chain of the host's ControlNets whose hints are mirrored; the networks are shared."""
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor):
        raise AttentionError(f"The hint of {type(control).__name__} cannot be mirrored; turn flip off.")
    copy = control.copy()
    copy.cond_hint_original = hint.flip(-1)
    copy.extra_concat_orig = [part.flip(-1) for part in control.extra_concat_orig]
    if control.previous_controlnet is not None:
        copy.set_previous_controlnet(_control(control.previous_controlnet))
    return copy
