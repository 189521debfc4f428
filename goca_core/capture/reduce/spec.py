"""What the layers of one model call are reduced to: methods and grids."""

from __future__ import annotations

import math

from ...tensors import Grid
from ..families.base import Block, Plan
from ..options import RecordOptions

# The reference affinity, and a self map held until it is known, are kept in half precision from this many tokens on; what
# is held is then not on an accelerator.
_HOLD_EXACT = 1024


class ReductionSpec:
    """What the layers of one model call are reduced to: the plan, the options and the grids they lead to."""

    def __init__(self, plan: Plan, options: RecordOptions, size: Grid, frames: int = 1) -> None:
        self.plan, self.options, self.frames = plan, options, frames
        levels = {block.name: block.level for block in plan.blocks}
        # A matrix has the square of its grid's tokens, for each frame.
        share = 1 / math.sqrt(frames)
        bound = max(1, int(options.grid_limit * share)) if options.grid_limit else 0
        self.reference_grid = _bounded(plan.grid(levels[plan.reference], *size), bound)
        # The paper propagates on the finest grid; unless asked to, no grid finer than the reference's is held when it
        # has more than 1,024 tokens: full self-attention there would cost more than all the rest of recording.
        finest = plan.grid(min((levels[name] for name in plan.affinity), default=0), *size)
        limit = max(_HOLD_EXACT * share, math.prod(self.reference_grid))
        fine = options.full_affinity or math.prod(finest) <= limit
        self.affinity_grid = finest if fine else self.reference_grid

    def targets(self, block: Block) -> list[Grid]:
        """The grids that self-attention of a layer is wanted for."""
        scored = [self.reference_grid] if self.options.scored else []
        return scored + ([self.affinity_grid] if block.name in self.plan.affinity else [])


def _bounded(grid: Grid, limit: int) -> Grid:
    """The grid itself, or one of its shape with at most ``limit`` tokens."""
    tokens = math.prod(grid)
    if not limit or tokens <= limit:
        return grid
    share = math.sqrt(limit / tokens)
    return max(1, int(grid[0] * share)), max(1, int(grid[1] * share))


def _large(grid: Grid, frames: int) -> bool:
    return frames * math.prod(grid) ** 2 > _HOLD_EXACT**2
