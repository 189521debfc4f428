"""Which evaluations of a sampling run are recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Samplers compute noise levels in float32, sometimes through logarithms.
TOLERANCE = 1e-3


def _evaluated(sigmas: Sequence[float]) -> list[float]:
    """The noise levels of a schedule at which samplers evaluate the model.

    The last entry is where a run ends, whatever its value: 0 for a finished image, more for a run that leaves noise to
    the next one.
    """
    return [sigma for sigma in sigmas[:-1] if sigma > 0 and math.isfinite(sigma)]


@dataclass(frozen=True)
class Window:
    """The step window.

    ``auto``: only the evaluation whose noise level is nearest to the paper's. Otherwise the evaluations from ``start`` to
    ``end`` (fractions of sampling, 0 to 1), at most ``maximum`` of them, evenly spaced.
    """

    auto: bool = True
    start: float = 0.0
    end: float = 1.0
    maximum: int = 4

    def __post_init__(self) -> None:
        if not self.auto and not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"The step window cannot run from {self.start:g} to {self.end:g}; choose fractions of sampling from 0 to 1, "
                "with start below end."
            )
        if not self.auto:
            self._check_maximum()

    def _check_maximum(self) -> None:
        if self.maximum < 1:
            raise ValueError(
                f"The maximum number of recorded evaluations cannot be {self.maximum}; allow at least one."
            )

    def targets(
        self, sigmas: Sequence[float], noise_level: float, percent_to_sigma: Callable[[float], float]
    ) -> tuple[float, ...]:
        """The noise levels of a schedule to record, in the schedule's order."""
        levels = _evaluated(sigmas)
        if self.auto:
            return tuple(sorted(levels, key=lambda sigma: abs(math.log(sigma / noise_level)))[:1])
        high, low = percent_to_sigma(self.start), percent_to_sigma(self.end)
        inside = [sigma for sigma in levels if low * (1 - TOLERANCE) <= sigma <= high * (1 + TOLERANCE)]
        if len(inside) <= self.maximum:
            return tuple(inside)
        if self.maximum == 1:
            return (inside[len(inside) // 2],)
        picked = [round(i * (len(inside) - 1) / (self.maximum - 1)) for i in range(self.maximum)]
        return tuple(inside[i] for i in picked)


@dataclass(frozen=True)
class Before(Window):
    """The last ``maximum`` evaluations before ``end``; of a run that starts after ``end``, its first evaluation."""

    def __post_init__(self) -> None:
        if not 0 <= self.end <= 1:
            raise ValueError(f"A fraction of sampling cannot be {self.end:g}; choose one from 0 to 1.")
        self._check_maximum()

    def targets(
        self, sigmas: Sequence[float], noise_level: float, percent_to_sigma: Callable[[float], float]
    ) -> tuple[float, ...]:
        """The noise levels of a schedule to record, in the schedule's order. ``noise_level`` is not used."""
        return self.first(sigmas, percent_to_sigma)

    def first(self, sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]) -> tuple[float, ...]:
        """Those before ``end``."""
        levels = _evaluated(sigmas)
        before = [sigma for sigma in levels if sigma > percent_to_sigma(self.end) * (1 + TOLERANCE)]
        return tuple(before[-self.maximum :] or levels[:1])


@dataclass(frozen=True)
class Renewed(Before):
    """Also every so many evaluations after these; 0 = no more.

    >>> Renewed(False, 0.0, 0.5, 1, every=2).targets([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 1.0, lambda percent: 6 - 6 * percent)
    (4.0, 2.0)
    """

    every: int = 0

    def targets(
        self, sigmas: Sequence[float], noise_level: float, percent_to_sigma: Callable[[float], float]
    ) -> tuple[float, ...]:
        first = self.first(sigmas, percent_to_sigma)
        if not self.every or not first:
            return first
        after = [sigma for sigma in _evaluated(sigmas) if sigma < first[-1] * (1 - TOLERANCE)]
        return (*first, *after[self.every - 1 :: self.every])


class Gate:
    """Decides for each evaluation of a run whether it is recorded.

    A target level is reached at the first evaluation at that level or past it. So samplers that evaluate between the
    schedule's levels (or choose their own) record a level close by, and a sampler that evaluates a level twice records
    the first time.
    """

    def __init__(self, targets: Sequence[float], falling: bool = True) -> None:
        self.empty = not targets
        """Whether there were no levels to record from the start."""
        self.wanted = len(targets)
        self._waiting = list(targets)
        self._falling = falling

    @property
    def missed(self) -> int:
        """How many of the levels wanted were not recorded so far."""
        return len(self._waiting)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to record."""
        return not self._waiting

    def is_before(self, lowest: float) -> bool:
        """Whether evaluations at ``lowest`` or above reach no target.

        >>> Gate([2.0, 1.0]).is_before(3.0), Gate([2.0, 1.0]).is_before(1.5)
        (True, False)
        """
        return self._falling and not self.reached(lowest)

    def reached(self, sigma: float) -> list[float]:
        """The target levels that an evaluation at ``sigma`` reaches."""
        if self._falling:
            return [target for target in self._waiting if sigma <= target * (1 + TOLERANCE)]
        return [target for target in self._waiting if sigma >= target * (1 - TOLERANCE)]

    def done(self, reached: Sequence[float]) -> None:
        """Call this when the evaluation was really recorded (a cache may have skipped the model)."""
        self._waiting = [target for target in self._waiting if target not in reached]
