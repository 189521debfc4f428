"""Two LoRAs inside masks cost no more than ComfyUI's own bypass of both, counted on a full-size model."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.lora_cost import measure


def test_masks_cost_nothing_more(host: SimpleNamespace) -> None:
    cost = measure("sd15")
    assert cost.bypass.flops > cost.plain.flops and cost.bypass.kernels > 2 * cost.plain.kernels
    assert cost.beside("flops") <= 1.001 and cost.beside("kernels") <= 1.0 and cost.beside("moved") <= 1.02
    assert cost.masked.uploads == cost.plain.uploads, "something waits for the GPU"
