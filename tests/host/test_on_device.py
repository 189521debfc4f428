"""Masks are made where ComfyUI wants such work, and on the CPU where that fails."""

from __future__ import annotations

import pytest
import torch

from goca_core.batches import Workplace

pytestmark = pytest.mark.usefixtures("host")


def places(monkeypatch: pytest.MonkeyPatch, device: str, error: type[Exception] | None = None) -> list[Workplace]:
    """The places where work was tried, in a ComfyUI with this device; it fails with the error everywhere but on the CPU."""
    import comfy.model_management as management

    from goca_core.capture.workplace import on_device

    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device(device))
    monkeypatch.setattr(management, "get_free_memory", lambda device: 1000)
    monkeypatch.setattr(management, "soft_empty_cache", lambda: None)
    tried: list[Workplace] = []

    def work(place: Workplace) -> None:
        tried.append(place)
        if error is not None and place.device.type != "cpu":
            raise error("not here")

    on_device(work)
    return tried


def test_the_device_has_room_beside_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert places(monkeypatch, "cpu") == [Workplace(cpu, None, cpu)]
    assert places(monkeypatch, "meta") == [Workplace(torch.device("meta"), 500, cpu)]


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, NotImplementedError])
def test_the_cpu_takes_over(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [place.device.type for place in places(monkeypatch, "meta", error)] == ["meta", "cpu"]


def test_other_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not here"):
        places(monkeypatch, "meta", ValueError)
