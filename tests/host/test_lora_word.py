"""LoRA by word: what a plain run and then LoRAs by mask give, in one run; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from goca_core.attention.record import AttentionError
from goca_core.capture.lora.file import LoRAError
from goca_core.capture.lora.patch import lora_by_mask
from goca_core.capture.lora.word import LoRAByWord, WordPlan, lora_by_word
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Recorder
from goca_core.capture.workplace import on_device
from goca_core.pipeline import MaskRequest, make_masks
from goca_core.words.match import PhraseError

from . import tiny
from .helpers import count_hooks, plain
from .lora_files import random_lora, written
from .passes import CLOSE, speaking, work

pytestmark = pytest.mark.usefixtures("host")

PHRASES = ("red cat", "sky")
PLAN = WordPlan(MaskRequest(""), (), start=0.5)


def files(built: tiny.Tiny, folder: Path) -> list[Path]:
    def some(name: str) -> bool:
        return any(part in name for part in ("attn", "transformer_blocks", "layers.0", "blocks.0"))

    return [written(folder, random_lora(built.model, some, seed=n), f"{n}.safetensors") for n in (1, 2)]


def installed(built: tiny.Tiny, paths: list[Path], plan: WordPlan = PLAN) -> tuple[Any, LoRAByWord]:
    model, made = built.model, None
    for path, phrase in zip(paths, PHRASES, strict=True):
        model, made, _ = lora_by_word(model, path, phrase, 0.5, plan)
    assert made is not None
    return model, made


@pytest.mark.parametrize("name", ["sd15", "flux", "wan21"])
def test_one_pass_is_what_two_passes_are(name: str, tmp_path: Path) -> None:
    """Two images of a size that is not square, or the frames of a video."""
    built = tiny.build(name)
    batch, size = (1, None) if built.frames else (2, (15, 22))
    run = work(built, batch, size, node="KSamplerAdvanced", scheduler="simple", cfg=2.0)
    paths = files(built, tmp_path)
    recorder = Recorder(PLAN.window, RecordOptions(method="auto"))
    whole = run.run(recorder.install(built.model))["samples"]
    record = recorder.collect(whole)
    request = MaskRequest("\n".join(PHRASES), skip_absent=False)
    found = on_device(lambda place: make_masks(record, request, place=place))
    half = replace(run, last=2).run(built.model)["samples"]
    model = built.model
    for number, path in enumerate(paths):
        model, _ = lora_by_mask(model, path, 0.5, found.masks[:, number].cpu(), phrase=PHRASES[number])
    expected = replace(run, first=2, latent=half).run(model)["samples"]

    model, made = installed(built, paths)
    samples = run.run(model)["samples"]
    torch.testing.assert_close(samples, expected, **CLOSE)
    used, told = made.masks(samples)
    assert torch.equal(used.masks.cpu(), found.masks.cpu()) and used.labels == PHRASES
    assert "red cat (" in told and "1.safetensors at 0.5" in told
    assert (samples - whole).abs().mean() > 20 * (samples - expected).abs().mean()
    assert torch.equal(run.run(built.model)["samples"], whole) and count_hooks(built.model) == 0


def test_before_the_start_it_is_off_or_weak(tmp_path: Path) -> None:
    built = tiny.build("sd15")
    paths = files(built, tmp_path)
    run = work(built, 2, steps=4)
    late = replace(PLAN, start=1.0)
    assert torch.equal(run.run(installed(built, paths, late)[0])["samples"], plain(built.model, run))
    weak = run.run(installed(built, paths, replace(late, before=0.4))[0])["samples"]
    model = built.model
    for path in paths:
        model, _ = lora_by_mask(model, path, 0.5 * 0.4, torch.ones(1, 16, 24))
    torch.testing.assert_close(weak, run.run(model)["samples"], **CLOSE)


def test_masks_are_renewed(tmp_path: Path) -> None:
    """Every evaluation after the start has masks of the one before."""
    built = tiny.build("sd15")
    paths = files(built, tmp_path)
    run = work(built, 1, steps=8)
    model, made = installed(built, paths, replace(PLAN, start=0.3))
    first = run.run(model)["samples"]
    renewing, renewed = installed(built, paths, replace(PLAN, start=0.3, renew_every=1))
    second = run.run(renewing)["samples"]
    assert not torch.equal(first, second)
    assert not torch.equal(made.masks(first)[0].masks, renewed.masks(second)[0].masks)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    """Before anything is sampled; the next run is as if nothing had been."""
    built = tiny.build("sd15")
    one, two = files(built, tmp_path)
    run = work(built, steps=2)
    expected = plain(built.model, run)
    model, made, _ = lora_by_word(built.model, one, "red cat", 1.0, PLAN)
    with pytest.raises(LoRAError, match=r'"Red  cat" has two LoRAs, 1\.safetensors and 2\.safetensors'):
        lora_by_word(model, two, "Red  cat", 1.0, PLAN)
    with pytest.raises(PhraseError, match="A LoRA has one phrase, and here are 2"):
        lora_by_word(built.model, one, "red cat\nsky", 1.0, PLAN)
    with pytest.raises(PhraseError, match="A LoRA has one phrase, and here are 0"):
        lora_by_word(built.model, one, "", 1.0, PLAN)
    with pytest.raises(PhraseError, match='"purple" is not in the prompt'):
        run.run(lora_by_word(built.model, one, "purple", 1.0, PLAN)[0])
    silent = replace(run, positive=built.conditioning(seed=1))
    with pytest.raises(AttentionError, match="LoRA by Word needs to know the words"):
        silent.run(model)
    with pytest.raises(AttentionError, match="not made by a sampler with this LoRA by Word"):
        made.masks(torch.zeros(1, 4, 16, 24))
    short = replace(run, positive=speaking(built))
    never, off, _ = lora_by_word(built.model, one, "red cat", 1.0, replace(PLAN, start=1.0))
    with pytest.raises(AttentionError, match="No masks were used"):
        off.masks(short.run(never)["samples"])
    assert torch.equal(run.run(built.model)["samples"], expected)
