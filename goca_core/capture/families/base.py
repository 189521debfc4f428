"""What a model family must say about itself to be recorded.

A family names its layers and where in each of them the picture looks at the text and at itself, the reference layer,
the layers whose self-attention serves propagation, and the paper's choices for "auto". Adding a family is one file in
``families/`` and one entry in ``FAMILIES`` there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ...attention.record import Defaults

Grid = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """A place where the network attends: one attention call, made after ``query`` and before ``out``.

    ``query``: the projection that makes the queries (perhaps keys and values too). ``out``: the projection that takes
    what attention gave. ``weighted``: the weight of ``out`` is [C_out, heads * head width], so that heads can be
    weighted by what they contribute; where it is not, they are averaged. ``key`` and ``value``: the other projections,
    for networks in which another node may put a computation of its own between them and ``out``. ``sequence_first``:
    what ``query`` gives is [tokens, batch, channels].
    """

    heads: int
    query: nn.Module
    out: nn.Module
    weighted: bool = True
    key: nn.Module | None = None
    value: nn.Module | None = None
    sequence_first: bool = False

    @property
    def replaceable(self) -> bool:
        return self.key is not None and self.value is not None


@dataclass(frozen=True)
class Block:
    """One layer: ``cross_attn``, where the picture looks at the words, and ``self_attn``, where it looks at itself.

    ``self_attn`` is None for joint attention, where both happen in one call over text and picture together. ``level`` counts
    the halvings between the first tokens and the block's.
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
    """Where in a joint sequence the tokens of the conditioning are, and those of the picture (in raster order)."""

    text: slice
    image: slice


# (all tokens, tokens of the conditioning, of the picture, of reference pictures) -> their places; None if the numbers
# do not add up, as when another node has put tokens of its own into the sequence.
SpanRule = Callable[[int, int, int, int], JointSpans | None]


def text_first(registers: int = 0) -> SpanRule:
    """[``registers`` learned tokens, text, picture, reference pictures]"""

    def rule(total: int, text: int, image: int, references: int) -> JointSpans | None:
        start = registers + text
        if total != start + image + references:
            return None
        return JointSpans(slice(registers, start), slice(start, start + image))

    return rule


def image_first(total: int, text: int, image: int, references: int) -> JointSpans | None:
    """[picture, reference pictures, text]"""
    start = image + references
    return JointSpans(slice(start, total), slice(0, image)) if total == start + text else None


TEXT_FIRST = text_first()

# (what the network is given beside the latent) -> tokens of reference pictures before the picture's own, and behind them.
References = Callable[[Mapping[str, Any]], tuple[int, int]]


def no_references(_given: Mapping[str, Any]) -> tuple[int, int]:
    return 0, 0


def counted_references(patch: int, before: bool) -> References:
    """Of reference pictures of any size, all ``before`` the picture's own or all behind it."""

    def count(given: Mapping[str, Any]) -> tuple[int, int]:
        sizes = (latent.shape[-2:] for latent in given.get("ref_latents") or ())
        tokens = sum(-(-height // patch) * -(-width // patch) for height, width in sizes)
        return (tokens, 0) if before else (0, tokens)

    return count


@dataclass(frozen=True)
class Plan:
    """The layers of one model in the order in which they run, and those that play a special part (by name).

    ``feature``: what of the reference layer is compared between pixels: the query projection of its text attention,
    what its attention gives, or that after the output projection (a joint block's stream of the picture).
    ``noise_level``: sigma at which the paper reads attention. ``patch``: side of a token in latent cells. ``spans``:
    the layout of joint sequences. ``frame_patch``: latent frames that a token spans; 0 for models that make no films.
    ``references``: tokens of reference pictures in the picture's stream, which are no part of it, where the host's options
    do not count them.
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

    def frames(self, latent_frames: int) -> int:
        """Frames of tokens for frames of the latent; the last one may be filled up."""
        return -(-latent_frames // max(self.frame_patch, 1))

    def grid(self, level: int, height: int, width: int) -> Grid:
        """Tokens of a level for a latent of ``height`` x ``width``: patches and each halving round up."""
        for step in (self.patch, *[2] * level):
            height, width = -(-height // step), -(-width // step)
        return height, width


@dataclass(frozen=True)
class Support:
    """A family's row in the README.

    ``words``: the text encoders; a star marks those whose vocabulary is not in the host. ``settings``: where its layers and
    methods come from. ``recorded``: the kind of attention, where heads do not tell it (those of joint attention are averaged).
    ``since``: the version of the host that it is tested on from, where the oldest supported one does not have it.
    """

    models: str
    words: str
    heads: Literal["weighted", "averaged"]
    settings: Literal["from the paper", "by analogy"]
    recorded: Literal["", "cross-attention", "joint attention"] = ""
    since: str = ""

    @property
    def attention(self) -> str:
        return self.recorded or ("cross-attention" if self.heads == "weighted" else "joint attention")

    @property
    def tested(self) -> str:
        return "small model, small vocabulary" if "*" in self.words else "small model, real vocabulary"


class Family(ABC):
    """A kind of diffusion model, recognised by the class of its network.

    ``label``: its name in errors. ``support``: what the README says of it. ``hidden``: modules of the host whose
    attention calls do not say for whom they are (see ``passthrough``).
    """

    name: str
    label: str
    support: Support
    hidden: tuple[str, ...] = ()

    @abstractmethod
    def matches(self, network: nn.Module) -> bool:
        """Whether this is the family of the host's diffusion network ``network``."""

    @abstractmethod
    def plan(self, network: nn.Module) -> Plan:
        """The layers of ``network``."""


def is_a(network: nn.Module, name: str) -> bool:
    """Whether the network is of the host's class ``name`` (with its module), which older hosts need not have."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == name for kind in type(network).__mro__)
