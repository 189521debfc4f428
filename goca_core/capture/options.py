"""What a recording keeps: the choices made in a node, passed on to the reduction as one object."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention.record import Defaults
from ..heads import HEAD_METHODS
from ..layers import LAYER_METHODS
from ..tensors import check_choice

# Limits of the grid on which layers are compared, in tokens, by their names in the nodes; 0 = no limit.
GRIDS = {"auto": 32 * 32, "32x32": 32 * 32, "64x64": 64 * 64, "full": 0}

LAST_THIRD = "last third"
PROPAGATION_LAYERS: tuple[str, ...] = ("paper", LAST_THIRD)
"""Which layers' self-attention is kept for propagation, and how it is averaged (``RecordOptions``)."""

Methods = tuple[str, ...] | str
"""Names of methods, or "auto" or "all"."""


@dataclass(frozen=True)
class RecordOptions:
    """What to keep of a sampling run.

    ``head_methods``, ``layer_methods``: "auto" keeps the family's own method and the plain average, "all" keeps every
    method. ``full_affinity``: keep self-attention for propagation on the finest layer's grid. ``reference_channel0``: use
    one channel of the reference feature, as the released code does. ``grid_limit``: compare layers on at most this many
    tokens, 0 = no limit; all frames of a video together get no more memory than one image. ``affinity_parts``: also keep
    the self-attention of each propagation layer, besides their mean.
    ``propagation_layers``: "paper" averages the paper's layers equally. "last third" takes the layers on the finest grid in
    the last third of the model, divides each row by its sum, and weights a layer by the square of its perplexity (see
    ``reduce.layer_scores.PerplexitySink``). Raises ValueError for another name.

    >>> RecordOptions(head_methods="all").heads(Defaults("average", "vanilla", "raw", 0))[:2]
    ('average', 'l2-norm')
    """

    head_methods: Methods = "auto"
    layer_methods: Methods = "auto"
    reference_channel0: bool = False
    full_affinity: bool = False
    grid_limit: int = GRIDS["auto"]
    affinity_parts: bool = False
    propagation_layers: str = "paper"

    def __post_init__(self) -> None:
        check_choice("choice of propagation layers", self.propagation_layers, PROPAGATION_LAYERS)

    def heads(self, defaults: Defaults) -> tuple[str, ...]:
        """The head methods to keep for a family with these defaults."""
        return _methods(self.head_methods, HEAD_METHODS, (defaults.head, "average"))

    def scored(self, defaults: Defaults) -> tuple[str, ...]:
        """The layer methods to keep that compare self-attention with the reference."""
        kept = _methods(self.layer_methods, LAYER_METHODS, (defaults.layer, "dot-product similarity"))
        return tuple(method for method in LAYER_METHODS if method in kept and method != "vanilla")


def _methods(chosen: Methods, every: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(chosen, tuple):
        return chosen
    return every if chosen == "all" else tuple(dict.fromkeys(default))
