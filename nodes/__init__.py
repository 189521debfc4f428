"""The nodes of the pack, one file for each theme."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..goca_core.attention import AttentionError
from ..goca_core.capture.encoded.installed import install
from ..goca_core.capture.families import UnknownFamily
from ..goca_core.capture.lora.file import LoRAError
from ..goca_core.capture.weights import ComfyUIError
from ..goca_core.regional import RegionalError
from ..goca_core.words.match import PhraseError
from ..goca_core.words.word_map import WordMapError
from .aggregate import Aggregate, Rescale
from .boxes import BoxFromMask
from .demo import DemoModel
from .files import LoadAttention, SaveAttention
from .guidance import SemanticCFG
from .image_masks import MaskFromImage
from .lora import LoRAByMask, LoRAByWord
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
    MaskFromImage,
    Overlay,
    BoxFromMask,
    RegionalPrompt,
    RegionalPass,
    CollectMasks,
    LoRAByMask,
    LoRAByWord,
    SemanticCFG,
    SaveAttention,
    LoadAttention,
    DemoModel,
]

# ComfyUI shows an error with the module of its class, and the module of a node pack is the whole path of its folder.
for kind in (AttentionError, ComfyUIError, LoRAError, PhraseError, RegionalError, UnknownFamily, WordMapError):
    kind.__module__ = "goca"


class GocaExtension(ComfyExtension):
    async def on_load(self) -> None:
        install()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
