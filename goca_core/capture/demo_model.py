"""Build the bundled demo model from ComfyUI's own classes.

It is a small text-to-image diffusion model: ComfyUI's UNet over a wavelet code of the images, the real CLIP tokenizer with
a two-layer causal text encoder, and the noise schedule of Stable Diffusion. ``scripts/demo_model/train.py`` trains its
weights. There are two kinds, for images of 64x64 and of 128x128. The weights file says all sizes.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..demo.storage import expand
from ..demo.wavelet import WaveletCodec
from .weights import BUNDLED, DEMO_WEIGHTS, ComfyUIError, weights

WEIGHTS = DEMO_WEIGHTS
SCENES = tuple(BUNDLED)
CELLS = 32  # a side of the latents that both kinds were trained on
WIDTH = 128  # of the text encoder, and so also of the UNet's context
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
    """Wavelet channels at a fraction of the image size; the first three are the image at that size."""

    def __init__(self, levels: int = 1) -> None:
        codec = WaveletCodec(levels)
        self.latent_channels, self.spacial_downscale_ratio = codec.channels, codec.cell
        self.scale_factor = 1.0
        self.latent_rgb_factors = [
            [0.28 if row == column else 0.0 for column in range(3)] for row in range(codec.channels)
        ]
        self.latent_rgb_factors_bias = [0.07, 0.07, 0.07]


class BandSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """v-prediction in which every latent channel has its own spread of data (sigma_data).

    Fine details have a small fraction of the smooth band's spread. With one spread for all, the network must copy most of
    their noise exactly to remove it; with their own, it starts from "no detail", and its errors are as small as details.
    """

    def __init__(self, config: Any, spread: Tensor) -> None:
        super().__init__(config)
        self.register_buffer("spread", spread.float().view(1, -1, 1, 1))

    def _sizes(self, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noise level, the spread of the data and that of both together, to multiply with ``like``."""
        spread = self.spread.to(like.device)  # ComfyUI may keep this module on another device
        level = sigma.view(()) if sigma.nelement() == 1 else sigma.view(-1, *[1] * (like.ndim - 1))
        return level, spread, (level**2 + spread**2).sqrt()

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise / self._sizes(sigma, noise)[2]

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        level, spread, both = self._sizes(sigma, model_input)
        return model_input * (spread / both) ** 2 - model_output * (level * spread / both)

    def target(self, sigma: Tensor, noised: Tensor, wanted: Tensor) -> Tensor:
        """What the network should return for latents with noise, to denoise them to the wanted ones."""
        level, spread, both = self._sizes(sigma, noised)
        return (noised * (spread / both) ** 2 - wanted) * both / (level * spread)


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


def network_config(
    levels: int, width: int, multipliers: tuple[int, ...] = (1, 2, 2), blocks: tuple[int, ...] = (1, 1, 1)
) -> dict[str, Any]:
    """ComfyUI's configuration of a UNet with one transformer block after each residual block.

    ``levels``: of the wavelet code. ``width``: channels of the finest level, ``multipliers`` and ``blocks``: channels as a
    multiple of it, and residual blocks, of each level.
    """
    channels = WaveletCodec(levels).channels
    return dict(
        image_size=CELLS,
        in_channels=channels,
        out_channels=channels,
        model_channels=width,
        channel_mult=multipliers,
        num_res_blocks=list(blocks),
        transformer_depth=[1] * sum(blocks),
        transformer_depth_middle=1,
        transformer_depth_output=[1] * (sum(blocks) + len(blocks)),
        context_dim=WIDTH,
        use_spatial_transformer=True,
        use_linear_in_transformer=False,
        adm_in_channels=None,
        legacy=False,
        use_checkpoint=False,
        use_temporal_attention=False,
        use_temporal_resblock=False,
    )


def _levels(channels: int) -> int:
    return next(levels for levels in range(1, 9) if WaveletCodec(levels).channels >= channels)


def build_unet(dtype: Any, device: Any, unet: dict[str, Any], spread: Tensor | None = None) -> Any:
    """ComfyUI's BaseModel, with weights not yet loaded.

    ``unet``: from `network_config`. ``spread``: of each latent channel (see `BandSampling`), or None for 1.
    """
    config = DemoConfig(unet)
    config.set_inference_dtype(dtype, None)
    config.latent_format = DemoLatent(_levels(unet["in_channels"]))
    model = config.get_model({}, "", device=device)
    if spread is not None:
        model.model_sampling = BandSampling(config, spread)
    return model


def _text_weights(tensors: dict) -> dict:
    """Expand the trained rows of the token embedding to CLIP's whole vocabulary; all other tokens get the mean row."""
    ids, rows = tensors.pop("token_ids"), tensors.pop("token_rows")
    table = rows.float().mean(0, keepdim=True).to(rows.dtype).repeat(TEXT["vocab_size"], 1)
    table[ids.long()] = rows
    tensors["text_model.embeddings.token_embedding.weight"] = table
    return {f"clip_l.transformer.{name}": value for name, value in tensors.items()}


def _vae(form: DemoLatent) -> Any:
    # ComfyUI's VAE class chooses a network by its weights. The pixel-space network is the closest (no weights, any
    # size); it is then replaced by the wavelet code.
    codec = WaveletCodec(_levels(form.latent_channels))
    vae = comfy.sd.VAE(sd={"pixel_space_vae": codec.scale[0]})
    vae.first_stage_model = codec.eval().to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.downscale_ratio = vae.upscale_ratio = form.spacial_downscale_ratio
    vae.latent_channels = form.latent_channels
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


def load_scenes(scenes: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE of the bundled model of one of `SCENES`."""
    if scenes not in BUNDLED:
        raise ComfyUIError(f'There is no demo model of "{scenes}"; choose {" or ".join(SCENES)}.')
    return load(BUNDLED[scenes])


def load(path: Path = WEIGHTS) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE of the demo model. Raises ComfyUIError when the weights are missing."""
    tensors = expand(comfy.utils.load_torch_file(str(weights(path)), safe_load=True))
    groups: dict[str, dict] = {"unet": {}, "text": {}, "latent": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    stored = next(iter(groups["unet"].values())).dtype
    dtype = comfy.model_management.unet_dtype(
        device=load_device, supported_dtypes=DemoConfig.supported_inference_dtypes, weight_dtype=stored
    )
    unet = comfy.model_detection.detect_unet_config(groups["unet"], "")
    model = build_unet(dtype, offload_device, unet, groups["latent"].get("spread"))
    model.diffusion_model.load_state_dict(groups["unet"], strict=True)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, DemoTextModel)
    clip = comfy.sd.CLIP(target, state_dict=_text_weights(groups["text"]))
    return patcher, clip, _vae(model.latent_format)
