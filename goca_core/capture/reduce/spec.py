"""How the layers of one model call are reduced: with which methods, on which grids."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...tensors import CPUS, Grid
from ..families.base import Plan
from ..options import PAPER, RecordOptions

# Above this many tokens the reference affinity, and self-attention that waits for it, are stored in half precision, and
# what waits is stored on the CPU.
_HOLD_EXACT = 1024


class ReductionSpec:
    """The plan and the options of a call, and the grids that follow from them.

    ``size``: height and width of the latent; ``frames``: frames of tokens, in sequence.
    """

    def __init__(self, plan: Plan, options: RecordOptions, size: Grid, frames: int = 1) -> None:
        self.plan, self.options, self.frames = plan, options, frames
        self.heads, self.scored = options.heads(plan.defaults), options.scored(plan.defaults)
        levels = {block.name: block.level for block in plan.blocks}
        # A matrix has the square of its grid's tokens, once per frame.
        fraction = 1 / math.sqrt(frames)
        bound = max(1, int(options.grid_limit * fraction)) if options.grid_limit else 0
        self.reference_grid = _bounded(plan.grid(levels[plan.reference], *size), bound)
        # Propagation is on the finest grid. By default a grid that is finer than the reference's and has more than 1,024
        # tokens is not used: full self-attention there would cost more than the rest of the recording.
        self.late = options.method != PAPER
        self.propagation = late_layers(plan) if self.late else plan.affinity
        finest = plan.grid(min((levels[name] for name in self.propagation), default=0), *size)
        limit = max(_HOLD_EXACT * fraction, bound if self.late else math.prod(self.reference_grid))
        fine = options.full_affinity or math.prod(finest) <= limit
        # The reference layer, which is in the middle, may be far coarser than the late layers.
        coarser = _bounded(finest, int(limit)) if self.late else self.reference_grid
        self.affinity_grid = finest if fine else coarser

    def is_large(self, grid: Grid) -> bool:
        """Whether a self-attention map of all frames on this grid is stored in half precision."""
        return self.frames * math.prod(grid) ** 2 > _HOLD_EXACT**2

    def held_dtype(self, grid: Grid, maps: Tensor) -> torch.dtype:
        """The precision of self-attention that waits for the reference. On an accelerator it waits where it is."""
        return torch.float16 if self.is_large(grid) or maps.device.type not in CPUS else maps.dtype

    @property
    def reference_dtype(self) -> torch.dtype | None:
        """The precision of the stored reference affinity and of maps that wait for it; None = as computed."""
        return torch.float16 if self.is_large(self.reference_grid) else None


def late_layers(plan: Plan) -> tuple[str, ...]:
    """The layers on the finest grid in the last third of those that run; the paper's if there is none.

    Late self-attention is between pixels of one object; in the middle it is often between neighbours, or to a few tokens
    that collect attention.
    """
    finest = min(block.level for block in plan.blocks)
    late = plan.blocks[round(2 * len(plan.blocks) / 3) :]
    return tuple(block.name for block in late if block.level == finest) or plan.affinity


def _bounded(grid: Grid, limit: int) -> Grid:
    """The grid itself, or one with the same aspect ratio and at most ``limit`` tokens."""
    tokens = math.prod(grid)
    if not limit or tokens <= limit:
        return grid
    fraction = math.sqrt(limit / tokens)
    height = max(1, round(grid[0] * fraction))
    return height, max(1, min(round(grid[1] * fraction), limit // height))
