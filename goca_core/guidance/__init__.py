"""Semantic guidance (S-CFG): regions from attention, and a guidance rate for each region."""

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
