"""A LoRA inside a mask: all of it is ComfyUI's own bypass LoRA, none of it no LoRA, both to the last bit."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.attention.record import AttentionError
from goca_core.capture.lora import places
from goca_core.capture.lora.file import LoRAError
from goca_core.capture.lora.patch import lora_by_mask
from goca_core.tensors import resize_bilinear

from . import tiny
from .families import FAMILIES
from .helpers import blocks_of, count_hooks, job
from .lora_files import bypassed, random_lora, usual, written

pytestmark = pytest.mark.usefixtures("host")

KINDS = ("sd15", "flux", "z_image", "wan21")
STRENGTH = 0.7
# Other models of a family whose layers have the same names and shapes.
ALIKE = {
    "pixart_alpha", "hunyuan_dit_12", "flux_schnell", "flux_fill", "ovis_image", "kandinsky5_image", "cosmos_predict2",
    "wan21_camera", "wan22", "cogvideox", "lumina2",
}  # fmt: skip


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def forwards(model: Any) -> list[str]:
    """Modules whose forward function was replaced."""
    return [name for name, module in model.model.named_modules() if "forward" in vars(module)]


def ungrouped(model: Any, name: str) -> bool:
    return getattr(model.model.diffusion_model.get_submodule(name), "groups", 1) == 1


def file_for(model: Any, folder: Path, **options: Any) -> Path:
    return written(folder, random_lora(model, functools.partial(ungrouped, model), **options))


# -- to the last bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("name", KINDS)
def test_all_ones_and_all_zeros(name: str, cfg: float, tmp_path: Path) -> None:
    """Two samples of a size that is not square, twice in a row, beside another LoRA that is loaded the usual way."""
    built = tiny.build(name)
    own, other = file_for(built.model, tmp_path), tmp_path / "other.safetensors"
    other = written(tmp_path, random_lora(built.model, lambda n: ungrouped(built.model, n), seed=8), other.name)
    base, run = usual(built.model, other, 0.5), job(built, 2, steps=2, cfg=cfg)
    without = run.run(base)["samples"]
    before, untouched = state(built.model), forwards(built.model)
    made = {}
    for value in (1.0, 0.0):
        model, _ = lora_by_mask(base, own, STRENGTH, torch.full((1, 40, 56), value), feather=6.0)
        made[value] = [run.run(model)["samples"] for _ in range(2)]
    mixed, _ = lora_by_mask(base, own, STRENGTH, torch.stack((torch.ones(40, 56), torch.zeros(40, 56))))
    made_mixed = run.run(mixed)["samples"]
    assert torch.equal(run.run(base)["samples"], without), "something is left"
    assert forwards(built.model) == untouched and count_hooks(built.model) == 0
    assert all(torch.equal(value, before[key]) for key, value in state(built.model).items() if "lora" not in key)
    # ComfyUI's bypass last, because it leaves functions on the modules.
    with_all = run.run(bypassed(base, own, STRENGTH))["samples"]
    assert (with_all - without).abs().mean() > 1e-3
    assert all(torch.equal(found, with_all) for found in made[1.0])
    assert all(torch.equal(found, without) for found in made[0.0])
    # Each sample with a mask of its own takes the way on which everything is multiplied.
    assert torch.equal(made_mixed[0], with_all[0]) and torch.equal(made_mixed[1], without[1])


@pytest.mark.parametrize("name", ["sdxl", *(name for name in FAMILIES if name not in ALIKE)])
def test_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every family: both cases at once, and the last layer alone changes the masked cells alone.

    Names of layers are only needed where text and image have equally many tokens. They agree with the numbers elsewhere.
    """
    assert set(FAMILIES) >= ALIKE
    kind = FAMILIES.get(name)
    built = tiny.build(name)
    size = kind.odd if kind is not None else (17, 25)
    run = job(built, 2, size, steps=1, cfg=1.0)
    height, width = run.latent.shape[-2:]
    own = file_for(built.model, tmp_path)
    if built.sound or name == "pixeldit":
        with pytest.raises((AttentionError, LoRAError), match=r"video and its sound|inside a mask in PixelDiT"):
            run.run(lora_by_mask(built.model, own, STRENGTH, torch.ones(1, height, width))[0])
        return
    without = run.run(built.model)["samples"]

    seen: dict[str, tuple[bool, bool]] = {}
    told = places.CallPlaces.weight
    numbers: dict[str, set[int]] = {}

    def weight(self: Any, layer: str, out: Tensor, conv: bool) -> Any:
        found = told(self, layer, out, conv)
        seen[layer] = (conv, found is not None and found.numel() > 2)
        if not conv and out.shape[:-1].numel() % 2 == 0:
            numbers.setdefault(layer, set()).add(out.shape[:-1].numel() // 2)
        image = {self._count(level) for level in self._levels}
        numbers["image"], numbers["text"] = image - set(self._texts), set(self._texts) - image
        return found

    with monkeypatch.context() as patch:
        patch.setattr(places.CallPlaces, "weight", weight)
        model, lora = lora_by_mask(
            built.model, own, STRENGTH, torch.stack((torch.ones(height, width), torch.zeros(height, width)))
        )
        mixed = run.run(model)["samples"]
    image, text = numbers.pop("image"), numbers.pop("text")
    for layer, counts in numbers.items():
        if counts <= text:
            assert places._TEXT.search(layer), f"{layer} computes text"
        if counts <= image:
            assert not places._TEXT.search(layer), f"{layer} computes the image"

    # A corner, and the last layer that has a place.
    last = next(layer for layer, (_, placed) in reversed(seen.items()) if placed).removeprefix("diffusion_model.")
    alone = written(tmp_path, random_lora(built.model, lambda each: each == last), "last.safetensors")
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2, : width // 3] = 1
    model, _ = lora_by_mask(built.model, alone, STRENGTH, mask)
    corner = (run.run(model)["samples"] - without).abs().flatten(0, -3).amax(0)
    patch_side = blocks_of(built.model).patch
    away = resize_bilinear(mask[None], (height, width))[0, 0].bool()
    grown = torch.nn.functional.max_pool2d(mask[None], 2 * patch_side + 1, 1, patch_side)[0, 0].bool()
    inner = 1 - torch.nn.functional.max_pool2d(1 - mask[None], 2 * patch_side - 1, 1, patch_side - 1)[0, 0]
    assert corner[~grown].max() == 0 and grown.any() and not grown.all(), last
    assert corner[inner.bool() & away].min() > 0, last

    assert lora.missing == 0 and not lora.skipped
    with_all = run.run(bypassed(built.model, own, STRENGTH))["samples"]
    assert not torch.equal(with_all, without)
    if name != "hidream":  # its experts get the tokens of both samples together
        assert torch.equal(mixed[0], with_all[0]) and torch.equal(mixed[1], without[1])
