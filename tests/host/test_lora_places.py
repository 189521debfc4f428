"""Where a masked LoRA acts: on the words of its phrase, in areas, in frames of a video, and beside other nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.random_models import layers_of
from goca_core.capture.lora.patch import lora_by_mask
from goca_core.capture.lora.run import latent_masks
from goca_core.capture.recorder import Window, record

from . import tiny
from .device import to_device
from .helpers import count_hooks, job, plain, words_of
from .lora_files import random_lora, written
from .passes import TEXT, speaking

pytestmark = pytest.mark.usefixtures("host")

STRENGTH = 0.7


@contextmanager
def by_hand(model: Any, path: Path, weight: Any) -> Iterator[None]:
    """Add a LoRA to the layers of a MODEL, multiplied by what ``weight`` says of a layer's name and its output."""
    tensors = to_device(safetensors.torch.load_file(path))
    handles = []

    def add(name: str, _module: Any, args: Any, out: Tensor) -> Tensor:
        down, up = (tensors[f"diffusion_model.{name}.lora_{way}.weight"] for way in ("down", "up"))
        return out + weight(name, out) * (args[0] @ down.T @ up.T) * STRENGTH

    try:
        for name, module in layers_of(model).items():
            if f"diffusion_model.{name}.lora_up.weight" in tensors:
                handles.append(module.register_forward_hook(partial(add, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def texts(name: str) -> bool:
    return name.endswith(("attn2.to_k", "attn2.to_v"))


@pytest.mark.parametrize("phrase", ["", "red cat"])
def test_text_takes_part_by_a_rule(phrase: str, tmp_path: Path) -> None:
    """The words of the phrase in full and no other; without a phrase all of it, as far as the mask covers the image."""
    built = tiny.build("sd15")
    run = job(built, 2, steps=2, cfg=4.0, positive=speaking(built))
    path = written(tmp_path, random_lora(built.model, texts))
    mask = torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(1))
    mask[1] = 0
    words = words_of(TEXT).find("red cat")
    assert len(words) == 2

    def weight(_name: str, out: Tensor) -> Tensor:
        found = torch.zeros(4, 77, 1)
        if phrase:
            found[0, words] = 1  # positive first sample; ComfyUI puts the negative after it or before it
        else:
            found[[0, 2]] = mask[0].mean()
        return found.to(out)

    model, _ = lora_by_mask(built.model, path, STRENGTH, mask, phrase=phrase)
    chunks: list[Any] = []
    handle = built.model.model.diffusion_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: chunks.append(kwargs["transformer_options"]["cond_or_uncond"]), with_kwargs=True
    )
    found = run.run(model)["samples"]
    handle.remove()
    if phrase and chunks[0][0] == 1:
        first = weight

        def weight(_name: str, out: Tensor) -> Tensor:
            return first(_name, out).roll(2, 0)

    with by_hand(built.model, path, weight):
        expected = run.run(built.model)["samples"]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    without = plain(built.model, run)
    assert (found[0] - without[0]).abs().mean() > 1e-3 and torch.equal(found[1], without[1])


def test_a_joint_sequence_has_both(tmp_path: Path) -> None:
    built = tiny.build("flux")
    run = job(built, 1, (15, 22), steps=1, cfg=1.0, positive=speaking(built))
    path = written(tmp_path, random_lora(built.model, lambda name: name.startswith("single_blocks.0.linear1")))
    mask = torch.rand(1, 15, 22, generator=torch.Generator().manual_seed(1))
    words = words_of(TEXT, run.positive[0][0].shape[1]).find("blue")

    def weight(_name: str, out: Tensor) -> Tensor:
        text = out.shape[1] - 88
        found = torch.zeros(1, out.shape[1], 1)
        found[0, words] = 1
        padded = torch.cat((mask, mask[:, -1:]), 1)
        for token in range(88):
            row, column = divmod(token, 11)
            cells = padded[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            found[0, text + token] = cells.mean()
        return found.to(out)

    model, _ = lora_by_mask(built.model, path, STRENGTH, mask, phrase="blue")
    with by_hand(built.model, path, weight):
        expected = run.run(built.model)["samples"]
    found = run.run(model)["samples"]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert (found - plain(built.model, run)).abs().mean() > 1e-3


def test_an_area_sees_its_part_of_the_mask(tmp_path: Path) -> None:
    """The last layer alone, a conditioning of an area beside one of the whole: only masked cells change."""
    built = tiny.build("sd15")
    whole, part = built.conditioning(seed=1), built.conditioning(seed=3)
    run = job(built, 2, steps=1, cfg=1.0, positive=[*whole, [part[0][0], {**part[0][1], "area": (8, 10, 4, 6)}]])
    path = written(tmp_path, random_lora(built.model, lambda name: name == "out.2"))
    mask = torch.zeros(1, 16, 24)
    mask[:, 6:9, 10:20] = 1
    changed = (run.run(lora_by_mask(built.model, path, STRENGTH, mask)[0])["samples"] - plain(built.model, run)).abs()
    assert torch.equal(changed.amax((0, 1)) > 0, mask[0].bool())


def test_each_frame_has_its_mask(tmp_path: Path) -> None:
    built = tiny.build("wan21")
    run = job(built, 1, (15, 22), steps=1, cfg=1.0)
    path = written(tmp_path, random_lora(built.model, lambda name: name == "head.head"))
    decoded = torch.zeros(9, 15, 22)  # three latent frames: one, and two of four each
    decoded[5:, :4] = 1
    model, _ = lora_by_mask(built.model, path, STRENGTH, decoded)
    changed = (run.run(model)["samples"] - plain(built.model, run)).abs().amax((0, 1))
    assert changed[:2].max() == 0 and changed[2, 4:].max() == 0 and changed[2, :4].min() > 0


def test_masks_of_cells() -> None:
    masks = torch.rand(6, 30, 44, generator=torch.Generator().manual_seed(2))
    each = latent_masks(masks, (6, 4, 15, 22))
    assert each.shape == (6, 1, 15, 22)
    torch.testing.assert_close(each[3, 0, 2, 5], masks[3, 4:6, 10:12].mean())
    soft = latent_masks((masks > 0.5).float(), (6, 4, 15, 22), feather=8.0)
    assert soft.std() < each.std() and soft.min() >= 0 and soft.max() <= 1
    videos = latent_masks(torch.rand(2 * 9, 8, 8), (2, 16, 3, 8, 8), each=4)
    assert videos.shape == (2, 3, 8, 8)


def test_two_at_once_and_a_recorder(tmp_path: Path) -> None:
    """Each in its own half: with the last layer alone, each half is as if the other LoRA were not there."""
    built = tiny.build("sd15")
    run = job(built, 2, steps=1, cfg=1.0, positive=speaking(built))
    last = [
        written(tmp_path, random_lora(built.model, lambda name: name == "out.2", seed=n), f"{n}.safetensors")
        for n in (1, 2)
    ]
    left = torch.zeros(1, 16, 24)
    left[:, :, :12] = 1
    halves = (left, 1 - left)
    alone = [
        run.run(lora_by_mask(built.model, path, STRENGTH, half)[0])["samples"]
        for path, half in zip(last, halves, strict=True)
    ]
    model = built.model
    for path, half in zip(last, halves, strict=True):
        model, _ = lora_by_mask(model, path, STRENGTH, half)
    both = run.run(model)["samples"]
    assert torch.equal(both[..., :12], alone[0][..., :12]) and torch.equal(both[..., 12:], alone[1][..., 12:])
    recording, recorder = record(model, Window())
    recorded = run.run(recording)["samples"]
    assert torch.equal(recorded, both) and recorder.collect(recorded).layers
    assert count_hooks(built.model) == 0


def test_it_may_start_later(tmp_path: Path) -> None:
    """Of three steps the last two, which is what a second sampler of these steps gives."""
    built = tiny.build("sd15")
    run = job(built, 1, (16, 24), node="KSamplerAdvanced", scheduler="simple", steps=3, cfg=1.0)
    path = written(tmp_path, random_lora(built.model, lambda name: name.startswith("middle_block.1")))
    mask = torch.ones(1, 16, 24)
    model, _ = lora_by_mask(built.model, path, STRENGTH, mask, start=0.3)
    found = run.run(model)["samples"]
    first = replace(run, last=1).run(built.model)["samples"]
    rest = replace(run, first=1, latent=first).run(lora_by_mask(built.model, path, STRENGTH, mask)[0])["samples"]
    torch.testing.assert_close(found, rest, atol=2e-3, rtol=1e-4)
    whole = run.run(lora_by_mask(built.model, path, STRENGTH, mask)[0])["samples"]
    assert (found - whole).abs().mean() > 1e-3
    assert torch.equal(
        run.run(lora_by_mask(built.model, path, STRENGTH, mask, start=1.0)[0])["samples"], plain(built.model, run)
    )
