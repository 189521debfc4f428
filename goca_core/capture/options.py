"""What a recording keeps: the choices made in a node, passed on to the reduction as one object."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention.record import AUTO, Defaults
from ..heads import HEAD_METHODS
from ..layers import INFORMATION, LAYER_METHODS
from ..masks import CLEAREST
from ..tensors import check_choice

# Limits of the grid on which layers are compared, in tokens, by their names in the nodes; 0 = no limit.
GRIDS = {"auto": 32 * 32, "32x32": 32 * 32, "64x64": 64 * 64, "full": 0}

PAPER = "paper"
RECORD_METHODS: tuple[str, ...] = (AUTO, PAPER)
"""What a recording is made for, and what "auto" then stands for in the later nodes (``RecordOptions``)."""
# The same for every family: what the activations say decides, not a table (docs/without-labels.md).
_AUTO_DEFAULTS = Defaults("average", INFORMATION, "sum-1 rescaling + per-token renorm+", 2, CLEAREST)

PROMPTS: tuple[str, ...] = ("positive", "negative")
"""Whose attention is recorded."""

Methods = tuple[str, ...] | str
"""Names of methods, or "auto" or "all"."""


@dataclass(frozen=True)
class RecordOptions:
    """What to keep of a sampling run.

    ``method``: "paper" keeps what the published method needs, with the paper's choices for the family. "auto" keeps the
    rule that suits every family (docs/without-labels.md): for propagation, the layers on the finest grid in the last
    third of the model, each row divided by its sum, and a layer weighted by the square of its perplexity (see
    ``reduce.layer_scores.PerplexitySink``); layers are not compared with a reference. The recording's ``defaults`` say
    which it was. ``head_methods``, ``layer_methods``: "auto" keeps what the method needs and the plain average, "all"
    keeps every one. ``full_affinity``: keep self-attention for propagation on the finest layer's grid.
    ``reference_channel0``: use one channel of the reference feature, as the released code does. ``grid_limit``: compare
    layers on at most this many tokens, 0 = no limit; all frames of a video together get no more memory than one image.
    ``affinity_parts``: also keep the self-attention of each propagation layer, besides their mean. ``prompt``: "positive"
    or "negative", the one whose attention is recorded. Raises ValueError for an unknown method or prompt.

    >>> RecordOptions(head_methods="all").heads(Defaults("average", "vanilla", "raw", 0))[:2]
    ('average', 'l2-norm')
    """

    head_methods: Methods = "auto"
    layer_methods: Methods = "auto"
    reference_channel0: bool = False
    full_affinity: bool = False
    grid_limit: int = GRIDS["auto"]
    affinity_parts: bool = False
    method: str = PAPER
    prompt: str = "positive"

    def __post_init__(self) -> None:
        check_choice("prompt", self.prompt, PROMPTS)
        check_choice("method", self.method, RECORD_METHODS)

    def defaults(self, family: Defaults) -> Defaults:
        """What "auto" stands for in a recording of a family with these defaults."""
        return family if self.method == PAPER else _AUTO_DEFAULTS

    def heads(self, family: Defaults) -> tuple[str, ...]:
        """The head methods to keep for a family with these defaults."""
        return _methods(self.head_methods, HEAD_METHODS, (self.defaults(family).head, "average"))

    def scored(self, family: Defaults) -> tuple[str, ...]:
        """The layer methods to keep that compare self-attention with the reference."""
        default = (family.layer, "dot-product similarity") if self.method == PAPER else ()
        kept = _methods(self.layer_methods, LAYER_METHODS, default)
        return tuple(method for method in LAYER_METHODS if method in kept and method != "vanilla")


def _methods(chosen: Methods, every: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(chosen, tuple):
        return chosen
    return every if chosen == "all" else tuple(dict.fromkeys(default))
