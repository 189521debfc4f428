"""Tiny models with random weights, built by the host's own classes from a configuration dict.

    model, conditioning, channels = tiny.build("sdxl")
    positive = conditioning(batch=1, seed=0)
    latent = tiny.sample(model, positive, conditioning(seed=1), tiny.latent(channels))

`MODELS` names them all. They have the layout of the real ones (which blocks attend, how heads are counted) with few
channels; `sd15_full` has every block of the real SD1.5.
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
MT5 = 24  # tokens of the second text encoder of Hunyuan-DiT

Conditioning = list[list[Any]]


class Tiny(NamedTuple):
    """What a test needs of a model."""

    model: Any
    conditioning: Callable[..., Conditioning]
    channels: int
    size: tuple[int, int]  # a small latent that is not square


class Kind(NamedTuple):
    """How a model is made: its class in comfy.supported_models, configuration, and keys the class would overwrite."""

    model: str
    config: dict[str, Any]
    forced: dict[str, Any] = {}  # noqa: RUF012
    width: int = 64  # of a text token
    pooled: int | None = None  # width of the pooled text
    tokens: int = TOKENS
    size: tuple[int, int] = (16, 24)
    extra: Callable[[torch.Generator, int], dict[str, Any]] | None = None  # more of a conditioning, for a batch


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


def _flux(depth: int = 2, single: int = 3, **more: Any) -> dict[str, Any]:
    config = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED,
        "context_in_dim": 48,
        "hidden_size": 64,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": depth,
        "depth_single_blocks": single,
        "axes_dim": [8, 12, 12],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    return {**config, **more}


def _pixart(name: str, depth: int = 3, **more: Any) -> dict[str, Any]:
    config = {"image_model": name, "num_heads": 4, "patch_size": 2, "hidden_size": 96, "in_channels": 4, "depth": depth}
    return {**config, "input_size": 64, "caption_channels": 64, **more}


def _hunyuan_dit(depth: int = 8, **more: Any) -> dict[str, Any]:
    config = {"image_model": "hydit1", "depth": depth, "hidden_size": 64, "num_heads": 4, "size_cond": True}
    text = {"use_style_cond": True, "text_states_dim": 32, "text_states_dim_t5": 64, "text_len_t5": MT5}
    return {**config, **text, **more}


def _mt5(generator: torch.Generator, batch: int) -> dict[str, Any]:
    """What Hunyuan-DiT's text encoders give beside BERT's tokens."""
    masks = torch.zeros(1, TOKENS), torch.zeros(1, MT5)
    masks[0][:, :6] = masks[1][:, :7] = 1
    tokens = torch.randn(batch, MT5, 64, generator=generator)
    return {"attention_mask": masks[0], "conditioning_mt5xl": tokens, "attention_mask_mt5xl": masks[1]}


_HEADS_4 = {"num_heads": 4, "num_head_channels": -1}
_WIDE_16 = {"num_head_channels": 16}

MODELS: dict[str, Kind] = {
    "sd15": Kind("SD15", _sd15(), _HEADS_4, 48),
    "sd15_full": Kind(
        "SD15",
        _unet(4, [2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0], 1, [1] * 9 + [0] * 3, 48),
        {"num_heads": 8, "num_head_channels": -1},
        48,
    ),
    "sd15_inpaint": Kind("SD15", _sd15(in_channels=9), _HEADS_4, 48),
    "ip2p": Kind("SD15_instructpix2pix", _sd15(in_channels=8), _HEADS_4, 48),
    "sd20": Kind(
        "SD20",
        _unet(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 64, use_linear_in_transformer=True),
        {"num_head_channels": 8},
    ),
    "sdxl": Kind("SDXL", _sdxl_like([1, 1, 1], [0, 1, 2], 2, [0, 0, 1, 1, 2, 2]), _WIDE_16, pooled=POOLED),
    "sdxl_refiner": Kind(
        "SDXLRefiner",
        # five numbers instead of six: the refiner has an aesthetic score instead of a target size
        _sdxl_like([1, 1, 1, 1], [0, 1, 1, 0], 1, [0, 0, 1, 1, 1, 1, 0, 0], adm_in_channels=POOLED + 5 * 256),
        _WIDE_16,
        pooled=POOLED,
    ),
    "ssd1b": Kind("SSD1B", _sdxl_like([1, 1, 1], [0, 1, 2], -1, [0, 0, 1, 1, 2, 1]), _WIDE_16, pooled=POOLED),
    "segmind_vega": Kind(
        "Segmind_Vega", _sdxl_like([1, 1, 1], [0, 1, 1], -1, [0, 0, 1, 1, 1, 1]), _WIDE_16, pooled=POOLED
    ),
    "koala_700m": Kind("KOALA_700M", _sdxl_like([1, 1, 1], [0, 2, 3], -2, [0, 0, 2, 2, 3, 3]), _WIDE_16, pooled=POOLED),
    "koala_1b": Kind("KOALA_1B", _sdxl_like([1, 1, 1], [0, 2, 3], 3, [0, 0, 2, 2, 3, 3]), _WIDE_16, pooled=POOLED),
    # The position embedding of PixArt needs more than 32 latent cells on average, and an even number on each side.
    "pixart_alpha": Kind(
        "PixArtAlpha",
        _pixart("pixart_alpha", model_max_length=120, pe_interpolation=1, micro_condition=True),
        tokens=20,
        size=(28, 40),
    ),
    "pixart_sigma": Kind(
        "PixArtSigma",
        _pixart("pixart_sigma", model_max_length=300, pe_interpolation=2, micro_condition=False),
        tokens=20,
        size=(28, 40),
    ),
    "hunyuan_dit": Kind("HunyuanDiT1", _hunyuan_dit(), width=32, extra=_mt5),
    "flux": Kind("Flux", _flux(), width=48, pooled=POOLED, tokens=30),
    "flux_schnell": Kind("FluxSchnell", _flux(guidance_embed=False), width=48, pooled=POOLED, tokens=30),
    # The picture to be filled (16 channels) and its mask (64) come with the noise.
    "flux_fill": Kind("FluxInpaint", _flux(in_channels=96), width=48, pooled=POOLED, tokens=30),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tiny:
    """A fresh model; two built with one seed are equal."""
    import comfy.model_patcher
    import comfy.supported_models

    kind = MODELS[name]
    config = getattr(comfy.supported_models, kind.model)(dict(kind.config))
    # The constructor lays the class's own numbers (the real model's head count) over ours, hence afterwards.
    config.unet_config.update(kind.forced)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=CPU)
    _fill(model, seed)
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=CPU, offload_device=CPU)

    def conditioning(batch: int = 1, seed: int = 0, tokens: int = kind.tokens, **extra: Any) -> Conditioning:
        if kind.extra is not None:
            extra = {**kind.extra(torch.Generator().manual_seed(seed + 1), batch), **extra}
        return make_conditioning(kind.width, batch, seed, tokens, kind.pooled, **extra)

    return Tiny(patcher, conditioning, config.latent_format.latent_channels, kind.size)


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
            if "norm" in name and name.endswith(("weight", "scale")):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn / math.sqrt(max(1, math.prod(parameter.shape[1:]))))
