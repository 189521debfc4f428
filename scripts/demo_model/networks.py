"""The two networks that `train.py` trains, with fresh weights: ComfyUI's UNet and ComfyUI's CLIP text model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def vocabulary(words: str) -> list[int]:
    """The ids of CLIP's tokens in a text, and those of its start and end."""
    from comfy.sd1_clip import SD1Tokenizer

    return sorted({token for token, _ in SD1Tokenizer().tokenize_with_weights(words)["l"][0]})


class TextEncoder(nn.Module):
    """ComfyUI's CLIP text model with a small embedding table. ComfyUI's forward adds residuals in place and blocks gradients."""

    def __init__(self, words: str) -> None:
        super().__init__()
        from comfy.sd1_clip import SD1Tokenizer

        from goca_core.capture.demo_model import WIDTH, DemoTextModel

        model = DemoTextModel(device="cpu", dtype=torch.float32)
        self.body = model.clip_l.transformer.text_model
        ids = vocabulary(words)
        self.body.embeddings.token_embedding = nn.Embedding(len(ids), WIDTH)
        self.register_buffer("ids", torch.tensor(ids))
        self.row = {token: row for row, token in enumerate(ids)}
        self.tokenizer = SD1Tokenizer()
        self.cache: dict[str, list[int]] = {}

    def tokens(self, captions: list[str]) -> Tensor:
        """Rows of the embedding table, [B, 77]."""
        for caption in captions:
            if caption not in self.cache:
                pairs = self.tokenizer.tokenize_with_weights(caption)["l"][0]
                self.cache[caption] = [self.row[token] for token, _ in pairs]
        return torch.tensor([self.cache[caption] for caption in captions])

    def forward(self, rows: Tensor) -> Tensor:
        x = self.body.embeddings.token_embedding(rows) + self.body.embeddings.position_embedding.weight
        for layer in self.body.encoder.layers:
            h = layer.layer_norm1(x)
            q, k, v = (
                p(h).unflatten(-1, (layer.self_attn.heads, -1)).transpose(1, 2)
                for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + layer.self_attn.out_proj(h)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.body.final_layer_norm(x)


def initialise(unet: nn.Module, text: nn.Module) -> None:
    for module in [*unet.modules(), *text.modules()]:
        for kind in (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)  # ComfyUI's own classes skip this to load faster
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 0.3)
    embeddings = text.body.embeddings
    nn.init.normal_(embeddings.position_embedding.weight, 0, 0.1)
    # Residual branches start at zero, so that each block is an identity at first.
    for name, module in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
