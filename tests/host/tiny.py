"""Tiny models with random weights, built by the host's own classes from a configuration dict.

    model, conditioning, channels = tiny.build("sdxl")
    positive = conditioning(batch=1, seed=0)
    latent = tiny.sample(model, positive, conditioning(seed=1), tiny.latent(channels))

`MODELS` names them all. They have the layout of the real ones (which blocks attend, how deep, how heads are counted)
with 32 channels; `sd15_full` has every block of the real SD1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

CPU = torch.device("cpu")
CHANNELS = 32  # the group norms have 32 groups
TOKENS = 77
POOLED = 32

Conditioning = list[list[Any]]


class Tiny(NamedTuple):
    """What a test needs of a model."""

    model: Any
    conditioning: Callable[..., Conditioning]
    channels: int


def _unet(
    levels: int, depth: list[int], down: list[int], middle: int, up: list[int], context: int, **more: Any
) -> dict[str, Any]:
    config = {
        "use_checkpoint": False,
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "adm_in_channels": None,
        "use_linear_in_transformer": False,
        "model_channels": CHANNELS,
        "num_res_blocks": depth,
        "channel_mult": [1, 2, 4, 4][:levels],
        "transformer_depth": down,
        "transformer_depth_middle": middle,
        "transformer_depth_output": up,
        "context_dim": context,
    }
    return {**config, **more}


def _sdxl_like(depth: list[int], down: list[int], middle: int, up: list[int], **more: Any) -> dict[str, Any]:
    # The size and crop embeddings are six numbers of 256 channels, appended to the pooled text.
    adm = {"num_classes": "sequential", "adm_in_channels": POOLED + 6 * 256, "use_linear_in_transformer": True}
    return _unet(len(depth), depth, down, middle, up, 64, **{**adm, **more})


def _sd15(**more: Any) -> dict[str, Any]:
    return _unet(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 48, **more)


# name -> (class in comfy.supported_models, configuration, keys the class would overwrite, width of the pooled text)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int | None]] = {
    "sd15": ("SD15", _sd15(), {"num_heads": 4, "num_head_channels": -1}, None),
    "sd15_full": (
        "SD15",
        _unet(4, [2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0], 1, [1] * 9 + [0] * 3, 48),
        {"num_heads": 8, "num_head_channels": -1},
        None,
    ),
    "sd15_inpaint": ("SD15", _sd15(in_channels=9), {"num_heads": 4, "num_head_channels": -1}, None),
    "ip2p": ("SD15_instructpix2pix", _sd15(in_channels=8), {"num_heads": 4, "num_head_channels": -1}, None),
    "sd20": (
        "SD20",
        _unet(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 64, use_linear_in_transformer=True),
        {"num_head_channels": 8},
        None,
    ),
    "sdxl": ("SDXL", _sdxl_like([1, 1, 1], [0, 1, 2], 2, [0, 0, 1, 1, 2, 2]), {"num_head_channels": 16}, POOLED),
    "sdxl_refiner": (
        "SDXLRefiner",
        # five numbers instead of six: the refiner has an aesthetic score instead of a target size
        _sdxl_like([1, 1, 1, 1], [0, 1, 1, 0], 1, [0, 0, 1, 1, 1, 1, 0, 0], adm_in_channels=POOLED + 5 * 256),
        {"num_head_channels": 16},
        POOLED,
    ),
    "ssd1b": ("SSD1B", _sdxl_like([1, 1, 1], [0, 1, 2], -1, [0, 0, 1, 1, 2, 1]), {"num_head_channels": 16}, POOLED),
    "segmind_vega": (
        "Segmind_Vega",
        _sdxl_like([1, 1, 1], [0, 1, 1], -1, [0, 0, 1, 1, 1, 1]),
        {"num_head_channels": 16},
        POOLED,
    ),
    "koala_700m": (
        "KOALA_700M",
        _sdxl_like([1, 1, 1], [0, 2, 3], -2, [0, 0, 2, 2, 3, 3]),
        {"num_head_channels": 16},
        POOLED,
    ),
    "koala_1b": (
        "KOALA_1B",
        _sdxl_like([1, 1, 1], [0, 2, 3], 3, [0, 0, 2, 2, 3, 3]),
        {"num_head_channels": 16},
        POOLED,
    ),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tiny:
    """A fresh model; two built with one seed are equal."""
    import comfy.model_patcher
    import comfy.supported_models

    class_name, unet, forced, pooled = MODELS[name]
    config = getattr(comfy.supported_models, class_name)(dict(unet))
    # The constructor lays the class's own numbers (the real model's head count) over ours, hence afterwards.
    config.unet_config.update(forced)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=CPU)
    _fill(model, seed)
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=CPU, offload_device=CPU)
    width = unet["context_dim"]

    def conditioning(batch: int = 1, seed: int = 0, tokens: int = TOKENS, **extra: Any) -> Conditioning:
        return make_conditioning(width, batch, seed, tokens, pooled, **extra)

    return Tiny(patcher, conditioning, config.latent_format.latent_channels)


def control(name: str, seed: int = 0) -> Any:
    """A CONTROL_NET for a tiny model, with random weights; its hint is a picture of 8 pixels per latent cell."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    _, unet, forced, _ = MODELS[name]
    config = {key: value for key, value in {**unet, **forced}.items() if key != "out_channels"}
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, device=CPU, operations=comfy.ops.disable_weight_init
    )
    _fill(network, seed)
    return comfy.controlnet.ControlNet(network.eval(), load_device=CPU)


def write_checkpoint(path: Path) -> None:
    """A checkpoint file that the host takes for SD1.5: its widths, two levels of blocks, the text encoder and a small VAE.

    The text encoder has the real one's size, because the host knows no other; its layers do nothing.
    """
    import comfy.sd1_clip
    import comfy.supported_models
    import comfy.taesd.taesd
    import safetensors.torch

    unet = _unet(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 768, model_channels=320, channel_mult=[1, 1])
    config = comfy.supported_models.SD15(unet)
    config.set_inference_dtype(torch.float16, None)
    network = config.get_model({}, "", device=CPU).diffusion_model
    _fill(network, 0)
    text = comfy.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float16)
    with torch.no_grad():
        for name, parameter in text.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            if "embedding" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    vae = comfy.taesd.taesd.TAESD(latent_channels=4)
    _fill(vae.taesd_encoder, 2)
    _fill(vae.taesd_decoder, 3)
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


def latent(channels: int = 4, batch: int = 1, height: int = 16, width: int = 24) -> torch.Tensor:
    """An empty latent that is not square."""
    return torch.zeros(batch, channels, height, width)


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


def _fill(model: torch.nn.Module, seed: int) -> None:
    """The host's layers leave their weights as uninitialised memory, waiting for a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn / math.sqrt(max(1, math.prod(parameter.shape[1:]))))
