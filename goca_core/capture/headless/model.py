"""A loaded model: encode images and prompts, and record forward passes. Imports ComfyUI; see `headless.open_model`."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...attention.record import Attention
from .. import demo_model
from ..conditioning import attach, word_map
from ..families import UnknownFamily, find_family, network_of, vae_scale
from ..options import RecordOptions
from ..segment import segment, sigmas_at
from ..weights import ComfyUIError

_PROMPTS_KEPT = 64  # data sets repeat their prompts: many images share a few classes


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image and prompt, for any number of forward passes: samples [1, C, h, w] and the CONDITIONING."""

    samples: Tensor
    positive: Any


class LoadedModel:
    """MODEL, CLIP and VAE of one checkpoint.

    ``family``: its name. ``side``: side in pixels of the square images for which the paper (or the model's authors) use it.
    ``multiple``: height and width of an image must be multiples of this.
    """

    def __init__(self, model: Any, clip: Any, vae: Any, side: int) -> None:
        self.model, self.clip, self.vae, self.side = model, clip, vae, side
        family = find_family(model.model)
        self.family, plan = family.name, family.plan(network_of(model.model))
        self.defaults = plan.defaults
        self._noise_level = plan.noise_level
        deepest = max(block.level for block in plan.blocks)
        scale = vae_scale(model.model)
        self.multiple = scale * plan.patch * 2**deepest
        self._prompts: OrderedDict[str, Any] = OrderedDict()

    @property
    def device(self) -> str:
        """The name of the device, to show to users."""
        device = torch.device(self.model.load_device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def sigma(self, level: str) -> float:
        """A noise level as a sigma of the model: "auto" is the paper's choice for the family, "25%" a percentage of sampling.

        Anything else is a sigma itself. Raises ComfyUIError for a sigma outside the model's range.
        """
        if level == "auto":
            return self._noise_level
        if level.endswith("%"):
            return sigmas_at(self.model, [float(level[:-1]) / 100])[0]
        sampling = self.model.get_model_object("model_sampling")
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)
        # Users write the bounds with three digits.
        if not 0.99 * low <= float(level) <= 1.01 * high:
            raise ComfyUIError(
                f"The noise level {level} is outside this model's range; choose a sigma from {low:.3g} to {high:.3g}."
            )
        return min(max(float(level), low), high)

    def size(self, height: int, width: int, side: int | None, keep_aspect: bool) -> tuple[int, int]:
        """The size at which an image is evaluated: a square of `side` (None: the model's own), as in the paper.

        ``keep_aspect``: same area, but the image's own aspect ratio. Height and width are rounded to `multiple`.
        """
        side = side or self.side
        wanted = (side * math.sqrt(height / width), side * math.sqrt(width / height)) if keep_aspect else (side, side)
        rows, columns = (max(1, round(length / self.multiple)) * self.multiple for length in wanted)
        return rows, columns

    def encode(
        self, image: NDArray[np.uint8], text: str, side: int | None = None, keep_aspect: bool = False
    ) -> EncodedImage:
        """Encode an image, uint8 [H, W, 3], and a prompt. The image is first resized to `size` with bicubic interpolation."""
        rows, columns = self.size(int(image.shape[0]), int(image.shape[1]), side, keep_aspect)
        if image.shape[:2] != (rows, columns):
            resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
            image = np.asarray(resized, dtype=np.uint8)
        with torch.inference_mode():
            samples = self.vae.encode(torch.from_numpy(image.copy())[None].float() / 255)
            return EncodedImage(samples, self._encode(text))

    def _encode(self, text: str) -> Any:
        if text not in self._prompts:
            words = word_map(self.clip, text)
            conditioning = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            self._prompts[text] = attach(conditioning, words)
            if len(self._prompts) > _PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        return self._prompts[text]

    def record(self, encoded: EncodedImage, sigma: float, seed: int, flip: bool = False, **kept: Any) -> Attention:
        """The attention of one forward pass at a noise level (two with `flip`); ``kept``: fields of `RecordOptions`."""
        samples, positive, options = encoded.samples, encoded.positive, RecordOptions(**kept)
        with torch.inference_mode():
            return segment(self.model, samples, positive, sigmas=[sigma], seed=seed, flip=flip, options=options)


def load_model(checkpoint: Path | None) -> LoadedModel:
    """The demo model (None, or other weights of it) or a checkpoint.

    Raises ComfyUIError when a part is missing or the model cannot be recorded.
    """
    if checkpoint is None or demo_model.is_demo(checkpoint):
        model, clip, vae = demo_model.load(checkpoint or demo_model.WEIGHTS)
        return LoadedModel(model, clip, vae, demo_model.CELLS * vae.upscale_ratio)
    try:
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    except Exception as error:
        # ComfyUI raises many kinds of errors for an unreadable file, some with several lines.
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ComfyUIError(
            f"{checkpoint.name} cannot be loaded as a checkpoint; choose another file ({why})."
        ) from error
    if model is None or clip is None or vae is None or getattr(vae, "first_stage_model", None) is None:
        raise ComfyUIError(
            f"{checkpoint.name} lacks its model, text encoder or VAE; choose a full checkpoint that holds all three."
        )
    try:
        side = find_family(model.model).side(model.model, network_of(model.model))
        return LoadedModel(model, clip, vae, side)
    except UnknownFamily as error:
        raise ComfyUIError(str(error)) from None
