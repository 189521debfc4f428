"""Muon for the matrices inside the networks (convolutions count as matrices), AdamW for the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import cast

import torch
from torch import Tensor, nn

# AdamW's learning rate as a fraction of Muon's.
ADAM_RATE = 0.5
_MOMENTUM, _DECAY = 0.95, 0.01
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, iterations: int) -> Tensor:
    """Replace the singular values of matrices [N, R, C] by about 1: Newton and Schulz's iteration, on a GPU in bfloat16."""
    a, b, c = _QUINTIC
    x = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """torch.optim.Muon with all matrices of one shape computed at once.

    The networks have about 150 small matrices of 20 shapes. One at a time, a GPU spends more time on starting their kernels
    than on the networks themselves. Steps have the size of AdamW's, so that one learning rate works for both.
    """

    def __init__(self, weights: list[nn.Parameter], iterations: int) -> None:
        self.iterations = iterations
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for weight in weights:
            groups[(len(weight), weight[0].numel())].append(weight)
        self.groups = list(groups.items())
        self.momentum = [torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self.groups]

    @staticmethod
    def _rows(value: Tensor) -> Tensor:
        # Channels last, as the network's convolutions are stored.
        return value if value.ndim == 2 else value.permute(0, 2, 3, 1)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for (shape, group), momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([self._rows(cast(Tensor, weight.grad)).reshape(shape) for weight in group])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalise(gradient.lerp_(momentum, _MOMENTUM), self.iterations)
            views = [self._rows(weight.data) for weight in group]
            updates = [one.view(view.shape) for one, view in zip(update.float().unbind(0), views, strict=True)]
            torch._foreach_mul_(views, 1 - rate * _DECAY)
            torch._foreach_add_(views, updates, alpha=-0.2 * math.sqrt(max(shape)) * rate)


class Optimiser:
    """Muon gives every direction of a weight the same step size. Here it needs half as many steps as AdamW alone."""

    def __init__(self, live: nn.ModuleDict, *, iterations: int = 5) -> None:
        matrices, others = [], []
        for name, weight in live.named_parameters():
            if weight.ndim < 2 or "embedding" in name or name in ("unet.input_blocks.0.0.weight", "unet.out.2.weight"):
                others.append(weight)
            else:
                matrices.append(weight)
        self.muon = Muon(matrices, iterations)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, rate: float) -> None:
        self.muon.step(rate)
        self.adam.param_groups[0]["lr"] = ADAM_RATE * rate
        self.adam.step()

    def state(self) -> dict:
        return {"muon": self.muon.momentum, "adam": self.adam.state_dict()}

    def resume(self, state: dict) -> None:
        for momentum, stored in zip(self.muon.momentum, state["muon"], strict=True):
            momentum.copy_(stored)
        self.adam.load_state_dict(state["adam"])
