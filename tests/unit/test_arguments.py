"""What all functions of the method do alike: they name an argument of the wrong shape, and keep double precision."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from goca_core import heads, layers, masks, rescale

ONE = torch.ones(())


def ones(*shape: int) -> Tensor:
    return ONE.expand(shape)


# Argument, the axes that it must have, and a call with something else in its place.
AXES: list[tuple[str, str, Callable[[Tensor], object]]] = [
    ("post_value", "B N C", lambda given: heads.head_weights(given, ones(5, 6), 2, "cosine")),
    ("out_weight", "C_out C", lambda given: heads.head_weights(ones(1, 4, 6), given, 2, "cosine")),
    ("value", "B H T d", lambda given: heads.head_weights(ones(1, 4, 6), ones(5, 6), 2, "cosine + VW", given)),
    ("cross", "B H N T", lambda given: heads.aggregate_heads(given, ones(1, 4, 2))),
    ("feature", "B C h w", lambda given: layers.reference_affinity(given)),
    ("rows", "B M N", lambda given: layers.resize_keys(given, (2, 3), (4, 5))),
    ("self_map", "B N N", lambda given: layers.resize_self_map(given, (2, 3), (4, 5))),
    ("affinity", "B N N", lambda given: layers.layer_scores(given, (2, 3), [ones(1, 6, 6)], [(2, 3)], "mse")),
    ("reference", "B M Nr", lambda given: layers.layer_score(given, ones(1, 6, 6), "mse")),
    ("scores", "B L", lambda given: layers.normalise_scores(given)),
    ("map 1", "B N T", lambda given: layers.aggregate_layers([ones(1, 6, 4), given], [(2, 3)] * 2, ones(1, 2), (2, 3))),
    ("maps", "B T h w", lambda given: rescale.rescale(given, [[0]], [0])),
    ("maps", "B S h w", lambda given: rescale.merge_background(given)),
    ("scores", "B K h w", lambda given: masks.resize_scores(given, (4, 5))),
    ("scores", "B K h w", lambda given: masks.assign(given)),
    ("labels", "B h w", lambda given: masks.one_hot(given, 2)),
    ("masks", "B K h w", lambda given: masks.largest_component(given)),
    ("masks", "B K h w", lambda given: masks.remove_small(given, 0.1)),
    ("masks", "B K h w", lambda given: masks.fill_holes(given)),
]


@pytest.mark.parametrize(("name", "axes", "call"), AXES, ids=[f"{name} [{axes}]" for name, axes, _ in AXES])
def test_an_argument_with_other_axes_is_named_with_those_that_it_needs(
    name: str, axes: str, call: Callable[[Tensor], object]
) -> None:
    count = len(axes.split())
    for given in (ones(*[2] * (count + 1)), ones(*[2] * (count - 1))):
        shape = re.escape(str(tuple(given.shape)))
        with pytest.raises(ValueError, match=rf"^{name} has shape {shape}.*\[{re.escape(axes)}\]"):
            call(given)


# Tokens that are not those of the grid.
TOKENS: list[tuple[str, Callable[[], object]]] = [
    ("rows", lambda: layers.resize_keys(ones(2, 3, 7), (2, 3), (4, 5))),
    ("self_map", lambda: layers.resize_self_map(ones(2, 7, 6), (2, 3), (4, 5))),
    ("self_map", lambda: layers.resize_self_map(ones(2, 6, 7), (2, 3), (4, 5))),
    ("affinity", lambda: layers.layer_scores(ones(2, 6, 7), (2, 3), [ones(2, 6, 6)], [(2, 3)], "mse")),
    ("map 1", lambda: layers.aggregate_layers([ones(2, 6, 4), ones(2, 7, 4)], [(2, 3)] * 2, ones(2, 2), (2, 3))),
]


@pytest.mark.parametrize(("name", "call"), TOKENS)
def test_tokens_that_do_not_fit_the_grid_are_named(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} has 7 image tokens but its grid is 2 x 3 = 6"):
        call()


# -- precision --------------------------------------------------------------------------------------------------------

Call = Callable[..., Tensor]
PRECISION: list[tuple[str, tuple[tuple[int, ...], ...], Call]] = [
    *[
        (
            f"head_weights {method}",
            ((2, 6, 8), (5, 8)),
            lambda p, w, m=method: heads.head_weights(p, w, 2, m, p[:, None, :2, :4].expand(-1, 2, -1, -1)),
        )
        for method in heads.HEAD_METHODS
        if method != "average"  # which has no numbers to keep
    ],
    ("aggregate_heads", ((2, 3, 6, 4), (2, 6, 3)), heads.aggregate_heads),
    *[
        (f"layer_score {method}", ((2, 6, 6), (2, 6, 6)), lambda p, s, m=method: layers.layer_score(p, s, m))
        for method in layers.LAYER_METHODS
    ],
    (
        "aggregate_layers",
        ((2, 6, 4), (2, 20, 4), (2, 2)),
        lambda a, b, w: layers.aggregate_layers([a, b], [(2, 3), (4, 5)], w, (4, 5)),
    ),
    *[
        (
            f"background_level {rule}",
            ((2, 3, 4, 5), (2, 4, 5)),
            lambda s, b, r=rule: masks.background_level(s, b, r, 0.1),
        )
        for rule in masks.BACKGROUND_RULES
    ],
]


@pytest.mark.parametrize(("shapes", "call"), [case[1:] for case in PRECISION], ids=[case[0] for case in PRECISION])
def test_double_precision_of_any_argument_is_that_of_the_result(
    shapes: tuple[tuple[int, ...], ...], call: Call, rng: torch.Generator
) -> None:
    """And numbers of any other kind are computed with in single precision."""
    single = [torch.rand(*shape, generator=rng) for shape in shapes]
    expected = call(*(given.double() for given in single))
    assert expected.dtype == torch.float64
    for number in range(len(single)):
        mixed = [given.double() if number == at else given for at, given in enumerate(single)]
        found = call(*mixed)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    half = [given.half() for given in single]
    found = call(*half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, call(*(given.float() for given in half)))


def test_decisions_are_made_in_the_precision_of_the_finer_argument() -> None:
    fine = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    for decide in (masks.assign, masks.threshold):
        # In single precision 0.3 is a little more than in double.
        assert decide(fine + 1e-12, fine[:, 0], "exact").all() and not decide(fine, fine[:, 0], "exact").any()
        assert decide(fine.float(), fine[:, 0], "exact").all() and not decide(fine, fine[:, 0].float(), "exact").any()
        # In half precision the threshold would become what the score is.
        assert decide(fine.half(), None, "vanilla", 0.3).all()
