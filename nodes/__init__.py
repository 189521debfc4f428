"""The nodes of the pack, one file for each theme."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .aggregate import Aggregate, Rescale
from .demo import DemoModel
from .files import LoadAttention, SaveAttention
from .guidance import SemanticCFG
from .masks import MaskFromTokens, Overlay
from .record import CollectAttention, RecordAttention
from .refine import Refine
from .regional import RegionalPrompt
from .regional_pass import CollectMasks, RegionalPass
from .segment import SegmentImage
from .words import EncodePrompt, Words

NODES: list[type[io.ComfyNode]] = [
    EncodePrompt,
    Words,
    RecordAttention,
    CollectAttention,
    SegmentImage,
    Aggregate,
    Rescale,
    Refine,
    MaskFromTokens,
    Overlay,
    RegionalPrompt,
    RegionalPass,
    CollectMasks,
    SemanticCFG,
    SaveAttention,
    LoadAttention,
    DemoModel,
]


class GocaExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
