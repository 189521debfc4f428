"""The recording of one sampling run: its data classes, the global map made from it, and its file format."""

from __future__ import annotations

from .file import load, save
from .global_map import Maps, aggregate, layer_weights, weighted_affinity
from .record import AUTO, Affinity, Attention, AttentionError, Defaults, Layer, Tokens

__all__ = [
    "AUTO",
    "Affinity",
    "Attention",
    "AttentionError",
    "Defaults",
    "Layer",
    "Maps",
    "Tokens",
    "aggregate",
    "layer_weights",
    "load",
    "save",
    "weighted_affinity",
]
