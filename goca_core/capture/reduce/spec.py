"""What the layers of one model call are reduced to: the methods and the grids."""

from __future__ import annotations

import math

import torch

from ...tensors import Grid
from ..families.base import Plan
from ..options import RecordOptions

# The reference affinity, and self-attention that waits for it, are kept in half precision from this many tokens on; what
# waits is then not on an accelerator.
_HOLD_EXACT = 1024


class ReductionSpec:
    """The plan and the options of a call, and the grids that they lead to.

    ``size``: height and width of the latent; ``frames``: frames of tokens, one after the other.
    """

    def __init__(self, plan: Plan, options: RecordOptions, size: Grid, frames: int = 1) -> None:
        self.plan, self.options, self.frames = plan, options, frames
        self.heads, self.scored = options.heads(plan.defaults), options.scored(plan.defaults)
        levels = {block.name: block.level for block in plan.blocks}
        # A matrix has the square of its grid's tokens, for each frame.
        fraction = 1 / math.sqrt(frames)
        bound = max(1, int(options.grid_limit * fraction)) if options.grid_limit else 0
        self.reference_grid = _bounded(plan.grid(levels[plan.reference], *size), bound)
        # The paper propagates on the finest grid. Unless asked to, no grid finer than the reference's is kept when it
        # has more than 1,024 tokens: full self-attention there would cost more than all the rest of recording.
        finest = plan.grid(min((levels[name] for name in plan.affinity), default=0), *size)
        limit = max(_HOLD_EXACT * fraction, math.prod(self.reference_grid))
        fine = options.full_affinity or math.prod(finest) <= limit
        self.affinity_grid = finest if fine else self.reference_grid

    def is_large(self, grid: Grid) -> bool:
        """Whether a self-attention map of all frames on this grid is kept in half precision."""
        return self.frames * math.prod(grid) ** 2 > _HOLD_EXACT**2

    @property
    def reference_dtype(self) -> torch.dtype | None:
        """What the reference affinity, and what waits for it on its grid, is stored in; None for as it is computed."""
        return torch.float16 if self.is_large(self.reference_grid) else None


def _bounded(grid: Grid, limit: int) -> Grid:
    """The grid itself, or one of its proportions with at most ``limit`` tokens."""
    tokens = math.prod(grid)
    if not limit or tokens <= limit:
        return grid
    fraction = math.sqrt(limit / tokens)
    return max(1, int(grid[0] * fraction)), max(1, int(grid[1] * fraction))
