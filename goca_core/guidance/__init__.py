"""Guidance with a rate for each region (S-CFG): regions from attention, and the rate map."""

from __future__ import annotations

from .rate import foreground, guided, rate_map, regions
from .semantic import REGION_RULES, Settings

__all__ = [
    "REGION_RULES",
    "Settings",
    "foreground",
    "guided",
    "rate_map",
    "regions",
]
