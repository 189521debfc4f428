"""How the network of each miniature is built by ComfyUI's class, and which tokenizers its text goes through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .text import Stream

CHANNELS = 12
_SD3_HEADS = 4


@dataclass(frozen=True)
class Miniature:
    """``model``: class in comfy.supported_models. ``config``: of its network; ``forced``: entries ComfyUI would overwrite.

    ``width``: of the text encoder; ``pooled``: of its pooled vector. ``side``: of the images, in pixels. ``frames``: of a
    video. ``deep``: latents are [B, C, F, h, w]. ``exact``: the conditioning ends with the caption, without padding.
    """

    name: str
    model: str
    config: dict[str, Any]
    streams: tuple[Stream, ...]
    width: int = 128
    pooled: int | None = None
    frames: int = 1
    deep: bool = False
    forced: dict[str, Any] = field(default_factory=dict)
    exact: bool = False


def prepare(family: Miniature, network: nn.Module) -> None:
    """ComfyUI's SD3 has one head of 64 channels per layer of depth; the miniature has narrower ones."""
    if family.name != "sd3":
        return
    for block in network.joint_blocks:  # type: ignore[union-attr]
        for half in (block.context_block, block.x_block):
            attention = half.attn
            attention.num_heads, attention.head_dim = _SD3_HEADS, network.hidden_size // _SD3_HEADS  # type: ignore[operator]
            for name in ("ln_q", "ln_k"):
                getattr(attention, name).weight = nn.Parameter(torch.ones(attention.head_dim))


MINIATURES: dict[str, Miniature] = {
    family.name: family
    for family in (
        Miniature(
            "flux",
            "Flux",
            dict(
                image_model="flux", in_channels=CHANNELS, out_channels=CHANNELS, vec_in_dim=64, context_in_dim=128,
                hidden_size=160, mlp_ratio=2.5, num_heads=5, depth=3, depth_single_blocks=6, axes_dim=[8, 12, 12],
                theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
            ),
            (Stream("t5", 32),),
            pooled=64,
        ),
        Miniature(
            "zimage",
            "ZImage",
            dict(
                image_model="lumina2", patch_size=2, in_channels=CHANNELS, dim=160, cap_feat_dim=128, n_layers=8,
                qk_norm=True, n_heads=5, n_kv_heads=5, n_refiner_layers=1, rope_theta=256.0, axes_dims=[8, 12, 12],
                axes_lens=[1536, 512, 512], multiple_of=32, ffn_dim_multiplier=8 / 3, norm_eps=1e-5,
                z_image_modulation=False, time_scale=1000.0, pad_tokens_multiple=32,
            ),
            (Stream("qwen", 32, causal=True),),
            exact=True,
        ),
        Miniature(
            "pixart",
            "PixArtSigma",
            dict(
                image_model="pixart_sigma", num_heads=5, patch_size=2, hidden_size=160, in_channels=CHANNELS, depth=9,
                input_size=64, caption_channels=128, model_max_length=300, pe_interpolation=2, micro_condition=False,
            ),
            (Stream("t5", 24),),
            exact=True,
        ),
        Miniature(
            "sd3",
            "SD3",
            dict(
                in_channels=CHANNELS, patch_size=2, out_channels=CHANNELS, depth=2, num_blocks=7, input_size=None,
                qk_norm="rms", adm_in_channels=64,
                context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 128, "out_features": 128}},
            ),
            (Stream("clip", 24, causal=True), Stream("t5", 32)),
            pooled=64,
        ),
        Miniature(
            "qwen",
            "QwenImage",
            dict(
                image_model="qwen_image", in_channels=4 * CHANNELS, out_channels=CHANNELS, num_layers=7,
                num_attention_heads=4, attention_head_dim=32, axes_dims_rope=(8, 12, 12), joint_attention_dim=128,
            ),
            (Stream("qwen", 24, causal=True, head=False),),
            deep=True,
            exact=True,
        ),
        Miniature(
            "wan",
            "WAN21_T2V",
            dict(
                image_model="wan2.1", model_type="t2v", dim=160, ffn_dim=640, num_heads=5, num_layers=8,
                patch_size=(1, 2, 2), freq_dim=256, in_dim=CHANNELS, out_dim=CHANNELS, text_dim=128, qk_norm=True,
                cross_attn_norm=True, eps=1e-6,
            ),
            (Stream("t5", 32, zero=True),),
            frames=3,
            deep=True,
        ),
        Miniature(
            "sd15",
            "SD15",
            dict(
                image_size=32, in_channels=CHANNELS, out_channels=CHANNELS, model_channels=32,
                channel_mult=[1, 2, 3, 3], num_res_blocks=[2, 2, 2, 2], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
                transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3, context_dim=128,
                use_spatial_transformer=True, use_linear_in_transformer=False, adm_in_channels=None, legacy=False,
                use_checkpoint=False, use_temporal_attention=False, use_temporal_resblock=False,
            ),
            (Stream("clip", 77, causal=True),),
            forced=dict(num_heads=4, num_head_channels=-1),
        ),
    )
}  # fmt: skip
