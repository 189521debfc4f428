"""GoCA: masks from the cross-attention of a text-to-image model.

These names are what a notebook needs; the packages below hold the rest. ``goca_core.capture`` records while ComfyUI
samples and is the only part that needs ComfyUI.

>>> from goca_core import MaskRequest
>>> MaskRequest("cat\\ndog").mode
'partition'
"""

from __future__ import annotations

from .attention import Attention, aggregate, load, save
from .metrics import Confusion
from .picture.drawing import contact_sheet, overlay
from .pipeline import MaskRequest, MaskResult, Scoring, as_scoring, make_masks, refined, word_scores
from .refine import REFINEMENTS

__all__ = [
    "REFINEMENTS",
    "Attention",
    "Confusion",
    "MaskRequest",
    "MaskResult",
    "Scoring",
    "aggregate",
    "as_scoring",
    "contact_sheet",
    "load",
    "make_masks",
    "overlay",
    "refined",
    "save",
    "word_scores",
]
