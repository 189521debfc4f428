"""Which files of LoRAs work, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.random_models import layers_of
from goca_core.capture.lora.file import LoRAError, fit
from goca_core.capture.lora.patch import lora_by_mask
from goca_core.words.match import PhraseError

from . import tiny
from .helpers import job, plain
from .lora_files import bypassed, random_lora, usual, written
from .passes import speaking

pytestmark = pytest.mark.usefixtures("host")

STRENGTH = 0.7
ALL = torch.ones(1, 16, 24)
CLOSE = {"atol": 2e-3, "rtol": 1e-3}


def sentence(caught: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(caught.value)
    assert "\n" not in message and message.lstrip('"')[0].isalnum() and message.endswith(".")
    return message


def of_linears(model: Any, kind: str) -> dict[str, Tensor]:
    """An adapter of a kind that is not a plain LoRA, for the linear layers of the middle block."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 0.2

    tensors = {}
    for name, module in layers_of(model, lambda name: name.startswith("middle_block.1.transformer")).items():
        out, inputs = module.weight.shape
        parts = {
            "lokr": {"lokr_w1": (4, 4), "lokr_w2": (out // 4, inputs // 4)},
            "loha": {"hada_w1_a": (out, 2), "hada_w1_b": (2, inputs), "hada_w2_a": (out, 2), "hada_w2_b": (2, inputs)},
            "glora": {"a1.weight": (2, inputs), "a2.weight": (inputs, 2), "b1.weight": (out, 2), "b2.weight": (2, inputs)},
            "oft": {"oft_blocks": (4, out // 4, out // 4)},
            "diff": {"diff": (out, inputs), "diff_b": (out,)},
        }[kind]  # fmt: skip
        if kind == "diff" and module.bias is None:
            del parts["diff_b"]
        tensors |= {f"diffusion_model.{name}.{part}": drawn(*size) for part, size in parts.items()}
    return tensors


@pytest.mark.parametrize("kind", ["lokr", "loha", "glora", "oft", "diff"])
def test_other_adapters(kind: str, tmp_path: Path) -> None:
    """All of it is what ComfyUI makes of it, none of it nothing, for each sample of its own."""
    built = tiny.build("sd15")
    path = written(tmp_path, of_linears(built.model, kind))
    run = job(built, 2, steps=1, cfg=1.0)
    without = plain(built.model, run)
    if kind == "oft":
        try:
            run.run(bypassed(built.model, path, STRENGTH))
        except RuntimeError:  # ComfyUI 0.30.0 cannot do it
            with pytest.raises(LoRAError, match="has only adapters that this ComfyUI cannot apply") as caught:
                lora_by_mask(built.model, path, STRENGTH, ALL)
            sentence(caught)
            return
    model, lora = lora_by_mask(built.model, path, STRENGTH, torch.cat((ALL, 0 * ALL)))
    assert len(lora.layers) >= 10
    found = run.run(model)["samples"]
    if kind == "diff":
        expected = run.run(usual(built.model, path, STRENGTH))["samples"]
        torch.testing.assert_close(found[0], expected[0], **CLOSE)
    else:
        expected = run.run(bypassed(built.model, path, STRENGTH))["samples"]
        assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], without[1]) and (found[0] - without[0]).abs().mean() > 1e-3


def test_parts_of_a_layer(tmp_path: Path) -> None:
    """Files for diffusers have a LoRA for each of three projections that ComfyUI's Flux computes as one."""
    built = tiny.build("flux")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name in (
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.1.attn.add_v_proj",
        "single_transformer_blocks.0.attn.to_q",
    ):
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(3, 64, generator=generator) * 0.3
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(64, 3, generator=generator)
    path = written(tmp_path, tensors)
    run = job(built, 2, steps=1, cfg=1.0)
    without = plain(built.model, run)
    model, lora = lora_by_mask(built.model, path, STRENGTH, torch.cat((ALL, 0 * ALL)))
    assert [layer.part is not None for layer in lora.layers] == [True] * 3
    found = run.run(model)["samples"]
    expected = run.run(usual(built.model, path, STRENGTH))["samples"]
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert torch.equal(found[1], without[1]) and (found[0] - without[0]).abs().mean() > 1e-3


def test_what_takes_part_is_told(tmp_path: Path) -> None:
    built = tiny.build("sd15")
    some = random_lora(built.model, lambda name: name.startswith("middle_block.1"))
    some["diffusion_model.middle_block.0.in_layers.0.w_norm"] = torch.randn(64)
    some["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.randn(8, 3)
    some["diffusion_model.nowhere.lora_up.weight"] = torch.randn(8, 3)
    lora = fit(built.model, written(tmp_path, some))
    assert lora.report() == (
        "random.safetensors: 12 layers; left out, because a mask cannot hold it back: norms; 1 tensor of the file not in "
        "this model"
    )
    assert lora.text == 1


# -- what does not work -----------------------------------------------------------------------------------------------


def test_a_lora_for_another_model(tmp_path: Path) -> None:
    built, other = tiny.build("sd15"), tiny.build("flux")
    path = written(tmp_path, random_lora(other.model))
    with pytest.raises(LoRAError, match=r"is a LoRA for another model, probably for Flux.*do not fit SD15") as caught:
        fit(built.model, path)
    assert "probably for Flux" in sentence(caught)
    told = written(tmp_path, random_lora(other.model), ss_base_model_version="flux1")
    with pytest.raises(LoRAError, match="made for flux1"):
        fit(built.model, told)


def test_a_lora_with_the_right_names_and_other_sizes(tmp_path: Path) -> None:
    """As of SD 1.5 for SDXL, whose blocks have the same names."""
    built = tiny.build("sd15")
    tensors = {
        key: torch.randn(3, 768) if key.endswith("to_k.lora_down.weight") else torch.cat((value, value), -1 if "down" in key else 0)
        for key, value in random_lora(built.model, lambda name: "attn" in name).items()
        if value.ndim
    }  # fmt: skip
    with pytest.raises(LoRAError, match=r"for another model, probably for Stable Diffusion 1\.x"):
        fit(built.model, written(tmp_path, tensors))


def test_files_that_are_no_lora(tmp_path: Path) -> None:
    built = tiny.build("sd15")
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"no weights at all")
    weights = written(tmp_path, {"model.weight": torch.randn(3, 3)}, "model.safetensors")
    text = written(
        tmp_path, {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.randn(8, 3)}, "t.safetensors"
    )
    for path, said in (
        (noise, '"noise.safetensors" cannot be read as a LoRA'),
        (weights, '"model.safetensors" is not a LoRA'),
        (text, "changes only a text encoder"),
        (tmp_path / "none.safetensors", '"none.safetensors" is missing'),
    ):
        with pytest.raises(LoRAError, match=said) as caught:
            fit(built.model, path)
        sentence(caught)


def test_masks_and_phrases_that_do_not_fit(tmp_path: Path) -> None:
    """Said before anything is sampled; the next run is as if nothing had been."""
    built = tiny.build("sd15")
    path = written(tmp_path, random_lora(built.model, lambda name: name.startswith("middle_block.1")))
    run = job(built, 2, steps=2, positive=speaking(built))
    expected = plain(built.model, run)
    for mask, phrase, kind, said in (
        (
            torch.ones(3, 16, 24),
            "",
            LoRAError,
            r"There are 3 masks for a latent of 2 images; connect 1 \(one for all\) or 2",
        ),
        (torch.ones(0, 16, 24), "", LoRAError, "mask is empty"),
        (ALL, "purple", PhraseError, '"purple" is not in the prompt'),
    ):
        model, _ = lora_by_mask(built.model, path, STRENGTH, mask, phrase=phrase)
        with pytest.raises(kind, match=said) as caught:
            run.run(model)
        sentence(caught)
    silent = job(built, 2, steps=1)
    with pytest.raises(LoRAError, match="words of the prompt are not known") as caught:
        silent.run(lora_by_mask(built.model, path, STRENGTH, ALL, phrase="cat")[0])
    sentence(caught)
    assert torch.equal(run.run(built.model)["samples"], expected)
    video = tiny.build("wan21")
    own = written(tmp_path, random_lora(video.model, lambda name: name == "head.head"), "video.safetensors")
    with pytest.raises(LoRAError, match=r"4 masks for a latent of 1 videos?.*9 \(one for each frame\)"):
        job(video, 1, steps=1, cfg=1.0).run(lora_by_mask(video.model, own, STRENGTH, torch.ones(4, 8, 8))[0])
