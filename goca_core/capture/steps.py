"""Where a sampler is in its schedule, as far as that is known without reading a noise level from the device.

ComfyUI's samplers give each noise level as a tensor on the model's device, and to read it makes the CPU wait until the
device has done everything before. What they tell the callback that shows previews, the number of the step, is on the CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

# Samplers of ComfyUI that go through the levels of the schedule one by one and call the callback once in each step, after
# its first evaluation. Of all others every level is read.
_IN_STEPS = frozenset(
    "sample_" + name
    for name in (
        "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "lms", "dpmpp_sde",
        "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v", "deis",
        "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp",
        "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde",
    )
)  # fmt: skip
_MODULE = "comfy.k_diffusion.sampling"
# A sampler of ComfyUI that takes only the two ends of the schedule and the number of its steps.
_BETWEEN_ENDS = "dpm_fast_function", "comfy.samplers"


def noise_level(timestep: Tensor | float) -> float:
    """The noise level of an evaluation as a number. The CPU waits for it where it is on a device."""
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)


class Steps:
    """The steps of one run: what is known of the levels to come.

    >>> steps = Steps("sample_euler", "comfy.k_diffusion.sampling", [4.0, 3.0, 2.0, 1.0, 0.0])
    >>> steps.started(4.0)  # the first evaluation is at the first level, so the schedule is the sampler's
    >>> steps.called(0, 4)  # the next evaluations belong to the first two steps, which end at 2
    >>> steps.lowest
    2.0
    """

    def __init__(self, name: str, module: str, levels: Sequence[float]) -> None:
        self.lowest = 0.0
        """No evaluation before the next call of the callback is at a lower level than this."""
        falling = all(first >= second for first, second in itertools.pairwise(levels))
        self.denoised: Any = None
        """What the sampler expected the finished latent to be when it called the callback last, as in denoised_output."""
        self._levels = list(levels) if falling and name in _IN_STEPS and module == _MODULE else []
        self._known = False

    def started(self, level: float) -> None:
        """Call this with the level of the first evaluation: another node may have given the sampler another schedule."""
        self._known = bool(self._levels) and math.isclose(level, self._levels[0], rel_tol=0.05)

    def called(self, step: int, total: int) -> None:
        """Call this when the callback is called: in step number ``step`` (from 0) of ``total``."""
        known = self._known and total == len(self._levels) - 1 and step + 2 < len(self._levels)
        # Second evaluations of a step, and the first of the next, come before the next call. Heun++ goes furthest: two levels.
        self.lowest = self._levels[step + 2] if known else 0.0


def schedule_of(sampler: Any, levels: Sequence[float]) -> list[float]:
    """The noise levels [steps + 1] that a SAMPLER of ComfyUI goes through when it is given these; the last is where it ends.

    >>> from types import SimpleNamespace
    >>> def dpm_fast_function(): ...
    >>> dpm_fast_function.__module__ = "comfy.samplers"
    >>> fast = SimpleNamespace(sampler_function=dpm_fast_function)
    >>> [round(level, 2) for level in schedule_of(fast, [8.0, 3.0, 2.0, 1.0])]  # steps of equal length in the logarithm
    [8.0, 4.76, 2.83, 1.0]
    """
    steps = len(levels) - 1
    # A level of 0 has no logarithm; the sampler then ends at the level before it.
    end = levels[-1] or levels[-2] if steps > 0 else 0.0
    if _named(sampler) != _BETWEEN_ENDS or end <= 0:
        return list(levels)
    return [*_between(math.log(levels[0]), math.log(end), steps), levels[-1]]


def _between(high: float, low: float, count: int) -> list[float]:
    """The levels of ``count`` evaluations of DPM-Solver-Fast: parts of equal length in the logarithm, up to three in each."""
    parts = count // 3 + 1
    orders = [3] * (parts - 2) + [2, 1] if count % 3 == 0 else [3] * (parts - 1) + [count % 3]
    width = (low - high) / parts
    return [
        math.exp(high + (part + number / order) * width) for part, order in enumerate(orders) for number in range(order)
    ]


def _named(sampler: Any) -> tuple[str, str]:
    """Name and module of the function of a SAMPLER; empty for samplers that are not built from a function."""
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", ""), getattr(function, "__module__", "")


def steps_of(sampler: Any, levels: Sequence[float]) -> Steps:
    """The steps of a run of a SAMPLER of ComfyUI over these noise levels."""
    return Steps(*_named(sampler), levels)


def told(callback: Callable[..., Any] | None, steps: Steps) -> Callable[..., Any] | None:
    """The callback of a sampler, which tells the steps as well; None, for which samplers do not call anything, stays None."""
    if callback is None:
        return None

    def call(step: int, denoised: Any, x: Any, total: int, *more: Any, **named: Any) -> Any:
        steps.called(step, total)
        steps.denoised = denoised
        return callback(step, denoised, x, total, *more, **named)

    return call
