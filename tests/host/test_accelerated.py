"""The ways that recording takes on a GPU, computed on the CPU: they give the latents and the maps of the usual ways."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from goca_core import tensors
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import record
from goca_core.capture.reduce import cond_recorder, fused, stack
from goca_core.capture.window import Window

from . import tiny
from .device import ACCELERATED
from .families import FAMILIES
from .helpers import job

pytestmark = pytest.mark.skipif(ACCELERATED, reason="all other tests take these ways on a GPU")
# Waiting self-attention is stored in half precision.
NEAR = {"rtol": 2e-3, "atol": 1e-6}


@pytest.fixture
def on_accelerator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Begins to treat the CPU as a GPU."""

    def begin() -> None:
        tensors.CPUS.clear()
        kernel = "_scaled_dot_product_flash_attention_for_cpu", (torch.float32,)
        monkeypatch.setitem(fused.FUSED, "cpu", kernel)

    usual = set(tensors.CPUS)
    yield begin
    tensors.CPUS.update(usual)


@pytest.mark.parametrize(("capacity", "method"), [(1, "paper"), (2, "paper"), (100, "paper"), (2, "auto")])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_sigma", "hunyuan_dit", "wan21", "flux", "sd35_medium"])
def test_layers_reduced_together_are_as_those_reduced_alone(
    host: SimpleNamespace, on_accelerator: Any, monkeypatch: pytest.MonkeyPatch, name: str, capacity: int, method: str
) -> None:
    built = tiny.build(name)
    size = FAMILIES[name].other if name in FAMILIES else None
    work = job(built, 2, size, cfg=4.0)
    options = RecordOptions(grid_limit=60, method=method)
    if method == "paper":
        options = RecordOptions("all", "all", grid_limit=60, affinity_parts=True)

    def recorded() -> tuple[Any, Any]:
        model, recorder = record(built.model, Window(), options)
        latent = work.run(model)["samples"]
        return latent, recorder.collect(latent)

    latent, usual = recorded()
    on_accelerator()
    sizes: list[int] = []
    make = stack.LayerStack.__init__

    def small(self: Any, like: Any, most: int, limit: int = 0) -> None:
        make(self, like, min(most, capacity), 1 << 30)
        sizes.append(self.capacity)

    monkeypatch.setattr(cond_recorder.LayerStack, "__init__", small)
    same, ours = recorded()
    assert torch.equal(latent, same)
    assert (max(sizes, default=1) > 1) == (capacity > 1 and bool(sizes))
    assert ours.note == usual.note
    for mine, theirs in zip(ours.layers, usual.layers, strict=True):
        assert mine.name == theirs.name
        for head, maps in theirs.maps.items():
            torch.testing.assert_close(mine.maps[head], maps, msg=lambda text, m=head: f"{m}: {text}", **NEAR)
        for layer, scores in theirs.scores.items():
            torch.testing.assert_close(mine.scores[layer], scores, **NEAR)
    assert ours.affinity is not None and usual.affinity is not None
    torch.testing.assert_close(ours.affinity.matrix, usual.affinity.matrix, **NEAR)
    assert list(ours.affinity.parts) == list(usual.affinity.parts)
    for part, matrix in usual.affinity.parts.items():
        torch.testing.assert_close(ours.affinity.parts[part], matrix, **NEAR)
