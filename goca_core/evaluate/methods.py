"""Methods by name: how masks are made from recordings, and what must be recorded for that.

A method is written as a name (`goca`), as a list of parts (`head=average,layer=vanilla`), or as a name with some parts
changed (`goca,order=0,rule=max`). Parts that are left out take the paper's choice for the model's family ("auto").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from ..attention.record import AUTO, Defaults
from ..heads import HEAD_METHODS
from ..layers import INFORMATION, LAYER_WEIGHTINGS, MASS_PRESERVING
from ..masks import BACKGROUND_RULES
from ..refine.methods import REFINEMENTS
from ..rescale import RESCALE_METHODS
from ..tensors import RANGES, Range

SELECTIONS = ("all", "manual")
BY_SCORE = "by score"
AFFINITIES = ("mean", BY_SCORE)


class MethodError(ValueError):
    """A method that cannot be parsed. The message is one sentence that says what was expected."""


def _steps(first: float, last: float, step: float) -> tuple[float, ...]:
    return tuple(round(first + step * i, 4) for i in range(round((last - first) / step) + 1))


# The sweeps of the reference implementation. It has none for "max", which takes that of "vanilla".
THETAS: dict[str, tuple[float, ...]] = {
    "offset": _steps(-0.4, 0.4, 0.1),
    "vanilla": _steps(0.3, 0.8, 0.05),
    "max": _steps(0.3, 0.8, 0.05),
    "avg": _steps(0.4, 0.9, 0.1),
    "exact": (0.0,),
}
# The threshold to use without labels to tune it on: no offset, or the middle of the range of scores.
UNTUNED: dict[str, float] = {"offset": 0.0, "vanilla": 0.5, "max": 0.5, "avg": 0.5, "exact": 0.0}


def _check(name: str, what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        choices = ", ".join(choice for choice in known if choice)
        raise MethodError(f'The method "{name}" has {what} "{value}": use one of {choices}.')


def _check_level(text: str) -> None:
    percent = text.endswith("%")
    try:
        known = text == "auto" or 0 < float(text.removesuffix("%")) < (100 if percent else math.inf)
    except ValueError:
        known = False
    if not known:
        raise MethodError(
            f'"{text}" is not a noise level: use "auto", a sigma above 0, or a percentage of sampling between "0%" (pure '
            'noise) and "100%" (the finished image).'
        )


@dataclass(frozen=True)
class Method:
    """How masks are made.

    head, layer, rescale: method names of these steps, "auto" for the family's. layers: "all" or "manual"
    (`scores.manual_layers`). order: propagation steps, -1 for the family's. affinity: self-attention to propagate along:
    the "mean" of the propagation layers, or their mean weighted "by score", the dot-product similarity of each with the
    reference affinity. refine: name of a refinement after propagation, or "none". range: "robust" ignores extreme pixels
    when scores are stretched (`tensors.stretch`). rule, thetas: background rule and the thresholds of its sweep.
    noise: noise levels whose recordings are averaged (see `capture.headless.model.LoadedModel.sigma`). draws: draws of the
    noise to average at each level. flip: "yes" averages with the flipped image.
    An empty rule, thetas or noise and 0 draws take the settings of the evaluation (`resolved`).
    Raises MethodError for a value that is unknown.
    """

    name: str
    head: str = AUTO
    layer: str = AUTO
    layers: str = "all"
    rescale: str = AUTO
    order: int = -1
    affinity: str = "mean"
    refine: str = "none"
    range: Range = "full"
    rule: str = ""
    noise: tuple[str, ...] = ()
    draws: int = 0
    flip: str = "no"
    thetas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check(self.name, "head", self.head, (AUTO, *HEAD_METHODS))
        _check(self.name, "layer", self.layer, (AUTO, *LAYER_WEIGHTINGS))
        _check(self.name, "layers", self.layers, SELECTIONS)
        _check(self.name, "rescale", self.rescale, (AUTO, *RESCALE_METHODS))
        _check(self.name, "affinity", self.affinity, AFFINITIES)
        _check(self.name, "refine", self.refine, ("none", *REFINEMENTS))
        _check(self.name, "range", self.range, RANGES)
        _check(self.name, "rule", self.rule, ("", *BACKGROUND_RULES))
        _check(self.name, "flip", self.flip, ("no", "yes"))
        for level in self.noise:
            _check_level(level)
        if self.order < -1 or self.draws < 0:
            raise MethodError(
                f'The method "{self.name}" has order {self.order} and {self.draws} draws: use an order of 0 or more '
                "(or -1 for the family's) and 1 draw or more."
            )

    def resolved(self, rule: str, noise: str, draws: int, thetas: Sequence[float] | None = None) -> Method:
        """Fill in the settings of an evaluation; only what depends on the model's family stays open.

        rule, noise, draws: used where the method does not say. thetas: sweep of all rules, None for each rule's own.
        Raises MethodError for values that are unknown.
        """
        chosen = self.rule or rule
        _check(self.name, "rule", chosen, BACKGROUND_RULES)
        _check_level(noise)
        if draws < 1:
            raise MethodError(f"Got {draws} draws of the noise: use 1 or more.")
        sweep = self.thetas or tuple(thetas or THETAS[chosen])
        # Ascending, without repeats: a threshold is looked up by its value later.
        return replace(
            self,
            rule=chosen,
            noise=self.noise or (noise,),
            draws=self.draws or draws,
            thetas=tuple(sorted(set(map(float, sweep)))),
        )

    def with_defaults(self, defaults: Defaults) -> Method:
        """Replace "auto" by the choices of a model's family."""
        return replace(
            self,
            head=defaults.head if self.head == AUTO else self.head,
            layer=defaults.layer if self.layer == AUTO else self.layer,
            rescale=defaults.rescale if self.rescale == AUTO else self.rescale,
            order=defaults.propagation_steps if self.order < 0 else self.order,
        )


_PLAIN: dict[str, Any] = dict(head="average", layer="vanilla", rescale="per-token renorm+")
# DAAM sums over a whole sampling run. For an existing image, that is noise levels spread evenly over the schedule.
_DAAM_LEVELS = ("10%", "30%", "50%", "70%", "90%")
NAMED: dict[str, Method] = {
    method.name: method
    for method in (
        Method("vanilla", **_PLAIN),
        Method("manual", layers="manual", **_PLAIN),
        Method("daam", order=0, noise=_DAAM_LEVELS, **_PLAIN),
        Method("goca"),
    )
}
PARTS = tuple(field.name for field in fields(Method) if field.name != "name")


def parse(text: str) -> Method:
    """Parse a method; its name is the text itself. Raises MethodError for a text that cannot be parsed."""
    first, *rest = [part.strip() for part in text.split(",")]
    if "=" in first:
        base, rest = Method(text), [first, *rest]
    elif first in NAMED:
        base = NAMED[first]
    elif first == "fttm":
        raise MethodError(
            "FTTM combines hand-picked layers with a dense CRF, and no dense CRF package is maintained for all supported "
            'versions of Python: use "manual", or "manual,refine=pamr" to refine with the image.'
        )
    else:
        raise MethodError(
            f'There is no method "{first}": use one of {", ".join(NAMED)}, or parts such as '
            f"head=average,layer=vanilla (parts: {', '.join(PARTS)})."
        )
    changes: dict[str, Any] = {}
    for part in rest:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in PARTS or key in changes:
            raise MethodError(
                f'"{part}" in the method "{text}" cannot be parsed: expected each part once, as part=value with one of '
                f"{', '.join(PARTS)}."
            )
        changes[key] = _parse_value(text, key, value)
    return replace(base, name=text.strip(), **changes)


def _parse_value(text: str, key: str, value: str) -> Any:
    """Parse the value of a part. Several noise levels are separated by plus signs or spaces, thetas by spaces."""
    try:
        if key in ("order", "draws"):
            return int(value)
        if key == "thetas":
            return tuple(float(theta) for theta in value.split())
    except ValueError:
        kind = "numbers separated by spaces" if key == "thetas" else "a whole number"
        raise MethodError(f'"{key}={value}" in the method "{text}" cannot be parsed: expected {kind}.') from None
    return tuple(value.replace("+", " ").split()) if key == "noise" else value


@dataclass(frozen=True)
class View:
    """What one recording of an image depends on: noise level, number of the noise draw, and whether the image is flipped."""

    level: str
    draw: int
    flip: bool = False


class KeptMethods(NamedTuple):
    """What a recording must keep: maps of all head methods or only the family's, scores of all layer methods or only the
    family's, and whether the self-attention of each propagation layer."""

    all_heads: bool
    all_layers: bool
    affinity_parts: bool = False


def views_of(method: Method) -> tuple[View, ...]:
    """The views that a resolved method averages."""
    return tuple(View(level, draw, method.flip == "yes") for level in method.noise for draw in range(method.draws))


def needs(methods: Iterable[Method], defaults: Defaults) -> dict[View, KeptMethods]:
    """The views that resolved methods need, each once, with everything that must be recorded in it."""
    found: dict[View, KeptMethods] = {}
    for method in (one.with_defaults(defaults) for one in methods):
        # Mass-preserving weights are made from the dot-product score.
        score = "dot-product similarity" if method.layer == MASS_PRESERVING else method.layer
        heads, layers = (
            method.head not in ("average", defaults.head),
            score not in ("vanilla", INFORMATION, defaults.layer),
        )
        wanted = KeptMethods(heads, layers, method.affinity == BY_SCORE)
        for view in views_of(method):
            known = found.get(view, KeptMethods(False, False))
            found[view] = KeptMethods(*(a or b for a, b in zip(known, wanted, strict=True)))
    return found
