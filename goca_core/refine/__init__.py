"""Spatial refinement of score maps: propagation along self-attention, and optional refinements after it."""

from __future__ import annotations

from .image import guided_filter, pamr
from .methods import REFINEMENTS, Refinement
from .propagation import mean_affinity, propagate
from .proposals import proposal_merge, prototype

__all__ = [
    "REFINEMENTS",
    "Refinement",
    "guided_filter",
    "mean_affinity",
    "pamr",
    "propagate",
    "proposal_merge",
    "prototype",
]
