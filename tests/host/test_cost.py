"""What recording costs on an accelerator, counted on full-size models on the meta device.

There, whatever would wait for the device raises an error, and the recording would have failed.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.cost import measure
from benchmarks.full_size import SIZES
from goca_core.capture.options import RecordOptions

# Kernels and operations as multiples of a plain forward pass, and MB of activations beyond its peak; for method paper.
BARS = dict.fromkeys(SIZES, (2.0, 1.08, 1000))
BARS |= {"sd15": (2.0, 1.08, 100), "sdxl": (2.0, 1.08, 200), "wan_1b": (2.0, 1.15, 200), "flux": (2.0, 1.08, 200)}


@pytest.mark.parametrize("name", BARS)
def test_recording_is_cheap_and_never_waits(host: SimpleNamespace, name: str) -> None:
    kernels, flops, memory = BARS[name]
    cost = measure(name)
    assert cost.recorded.uploads == cost.plain.uploads
    assert cost.kernels <= kernels and cost.flops <= flops and cost.extra_memory <= memory


@pytest.mark.parametrize("name", BARS)
def test_method_auto_is_cheaper(host: SimpleNamespace, name: str) -> None:
    _, flops, memory = BARS[name]
    cost = measure(name, RecordOptions(method="auto"))
    assert cost.recorded.uploads == cost.plain.uploads
    assert cost.kernels <= 1.5 and cost.flops <= flops and cost.extra_memory <= memory


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_norms_of_values_never_wait(host: SimpleNamespace, name: str) -> None:
    cost = measure(name, RecordOptions(head_methods=("average", "cosine + VW", "dot-product + VW")))
    assert cost.recorded.uploads == cost.plain.uploads
