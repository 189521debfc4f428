"""Read a LoRA file and find the layers of a model that it changes. What does not fit is refused in one sentence."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..families import find_family
from .layers import BoundLayer, Difference, LoRALayer

_ADAPTER = re.compile(
    r"lora|lokr|hada|oft|\.[ab][12]\.weight$|\.diff(_b)?$|dora_scale|w_norm|b_norm|set_weight", re.IGNORECASE
)
_TEXT_ENCODER = re.compile(r"^(lora_te|text_encoder|lora_prior_te|text_encoders|te[0-9]*[._])")
# What a file says of the model that it was made for.
_TOLD = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
# Names of layers that tell what kind of model a LoRA is for, the first that fits.
_KINDS = (
    (r"single_(transformer_)?blocks|double_blocks", "Flux or HunyuanVideo"),
    (r"joint_blocks|context_block", "Stable Diffusion 3"),
    (r"img_mlp|add_q_proj", "Qwen-Image"),
    (r"blocks[._]\d+[._]cross_attn[._](q|k|v|o)\b|blocks_\d+_cross_attn", "Wan"),
    (r"attention[._](qkv|to_q)|noise_refiner|context_refiner", "Lumina 2 or Z-Image"),
)
_UNETS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "the SDXL refiner", 2048: "SDXL"}

# Families whose networks have layers in which neither rows nor pixels are those of the image.
_WITHOUT_PLACES = ("pixeldit",)


class LoRAError(ValueError):
    """A LoRA, its masks or its phrases do not fit. The message is one sentence that says what to do."""


@dataclass(frozen=True)
class LoRA:
    """A LoRA that fits a model.

    ``layers``: those of the diffusion network. ``skipped``: changes that cannot be masked, by what they are. ``missing``: names
    in the file that the model does not have. ``text``: tensors for the text encoder.
    """

    name: str
    layers: tuple[LoRALayer, ...]
    skipped: tuple[str, ...] = ()
    missing: int = 0
    text: int = 0

    def report(self) -> str:
        """What takes part, in one line."""
        parts = [f"{self.name}: {_counted(len(self.layers), 'layer')}"]
        if self.skipped:
            parts.append(f"left out, because a mask cannot hold it back: {', '.join(self.skipped)}")
        if self.missing:
            parts.append(f"{_counted(self.missing, 'tensor')} of the file not in this model")
        return "; ".join(parts)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata of a LoRA file. Raises LoRAError for a file that is none."""
    import comfy.utils

    file = Path(path)
    if not file.is_file():
        raise LoRAError(f'The LoRA file "{file.name}" is missing; choose one that is in the folder of LoRAs.')
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(file), safe_load=True, return_metadata=True)
    except Exception as error:
        raise LoRAError(
            f'"{file.name}" cannot be read as a LoRA ({type(error).__name__}); it may be damaged, or no file of weights: '
            "download it again."
        ) from error
    if not isinstance(tensors, dict) or not any(_ADAPTER.search(str(name)) for name in tensors):
        raise LoRAError(
            f'"{file.name}" is not a LoRA: nothing in it is an adapter of a layer; choose a LoRA, LoKr or LoHa file, not a '
            "checkpoint, VAE or embedding."
        )
    return tensors, dict(metadata or {})


def fit(model: Any, path: str | Path) -> LoRA:
    """The layers of a MODEL that a LoRA file changes.

    Raises LoRAError for a file that is none, or is for another kind of model, and for models with layers in which no place is
    known.
    """
    import comfy.lora
    import comfy.lora_convert

    if find_family(model.model).name in _WITHOUT_PLACES:
        raise LoRAError(
            f"A LoRA cannot act inside a mask in {find_family(model.model).label}, whose last layers compute each patch by "
            "itself; load it in the usual way."
        )
    name = Path(path).name
    tensors, metadata = read(path)
    found = comfy.lora_convert.convert_lora(dict(tensors))
    text = sum(_TEXT_ENCODER.match(each) is not None for each in found)
    modules = dict(model.model.named_modules())
    layers: list[LoRALayer] = []
    skipped: list[str] = []
    wrong: list[LoRALayer] = []
    used: set[str] = set()
    patches = comfy.lora.load_lora(found, comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False)
    for key, patch in patches.items():
        used |= getattr(patch, "loaded_keys", set())
        layer = _layer(key, patch, modules)
        if isinstance(layer, str):
            skipped.append(layer)
        elif not _fits(layer, modules[layer.name]):
            wrong.append(layer)
        elif not _works(layer, modules[layer.name]):
            skipped.append("adapters that this ComfyUI cannot apply as a bypass")
        else:
            layers.append(layer)
    if not layers or len(wrong) > len(layers):
        raise LoRAError(_refusal(name, found, metadata, model, skipped, wrong, text))
    if wrong:
        skipped.append(f"{_counted(len(wrong), 'layer')} of another size")
    if any(each.endswith("dora_scale") for each in found):
        skipped.append("the magnitudes of DoRA, as in ComfyUI's own bypass")
    missing = 0 if not used else len([each for each in found if each not in used and not _TEXT_ENCODER.match(each)])
    return LoRA(name, tuple(layers), tuple(dict.fromkeys(skipped)), missing, text)


def _layer(key: Any, patch: Any, modules: Mapping[str, nn.Module]) -> LoRALayer | str:
    """What a patch of ComfyUI does to a layer, or why it cannot be masked."""
    from comfy.weight_adapter import WeightAdapterBase

    weight, *rest = key if isinstance(key, tuple) else (key,)
    if len(rest) > 1 and rest[1] is not None:
        return "weights that the model keeps in another order"
    name, _, what = weight.rpartition(".")
    module = modules.get(name)
    if module is None or what not in ("weight", "bias"):
        return "weights that are no layer"
    part = tuple(rest[0]) if rest and rest[0] is not None else None
    if isinstance(patch, WeightAdapterBase):
        return LoRALayer(name, patch, part)
    if not isinstance(patch, tuple) or patch[0] != "diff":
        return "weights that are replaced"
    (difference,) = patch[1][:1]
    if what == "bias" and difference.ndim == 1 and part is None:
        return LoRALayer(name, Difference((None, difference)))
    if what == "weight" and difference.ndim > 1:
        return LoRALayer(name, Difference((difference, None)), part)
    return "norms"


def _fits(layer: LoRALayer, module: nn.Module) -> bool:
    """Whether the sizes of a layer and of what a LoRA adds to it are the same."""
    inputs, outputs = _features(module)
    if inputs is None or outputs is None:
        # Of a norm only a bias can be changed.
        weights, own = layer.adapter.weights, getattr(module, "weight", None)
        bias = isinstance(layer.adapter, Difference) and weights[0] is None
        return bias and own is not None and weights[1].shape == own.shape[:1]
    if layer.part is not None:
        axis, start, size = layer.part
        if start + size > (outputs, inputs)[axis]:
            return False
        outputs, inputs = (size, inputs) if axis == 0 else (outputs, size)
    return _runs(layer, module, inputs, outputs, 1)


def _works(layer: LoRALayer, module: nn.Module) -> bool:
    """Whether ComfyUI can apply this kind of adapter to a layer that it fits; of some kinds it has had errors."""
    inputs, outputs = _features(module)
    return inputs is None or outputs is None or layer.part is not None or _runs(layer, module, inputs, outputs, 2)


def _features(module: nn.Module) -> tuple[int | None, int | None]:
    """Input and output channels of a linear layer or a convolution."""
    inputs = getattr(module, "in_features", getattr(module, "in_channels", None))
    return inputs, getattr(module, "out_features", getattr(module, "out_channels", None))


def _runs(layer: LoRALayer, module: nn.Module, inputs: int, outputs: int, tokens: int) -> bool:
    """Whether a layer can be computed with so many tokens. Its weights have no values here."""
    bound = BoundLayer(replace(layer, adapter=_sizes_only(layer.adapter)), module, 1.0, torch.device("meta"))
    if bound.conv:
        kernel = tuple(getattr(module, "kernel_size", ()))
        x, out = (
            torch.empty(1, inputs, *kernel, device="meta"),
            torch.empty(1, outputs, *[1] * len(kernel), device="meta"),
        )
    else:
        x, out = torch.empty(tokens, tokens, inputs, device="meta"), torch.empty(tokens, tokens, outputs, device="meta")
    try:
        made = bound.adapter.g(out + bound.adapter.h(x, out)) if bound.turns else bound.adapter.h(x, out)
    except (RuntimeError, ValueError, IndexError):
        return False
    return made.ndim == out.ndim and made.shape[1 if bound.conv else -1] == outputs


def _sizes_only(adapter: Any) -> Any:
    """An adapter whose weights have a shape and no values."""
    made = copy.copy(adapter)
    weights = adapter.weights
    made.weights = type(weights)(each.to("meta") if isinstance(each, Tensor) else each for each in weights)
    return made


def _refusal(
    name: str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    model: Any,
    skipped: Sequence[str],
    wrong: Sequence[LoRALayer],
    text: int,
) -> str:
    """Why nothing of a file can be used, as a sentence."""
    kind = type(getattr(model.model, "model_config", model.model)).__name__
    if text == len(tensors):
        return f'"{name}" changes only a text encoder, so no mask can hold it; load it with Load LoRA.'
    if skipped and not wrong:
        return f'"{name}" has only {", ".join(dict.fromkeys(skipped))}, which a mask cannot hold back; load it with Load LoRA.'
    told = next((metadata[key] for key in _TOLD if metadata.get(key)), "")
    meant = f", made for {told}" if told else f", probably for {_guess(tensors)}" if _guess(tensors) else ""
    return (
        f'"{name}" is a LoRA for another model{meant}: its layers do not fit {kind}; choose a LoRA that was trained for '
        "this model, or load the model that it was trained for."
    )


def _guess(tensors: Mapping[str, Any]) -> str:
    """What kind of model a LoRA is for, judging by its layers; empty if that is unknown."""
    for pattern, kind in _KINDS:
        if any(re.search(pattern, each) for each in tensors):
            return kind
    text = (t for each, t in tensors.items() if re.search(r"attn2[._]to_k.*(down|lora_A|_a\.|w1_b|w2_b)", each))
    return next((_UNETS[t.shape[-1]] for t in text if getattr(t, "ndim", 0) == 2 and t.shape[-1] in _UNETS), "")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
