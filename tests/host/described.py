"""Networks that the pinned ComfyUI lacks, written from what is known of newer ones: parts of ComfyUI's own, called in the same
order and with the same arguments, under the names that the families expect.
"""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.ldm.kandinsky5.model as kandinsky5
import comfy.ldm.wan.model as wan
import comfy.model_base
import comfy.ops
import comfy.sd1_clip
import tokenizers
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.lumina.model import NextDiT
from torch import Tensor, nn

from goca_core.capture.tokenizers.ming import IMAGE

from . import tiny
from .vocabularies import bytes_to_unicode

# -- Wan Animate 2 --------------------------------------------------------------------------------------------------------


class FramewiseSelfAttention(wan.WanSelfAttention):  # type: ignore[misc]
    """Each frame of the video but the first attends to all of them, and to a frame of the driving video as well.

    Attention is called by its name in ComfyUI's module, where the tests of other dispatches replace it.
    """

    driving: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, freqs: Tensor, transformer_options: Any = None) -> Any:
        b, s, n, d = *x.shape[:2], self.num_heads, self.head_dim
        q = apply_rope1(self.norm_q(self.q(x)).view(b, s, n, d), freqs).view(b, s, n * d)
        k = apply_rope1(self.norm_k(self.k(x)).view(b, s, n, d), freqs).view(b, s, n * d)
        v = self.v(x)
        if self.driving is None:
            self.own = k, v
            return self.o(wan.optimized_attention(q, k, v, heads=n, transformer_options=transformer_options))
        return self.forward_gen(q, k, v, transformer_options)

    def forward_gen(self, q: Tensor, k: Tensor, v: Tensor, transformer_options: Any) -> Any:
        assert self.driving is not None
        size = self.size
        # The keys of the driving video are rewritten in place, frame by frame.
        keys, values = (torch.cat((part, part[:, :size]), 1) for part in (k, v))
        parts = [
            wan.optimized_attention(q[:, :size], k, v, heads=self.num_heads, transformer_options=transformer_options)
        ]
        for start in range(size, q.shape[1], size):
            for buffer, driving in zip((keys, values), self.driving, strict=True):
                buffer[:, q.shape[1] :] = driving[:, start - size : start]
            own = q[:, start : start + size]
            parts.append(
                wan.optimized_attention(
                    own, keys, values, heads=self.num_heads, transformer_options=transformer_options
                )
            )
        return self.o(torch.cat(parts, 1))


class Animate2Block(wan.WanAttentionBlock):  # type: ignore[misc]
    """Runs for the driving video first, and then for the video."""

    def forward(self, x: Tensor, e: Tensor, freqs: Tensor, context: Tensor, **more: Any) -> Any:
        attention, shared = self.self_attn, self.shared
        attention.driving, attention.size = None, shared["size"]
        if shared["driving"] is not None:
            rows = shared["driving"].shape[1]
            shared["driving"] = super().forward(shared["driving"], e, freqs[:, :rows], context, **more)
            attention.driving = attention.own
        return super().forward(x, e, freqs, context, **more)


class WanAnimate2Model(wan.WanModel):  # type: ignore[misc]
    def forward_orig(self, x: Tensor, *args: Any, pose_latents: Tensor | None = None, **kwargs: Any) -> Any:
        driving = None
        if pose_latents is not None:
            whole = torch.cat((pose_latents, torch.ones_like(pose_latents[:, :4]), pose_latents), 1)
            driving = self.patch_embedding(whole).flatten(2).mT
        size = x.shape[-2] * x.shape[-1] // 4
        self.blocks[0].shared.update(driving=driving, size=size)
        return super().forward_orig(x, *args, **kwargs)


WanAnimate2Model.__module__ = "comfy.ldm.wan.model_animate2"


def animate2() -> tiny.Tiny:
    """A tiny Wan Animate 2: ComfyUI's own if there is one."""
    import comfy.supported_models

    if hasattr(comfy.supported_models, "WAN_Animate2"):
        kind = tiny.MODELS["wan21_i2v"]
        tiny.MODELS["wan_animate2"] = kind._replace(
            model="WAN_Animate2", config={**kind.config, "model_type": "animate2"}
        )
        try:
            return tiny.build("wan_animate2")
        finally:
            del tiny.MODELS["wan_animate2"]
    built, shared = tiny.build("wan_animate"), dict[str, Any]()
    network = tiny.build("wan21_i2v").model.model.diffusion_model
    network.__class__ = WanAnimate2Model
    for block in network.blocks:
        block.__class__, block.self_attn.__class__, block.shared = Animate2Block, FramewiseSelfAttention, shared
    built.model.model.diffusion_model = network
    return built


# -- Kandinsky 6 ----------------------------------------------------------------------------------------------------------


class FusedBlock(nn.Module):
    """A block of Kandinsky 5 for the video and one for the sound, and attention of the video to the sound."""

    def __init__(self, width: int, sound: int, **operations: Any) -> None:
        super().__init__()
        self.videoT = kandinsky5.TransformerDecoderBlock(width, 32, 96, 32, operation_settings=operations)
        self.audioT = kandinsky5.TransformerDecoderBlock(sound, 32, 96, 16, operation_settings=operations)
        self.va_cross_attention = kandinsky5.CrossAttention(width, 32, operation_settings=operations)
        self.widen = operations["operations"].Linear(sound, width)

    def forward(self, video: Tensor, sound: Tensor, text: Any, rope: Any, transformer_options: Any) -> Any:
        options = {"transformer_options": transformer_options}
        for block, stream, context, freqs in (
            (self.videoT, video, text[0], rope[0]),
            (self.audioT, sound, text[1], rope[1]),
        ):
            stream = stream + block.self_attention(block.self_attention_norm(stream), freqs, **options)
            stream = stream + block.cross_attention(block.cross_attention_norm(stream), context, **options)
            video, sound = (stream, sound) if block is self.videoT else (video, stream)
        # This one gets no options.
        video = video + self.va_cross_attention(video, self.widen(sound))
        return video + self.videoT.feed_forward(video), sound


class Kandinsky6(nn.Module):
    dtype = torch.float32
    patch_size = (1, 2, 2)

    def __init__(self, channels: int, depth: int = 3) -> None:
        super().__init__()
        operations = {"operations": comfy.ops.disable_weight_init}
        self.visual_blocks = nn.ModuleList(FusedBlock(64, 32, **operations) for _ in range(depth))
        self.video_in, self.video_out = nn.Linear(channels * 4, 64), nn.Linear(64, channels * 4)
        self.sound_in, self.sound_out = nn.Linear(16 * 8, 32), nn.Linear(32, 16 * 8)
        self.text_v, self.text_a = nn.Linear(80, 64), nn.Linear(80, 32)
        self.rope_v, self.rope_a = (
            kandinsky5.EmbedND(dim=width, theta=10000.0, axes_dim=[width]) for width in (32, 16)
        )

    def forward(
        self, x: Any, timestep: Any, context: Tensor, k6_reference: Tensor | None = None, transformer_options: Any = None,
        **_more: Any,
    ) -> list[Tensor]:  # fmt: skip
        video, sound = x
        frames = video.shape[2]
        if k6_reference is not None:
            video = torch.cat((video, k6_reference.expand(len(video), -1, -1, -1, -1)), 2)
        b, c, t, h, w = video.shape
        cells = video.view(b, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
        own = self.video_in(cells.flatten(4).flatten(1, 3)) * (1 + timestep[0].reshape(b, 1, 1))
        other = self.sound_in(sound.transpose(1, 2).flatten(2))
        text = self.text_v(context), self.text_a(context)
        rope = [
            embed(torch.arange(part.shape[1], dtype=torch.float32).reshape(1, -1, 1)).movedim(1, 2)
            for embed, part in ((self.rope_v, own), (self.rope_a, other))
        ]
        for block in self.visual_blocks:
            own, other = block(own, other, text, rope, transformer_options)
        out = self.video_out(own).reshape(b, t, h // 2, w // 2, c, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
        heard = self.sound_out(other).unflatten(2, (-1, 16)).transpose(1, 2)
        return [out.reshape(b, c, t, h, w)[:, :, :frames], heard]


Kandinsky6.__module__ = "comfy.ldm.kandinsky6.model"


def kandinsky6(given: dict[str, Tensor] | None = None) -> tiny.Tiny:
    """``given``: what the model makes of a conditioning besides its text."""
    built = tiny.build("ltx2")
    network = Kandinsky6(built.channels)
    tiny.fill(network, 3)
    model = built.model.model
    model.diffusion_model = network.eval().requires_grad_(False)
    extra = model.extra_conds
    model.extra_conds = lambda **kwargs: {
        **extra(**kwargs), **{name: comfy.conds.CONDRegular(value) for name, value in (given or {}).items()}
    }  # fmt: skip
    return built


# -- Ming-Image -----------------------------------------------------------------------------------------------------------


class Ming(NextDiT):  # type: ignore[misc]
    """The prompt's own tokens follow those of the text's; frames, and then reference images, are one stream."""

    def _tokens(self, image: Tensor) -> Tensor:
        b, c, h, w = image.shape
        cells = image.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
        tokens: Tensor = self.x_embedder(cells.flatten(3).flatten(1, 2))
        return tokens

    def _forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, num_tokens: int, attention_mask: Any = None,
        direct_context: Any = None, ref_frames: Any = (), transformer_options: Any = None, **_more: Any,
    ) -> Tensor:  # fmt: skip
        b, c, frames, h, w = x.shape
        t = self.t_embedder((1.0 - timesteps) * self.time_scale, dtype=x.dtype)
        text = torch.cat((self.cap_embedder(context), direct_context), 1)
        images = [x[:, :, frame] for frame in range(frames)] + [ref.expand(b, -1, -1, -1) for ref in ref_frames]
        image = torch.cat([self._tokens(each) for each in images], 1)
        place = torch.arange(text.shape[1] + image.shape[1], dtype=torch.float32)[None, :, None].expand(b, -1, 3)
        rope = self.rope_embedder(place).movedim(1, 2)
        start = text.shape[1]
        for layer in self.context_refiner:
            text = layer(text, None, rope[:, :start], transformer_options=transformer_options)
        for layer in self.noise_refiner:
            image = layer(image, None, rope[:, start:], t, transformer_options=transformer_options)
        both = torch.cat((text, image), 1)
        for layer in self.layers:
            both = layer(both, None, rope, t, transformer_options=transformer_options)
        out = self.final_layer(both, t)[:, start : start + frames * h * w // 4]
        return -out.reshape(b, frames, h // 2, w // 2, 2, 2, c).permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape)


class MingImage(comfy.model_base.Lumina2):  # type: ignore[misc]
    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        references = kwargs.pop("reference_latents", None)
        out: dict[str, Any] = super().extra_conds(**kwargs)
        out["direct_context"] = comfy.conds.CONDRegular(kwargs["direct_context"])
        if references is not None:
            latents = map(self.process_latent_in, references)
            out["ref_frames"] = comfy.conds.CONDList(
                [latent[:, :, f] for latent in latents for f in range(latent.shape[2])]
            )
        return out


DIRECT = 24  # tokens of the prompt


def ming(frames: int = 1) -> tiny.Tiny:
    """``frames``: the layers of the image."""
    built = tiny.build("z_image")
    model = built.model.model
    network = model.diffusion_model
    model.__class__, network.__class__, network.pad_tokens_multiple = MingImage, Ming, None
    network.register_buffer("__ming_image__", torch.empty(0))

    def conditioning(batch: int = 1, seed: int = 0, **extra: Any) -> Any:
        direct = torch.randn(batch, DIRECT, 256, generator=torch.Generator().manual_seed(seed + 7))
        return built.conditioning(batch, seed, **{"direct_context": direct, **extra})

    return built._replace(conditioning=conditioning, frames=frames)


def ming_tokenizer() -> Any:
    """A tokenizer of ComfyUI with a small vocabulary of bytes, in the template of Ming-Image's."""
    block, roles = "<image><imagePatch></image>", ("SYSTEM", "HUMAN", "ASSISTANT")
    special = ["<role>", "</role>", "<|role_end|>", "<image>", "</image>"]
    pieces = [*special, *bytes_to_unicode().values()]
    merges: list[tuple[str, str]] = []
    for word in ("Ġred", "Ġcat", "Ġwooden"):
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            pieces.append(word[: end + 1])
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE({**numbers, "<imagePatch>": IMAGE}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([*special, "<imagePatch>"])

    class Raw:
        """No tokenizer of the transformers library: it gives ids and nothing else."""

        from_pretrained = classmethod(lambda cls, *_args, **_options: cls())

        def __call__(self, text: str) -> dict[str, Any]:
            return {"input_ids": made.encode(text, add_special_tokens=False).ids}

        def get_vocab(self) -> dict[str, int]:
            vocabulary: dict[str, int] = made.get_vocab()
            return vocabulary

        def decode(self, ids: list[int], **_options: Any) -> str:
            text: str = made.decode(ids, skip_special_tokens=False)
            return text

    class MingTokenizer(comfy.sd1_clip.SDTokenizer):  # type: ignore[misc]
        def __init__(self, **more: Any) -> None:
            ends = {"has_start_token": False, "has_end_token": False, "pad_with_end": False, "pad_to_max_length": False}
            super().__init__(tokenizer_class=Raw, max_length=10**8, min_length=1, pad_token=0, **ends, **more)
            self.disable_weights = True

    class MingImageTokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="ming_image", tokenizer=MingTokenizer)
            system, human, assistant = (f"<role>{role}</role>" for role in roles)
            turns = (
                f"{system}你是一个友好的AI助手。\n\ndetailed thinking off<|role_end|>{human}{{}}<|role_end|>{assistant}"
            )
            self.llama_template = turns + block

        def tokenize_with_weights(
            self, text: str, return_word_ids: bool = False, images: Any = (), **kwargs: Any
        ) -> Any:
            template = self.llama_template
            if images:
                template = template.replace("{}", "\n\n".join([block] * len(images)) + "\n{}")
            tokens = super().tokenize_with_weights(template.format(text), return_word_ids=return_word_ids, **kwargs)
            waiting = iter(images)
            for chunk in tokens["ming_image"]:
                for place, entry in enumerate(chunk):
                    if entry[0] == IMAGE:
                        image = next(waiting, None)
                        shown = {"type": "query"} if image is None else {"type": "image", "data": image}
                        chunk[place] = (shown, *entry[1:])
            return tokens

    return MingImageTokenizer()


SEEN = 6  # vectors of an image


class MingEncoder:
    """A text encoder's model: 256 learned vectors, and beside them those of the tokens before the block of these."""

    ming_image = object()

    def reset_clip_options(self) -> None: ...
    def set_clip_options(self, _options: Any) -> None: ...

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        (chunk,) = tokens["ming_image"]
        own = [entry[0] for entry in chunk[:-3]]
        ids = [one for token in own for one in ([token] if isinstance(token, int) else [-1] * SEEN)]
        direct = torch.tensor(ids, dtype=torch.float32)[None, :, None].repeat(1, 1, 8)
        return torch.randn(1, 256, 8), None, {"direct_context": direct}
