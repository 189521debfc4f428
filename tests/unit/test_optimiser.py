"""Muon with many matrices at once takes the steps that torch's takes one matrix at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.demo_model.optimiser import Muon, orthogonalise


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_steps_are_those_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (16, 4, 3, 3), (16, 4, 3, 3)]
    ours = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    ours[3].data = ours[3].data.to(memory_format=torch.channels_last)
    theirs = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in ours]
    muon = Muon(ours, 5)
    reference = torch.optim.Muon(theirs, lr=1.0, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for rate in (0.02, 0.01, 0.005):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=draw)
            other.grad = mine.grad.flatten(1)
        before = [weight.detach().clone() for weight in ours]
        muon.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        for mine, other, old in zip(ours, theirs, before, strict=True):
            step, expected = (mine - old).flatten(1), other - old.flatten(1)
            # torch computes in bfloat16.
            assert (step - expected).norm() < 0.03 * expected.norm()
            other.data = mine.detach().flatten(1).clone()


def test_singular_values_become_about_one() -> None:
    for shape in ((3, 20, 50), (2, 50, 20)):
        found = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(1)), 6)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.5 and values.max() < 1.3
