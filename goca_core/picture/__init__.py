"""Images of masks and heat maps: overlays, contact sheets, colours."""

from __future__ import annotations

from .colours import COLOUR_MAPS, PALETTE
from .drawing import contact_sheet, heat, overlay, to_tensor

__all__ = [
    "COLOUR_MAPS",
    "PALETTE",
    "contact_sheet",
    "heat",
    "overlay",
    "to_tensor",
]
