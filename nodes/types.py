"""The wire types of this pack, and what its nodes have in common."""

from __future__ import annotations

from comfy_api.latest import io

Recorder = io.Custom("GOCA_RECORDER")
Attention = io.Custom("GOCA_ATTENTION")
Maps = io.Custom("GOCA_MAPS")
Scores = io.Custom("GOCA_SCORES")
Words = io.Custom("GOCA_WORDS")
Regions = io.Custom("GOCA_REGIONS")
BoundingBox = io.Custom("BOUNDING_BOX")  # ComfyUI's own; older versions do not name it

CATEGORY = "GoCA"
