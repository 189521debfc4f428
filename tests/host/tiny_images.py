"""Tiny models of the image families that came after Flux.1; see `tiny_models`."""

from __future__ import annotations

from typing import Any

import torch

from .tiny_models import POOLED, TOKENS, Kind, all_ones, chroma, flux, lumina


def _flux2() -> dict[str, Any]:
    config = {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0}
    blocks = {"global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "qkv_bias": False}
    places = {"axes_dim": [8, 8, 8, 8], "theta": 2000, "patch_size": 1, "txt_ids_dims": [3]}
    return flux(**config, **blocks, **places, default_ref_method="index", ref_index_scale=10.0)


def _without_clip(**more: Any) -> dict[str, Any]:
    return flux(guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2], **more)


def _radiance() -> dict[str, Any]:
    config = {"image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16}
    pixels = {"nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512}
    head = {"nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32}
    return {**chroma(), **config, **pixels, **head, "use_x0": False, "use_sequential_txt_ids": False}


def _hidream() -> dict[str, Any]:
    config = {
        "image_model": "hidream",
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "max_resolution": [32, 32],
    }
    layers = {"num_layers": 1, "num_single_layers": 3, "num_routed_experts": 2, "num_activated_experts": 1}
    heads = {"num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12]}
    text = {"caption_channels": [40, 40], "text_emb_dim": POOLED, "llama_layers": [0, 1, 1, 0]}
    return {**config, **layers, **heads, **text}


def _llama(generator: torch.Generator, batch: int) -> dict[str, Any]:
    """Two layers of the second text encoder of HiDream."""
    return {"conditioning_llama3": torch.randn(batch, 2, 12, 40, generator=generator)}


def _omnigen2() -> dict[str, Any]:
    config = {"image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "out_channels": None, "hidden_size": 64}
    layers = {"num_layers": 3, "num_refiner_layers": 1, "multiple_of": 32, "ffn_dim_multiplier": None, "norm_eps": 1e-5}
    heads = {"num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": [4, 6, 6], "axes_lens": [1024, 1664, 1664]}
    return {**config, **layers, **heads, "text_feat_dim": 40, "timestep_scale": 1000.0}


def _boogu() -> dict[str, Any]:
    config = {"image_model": "boogu", "hidden_size": 64, "instruction_feat_dim": 40, "multiple_of": 32}
    layers = {"num_layers": 3, "num_double_stream_layers": 1, "num_refiner_layers": 1}
    return {**config, **layers, "num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": (4, 6, 6)}


def _hunyuan_image() -> dict[str, Any]:
    config = {"image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "theta": 256}
    blocks = {
        "hidden_size": 64,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 3,
        "qkv_bias": True,
    }
    parts = {"byt5": True, "meanflow": False, "meanflow_sum": False, "guidance_embed": False, "vision_in_dim": None}
    text = {"context_in_dim": 40, "vec_in_dim": None, "use_cond_type_embedding": False, "axes_dim": [16, 16]}
    return {**config, **blocks, **parts, **text}


def _byt5(generator: torch.Generator, batch: int) -> dict[str, Any]:
    """The letters that HunyuanImage is to render."""
    return {"conditioning_byt5small": torch.randn(batch, 9, 1472, generator=generator)}


def _krea2() -> dict[str, Any]:
    config = {
        "image_model": "krea2",
        "features": 64,
        "channels": 16,
        "patch": 2,
        "layers": 3,
        "multiplier": 2,
        "tdim": 32,
    }
    return {**config, "heads": 2, "kvheads": 1, "txtlayers": 3, "txtdim": 40, "txtheads": 2, "txtkvheads": 2}


def _cascade_c() -> dict[str, Any]:
    config = {
        "stable_cascade_stage": "c",
        "c_cond": 64,
        "c_hidden": [64, 64],
        "nhead": [4, 4],
        "blocks": [[1, 2], [2, 1]],
    }
    # The width of CLIP's images is ComfyUI's own number.
    return {**config, "c_clip_text": 64, "c_clip_text_pooled": POOLED, "c_clip_img": 768, "c_clip_seq": 4}


def _mage_flow() -> dict[str, Any]:
    config = {"image_model": "mage_flow", "in_channels": 128, "num_layers": 3, "joint_attention_dim": 40}
    return {**config, "num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}


def _joyimage() -> dict[str, Any]:
    config = {
        "image_model": "joyimage",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "num_layers": 3,
    }
    return {**config, "hidden_size": 64, "num_attention_heads": 2, "text_dim": 40}


def _lens() -> dict[str, Any]:
    config = {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 3, "num_attention_heads": 2}
    return {**config, "enc_hidden_dim": 40, "multi_layer_encoder_feature": True, "selected_layer_index": (0, 1)}


_IDEOGRAM4 = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "intermediate_size": 96,
    "adaln_dim": 32,
    "llm_features_dim": 40,
    "mrope_section": (6, 5, 5),
}


def _z_image_pixels() -> dict[str, Any]:
    attention = {"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
    pixels = {"patch_size": 16, "in_channels": 3, "decoder_hidden_size": 16, "decoder_num_res_blocks": 1}
    return lumina(256, 8, [8, 12, 12], image_model="zimage_pixel", use_x0=True, **attention, **pixels)


def _pixeldit() -> dict[str, Any]:
    config = {"image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 4}
    pixels = {"pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "pixel_depth": 1}
    return {**config, **pixels, "patch_depth": 3, "txt_embed_dim": 40}


def _hidream_o1() -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rope_dims": [6, 5, 5]}
    text = {**heads, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    seen = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "depth": 1}
    return {"image_model": "hidream_o1", "text_config_overrides": text, "vision_config_overrides": seen}


def _chat(generator: torch.Generator, _batch: int) -> dict[str, Any]:
    """The ids of a prompt in its template, of which HiDream-O1's text encoder makes nothing."""
    words = torch.randint(100, 100000, (20,), generator=generator).tolist()
    ids = [151644, 872, 198, *words, 151645, 198, 151644, 77091, 198, 151669, 151673]
    return {"text_input_ids": torch.tensor([ids])}


def _ernie() -> dict[str, Any]:
    config = {"image_model": "ernie", "in_channels": 128, "out_channels": 128, "patch_size": 1, "text_in_dim": 40}
    layers = {"hidden_size": 64, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 96}
    return {**config, **layers, "rope_theta": 256, "rope_axes_dim": (8, 12, 12)}


_CELLS = (8, 12)  # where each cell of the latent is a token

MODELS: dict[str, Kind] = {
    "newbie": Kind(
        "Lumina2",
        lumina(48, 4, [4, 4, 4], n_kv_heads=2, clip_text_dim=POOLED),
        width=40,
        pooled=POOLED,
        tokens=30,
        extra=all_ones,
    ),
    "flux2": Kind("Flux2", _flux2(), width=48, tokens=30, size=_CELLS),
    "longcat_image": Kind("LongCatImage", _without_clip(), width=48, tokens=30),
    "ovis_image": Kind("FluxSchnell", _without_clip(yak_mlp=True, txt_norm=True), width=48, tokens=30),
    # It generates pixels; a token is 16 x 16 of them.
    "chroma_radiance": Kind("ChromaRadiance", _radiance(), width=48, tokens=30, size=(48, 80)),
    "hidream": Kind("HiDream", _hidream(), width=40, pooled=POOLED, tokens=20, extra=_llama),
    "omnigen2": Kind("Omnigen2", _omnigen2(), width=40, tokens=30, masked=0),
    "boogu": Kind("Boogu", _boogu(), width=40, tokens=30, masked=0),
    "hunyuan_image": Kind("HunyuanImage21", _hunyuan_image(), width=40, tokens=30, size=_CELLS, extra=_byt5),
    "z_image_pixels": Kind("ZImagePixelSpace", _z_image_pixels(), width=40, tokens=30, size=(48, 80), extra=all_ones),
    "pixeldit": Kind("PixelDiTT2I", _pixeldit(), width=40, tokens=30, size=(64, 96)),
    "hidream_o1": Kind("HiDreamO1", _hidream_o1(), width=1, tokens=30, size=(128, 160), extra=_chat),
    "krea2": Kind("Krea2", _krea2(), width=3 * 40, tokens=30, frames=1),
    "cascade_c": Kind("Stable_Cascade_C", _cascade_c(), pooled=POOLED, tokens=TOKENS, size=_CELLS),
    "mage_flow": Kind("MageFlow", _mage_flow(), width=40, tokens=30, size=_CELLS),
    "joyimage": Kind("JoyImage", _joyimage(), {"rope_dim_list": [8, 12, 12]}, width=40, tokens=30, frames=1),
    "lens": Kind("Lens", _lens(), width=2 * 40, tokens=30, size=_CELLS, masked=4),
    "ideogram4": Kind(
        "Ideogram4",
        {"image_model": "ideogram4", "in_channels": 128, "num_layers": 3},
        _IDEOGRAM4,
        width=40,
        tokens=30,
        size=_CELLS,
        masked=4,
    ),
    "ernie": Kind("ErnieImage", _ernie(), width=40, tokens=30, size=_CELLS),
}
