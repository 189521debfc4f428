"""Build the bundled demo model from ComfyUI's own classes.

It is a small text-to-image diffusion model: ComfyUI's UNet over a wavelet code of 64x64 images, the real CLIP tokenizer
with a two-layer causal text encoder, and the noise schedule of Stable Diffusion. ``scripts/demo_model/train.py``
trains its weights.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
from safetensors import SafetensorError, safe_open

from ..demo.wavelet import WaveletCodec
from .weights import DEMO_WEIGHTS, weights

WEIGHTS = DEMO_WEIGHTS
WIDTH = 128  # of the text encoder, and so also of the UNet's context
UNET = dict(
    image_size=32,
    in_channels=12,
    out_channels=12,
    model_channels=64,
    channel_mult=(1, 2, 2),
    num_res_blocks=[1, 1, 1],
    transformer_depth=[1, 1, 1],
    transformer_depth_middle=1,
    transformer_depth_output=[1, 1, 1, 1, 1, 1],
    context_dim=WIDTH,
    use_spatial_transformer=True,
    use_linear_in_transformer=False,
    adm_in_channels=None,
    legacy=False,
    use_checkpoint=False,
    use_temporal_attention=False,
    use_temporal_resblock=False,
)
TEXT = dict(
    hidden_size=WIDTH,
    intermediate_size=2 * WIDTH,
    num_attention_heads=4,
    num_hidden_layers=2,
    hidden_act="quick_gelu",
    max_position_embeddings=77,
    vocab_size=49408,
    eos_token_id=49407,
)


class DemoLatent(comfy.latent_formats.LatentFormat):
    """12 wavelet channels at half the image size; the first three are the image at that size."""

    latent_channels = 12
    spacial_downscale_ratio = 2

    def __init__(self) -> None:
        self.scale_factor = 1.0
        self.latent_rgb_factors = [[0.28 if row == column else 0.0 for column in range(3)] for row in range(12)]
        self.latent_rgb_factors_bias = [0.07, 0.07, 0.07]


class DemoConfig(comfy.supported_models.SD15):
    """SD1.5's configuration with this model's sizes."""

    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 32}
    latent_format = DemoLatent

    def inpaint_model(self) -> bool:
        # ComfyUI takes every UNet with more than four input channels for an inpaint model; this one has twelve of its own.
        return False

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


_TextModel = functools.partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=TEXT)


class DemoTextModel(comfy.sd1_clip.SD1ClipModel):
    """ComfyUI's CLIP text model with this model's sizes."""

    def __init__(self, device: str = "cpu", dtype: Any = None, model_options: dict | None = None) -> None:
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=_TextModel)


def build_unet(dtype: Any, device: Any) -> Any:
    """ComfyUI's BaseModel, with weights not yet loaded."""
    config = DemoConfig(UNET)
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, "", device=device)


def _text_weights(tensors: dict) -> dict:
    """Expand the trained rows of the token embedding to CLIP's whole vocabulary; all other tokens get the mean row."""
    ids, rows = tensors.pop("token_ids"), tensors.pop("token_rows")
    table = rows.float().mean(0, keepdim=True).to(rows.dtype).repeat(TEXT["vocab_size"], 1)
    table[ids.long()] = rows
    tensors["text_model.embeddings.token_embedding.weight"] = table
    return {f"clip_l.transformer.{name}": value for name, value in tensors.items()}


def _vae() -> Any:
    # ComfyUI's VAE class chooses a network by its weights. The pixel-space network is the closest (no weights, any
    # size); it is then replaced by the wavelet code.
    vae = comfy.sd.VAE(sd={"pixel_space_vae": WaveletCodec().scale[0]})
    vae.first_stage_model = WaveletCodec().eval().to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.downscale_ratio = vae.upscale_ratio = DemoLatent.spacial_downscale_ratio
    vae.latent_channels = DemoLatent.latent_channels
    vae.size = None
    return vae


def is_demo(path: Path) -> bool:
    """Whether a file holds weights of this model, for example a training checkpoint."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as stored:
            return "text.token_rows" in stored.keys()  # noqa: SIM118
    except SafetensorError:
        return False


def load(path: Path = WEIGHTS) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE of the demo model. Raises ComfyUIError when the weights are missing."""
    tensors = comfy.utils.load_torch_file(str(weights(path)), safe_load=True)
    groups: dict[str, dict] = {"unet": {}, "text": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    stored = next(iter(groups["unet"].values())).dtype
    dtype = comfy.model_management.unet_dtype(
        device=load_device, supported_dtypes=DemoConfig.supported_inference_dtypes, weight_dtype=stored
    )
    model = build_unet(dtype, offload_device)
    model.diffusion_model.load_state_dict(groups["unet"], strict=True)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, DemoTextModel)
    clip = comfy.sd.CLIP(target, state_dict=_text_weights(groups["text"]))
    return patcher, clip, _vae()
