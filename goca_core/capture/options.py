"""What a recording keeps: the choices made in a node, handed through to the reduction."""

from __future__ import annotations

from dataclasses import dataclass

from ..heads import HEAD_METHODS
from ..layers import LAYER_METHODS
from .families.base import Plan


@dataclass(frozen=True)
class RecordOptions:
    """What to reduce to, chosen in the node. ``grid_limit``: at most so many tokens in the reference grid; 0 = any. All
    frames of a film together get no more memory than a picture on that grid. ``affinity_parts``: keep the self-attention of
    each propagation layer beside their mean."""

    head_methods: tuple[str, ...]
    layer_methods: tuple[str, ...]
    reference_channel0: bool = False
    full_affinity: bool = False
    grid_limit: int = 64 * 64
    affinity_parts: bool = False

    @property
    def scored(self) -> tuple[str, ...]:
        """The layer methods that look at self-attention."""
        return tuple(method for method in LAYER_METHODS if method in self.layer_methods and method != "vanilla")


# Names of bounds for the grid on which layers are compared, in tokens; 0 = none.
GRIDS = {"auto": RecordOptions.grid_limit, "32x32": 32 * 32, "full": 0}


def record_options(
    plan: Plan,
    all_heads: bool = False,
    all_layers: bool = False,
    full_affinity: bool = False,
    reference_channel0: bool = False,
    grid_limit: int = RecordOptions.grid_limit,
    affinity_parts: bool = False,
) -> RecordOptions:
    """What to reduce to (see ``record``) for a model with this plan."""
    defaults = plan.defaults
    heads = HEAD_METHODS if all_heads else tuple(dict.fromkeys((defaults.head, "average")))
    layers = (
        LAYER_METHODS if all_layers else tuple(dict.fromkeys((defaults.layer, "dot-product similarity", "vanilla")))
    )
    return RecordOptions(heads, layers, reference_channel0, full_affinity, grid_limit, affinity_parts)
