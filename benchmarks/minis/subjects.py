"""The models that are measured, with their scenes: a miniature from its weights, or the bundled demo model.

ComfyUI must have been started, see ``scripts.boot``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import comfy.latent_formats
import comfy.model_patcher
import comfy.sd1_clip
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from goca_core.attention.record import Attention
from goca_core.capture import demo_model
from goca_core.capture import segment as segment_module
from goca_core.capture.conditioning import attach, word_map
from goca_core.capture.options import RecordOptions
from goca_core.capture.weights import BUNDLED
from goca_core.demo.scenes import SHAPES as DEMO_SHAPES
from goca_core.demo.scenes import Kind, draw
from goca_core.demo.things import THINGS
from goca_core.demo.wavelet import SMOOTH_MEAN, SMOOTH_SCALE, WaveletCodec

from .drawing import SHAPES, caption, plan_scene, render
from .families import CHANNELS, MINIATURES, Miniature, prepare
from .text import TextEncoder


@dataclass(frozen=True)
class Case:
    """An image [F, 3, H, W] in 0..1, its true classes [F, H, W] (0 = background), and a caption.

    ``phrases``: of the objects that the caption names; ``classes``: the class of each. ``absent``: how many of them, at
    the end, are not in the image. ``words``: the caption, a comma being a word of its own. ``number``: also of the noise.
    """

    image: Tensor
    truth: NDArray[np.int64]
    words: tuple[str, ...]
    phrases: tuple[str, ...]
    classes: tuple[int, ...]
    absent: int
    number: int

    @property
    def text(self) -> str:
        return " ".join(self.words).replace(" ,", ",")

    @property
    def pixels(self) -> Tensor:
        """The image as nodes have it, [F, H, W, 3]."""
        return self.image.permute(0, 2, 3, 1)


class Subject(Protocol):
    """``names``: of the classes, the background first. ``model``: MODEL (ModelPatcher)."""

    name: str
    names: tuple[str, ...]
    model: Any

    def case(self, seed: int, number: int, kind: str) -> Case: ...

    def inputs(self, case: Case) -> tuple[Tensor, list[Any]]:
        """The latent [1, ...] of the image and the CONDITIONING of the caption, with its words."""


def record(subject: Subject, case: Case, options: RecordOptions | None = None) -> Attention:
    """One forward pass at the noise level of the family, as Segment Image makes it; videos as well as images."""
    check = segment_module._check_latent
    if case.image.shape[0] > 1:  # videos are recorded in the same way, but only while they are sampled
        segment_module._check_latent = _any_latent
    try:
        with torch.inference_mode():
            return segment_module.segment(subject.model, *subject.inputs(case), seed=case.number, options=options)
    finally:
        segment_module._check_latent = check


def _any_latent(model: Any, samples: Any) -> Tensor:
    found: Tensor = samples
    return found


def open_subject(name: str) -> Subject:
    """``demo`` (shapes), ``things``, or the path of other weights: of a miniature, or a stage of a demo model's training."""
    if name in DEMOS:
        return Demo(name)
    with safe_open(name, framework="pt") as stored:
        about = stored.metadata() or {}
    if "family" in about:
        return Trained(Path(name))
    # The first demo models do not say that they are of shapes.
    return Demo("things" if about.get("kind") == "things" else "demo", Path(name))


# The bundled demo models: the kind of their scenes, and the things that are classes.
DEMOS: dict[str, tuple[Kind, tuple[str, ...]]] = {"demo": ("shapes", DEMO_SHAPES), "things": ("things", THINGS)}


class Demo:
    """A bundled demo model, a UNet."""

    def __init__(self, name: str = "demo", weights: Path | None = None) -> None:
        self.name = name if weights is None else weights.stem
        self._kind, self._things = DEMOS[name]
        self.names = ("background", *self._things)
        self.model, self._clip, self._vae = demo_model.load(weights or BUNDLED[self._kind])

    def case(self, seed: int, number: int, kind: str) -> Case:
        scene = draw(seed + number, plain=True, kind=self._kind)
        image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 255
        drawn = [item.name for item in scene.objects]
        words = scene.caption.replace(",", " ,").split()
        if kind == "absent":
            # From the same generator as a scene, so that colour and shape differ from those that were drawn.
            rng = np.random.default_rng((seed, number))
            extra = next(
                item.name
                for item in (
                    thing for _ in range(99) for thing in draw(rng, plain=True, count=1, kind=self._kind).objects
                )
                if not {*item.name.split()} & {word for name in drawn for word in name.split()}
            )
            named = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in (*drawn, extra)]
            words = f"{' , '.join(named[:-1])} and {named[-1]} on {scene.background}".split()
            drawn.append(extra)
        elif kind == "no background":
            words = words[: words.index("on")]
        classes = tuple(1 + self._things.index(name.split()[-1]) for name in drawn)
        table = np.array([0, *classes], np.int64)
        return Case(
            image, table[scene.labels][None], tuple(words), tuple(drawn), classes, int(kind == "absent"), number
        )

    def inputs(self, case: Case) -> tuple[Tensor, list[Any]]:
        conditioning = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(case.text))
        return self._vae.encode(case.pixels), attach(conditioning, word_map(self._clip, case.text))


class _Latent(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
    """The channels of the wavelet, at half the size of the image."""

    latent_channels = CHANNELS
    spacial_downscale_ratio = 2

    def __init__(self) -> None:
        self.scale_factor = 1.0


class _DeepLatent(_Latent):
    latent_dimensions = 3
    temporal_downscale_ratio = 1


class Trained:
    """A miniature."""

    names: tuple[str, ...] = ("background", *SHAPES)

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata()
            weights = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
        self.family = family = MINIATURES[about["family"]]
        self.name, self._side = family.name, int(about["side"])
        config = getattr(comfy.supported_models, family.model)(dict(family.config))
        config.unet_config.update(family.forced)
        config.latent_format = (_DeepLatent if family.deep else _Latent)()
        # ComfyUI takes a UNet with twelve input channels for an inpaint model.
        config.inpaint_model = lambda: False
        config.set_inference_dtype(torch.float32, None)
        base = config.get_model({}, "", device=torch.device("cpu"))
        prepare(family, base.diffusion_model)
        _load(base.diffusion_model, weights, "net.")
        self._text = TextEncoder(family.streams, family.width, family.pooled)
        _load(self._text, weights, "text.")
        self.model = comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
        self._clip = SimpleNamespace(tokenizer=_tokenizer(family))
        self._clip.tokenize = lambda text, **options: self._clip.tokenizer.tokenize_with_weights(text, **options)

    def case(self, seed: int, number: int, kind: str) -> Case:
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        plan = plan_scene(np.random.default_rng((seed, number)), self.family.frames > 1)
        images, labels = render(plan, self._side, generator, self.family.frames)
        absent = int(kind == "absent")
        named = range(plan.count + absent)
        classes = tuple(int(plan.shapes[k]) + 1 for k in named)
        words = caption(plan, kind != "no background", kind == "absent")
        truth = np.array([0, *classes], np.int64)[labels.long().numpy()]
        return Case(images / 2 + 0.5, truth, words, tuple(map(plan.name, named)), classes, absent, number)

    def inputs(self, case: Case) -> tuple[Tensor, list[Any]]:
        samples = WaveletCodec().encode(2 * case.image - 1)
        samples[:, :3] += SMOOTH_MEAN * SMOOTH_SCALE  # the miniatures do not shift the mean
        samples = samples.transpose(0, 1)[None] if self.family.deep else samples
        context, pooled, length = self._text.encode(case.words)
        context = context[:, :length] if self.family.exact else context
        extra = {} if pooled is None else {"pooled_output": pooled.clone()}
        return samples, attach([[context.clone(), extra]], word_map(self._clip, case.text))


def _load(module: torch.nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    missing, unexpected = module.load_state_dict(own, strict=False)
    missing = [key for key in missing if not key.endswith("y_embedding")]  # PixArt's, for training without a prompt
    if missing or unexpected:
        raise ValueError(f"The weights do not fit the miniature: {missing[:3]} are missing, {unexpected[:3]} unknown.")
    module.eval().requires_grad_(False)


def _tokenizer(family: Miniature) -> Any:
    """The family's tokenizer in ComfyUI, padding to the length of the miniature."""
    encoders, streams = comfy.text_encoders, family.streams
    if family.name in ("flux", "wan"):  # ComfyUI has no vocabulary of umT5; T5's replaces it
        found = encoders.flux.FluxTokenizer()
        found.t5xxl.min_length = streams[0].length
    elif family.name == "sd3":
        found = encoders.sd3_clip.SD3Tokenizer()
        for part in (found.clip_l, found.clip_g):
            part.max_length = streams[0].length
        found.t5xxl.min_length = streams[1].length
    elif family.name == "zimage":
        found = encoders.z_image.ZImageTokenizer()
    elif family.name == "pixart":
        found = encoders.pixart_t5.PixArtTokenizer()
    elif family.name == "qwen":
        found = encoders.qwen_image.QwenImageTokenizer()
    else:
        found = comfy.sd1_clip.SD1Tokenizer()
    return found
