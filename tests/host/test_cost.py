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


# Each model is built once, for all ways to record it: that takes most of the time.
NORMS = RecordOptions(head_methods=("average", "cosine + VW", "dot-product + VW"))


@pytest.mark.parametrize("name", BARS)
def test_recording_is_cheap_and_never_waits(host: SimpleNamespace, name: str) -> None:
    kernels, flops, memory = BARS[name]
    # Norms of values are recorded in one model of each kind of attention. Nothing says what they may cost.
    more = [NORMS] if name in ("sd15", "flux") else []
    paper, auto, *norms = measure(name, RecordOptions(), RecordOptions(method="auto"), *more)
    for cost, most in ((paper, kernels), (auto, 1.5)):
        assert cost.kernels <= most and cost.flops <= flops and cost.extra_memory <= memory
    for cost in (paper, auto, *norms):
        assert cost.recorded.uploads == cost.plain.uploads
