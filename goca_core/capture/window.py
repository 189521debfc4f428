"""Which evaluations of a sampling run are recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Samplers compute noise levels in float32, sometimes through logarithms.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Window:
    """The step window.

    ``auto``: the one evaluation whose noise level is nearest to the paper's. Otherwise the evaluations between
    ``start`` and ``end`` percent (0 to 1) of sampling, at most ``maximum`` of them, evenly spread.
    """

    auto: bool = True
    start: float = 0.0
    end: float = 1.0
    maximum: int = 4

    def __post_init__(self) -> None:
        if not self.auto and not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"The step window runs from {self.start:g} to {self.end:g} percent of sampling (0 to 1); "
                "start must be below end."
            )
        if not self.auto and self.maximum < 1:
            raise ValueError(f"At most {self.maximum} evaluations would be recorded; allow at least one.")

    def targets(
        self, sigmas: Sequence[float], noise_level: float, percent_to_sigma: Callable[[float], float]
    ) -> tuple[float, ...]:
        """The noise levels to record, out of a schedule, in the schedule's order."""
        levels = [sigma for sigma in sigmas if sigma > 0 and math.isfinite(sigma)]
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
    """The last ``maximum`` evaluations before ``end`` percent; of a run that starts later than that, its first one."""

    def __post_init__(self) -> None:
        if not 0 <= self.end <= 1:
            raise ValueError(f"A share of sampling of {self.end:g} was asked for; it lies between 0 and 1.")
        if self.maximum < 1:
            raise ValueError(f"At most {self.maximum} evaluations would be recorded; allow at least one.")

    def targets(
        self, sigmas: Sequence[float], noise_level: float, percent_to_sigma: Callable[[float], float]
    ) -> tuple[float, ...]:
        """The noise levels to record, out of a schedule, in the schedule's order. ``noise_level`` does not matter."""
        levels = [sigma for sigma in sigmas if sigma > 0 and math.isfinite(sigma)]
        before = [sigma for sigma in levels if sigma > percent_to_sigma(self.end) * (1 + TOLERANCE)]
        return tuple(before[-self.maximum :] or levels[:1])


class Gate:
    """Decides at each evaluation of a run whether it is recorded.

    A level counts as reached at the first evaluation at it or past it: samplers that work between the schedule's levels
    (or choose their own) still record close by, and one that visits a level twice records the first visit.
    """

    def __init__(self, targets: Sequence[float], falling: bool = True) -> None:
        self.empty = not targets
        """Whether there was nothing to record from the beginning."""
        self._waiting = list(targets)
        self._falling = falling

    def reached(self, sigma: float) -> list[float]:
        """The waiting levels that an evaluation at ``sigma`` stands for."""
        if self._falling:
            return [target for target in self._waiting if sigma <= target * (1 + TOLERANCE)]
        return [target for target in self._waiting if sigma >= target * (1 - TOLERANCE)]

    def done(self, reached: Sequence[float]) -> None:
        """The evaluation was really recorded (a cache may have skipped the model)."""
        self._waiting = [target for target in self._waiting if target not in reached]
