"""Full-size models with random weights, for the benchmarks of what the pack costs. Start ComfyUI first (scripts/boot.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from goca_core.capture.conditioning import attach
from goca_core.capture.reduce.call import bind
from goca_core.words.build import Token, build

from .full_size import FLUX, SD15, SIZES, configure

# The number of words in a prompt of ordinary length.
WORDS = 12


def sd15() -> Any:
    import comfy.supported_models

    return _model(comfy.supported_models.SD15(SD15), torch.float16)


def flux(double: int, single: int) -> Any:
    """Flux.1 at its full width, with so many blocks of each kind."""
    import comfy.supported_models

    config = comfy.supported_models.Flux({**FLUX, "depth": double, "depth_single_blocks": single})
    return _model(config, torch.bfloat16)


def full_size(name: str) -> Any:
    """A model of ``full_size.SIZES``."""
    return _model(configure(name), SIZES[name].dtype)


def _model(config: Any, half: torch.dtype) -> Any:
    """A MODEL as ComfyUI builds it, with random weights scaled to keep activations near one."""
    import comfy.model_management
    import comfy.model_patcher

    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(half if device.type == "cuda" else torch.float32, None)
    model = config.get_model({}, "", device=device)
    # Drawing billions of numbers takes long, and only their size matters here, so a million of them are repeated.
    drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                scale = 1 / math.sqrt(weight[0].numel())
                for part in weight.view(-1).split(len(drawn)):
                    part.copy_(drawn[: len(part)] * scale)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def clip_prompt(words: int = WORDS, seed: int = 1) -> list[Any]:
    """A random conditioning of SD1.5 with a word map, as Encode Prompt (GoCA) makes it."""
    return _prompt("clip-l", [Token(0, 49406, "<start>", "start")], 77, words, 768, 0, seed)


def t5_prompt() -> list[Any]:
    """The same for Flux."""
    return _prompt("t5", [], 256, WORDS, 4096, 768, 1)


def long_prompt(tokens: int, width: int, pooled: int = 0, words: int = WORDS, seed: int = 1) -> list[Any]:
    """The same for a model whose text has ``tokens`` tokens of this ``width``; ``pooled``: width of its pooled text."""
    return _prompt("t5", [], tokens, words, width, pooled, seed)


def _prompt(
    encoder: str, tokens: list[Token], length: int, words: int, width: int, pooled: int, seed: int
) -> list[Any]:
    text = " ".join(f"word{number}" for number in range(words))
    place = 0
    for number, word in enumerate(text.split()):
        tokens.append(Token(len(tokens), number, word, "word", place, place + len(word)))
        place += len(word) + 1
    tokens.append(Token(len(tokens), 1, "<end>", "end"))
    tokens += [Token(position, 0, "<pad>", "pad") for position in range(len(tokens), length)]
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, length, width, generator=generator)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator) if pooled else None}
    return attach([[context, extra]], build(text, text, encoder, length, tokens))


def sample(
    model: Any,
    positive: list[Any],
    sigmas: Sequence[float],
    side: int,
    *,
    negative: list[Any] | None = None,
    cfg: float = 1.0,
    callback: Callable[..., None] | None = None,
) -> torch.Tensor:
    """Sample an image with Euler at these noise levels; ``side`` is that of the latent."""
    latent = torch.zeros(1, model.model.latent_format.latent_channels, side, side)
    return sample_latent(model, positive, sigmas, latent, negative=negative, cfg=cfg, callback=callback)


def sample_latent(
    model: Any,
    positive: list[Any],
    sigmas: Sequence[float],
    latent: torch.Tensor,
    *,
    negative: list[Any] | None = None,
    cfg: float = 1.0,
    callback: Callable[..., None] | None = None,
) -> torch.Tensor:
    """The same from a latent [B, C, (frames,) h, w] of zeros."""
    import comfy.sample
    import comfy.samplers

    noise, euler = comfy.sample.prepare_noise(latent, 1), comfy.samplers.ksampler("euler")
    with torch.inference_mode():
        done: torch.Tensor = comfy.samplers.sample(
            model, noise, positive, negative or [], cfg, model.load_device, euler, torch.tensor(sigmas),
            latent_image=latent, callback=callback, disable_pbar=True, seed=1,
        )  # fmt: skip
    return done


def sd15_step(size: int) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """SD1.5, and what samples one step with a prompt, a negative prompt and guidance; ``size``: of the image in pixels."""
    positive, negative = clip_prompt(), clip_prompt(words=0, seed=2)

    def step(model: Any) -> torch.Tensor:
        return sample(model, positive, (2.0, 0.0), size // 8, negative=negative, cfg=7.5)

    return sd15(), step


def layers_of(model: Any, chosen: Callable[[str], bool] = lambda _name: True) -> dict[str, Any]:
    """Linear layers and convolutions of a MODEL, by name."""
    found = dict(model.model.diffusion_model.named_modules())
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in found.items() if isinstance(module, kinds) and chosen(name)}


def random_lora(
    model: Any, rank: int, size: float, chosen: Callable[[str], bool] = lambda _name: True, seed: int = 3
) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA for the linear layers and convolutions of a MODEL whose names are ``chosen``."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in layers_of(model, chosen).items():
        out, inputs, *kernel = module.weight.shape
        assert getattr(module, "groups", 1) == 1, name
        scale = size / (inputs * max(1, torch.Size(kernel).numel())) ** 0.5
        down = torch.randn(rank, inputs, *kernel, generator=generator) * scale
        up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) / rank**0.5
        tensors[f"diffusion_model.{name}.lora_down.weight"] = down
        tensors[f"diffusion_model.{name}.lora_up.weight"] = up
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(float(rank))
    return tensors


def keeping_all(model: Any, by_head: bool = False) -> Any:
    """The simple way to record: keep the attention of every head of every layer in half precision until sampling is done.

    ``by_head``: compute the heads one after the other, where all of them would not fit into memory in full precision.
    """
    kept: list[torch.Tensor] = []

    def override(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = bind(args, kwargs)
        heads = call.q.shape[1] if by_head else 1
        parts = zip(call.q.float().chunk(heads, 1), call.k.float().chunk(heads, 1), strict=True)
        maps = [(q @ k.transpose(-1, -2) * call.scale).softmax(-1).half() for q, k in parts]
        kept.append(torch.cat(maps, 1) if by_head else maps[0])
        return function(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    patched.kept = kept  # lives as long as the model does
    return patched
