"""Tiny models of those that make videos, three frames of the latent here, and of their relatives for images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .tiny_models import POOLED, Kind

FRAMES = 3


def _wan(**more: Any) -> dict[str, Any]:
    config = {"image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 3}
    size = {"patch_size": (1, 2, 2), "freq_dim": 32, "in_dim": 16, "out_dim": 16, "text_dim": 40}
    return {**config, **size, "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, **more}


def _cosmos(model: str, **more: Any) -> dict[str, Any]:
    config = {"image_model": model, "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16}
    patch = {"out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True}
    size = {"model_channels": 96, "num_blocks": 3, "num_heads": 3, "crossattn_emb_channels": 40}
    place = {"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop"}
    adaptive = {"use_adaln_lora": True, "adaln_lora_dim": 16}
    ratios = {f"rope_{axis}_extrapolation_ratio": 1.0 for axis in "hwt"}
    return {**config, **patch, **size, **place, **adaptive, **ratios, **more}


def _cosmos_predict2(**more: Any) -> dict[str, Any]:
    ratios = {f"extra_{axis}_extrapolation_ratio": 1.0 for axis in "hwt"}
    speed = {"min_fps": 1, "max_fps": 30, "rope_enable_fps_modulation": False, "extra_per_block_abs_pos_emb": False}
    return _cosmos("cosmos_predict2", **{**ratios, **speed, **more})


def _cosmos1() -> dict[str, Any]:
    blocks = {"block_config": "FA-CA-MLP", "block_x_format": "THWBD", "affline_emb_norm": True}
    place = {"extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"}
    return _cosmos("cosmos", **{**blocks, **place, "pos_emb_learnable": False})


def _kandinsky5(embedded: int) -> dict[str, Any]:
    config = {"image_model": "kandinsky5", "model_dim": 64, "axes_dims": (8, 12, 12), "time_dim": 32, "ff_dim": 96}
    visual = {"visual_embed_dim": embedded, "in_visual_dim": 16, "out_visual_dim": 16, "patch_size": (1, 2, 2)}
    text = {"num_text_blocks": 1, "in_text_dim": 40, "in_text_dim2": POOLED}
    return {**config, **visual, **text, "num_visual_blocks": 3, "rope_scale_factor": (1.0, 1.0, 1.0)}


def _hunyuan_video(**more: Any) -> dict[str, Any]:
    config = {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2]}
    size = {"hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3}
    place = {"axes_dim": [8, 12, 12], "theta": 256, "qkv_bias": True, "guidance_embed": True, "context_in_dim": 48}
    none = {"byt5": False, "meanflow": False, "use_cond_type_embedding": False, "meanflow_sum": False}
    return {**config, **size, **place, **none, "vec_in_dim": POOLED, "vision_in_dim": None, **more}


def _hunyuan_video15() -> dict[str, Any]:
    # The latent of the image that the video starts from (32 channels) and a mask come with the noise.
    layers = {"in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "depth": 3, "depth_single_blocks": 0}
    text = {"vec_in_dim": None, "vision_in_dim": 48, "byt5": True, "use_cond_type_embedding": True}
    return _hunyuan_video(**layers, **text, guidance_embed=False)


def _cogvideox(**more: Any) -> dict[str, Any]:
    config = {"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 16}
    size = {"time_embed_dim": 64, "text_embed_dim": 48, "num_layers": 3, "use_rotary_positional_embeddings": True}
    return {**config, **size, **more}


def _mochi() -> dict[str, Any]:
    config = {"image_model": "mochi_preview", "depth": 3, "patch_size": 2, "num_heads": 2, "in_channels": 12}
    # ComfyUI asks for the width of the real model's MLP.
    size = {"hidden_size_x": 64, "hidden_size_y": 48, "mlp_ratio_x": 12288 / 64, "mlp_ratio_y": 4.0}
    text = {"use_t5": True, "t5_feat_dim": 64, "t5_token_length": 30, "timestep_scale": 1000.0}
    other = {"learn_sigma": False, "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0}
    return {**config, **size, **text, **other}


def _ltxv() -> dict[str, Any]:
    config = {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32}
    return {**config, "num_attention_heads": 2, "caption_channels": 40, "num_layers": 3}


def _ltx2(**more: Any) -> dict[str, Any]:
    sound = {"audio_cross_attention_dim": 32, "audio_attention_head_dim": 16, "audio_num_attention_heads": 2}
    text = {"connector_num_attention_heads": 2, "connector_attention_head_dim": 20, "connector_num_layers": 1}
    return {**_ltxv(), "image_model": "ltxav", **sound, **text, **more}


def _ltx23() -> dict[str, Any]:
    """The sound's part of the prompt has a width of its own, and heads are weighed."""
    text = {"caption_proj_before_connector": True, "caption_projection_first_linear": False}
    width = {"connector_attention_head_dim": 32, "audio_connector_attention_head_dim": 16}
    gates = {"apply_gated_attention": True, "connector_apply_gated_attention": True, "cross_attention_adaln": True}
    return _ltx2(**text, **width, **gates)


def _minimax_h3() -> dict[str, Any]:
    config = {"image_model": "minimax_h3", "hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1}
    heads = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_hidden_size": 96, "rope_inv_freq_len": 4}
    time = {"timestep_input_dim": 32, "time_embed_hidden_size": 48, "time_embed_dim": 32}
    return {**config, **heads, **time, "text_dim": 40}


def _seen_image(generator: torch.Generator, batch: int) -> dict[str, Any]:
    """What CLIP's vision gives of the image that the video starts from."""
    return {
        "clip_vision_output": SimpleNamespace(
            penultimate_hidden_states=torch.randn(batch, 257, 1280, generator=generator),
            last_hidden_state=torch.randn(batch, 7, 48, generator=generator),
        )
    }


def _letters_and_image(generator: torch.Generator, batch: int) -> dict[str, Any]:
    letters = torch.randn(batch, 9, 1472, generator=generator)
    return {**_seen_image(generator, batch), "conditioning_byt5small": letters}


def _anima(generator: torch.Generator, _batch: int) -> dict[str, Any]:
    ids = torch.randint(0, 32128, (10,), generator=generator)
    return {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(10)}


_VIDEO = Kind("", {}, width=40, tokens=30, frames=FRAMES)


def _wan_dancer() -> dict[str, Any]:
    sizes = {"in_dim": 36, "audio_inject_layers": [0, 2], "music_dim": 32, "music_latent_dim": 32}
    return _wan(model_type="wandancer", **sizes, music_heads=2)


# Models built on Wan, which have tests of their own.
KINDS_OF_WAN: dict[str, Kind] = {
    "wan_animate": _VIDEO._replace(
        model="WAN22_Animate", config=_wan(model_type="animate", in_dim=36), extra=_seen_image
    ),
    "wan_humo": _VIDEO._replace(model="WAN21_HuMo", config=_wan(model_type="humo")),
    "wan_s2v": _VIDEO._replace(
        model="WAN22_S2V", config=_wan(model_type="s2v", audio_dim=32, audio_inject_layers=[0, 2])
    ),
    "wan_scail2": _VIDEO._replace(model="WAN21_SCAIL2", config=_wan(model_type="scail2", in_dim=20), extra=_seen_image),
    "wan_causal": _VIDEO._replace(model="WAN21_CausalAR_T2V", config=_wan(causal_ar=True)),
    "wan_dancer": _VIDEO._replace(model="WAN22_WanDancer", config=_wan_dancer(), extra=_seen_image),
}
MODELS: dict[str, Kind] = {
    **KINDS_OF_WAN,
    "cosmos_predict2": _VIDEO._replace(model="CosmosT2IPredict2", config=_cosmos_predict2(), frames=1),
    "cosmos_predict2_i2v": _VIDEO._replace(model="CosmosI2VPredict2", config=_cosmos_predict2(in_channels=17)),
    # The part that reads the text has one size only, and it is not small.
    "anima": Kind(
        "Anima",
        {**_cosmos_predict2(crossattn_emb_channels=1024), "image_model": "anima"},
        width=1024,
        tokens=14,
        frames=1,
        extra=_anima,
    ),
    "kandinsky5_image": _VIDEO._replace(model="Kandinsky5Image", config=_kandinsky5(16 * 4), pooled=POOLED, frames=0),
    # The latent of an image and its mask come with the noise.
    "kandinsky5": _VIDEO._replace(model="Kandinsky5", config=_kandinsky5(33 * 4), pooled=POOLED),
    "wan21": _VIDEO._replace(model="WAN21_T2V", config=_wan()),
    "wan21_i2v": _VIDEO._replace(model="WAN21_I2V", config=_wan(model_type="i2v", in_dim=36), extra=_seen_image),
    "wan21_fun_control": _VIDEO._replace(model="WAN21_T2V", config=_wan(in_dim_ref_conv=16)),
    "wan21_vace": _VIDEO._replace(model="WAN21_Vace", config=_wan(model_type="vace", vace_layers=1, vace_in_dim=96)),
    "wan21_camera": _VIDEO._replace(
        model="WAN21_Camera", config=_wan(model_type="camera", in_dim=32), extra=_seen_image
    ),
    "wan22": _VIDEO._replace(model="WAN22_T2V", config=_wan(in_dim=48, out_dim=48)),
    "hunyuan_video": _VIDEO._replace(model="HunyuanVideo", config=_hunyuan_video(), width=48, pooled=POOLED),
    "hunyuan_video15": _VIDEO._replace(
        model="HunyuanVideo15",
        config=_hunyuan_video15(),
        width=48,
        pooled=POOLED,
        size=(6, 10),
        extra=_letters_and_image,
    ),
    "ltxv": _VIDEO._replace(model="LTXV", config=_ltxv(), size=(6, 10), masked=4),
    # What the text encoder gives is processed for the image and the sound, one after the other.
    "ltx2": _VIDEO._replace(model="LTXAV", config=_ltx2(), size=(6, 10), width=2 * 40, sound=(8, 5, 16)),
    "ltx23": _VIDEO._replace(model="LTXAV", config=_ltx23(), size=(6, 10), width=64 + 32, sound=(8, 5, 16)),
    "minimax_h3": _VIDEO._replace(
        model="MiniMaxH3", config=_minimax_h3(), size=(16, 24), sound=(32, 2, 5), channels=24
    ),
    "mochi": _VIDEO._replace(model="GenmoMochi", config=_mochi(), width=64, masked=4),
    "cogvideox": _VIDEO._replace(model="CogVideoX_T2V", config=_cogvideox(), width=48),
    "cogvideox15": _VIDEO._replace(
        model="CogVideoX_I2V", config=_cogvideox(in_channels=32, patch_size_t=2, ofs_embed_dim=64), width=48
    ),
    "cosmos1": _VIDEO._replace(model="CosmosT2V", config=_cosmos1()),
}
