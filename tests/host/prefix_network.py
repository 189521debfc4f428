"""A network in which the prompt is a causal prefix and only the image asks, with the calls and names of Qwen-Image 2.1.

The pinned ComfyUI lacks that model, so its description stands in for it. The network is put into a tiny Flux, whose
sampling is of the same kind.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from . import tiny
from .older import part

WIDTH, HEADS, TEXT = 32, 4, 48
SLOT = 4  # the place in the prompt at which reference images are


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False), nn.Identity()])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()


class QwenImage21Transformer2DModel(nn.Module):
    """``cached``: whether the keys of the prefix are kept for later evaluations. ``seen``: queries and keys of the image's
    calls."""

    dtype = torch.float32

    def __init__(self, channels: int, depth: int = 4, cached: bool = True) -> None:
        super().__init__()
        self.cached = cached
        self.image_in, self.text_in = nn.Linear(channels, WIDTH), nn.Linear(TEXT, WIDTH)
        self.transformer_blocks = nn.ModuleList(Block() for _ in range(depth))
        self.image_out = nn.Linear(WIDTH, channels)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self._prefixes: dict[float, list[tuple[Tensor, Tensor]]] = {}

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict[str, Any], **_more: Any
    ) -> Tensor:
        image = self.image_in(x.flatten(2).mT) * (1 + timestep.reshape(-1, 1, 1))
        references = [self.image_in(latent.flatten(2).mT) for latent in _more.get("ref_latents") or ()]
        prefixes = self._prefix(context, references, transformer_options)
        for block, (k, v) in zip(self.transformer_blocks, prefixes, strict=True):
            attn: Any = block.attn
            own = nn.functional.layer_norm(image, (WIDTH,))
            q, k, v = attn.to_q(own), torch.cat((k, attn.to_k(own)), 1), torch.cat((v, attn.to_v(own)), 1)
            self.seen.append((q, k))
            image = image + attn.to_out[0](optimized_attention(q, k, v, HEADS, transformer_options=transformer_options))
        out: Tensor = self.image_out(image).mT.reshape(x.shape)
        return out

    def _prefix(
        self, context: Tensor, references: list[Tensor], options: dict[str, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        key = float(context.double().sum())
        if self.cached and key in self._prefixes:
            return self._prefixes[key]
        text, found = self.text_in(context), []
        for reference in references:
            text = torch.cat((text[:, :SLOT], reference.expand(len(text), -1, -1), text[:, SLOT:]), 1)
        mask = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()
        for block in self.transformer_blocks:
            attn: Any = block.attn
            own = nn.functional.layer_norm(text, (WIDTH,))
            q, k, v = attn.to_q(own), attn.to_k(own), attn.to_v(own)
            found.append((k, v))
            given = optimized_attention(
                q, k, v, HEADS, mask=mask.expand(len(q), 1, -1, -1), transformer_options=options
            )
            text = text + attn.to_out[0](given)
        self._prefixes[key] = found
        return found


QwenImage21Transformer2DModel.__module__ = "comfy.ldm.qwen_image21.model"


def build(cached: bool = True) -> tiny.Tiny:
    built = tiny.build("flux")
    torch.manual_seed(3)
    network = QwenImage21Transformer2DModel(built.channels, cached=cached).eval().requires_grad_(False)
    built.model.model.diffusion_model = network
    return built


def tokenizer() -> Any:
    """ComfyUI's tokenizer of the same vocabulary, with a template of the same turns as that of Qwen-Image 2.1."""
    base = part("qwen3vl.Qwen3VLTokenizer")

    class QwenImage21Tokenizer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(model_type="qwen3vl_8b")
            turns = ("system\nOne sentence about the user's image.", "user\n{}")
            self.llama_template = (
                "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
            )

        def tokenize_with_weights(
            self, text: str, *args: Any, images: Any = (), thinking: bool = True, **kwargs: Any
        ) -> Any:
            template = kwargs.pop("llama_template", None)
            if images and template is None:
                block = "<|vision_start|><|image_pad|><|vision_end|>"
                shown = " ".join(f"<image{number}>{block}" for number in range(1, len(images) + 1))
                template = self.llama_template.replace("{}", shown + "{}")
            options = {**kwargs, "images": list(images), "llama_template": template, "thinking": thinking}
            return super().tokenize_with_weights(text, *args, **options)

    return QwenImage21Tokenizer()
