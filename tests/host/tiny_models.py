"""Which tiny models there are: the layout of the real ones (which blocks attend, how heads are counted) with few channels.

`sd15_full` has every block of the real SD1.5. `tiny.build` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

CHANNELS = 32  # the group norms have 32 groups
TOKENS = 77
POOLED = 32
MT5 = 24  # tokens of the second text encoder of Hunyuan-DiT


class Kind(NamedTuple):
    """How a model is made: its class in comfy.supported_models, configuration, and keys the class would overwrite."""

    model: str
    config: dict[str, Any]
    forced: dict[str, Any] = {}  # noqa: RUF012
    width: int = 64  # of a text token
    pooled: int | None = None  # width of the pooled text
    tokens: int = TOKENS
    size: tuple[int, int] = (16, 24)
    frames: int = 0  # of the latent; 1 for models that count an image as a video of one, 0 for those without frames
    extra: Callable[[torch.Generator, int], dict[str, Any]] | None = None  # more of a conditioning, for a batch
    masked: int | None = None  # tokens of padding that a mask tells of
    sound: tuple[int, ...] = ()  # the shape of the latent of the sound, which some videos have
    channels: int = 0  # of the video's latent, where it is one of several


def unet_config(
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
    return unet_config(len(depth), depth, down, middle, up, 64, **{**adm, **more})


def _sd15(**more: Any) -> dict[str, Any]:
    return unet_config(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 48, **more)


def flux(depth: int = 2, single: int = 3, **more: Any) -> dict[str, Any]:
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


def _sd3(depth: int = 3, **more: Any) -> dict[str, Any]:
    width = 64 * depth
    config = {
        "in_channels": 16,
        "patch_size": 2,
        "out_channels": 16,
        "depth": depth,
        "input_size": None,
        "qk_norm": "rms",
    }
    text = {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": width}}
    position = {"num_patches": 32 * 32, "pos_embed_max_size": 32, "pos_embed_scaling_factor": None}
    return {**config, **position, "adm_in_channels": POOLED, "context_embedder_config": text, **more}


def chroma() -> dict[str, Any]:
    """Its modulation is cut by the numbers of the real model's layers, so all of them are here."""
    config = {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "vec_in_dim": None}
    guidance = {"in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 1}
    blocks = {key: value for key, value in flux(19, 38).items() if key != "guidance_embed"}
    return {**blocks, **config, **guidance}


def _qwen_image(layers: int = 3) -> dict[str, Any]:
    config = {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": layers}
    heads = {"num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
    return {**config, **heads, "joint_attention_dim": 40}


def lumina(dim: int, heads: int, axes: list[int], **more: Any) -> dict[str, Any]:
    config = {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": dim,
        "cap_feat_dim": 40,
        "n_layers": 3,
    }
    attention = {"qk_norm": True, "n_heads": heads, "n_kv_heads": heads, "n_refiner_layers": 1, "rope_theta": 256.0}
    return {**config, **attention, "axes_dims": axes, "axes_lens": [1536, 512, 512], "ffn_dim_multiplier": 2.0, **more}


def all_ones(_generator: torch.Generator, _batch: int) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, 30)}


_HEADS_4 = {"num_heads": 4, "num_head_channels": -1}
_WIDE_16 = {"num_head_channels": 16}

MODELS: dict[str, Kind] = {
    "sd15": Kind("SD15", _sd15(), _HEADS_4, 48),
    "sd15_full": Kind(
        "SD15",
        unet_config(4, [2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0], 1, [1] * 9 + [0] * 3, 48),
        {"num_heads": 8, "num_head_channels": -1},
        48,
    ),
    "sd15_inpaint": Kind("SD15", _sd15(in_channels=9), _HEADS_4, 48),
    "ip2p": Kind("SD15_instructpix2pix", _sd15(in_channels=8), _HEADS_4, 48),
    "sd20": Kind(
        "SD20",
        unet_config(2, [1, 1], [1, 1], 1, [1, 1, 1, 1], 64, use_linear_in_transformer=True),
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
    "hunyuan_dit_12": Kind(
        "HunyuanDiT", _hunyuan_dit(image_model="hydit", size_cond=False, use_style_cond=False), width=32, extra=_mt5
    ),
    "flux": Kind("Flux", flux(), width=48, pooled=POOLED, tokens=30),
    "flux_schnell": Kind("FluxSchnell", flux(guidance_embed=False), width=48, pooled=POOLED, tokens=30),
    # The image to be filled (16 channels) and its mask (64) come with the noise.
    "flux_fill": Kind("FluxInpaint", flux(in_channels=96), width=48, pooled=POOLED, tokens=30),
    # Its modulation is cut by the numbers of the real model's layers.
    "chroma": Kind("Chroma", chroma(), width=48, tokens=30),
    "sd3": Kind("SD3", _sd3(x_block_self_attn_layers=[]), width=48, pooled=POOLED, tokens=40),
    "sd35_medium": Kind("SD3", _sd3(x_block_self_attn_layers=[0, 1]), width=48, pooled=POOLED, tokens=40),
    "auraflow": Kind(
        "AuraFlow",
        {"max_seq": 32 * 32, "cond_seq_dim": 48, "n_double_layers": 1, "n_layers": 4},
        {"dim": 64, "n_heads": 4, "global_conddim": 64},
        width=48,
        tokens=30,
    ),
    "qwen_image": Kind("QwenImage", _qwen_image(), width=40, tokens=30, frames=1),
    "lumina2": Kind("Lumina2", lumina(48, 4, [4, 4, 4], n_kv_heads=2), width=40, tokens=30, extra=all_ones),
    "z_image": Kind(
        "ZImage",
        lumina(256, 8, [8, 12, 12], z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
        width=40,
        tokens=30,
        extra=all_ones,
    ),
}
