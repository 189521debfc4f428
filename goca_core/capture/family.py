"""What a model family must say about itself to be recorded.

A family names its attention blocks, the reference layer, the layers whose self-attention serves propagation, and the
paper's choices for "auto". Adding a family is one file in ``families/`` and one entry in ``FAMILIES`` there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..attention import Defaults

Grid = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """One transformer block with its self- and cross-attention modules.

    ``level`` counts the halvings between the latent and the block's tokens. ``self_out`` and ``cross_out`` are the
    output projections: a linear layer whose weight is ``[C_out, heads * head width]``.
    """

    name: str
    level: int
    heads: int
    self_out: nn.Module
    cross_out: nn.Module
    cross_query: nn.Module
    cross_key: nn.Module
    cross_value: nn.Module


@dataclass(frozen=True)
class Plan:
    """The blocks of one model, with the layers that play a special part (by name)."""

    blocks: tuple[Block, ...]
    reference: str
    affinity: tuple[str, ...]
    defaults: Defaults
    noise_level: float
    patch: int = 1

    def grid(self, level: int, height: int, width: int) -> Grid:
        """Tokens of a level for a latent of ``height`` x ``width``: each halving rounds up."""
        for _ in range(level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width


class Family(ABC):
    """A kind of diffusion model, recognised by the class of its network."""

    name: str
    label: str

    @abstractmethod
    def matches(self, network: nn.Module) -> bool:
        """Whether this is the family of the host's diffusion network ``network``."""

    @abstractmethod
    def plan(self, network: nn.Module) -> Plan:
        """The blocks of ``network`` in the order in which they run."""


class UnknownFamily(ValueError):
    """The model is of a kind that cannot be recorded."""


def network_of(model: Any) -> nn.Module:
    """The bare network of a host model (``BaseModel``), also when a compiler has wrapped it."""
    network = model.diffusion_model
    return getattr(network, "_orig_mod", network)


def find_family(model: Any) -> Family:
    """The family of a host model. Raises UnknownFamily with one sentence."""
    from .families import FAMILIES

    network = network_of(model)
    for family in FAMILIES:
        if family.matches(network):
            return family
    known = ", ".join(family.label for family in FAMILIES)
    raise UnknownFamily(
        f"Attention of {type(network).__name__} ({type(model).__name__}) cannot be recorded; "
        f"use a model of one of these families: {known}."
    )
