"""Kandinsky 5 (images and videos) and 6 (videos with sound): self-attention, and cross-attention to Qwen 2.5's tokens.

The text first passes layers of its own, which are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .base import Family, Plan, References, Site, Support, count_tokens, no_references
from .plans import cross_blocks, cross_plan


class Kandinsky5(Family):
    name = "kandinsky5"
    label = "Kandinsky 5"
    support = Support("Kandinsky 5 Image and Video", "Qwen 2.5", "weighted", "by analogy")
    network_class = "comfy.ldm.kandinsky5.model.Kandinsky5"

    def plan(self, network: Any) -> Plan:
        return self._plan(network, network.visual_transformer_blocks)

    def _plan(self, network: Any, layers: Iterable[Any], references: References = no_references) -> Plan:
        def site(attention: Any) -> Site:
            return Site(attention.num_heads, attention.to_query, attention.out_layer)

        blocks = cross_blocks((site(layer.cross_attention), site(layer.self_attention)) for layer in layers)
        patch = network.patch_size
        return cross_plan(blocks, patch[-1], frame_patch=patch[0], references=references)


class Kandinsky6(Kandinsky5):
    """Each block has a block of Kandinsky 5 for the video and one for the sound, and attention between them."""

    name = "kandinsky6"
    label = "Kandinsky 6"
    support = Support("Kandinsky 6: the video", "Qwen 2.5", "weighted", "by analogy", described=True)
    network_class = "comfy.ldm.kandinsky6.model.Kandinsky6"
    with_sound = True

    def plan(self, network: Any) -> Plan:
        def tail(given: Mapping[str, Any]) -> tuple[int, int]:
            # The image that the video starts from, as a frame after the others.
            image = given.get("k6_reference")
            return 0, 0 if image is None else count_tokens(image.shape[-3:], network.patch_size)

        return self._plan(network, (block.videoT for block in network.visual_blocks), tail)
