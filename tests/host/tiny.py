"""Tiny models with random weights, built by ComfyUI's own classes from a configuration dict.

    model, conditioning, channels = tiny.build("sdxl")
    positive = conditioning(batch=1, seed=0)
    latent = tiny.sample(model, positive, conditioning(seed=1), tiny.latent(channels))

`MODELS` names them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import tiny_images, tiny_models, tiny_video
from .device import CPU, DEVICE
from .older import need
from .tiny_models import TOKENS, unet_config

MODELS = {**tiny_models.MODELS, **tiny_images.MODELS, **tiny_video.MODELS}
Conditioning = list[list[Any]]


class Tiny(NamedTuple):
    """What a test needs of a model."""

    model: Any
    conditioning: Callable[..., Conditioning]
    channels: int
    size: tuple[int, int]  # a small latent that is not square
    frames: int  # of the latent; 0 for models that know images only
    sound: tuple[int, ...] = ()  # the shape of the latent of the sound


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None) -> Tiny:
    """A fresh model; two built with one seed are equal. ``cast``: the precision to compute in, if not that of the weights.

    Leaves the test out where ComfyUI is older than the model.
    """
    import comfy.model_patcher
    import comfy.supported_models

    kind = MODELS[name]
    need(hasattr(comfy.supported_models, kind.model), f"model {kind.model}")
    config = getattr(comfy.supported_models, kind.model)(dict(kind.config))
    # The constructor lays the class's own numbers (the real model's head count) over ours, hence afterwards.
    config.unet_config.update(kind.forced)
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "", device=CPU)
    fill(model, seed)
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=DEVICE, offload_device=CPU)

    def conditioning(batch: int = 1, seed: int = 0, tokens: int = kind.tokens, **extra: Any) -> Conditioning:
        if kind.extra is not None:
            extra = {**kind.extra(torch.Generator().manual_seed(seed + 1), batch), **extra}
        if kind.masked is not None:
            mask = (torch.arange(tokens) < tokens - kind.masked).long()[None]
            extra = {"attention_mask": mask, **extra}
        return make_conditioning(kind.width, batch, seed, tokens, kind.pooled, **extra)

    channels = kind.channels or config.latent_format.latent_channels
    return Tiny(patcher, conditioning, channels, kind.size, kind.frames, kind.sound)


def control(name: str, seed: int = 0) -> Any:
    """A CONTROL_NET for a tiny model, with random weights; its hint is an image of 8 pixels per latent cell."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    kind = MODELS[name]
    config = {key: value for key, value in {**kind.config, **kind.forced}.items() if key != "out_channels"}
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, device=CPU, operations=comfy.ops.disable_weight_init
    )
    fill(network, seed)
    return comfy.controlnet.ControlNet(network.eval(), load_device=DEVICE)


def vae(name: str) -> Any:
    """A VAE of ComfyUI for a tiny model, with random weights. Of the families that have one which may be so small."""
    import comfy.ldm.wan.vae
    import comfy.sd
    import comfy.taesd.taesd

    if MODELS[name].model == "SD15":
        network: torch.nn.Module = comfy.taesd.taesd.TAESD(latent_channels=4)
    else:
        assert name.startswith(("wan21", "qwen_image")), name
        scales = {"attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0}
        network = comfy.ldm.wan.vae.WanVAE(dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, **scales)
    fill(network, 4)
    return comfy.sd.VAE(sd=network.state_dict(), device=DEVICE, dtype=torch.float32)


def write_checkpoint(path: Path) -> None:
    """A checkpoint file that ComfyUI takes for SD1.5: its widths, two levels of blocks, the text encoder and a small VAE.

    The text encoder has the real one's size, because ComfyUI knows no other; its layers do nothing.
    """
    import comfy.sd1_clip
    import comfy.supported_models
    import comfy.taesd.taesd
    import safetensors.torch

    layout = unet_config(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 768, model_channels=320, channel_mult=[1, 1])
    config = comfy.supported_models.SD15(layout)
    config.set_inference_dtype(torch.float16, None)
    network = config.get_model({}, "", device=CPU).diffusion_model
    fill(network, 0)
    text = comfy.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float16)
    with torch.no_grad():
        for name, parameter in text.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            if "embedding" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    vae = comfy.taesd.taesd.TAESD(latent_channels=4)
    fill(vae.taesd_encoder, 2)
    fill(vae.taesd_decoder, 3)
    parts = {
        "model.diffusion_model.": network.state_dict(),
        "cond_stage_model.": {k.removeprefix("clip_l."): v for k, v in text.state_dict().items()},
        "first_stage_model.": vae.state_dict(),
    }
    tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    safetensors.torch.save_file({name: value.half().contiguous() for name, value in tensors.items()}, path)


def make_conditioning(
    width: int, batch: int = 1, seed: int = 0, tokens: int = TOKENS, pooled: int | None = None, **extra: Any
) -> Conditioning:
    """One CONDITIONING entry of random text."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(extra)
    if pooled is not None:
        options["pooled_output"] = torch.randn(batch, pooled, generator=generator)
    return [[torch.randn(batch, tokens, width, generator=generator), options]]


def latent(
    channels: int = 4,
    batch: int = 1,
    height: int = 16,
    width: int = 24,
    frames: int = 0,
    sound: tuple[int, ...] = (),
) -> Any:
    """An empty latent that is not square; with frames for models that make videos, and with sound for some of them."""
    video = torch.zeros(batch, channels, *([frames] if frames else []), height, width)
    return nested(video, torch.zeros(batch, *sound)) if sound else video


def nested(*streams: torch.Tensor) -> Any:
    """Several latents as one, as nodes of ComfyUI hand them on."""
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(streams)


def streams_of(samples: Any) -> list[torch.Tensor]:
    """The latents in one."""
    found: list[torch.Tensor] = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    return found


def sample(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    start: torch.Tensor,
    steps: int = 2,
    cfg: float = 4.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    seed: int = 1,
    **options: Any,
) -> torch.Tensor:
    """What a KSampler does, without the latent dict around it."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(start, seed)
    settings = {"denoise": 1.0, "disable_pbar": True, "seed": seed, **options}
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive, negative, start, **settings)


def fill(model: torch.nn.Module, seed: int) -> None:
    """ComfyUI's layers leave their weights as uninitialised memory, waiting for a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("pos_embed", "inv_freq")):  # in the checkpoint too
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith(("weight", "scale")):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn / math.sqrt(max(1, math.prod(parameter.shape[1:]))))
