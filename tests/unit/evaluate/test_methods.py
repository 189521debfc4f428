"""What a method's text means, and what has to be recorded for it."""

from __future__ import annotations

import pytest

from goca_core.evaluate.methods import (
    NAMED,
    THETAS,
    UNTUNED,
    KeptMethods,
    Method,
    MethodError,
    View,
    needs,
    parse,
    views_of,
)
from goca_core.masks import BACKGROUND_RULES

from ..recordings import DEFAULTS


def resolved(text: str, **more: object) -> Method:
    return parse(text).resolved("offset", "auto", 1)


def test_a_name_alone() -> None:
    goca = parse("goca").with_defaults(DEFAULTS)
    assert (goca.head, goca.layer, goca.rescale, goca.order) == (
        "dot-product w/o clamp",
        "dot-product similarity",
        "sum-1 rescaling + per-token renorm+",
        2,
    )
    vanilla = parse("vanilla").with_defaults(DEFAULTS)
    assert (vanilla.head, vanilla.layer, vanilla.rescale, vanilla.order) == (
        "average",
        "vanilla",
        "per-token renorm+",
        2,
    )
    assert parse("manual").layers == "manual"
    assert parse("manual,refine=guided filter,range=robust").refine == "guided filter"
    assert parse("goca").affinity == "mean" and parse("goca,affinity=by score").affinity == "by score"


def test_parts_alone_and_changes_of_a_name() -> None:
    text = "head=l2-norm, layer=mse,rescale=sum-1 rescaling + per-token renorm+ x raw,order=0,rule=max"
    method = parse(text)
    assert method.name == text
    assert (method.head, method.layer, method.order, method.rule) == ("l2-norm", "mse", 0, "max")
    assert method.rescale == "sum-1 rescaling + per-token renorm+ x raw"
    changed = parse("vanilla,order=1,noise=auto+25% 0.5,draws=3,thetas=0.3 -0.1,flip=yes")
    assert (changed.head, changed.order, changed.draws, changed.flip) == ("average", 1, 3, "yes")
    assert changed.noise == ("auto", "25%", "0.5")
    assert changed.thetas == (0.3, -0.1)
    assert NAMED["vanilla"].order == -1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gocaa", 'no method "gocaa": use one of vanilla'),
        ("goca,head", '"head" in the method'),
        ("goca,heads=average", "expected each part once"),
        ("goca,order=1,order=2", "expected each part once"),
        ("goca,name=x", "expected each part once"),
        ("head=best", 'has head "best": use one of auto'),
        ("layer=best", "mass-preserving"),
        ("goca,layers=some", "use one of all, manual"),
        ("fttm", 'use "manual", or "manual,refine=pamr"'),
        ("goca,refine=dense-crf", "use one of none, pamr, guided filter, proposal merge"),
        ("goca,affinity=best", "use one of mean, by score"),
        ("goca,range=half", "use one of full, robust"),
        ("goca,rule=none", "use one of offset"),
        ("goca,order=two", "a whole number"),
        ("goca,order=-2", "order of 0 or more"),
        ("goca,noise=loud", "not a noise level"),
        ("goca,noise=100%", "not a noise level"),
        ("goca,noise=-1", "not a noise level"),
        ("goca,noise=nan", "not a noise level"),
        ("goca,flip=perhaps", "use one of no, yes"),
        ("goca,thetas=a", "numbers separated by spaces"),
    ],
)
def test_what_is_not_understood_is_named(text: str, said: str) -> None:
    with pytest.raises(MethodError, match=said.replace("(", r"\(")):
        parse(text)


def test_resolved_leaves_nothing_open() -> None:
    method = parse("goca").resolved("max", "75%", 2)
    assert (method.rule, method.noise, method.draws, method.thetas) == ("max", ("75%",), 2, THETAS["max"])
    kept = parse("goca,rule=exact,noise=0.2,draws=4,thetas=1").resolved("max", "75%", 2, [0.5])
    assert (kept.rule, kept.noise, kept.draws, kept.thetas) == ("exact", ("0.2",), 4, (1.0,))
    assert parse("goca").resolved("offset", "auto", 1, [0.2, -0.2, 0.2]).thetas == (-0.2, 0.2)
    for rule, noise, draws in (("none", "auto", 1), ("max", "loud", 1), ("max", "auto", 0)):
        with pytest.raises(MethodError):
            parse("goca").resolved(rule, noise, draws)


def test_sweeps_hold_the_untuned_threshold() -> None:
    assert set(THETAS) == set(UNTUNED) == set(BACKGROUND_RULES)
    assert THETAS["offset"] == (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
    assert len(THETAS["vanilla"]) == 11
    assert all(UNTUNED[rule] in sweep for rule, sweep in THETAS.items())


def test_all_methods_share_their_evaluations() -> None:
    auto = View("auto", 0)
    plain = KeptMethods(False, False)
    found = needs([resolved("vanilla"), resolved("goca"), resolved("goca,layer=mass-preserving")], DEFAULTS)
    assert found == {auto: plain}
    more = needs([resolved("daam"), resolved("goca,draws=2"), resolved("goca,noise=auto+10%,flip=yes")], DEFAULTS)
    assert len(more) == 5 + 2 + 2 and set(more.values()) == {plain}
    assert {auto, View("auto", 0, True)} <= set(more)


def test_more_is_recorded_only_where_a_method_asks_for_it() -> None:
    methods = ["goca", "head=l2-norm,noise=0.5", "layer=iou-like,noise=0.5+0.7", "vanilla,noise=0.7,affinity=by score"]
    assert needs(map(resolved, methods), DEFAULTS) == {
        View("auto", 0): KeptMethods(False, False),
        View("0.5", 0): KeptMethods(True, True),
        View("0.7", 0): KeptMethods(False, True, True),
    }


def test_shots_of_a_method() -> None:
    method = resolved("goca,noise=auto+0.5,draws=2")
    assert views_of(method) == (View("auto", 0), View("auto", 1), View("0.5", 0), View("0.5", 1))
