"""The conditioning of a flipped image: everything that is aligned with the image is flipped with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.record import AttentionError

# Tensors of a conditioning that are aligned with the image, width last.
_ALIGNED = ("mask", "concat_mask", "concat_image", "concat_latent_image")
# Parts that give positions as numbers, each in its own format.
_PLACED = {"area": "an area", "gligen": "boxes (GLIGEN)"}


def flip_conditioning(conditioning: list[Any]) -> list[Any]:
    """A copy of a CONDITIONING for the flipped image, with masks, inpaint images and ControlNet hints flipped.

    Raises AttentionError for parts that cannot be flipped.
    """
    return [[context, {**extra, **_flipped_parts(extra)}] for context, extra in conditioning]


def _flipped_parts(extra: dict[str, Any]) -> dict[str, Any]:
    for name, what in _PLACED.items():
        if extra.get(name) is not None:
            raise AttentionError(
                f"The conditioning is limited to a region by {what}, which cannot be flipped; turn flip off, or use a mask instead."
            )
    parts = {name: extra[name].flip(-1) for name in _ALIGNED if isinstance(extra.get(name), Tensor)}
    if extra.get("control") is not None:
        parts["control"] = _control(extra["control"])
    return parts


def _control(control: Any) -> Any:
    """A copy of a chain of ComfyUI's ControlNets with flipped hints; the networks are shared."""
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor):
        raise AttentionError(f"The hint of {type(control).__name__} cannot be flipped; turn flip off.")
    copy = control.copy()
    copy.cond_hint_original = hint.flip(-1)
    copy.extra_concat_orig = [part.flip(-1) for part in control.extra_concat_orig]
    if control.previous_controlnet is not None:
        copy.set_previous_controlnet(_control(control.previous_controlnet))
    return copy
