"""What a model family declares about itself to be recorded.

A family lists its layers, the cross-attention and self-attention in each of them, the reference layer, the layers whose
self-attention is used for propagation, and the paper's choices for "auto". To add a family, write one file in
``families/`` and add one entry to ``FAMILIES`` there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ...attention.record import Defaults
from ...tensors import Grid


@dataclass(frozen=True)
class Site:
    """An attention site of the network: one attention call, made after ``query`` and before ``out``.

    ``query``: the projection that computes the queries (and perhaps keys and values). ``out``: the projection of the
    attention output. ``weighted``: the weight of ``out`` is [C_out, heads * head width], so that heads can be weighted
    by their contribution; otherwise heads are averaged. ``key`` and ``value``: the other projections, for networks
    where another node may replace the computation between them and ``out``. ``sequence_first``: the output of ``query``
    is [tokens, batch, channels]. ``around``: the attention module with all of it, for networks that may compute ``query``
    together with what comes before it, without calling that module. ``gated``: the network weakens what each head gives before
    ``out`` takes it. ``framewise``: the frames of a video may ask one after another, in a call of its own each, whose keys begin
    with those of the video.
    """

    heads: int
    query: nn.Module
    out: nn.Module
    weighted: bool = True
    key: nn.Module | None = None
    value: nn.Module | None = None
    sequence_first: bool = False
    around: nn.Module | None = None
    gated: bool = False
    framewise: bool = False

    @property
    def replaceable(self) -> bool:
        return self.key is not None and self.value is not None


@dataclass(frozen=True)
class Block:
    """One layer: ``cross_attn`` from the image to the text, and ``self_attn`` of the image.

    ``self_attn`` is None for joint attention, where one call covers text and image together. ``level`` counts how often
    the token grid was halved before this block.
    """

    name: str
    cross_attn: Site
    self_attn: Site | None
    level: int = 0

    @property
    def sites(self) -> Iterator[Site]:
        yield self.cross_attn
        if self.self_attn is not None:
            yield self.self_attn


@dataclass(frozen=True)
class JointSpans:
    """The range of the conditioning's tokens in a joint sequence, and that of the image's tokens (in raster order).

    ``queries``: that of the image's tokens among the queries, if only they ask.
    """

    text: slice
    image: slice
    queries: slice | None = None

    @property
    def asking(self) -> slice:
        """The image's tokens among the queries."""
        return self.image if self.queries is None else self.queries


# (all tokens, tokens of the conditioning, of the image, of reference images) -> their ranges; None if the numbers do
# not add up, for example because another node added tokens to the sequence.
SpanRule = Callable[[int, int, int, int], JointSpans | None]


def text_first(registers: int = 0) -> SpanRule:
    """[``registers`` learned tokens, text, image, reference images]"""

    def rule(total: int, text: int, image: int, references: int) -> JointSpans | None:
        start = registers + text
        if total != start + image + references:
            return None
        return JointSpans(slice(registers, start), slice(start, start + image))

    return rule


def image_first(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """[image, reference images, text]"""
    start = image + references
    return JointSpans(slice(start, total), slice(0, image)) if total == start + text else None


def text_last(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """[tokens that are not the prompt's, text, image, reference images]"""
    start = total - references - image
    return JointSpans(slice(start - text, start), slice(start, start + image)) if start >= text else None


TEXT_FIRST = text_first()

# (what the network is given besides the latent) -> tokens of reference images before those of the image, and after them.
References = Callable[[Mapping[str, Any]], tuple[int, int]]


def no_references(_given: Mapping[str, Any]) -> tuple[int, int]:
    return 0, 0


def no_more(_given: Mapping[str, Any]) -> int:
    return 0


def count_tokens(size: Iterable[int], patch: Iterable[int]) -> int:
    """Tokens of a latent; the last one of each axis may be padded."""
    return math.prod(-(-side // step) for side, step in zip(size, patch, strict=True))


def counted_references(patch: int, before: bool) -> References:
    """Tokens of reference images of any size, either all ``before`` those of the image or all after them."""

    def count(given: Mapping[str, Any]) -> tuple[int, int]:
        latents = given.get("ref_latents") or ()
        tokens = sum(count_tokens(latent.shape[-2:], (patch, patch)) for latent in latents)
        return (tokens, 0) if before else (0, tokens)

    return count


@dataclass(frozen=True)
class Plan:
    """The layers of one model in the order in which they run, and those with a special role (by name).

    ``feature``: the feature of the reference layer that is compared between pixels: the query projection of its
    cross-attention, its attention output, or the result of the output projection (the image stream of a joint block).
    ``noise_level``: sigma at which the paper records attention. ``patch``: side of a token in latent cells. ``spans``:
    the layout of joint sequences. ``frame_patch``: latent frames per token; 0 for models that do not generate videos.
    ``frame_group``: see ``Attention``. ``after_prefix``: the keys of the prompt may be computed once, and then only what follows
    it asks. ``beside``: latent columns of another image, to the right of the image in each row of tokens.
    ``guides``: latent frames at the end that are no part of the video, whose tokens ``references`` counts.
    ``references``: tokens of reference images in the image stream, where ComfyUI's options do not count them.
    """

    blocks: tuple[Block, ...]
    reference: str
    affinity: tuple[str, ...]
    defaults: Defaults
    noise_level: float
    feature: Literal["query", "attention", "projected"] = "query"
    patch: int = 1
    spans: SpanRule = TEXT_FIRST
    frame_patch: int = 0
    references: References = no_references
    frame_group: int = 0
    after_prefix: bool = False
    beside: Callable[[Mapping[str, Any]], int] = no_more
    guides: Callable[[Mapping[str, Any]], int] = no_more

    def frames(self, latent_frames: int) -> int:
        """Frames of tokens for this many latent frames; the last one may be padded."""
        return -(-latent_frames // max(self.frame_patch, 1))

    def grid(self, level: int, height: int, width: int) -> Grid:
        """The token grid of a level for a latent of ``height`` x ``width``; patches and every halving round up."""
        for step in (self.patch, *[2] * level):
            height, width = -(-height // step), -(-width // step)
        return height, width


@dataclass(frozen=True)
class Support:
    """A family's row in docs/models.md.

    ``words``: the text encoders; a star marks those whose vocabulary does not come with ComfyUI. ``settings``: where its
    layers and methods come from. ``recorded``: the kind of attention, where ``heads`` does not imply it (heads of joint
    attention are averaged). ``since``: the first ComfyUI version with this family, if the oldest supported one lacks it.
    ``described``: written from a description, and tested with a network that makes the same calls.
    """

    models: str
    words: str
    heads: Literal["weighted", "averaged"]
    settings: Literal["from the paper", "by analogy"]
    recorded: Literal["", "cross-attention", "joint attention"] = ""
    since: str = ""
    described: bool = False

    @property
    def attention(self) -> str:
        return self.recorded or ("cross-attention" if self.heads == "weighted" else "joint attention")

    @property
    def tested(self) -> str:
        if self.described:
            return "from the description"
        return "small model, small vocabulary" if "*" in self.words else "small model, real vocabulary"


class Family(ABC):
    """A kind of diffusion model, recognised by the class of its network.

    ``label``: its name in error messages. ``support``: its row in docs/models.md. ``network_class``: ComfyUI's class, with its
    module; by name, because older versions may not have it. ``exact``: its subclasses do not belong to the family.
    ``with_sound``: the network always needs the sound beside the video. ``added_text``: parts of a conditioning's
    dictionary whose tokens the model adds to the text: (key, number of copies).
    """

    name: str
    label: str
    support: Support
    network_class: str
    exact: bool = False
    with_sound: bool = False
    added_text: tuple[tuple[str, int], ...] = ()

    def side(self, model: Any, network: nn.Module) -> int:
        """Side in pixels of the square images that the paper, or the model's authors, use with ComfyUI's ``model``."""
        return 1024

    def matches(self, network: nn.Module) -> bool:
        """Whether ComfyUI's diffusion network ``network`` belongs to this family."""
        kinds = type(network).__mro__[: 1 if self.exact else None]
        return any(f"{kind.__module__}.{kind.__qualname__}" == self.network_class for kind in kinds)

    @abstractmethod
    def plan(self, network: nn.Module) -> Plan:
        """The layers of ``network``."""
