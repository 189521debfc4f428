"""Full-size models on torch's meta device, which holds shapes and no numbers. Start ComfyUI first (scripts/boot.py).

network, call = build("flux")
network(*call.args, **call.kwargs)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")
SD15 = dict(
    use_checkpoint=False,
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_res_blocks=[2, 2, 2, 2],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    channel_mult=[1, 2, 4, 4],
    transformer_depth_middle=1,
    transformer_depth_output=[1] * 9 + [0] * 3,
    context_dim=768,
    use_spatial_transformer=True,
    use_linear_in_transformer=False,
    adm_in_channels=None,
    legacy=False,
    use_temporal_attention=False,
    use_temporal_resblock=False,
)
FLUX = dict(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    txt_ids_dims=[],
)


@dataclass(frozen=True)
class Size:
    """A model and the size at which it is usually run.

    ``model``: its class in comfy.supported_models. ``latent``: [rows, channels, (frames,) height, width]. ``text``: [tokens,
    width]. ``inputs``: other inputs of the network, name -> shape. ``forced``: keys that ComfyUI's class would overwrite.
    """

    label: str
    model: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    forced: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    more: Callable[[], dict[str, Any]] = dict


def _sdxl() -> dict[str, Any]:
    blocks = dict(transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10)
    output = dict(transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], num_res_blocks=[2, 2, 2])
    text = dict(context_dim=2048, adm_in_channels=2816, num_classes="sequential", use_linear_in_transformer=True)
    return {**SD15, **blocks, **output, **text, "channel_mult": [1, 2, 4]}


def _sd35() -> dict[str, Any]:
    text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}}
    size = dict(in_channels=16, out_channels=16, patch_size=2, depth=38, input_size=None, adm_in_channels=2048)
    place = dict(num_patches=192 * 192, pos_embed_max_size=192, pos_embed_scaling_factor=None)
    return {**size, **place, "qk_norm": "rms", "context_embedder_config": text, "x_block_self_attn_layers": []}


def _flux2() -> dict[str, Any]:
    size = dict(image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=15360)
    width = dict(hidden_size=6144, num_heads=48, mlp_ratio=3.0, depth=8, depth_single_blocks=48)
    blocks = dict(global_modulation=True, mlp_silu_act=True, ops_bias=False, qkv_bias=False)
    place = dict(axes_dim=[32] * 4, theta=2000, patch_size=1, txt_ids_dims=[3])
    return {**FLUX, **size, **width, **blocks, **place, "default_ref_method": "index", "ref_index_scale": 10.0}


def _qwen_image() -> dict[str, Any]:
    size = dict(image_model="qwen_image", in_channels=64, out_channels=16, num_layers=60, joint_attention_dim=3584)
    return {**size, "num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}


def _z_image() -> dict[str, Any]:
    size = dict(image_model="lumina2", patch_size=2, in_channels=16, dim=3840, cap_feat_dim=2560, n_layers=30)
    heads = dict(qk_norm=True, n_heads=30, n_kv_heads=30, n_refiner_layers=2, rope_theta=256.0)
    place = dict(axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], ffn_dim_multiplier=8 / 3, time_scale=1000.0)
    return {**size, **heads, **place, "z_image_modulation": True, "pad_tokens_multiple": 32}


def _wan(dim: int, ffn: int, heads: int, layers: int) -> dict[str, Any]:
    size = dict(image_model="wan2.1", model_type="t2v", dim=dim, ffn_dim=ffn, num_heads=heads, num_layers=layers)
    other = dict(patch_size=(1, 2, 2), freq_dim=256, in_dim=16, out_dim=16, text_dim=4096, qk_norm=True)
    return {**size, **other, "cross_attn_norm": True, "eps": 1e-6}


def _hunyuan_video() -> dict[str, Any]:
    size = dict(image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], hidden_size=3072)
    width = dict(mlp_ratio=4.0, num_heads=24, depth=20, depth_single_blocks=40, axes_dim=[16, 56, 56], theta=256)
    text = dict(qkv_bias=True, guidance_embed=True, context_in_dim=4096, vec_in_dim=768, vision_in_dim=None)
    return {
        **size,
        **width,
        **text,
        **dict.fromkeys(("byt5", "meanflow", "use_cond_type_embedding", "meanflow_sum"), False),
    }


def _all_tokens(tokens: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"num_tokens": tokens}


_VIDEO = (9, 60, 104)
_GUIDED = {"y": (1, 768), "guidance": (1,)}
SIZES: dict[str, Size] = {
    "sd15": Size("SD 1.5, 512x512", "SD15", SD15, (2, 4, 64, 64), (77, 768),
                 forced={"num_heads": 8, "num_head_channels": -1}, dtype=torch.float16),
    "sdxl": Size("SDXL, 1024x1024", "SDXL", _sdxl(), (2, 4, 128, 128), (77, 2048), {"y": (2, 2816)},
                 {"num_head_channels": 64}, torch.float16),
    "sd35": Size("SD 3.5 Large, 1024x1024", "SD3", _sd35(), (2, 16, 128, 128), (154, 4096), {"y": (2, 2048)}),
    "flux": Size("Flux.1, 1024x1024", "Flux", {**FLUX, "depth": 19, "depth_single_blocks": 38}, (1, 16, 128, 128),
                 (256, 4096), _GUIDED),
    "flux2": Size("Flux.2, 1024x1024", "Flux2", _flux2(), (1, 128, 64, 64), (512, 15360), {"guidance": (1,)}),
    "qwen_image": Size("Qwen-Image, 1024x1024", "QwenImage", _qwen_image(), (2, 16, 1, 128, 128), (64, 3584)),
    "z_image": Size("Z-Image, 1024x1024", "ZImage", _z_image(), (1, 16, 128, 128), (64, 2560), more=_all_tokens(64)),
    "wan_1b": Size("Wan 2.1 1.3B, 480x832, 33 frames", "WAN21_T2V", _wan(1536, 8960, 12, 30), (2, 16, *_VIDEO), (512, 4096)),
    "wan_14b": Size("Wan 2.1 14B, 480x832, 33 frames", "WAN21_T2V", _wan(5120, 13824, 40, 40), (2, 16, *_VIDEO), (512, 4096)),
    "hunyuan_video": Size("HunyuanVideo, 480x832, 33 frames", "HunyuanVideo", _hunyuan_video(), (1, 16, *_VIDEO), (64, 4096),
                          _GUIDED),
}  # fmt: skip


@dataclass(frozen=True)
class Forward:
    """The inputs of one forward pass."""

    x: Tensor
    timestep: Tensor
    context: Tensor
    given: dict[str, Any]

    def run(self, network: Any, options: dict[str, Any]) -> Tensor:
        out: Tensor = network(self.x, self.timestep, context=self.context, transformer_options=options, **self.given)
        return out


def configure(name: str) -> Any:
    """ComfyUI's configuration of a model, from which it builds the network."""
    import comfy.supported_models

    size = SIZES[name]
    config = getattr(comfy.supported_models, size.model)(dict(size.config))
    config.unet_config.update(size.forced)
    return config


def build(name: str) -> tuple[Any, Forward]:
    """A model as ComfyUI builds it (BaseModel), and the inputs of its network."""
    size, config = SIZES[name], configure(name)
    config.set_inference_dtype(size.dtype, None)
    model = config.get_model({}, "", device=META)
    rows = size.latent[0]
    given = {key: torch.empty(shape, dtype=size.dtype, device=META) for key, shape in size.inputs.items()}
    return model, Forward(
        torch.empty(size.latent, dtype=size.dtype, device=META),
        torch.empty(rows, dtype=size.dtype, device=META),
        torch.empty(rows, *size.text, dtype=size.dtype, device=META),
        {**given, **size.more()},
    )


def flash_attention(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """An attention override that does what torch's attention does on a GPU.

    Without one, attention on the meta device is a product, a softmax and another product.
    """
    from goca_core.capture.reduce.call import bind

    call = bind(args, kwargs)
    if call.mask is None:
        out = torch.ops.aten._scaled_dot_product_flash_attention(call.q, call.k, call.v)[0]
    else:
        mask = call.mask.expand(*call.q.shape[:3], call.k.shape[2])
        out = torch.ops.aten._scaled_dot_product_efficient_attention(call.q, call.k, call.v, mask, False)[0]
    return out if kwargs.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)
