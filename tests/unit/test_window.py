"""Which evaluations of a run are recorded."""

from __future__ import annotations

import math

import pytest

from goca_core.capture.window import Before, Gate, Window

# A schedule like a KSampler's, from noise to image.
FALLING = [14.6, 6.3, 2.8, 1.2, 0.5, 0.2, 0.03, 0.0]


def percent_to_sigma(share: float) -> float:
    """A made-up model: 10 at the start; ComfyUI answers the ends themselves with a huge number and with zero."""
    return 999999999.9 if share <= 0 else 0.0 if share >= 1 else 10 * (1 - share)


def targets(window: Window, sigmas: list[float] = FALLING, level: float = 0.346) -> tuple[float, ...]:
    return window.targets(sigmas, level, percent_to_sigma)


@pytest.mark.parametrize(
    ("level", "nearest"),
    # 0.346 is nearer to 0.2 by difference and to 0.5 by ratio; the ratio counts.
    [(0.346, 0.5), (0.3, 0.2), (100.0, 14.6), (0.001, 0.03), (1.2, 1.2)],
)
def test_auto_takes_the_nearest_level_by_ratio(level: float, nearest: float) -> None:
    assert targets(Window(), level=level) == (nearest,)
    # A rising schedule ends above the highest level that it evaluates.
    assert targets(Window(), sigmas=[*FALLING[::-1], 20.0], level=level) == (nearest,)


@pytest.mark.parametrize("end", [6.3, 2.8, 0.5, 0.03, 0.0])
def test_the_end_of_a_schedule_is_never_evaluated(end: float) -> None:
    """A run that stops early ends at a level that is not 0."""
    stopped = FALLING[: FALLING.index(end) + 1]
    assert targets(Window(), stopped, 0.001) == (stopped[-2],)
    assert targets(Window(False, 0.0, 1.0, 100), stopped) == tuple(stopped[:-1])
    assert targets(Before(False, 0.0, 1.0, 1), stopped) == (stopped[-2],)
    assert targets(Window(), stopped[::-1], 100.0) == (stopped[::-1][-2] or stopped[::-1][0],)


def test_auto_of_a_schedule_without_noise_takes_nothing() -> None:
    assert targets(Window(), [0.0]) == ()
    assert targets(Window(), []) == ()
    assert targets(Window(), [1.0]) == ()
    assert targets(Window(), [math.inf, 0.0]) == ()


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0, 1.0, tuple(FALLING[:-1])),
        (0.0, 0.5, (14.6, 6.3)),
        (0.5, 1.0, (2.8, 1.2, 0.5, 0.2, 0.03)),
        (0.9, 0.95, (0.5,)),
        (0.88, 0.9, (1.2,)),
        (0.3, 0.35, ()),
    ],
)
def test_percent_takes_the_levels_between(start: float, end: float, expected: tuple[float, ...]) -> None:
    assert targets(Window(False, start, end, 100)) == expected


def test_percent_of_a_rising_schedule_keeps_its_order() -> None:
    assert targets(Window(False, 0.5, 1.0, 100), FALLING[::-1]) == (0.03, 0.2, 0.5, 1.2, 2.8)


def test_a_level_at_the_edge_counts_in_spite_of_rounding() -> None:
    assert targets(Window(False, 0.5, 1.0, 9), [5.0000005, 0.0]) == (5.0000005,)


@pytest.mark.parametrize(
    ("maximum", "expected"),
    [(1, (1.2,)), (2, (14.6, 0.03)), (3, (14.6, 1.2, 0.03)), (4, (14.6, 2.8, 0.5, 0.03)), (7, tuple(FALLING[:-1]))],
)
def test_too_many_evaluations_are_thinned_evenly(maximum: int, expected: tuple[float, ...]) -> None:
    assert targets(Window(False, 0.0, 1.0, maximum)) == expected


@pytest.mark.parametrize("maximum", range(1, 12))
def test_thinning_never_repeats_a_level(maximum: int) -> None:
    chosen = targets(Window(False, 0.0, 1.0, maximum))
    assert len(set(chosen)) == len(chosen) == min(maximum, 7)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1.0)])
def test_a_window_the_wrong_way_round_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"start below end"):
        Window(False, start, end)


def test_a_window_without_evaluations_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Window(False, maximum=0)
    # auto ignores the rest
    assert Window(True, 1.0, 0.0, 0).auto


def walk(gate: Gate, evaluations: list[float]) -> list[float]:
    """The evaluations that are recorded."""
    recorded = []
    for sigma in evaluations:
        reached = gate.reached(sigma)
        if reached:
            recorded.append(sigma)
            gate.done(reached)
    return recorded


def test_each_level_once() -> None:
    assert walk(Gate([6.3, 1.2]), [14.6, 6.3, 6.3, 2.8, 1.2, 1.2, 0.5]) == [6.3, 1.2]


def test_a_level_that_is_passed_over_counts_at_the_next_evaluation() -> None:
    """Samplers that choose their own steps, and second-order ones that work between the levels."""
    assert walk(Gate([6.3, 2.8, 1.2]), [14.6, 8.0, 5.0, 1.0, 0.5]) == [5.0, 1.0]
    assert walk(Gate([0.03]), [14.6, 0.5]) == []


def test_rounding_does_not_miss_a_level() -> None:
    assert walk(Gate([6.3]), [14.6, 6.3 * 1.0005, 6.3 * 0.9995]) == [6.3 * 1.0005]


def test_rising_levels() -> None:
    assert walk(Gate([0.2, 1.2], falling=False), [0.03, 0.2, 0.5, 2.8, 6.3]) == [0.2, 2.8]


def test_an_evaluation_that_a_cache_skipped_is_made_up_for() -> None:
    gate = Gate([6.3])
    assert gate.reached(6.3) == [6.3]  # the model was not run
    assert walk(gate, [2.8, 1.2]) == [2.8]


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (0.9, 2, (2.8, 1.2)),
        (0.9, 9, (14.6, 6.3, 2.8, 1.2)),
        # A level at the very edge is not before it.
        (0.88, 1, (2.8,)),
        (1.0, 2, (0.2, 0.03)),
        (0.0, 2, (14.6,)),
    ],
)
def test_the_last_levels_before_a_share(start: float, count: int, expected: tuple[float, ...]) -> None:
    assert targets(Before(False, 0.0, start, count)) == expected


def test_a_run_that_starts_later_has_its_first_level() -> None:
    assert targets(Before(False, 0.0, 0.9, 2), [0.5, 0.2, 0.0]) == (0.5,)
    assert targets(Before(False, 0.0, 0.9, 2), [0.0]) == ()


@pytest.mark.parametrize(("end", "maximum"), [(-0.1, 2), (1.1, 2), (0.5, 0)])
def test_a_window_before_nothing_is_refused(end: float, maximum: int) -> None:
    with pytest.raises(ValueError, match=r"fraction of sampling|at least one"):
        Before(False, 0.0, end, maximum)
