"""Refinements after propagation, by name: what guides each, its parameters, and one function to apply any of them.

`REFINEMENTS` maps a name to its class. An instance holds the parameters: ``REFINEMENTS["pamr"](iterations=20)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ..tensors import finite, resize_bilinear
from .image import check_image, guided_filter, pamr
from .proposals import proposal_merge

if TYPE_CHECKING:
    from ..attention.record import Affinity

Guide = Literal["image", "affinity"]


@dataclass(frozen=True)
class Pamr:
    """Pixel-adaptive mask refinement, see `image.pamr`.

    ``reach``: distance of the furthest neighbours in pixels; others are at half of it, a quarter and so on, down to 1. 0
    uses the size of one cell of the coarse scores, at least 8.
    """

    name: ClassVar[str] = "pamr"
    guide: ClassVar[Guide] = "image"
    iterations: int = 10
    reach: int = 0

    def refine(self, scores: Tensor, image: Tensor, cell: int) -> Tensor:
        reach = self.reach or max(8, cell)
        return pamr(scores, image, self.iterations, [reach >> halvings for halvings in range(reach.bit_length())])


@dataclass(frozen=True)
class GuidedFilter:
    """Guided filter, see `image.guided_filter`.

    ``radius``: in pixels; 0 uses two cells of the coarse scores, at least 4. ``eps``: variance of the colours below which
    scores are smoothed.
    """

    name: ClassVar[str] = "guided filter"
    guide: ClassVar[Guide] = "image"
    radius: int = 0
    eps: float = 1e-3

    def refine(self, scores: Tensor, image: Tensor, cell: int) -> Tensor:
        return guided_filter(scores, image, self.radius or max(4, 2 * cell), self.eps)


@dataclass(frozen=True)
class ProposalMerge:
    """Segments of the model's self-attention, each given to its best object, see `proposals.proposal_merge`.

    ``tolerance``: how much the attention of two pixels of a segment may differ, as symmetric Kullback-Leibler divergence in
    nats (the reference's 2e-4, a mean over pixels, is 0.2 on a grid of 32 x 32). ``stride``: distance of the proposals on
    both axes. ``threshold``: mean score that a segment needs to belong to an object.
    """

    name: ClassVar[str] = "proposal merge"
    guide: ClassVar[Guide] = "affinity"
    tolerance: float = 0.2
    stride: int = 4
    threshold: float = 0.5

    def refine(self, scores: Tensor, affinity: Affinity) -> Tensor:
        matrix = finite(affinity.matrix.to(scores.device)).clamp_min(0)
        # Rows that were resized do not sum to one, but a divergence compares distributions.
        matrix = matrix / matrix.sum(-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
        maps = resize_bilinear(finite(scores), (affinity.height, affinity.width))
        return proposal_merge(maps, matrix, self.stride, self.tolerance / matrix.shape[-1], least=self.threshold)


Refinement = Pamr | GuidedFilter | ProposalMerge

REFINEMENTS: dict[str, type[Refinement]] = {kind.name: kind for kind in (Pamr, GuidedFilter, ProposalMerge)}


@dataclass(frozen=True)
class Step:
    """A requested refinement. It runs later, because only the mask node knows the scores of the objects."""

    refinement: Refinement
    image: Tensor | None = None


def check(refinement: Refinement, batch: int, image: Tensor | None, affinity: Affinity | None) -> None:
    """Raise ValueError unless the guide of the refinement (image or self-attention) is there and fits a batch of scores."""
    if refinement.guide == "affinity" and affinity is None:
        raise ValueError(
            f"This recording holds no self-attention, which {refinement.name} needs; record again without the node that "
            "replaces self-attention, or refine with the image."
        )
    if refinement.guide == "image":
        if image is None:
            raise ValueError(
                f"Refining with {refinement.name} needs the image: connect the decoded image to the image input."
            )
        check_image(image, batch)


def cell_of(scores: Tensor, image: Tensor) -> int:
    """Size in pixels of one cell of the scores, [B, K, h, w], in the image, [B, H, W, 3], along the cell's longer side."""
    return max(1, *(math.ceil(a / b) for a, b in zip(image.shape[1:3], scores.shape[2:], strict=True)))


def apply(
    refinement: Refinement,
    scores: Tensor,
    image: Tensor | None = None,
    affinity: Affinity | None = None,
    cell: int = 0,
) -> Tensor:
    """Refine scores of competing objects, [B, K, h, w], including those of the background.

    image: [B or 1, H, W, 3] in [0, 1], for refinements that it guides. affinity: for those guided by
    self-attention. cell: size in pixels of one cell of the scores before they were resized; 0 measures it.
    Returns [B, K, H, W] at the size of the image, or at that of the affinity's grid, in [0, 1] if the scores are.
    Raises ValueError when the guide is missing or does not fit, and ImportError when kornia is missing.
    """
    check(refinement, scores.shape[0], image, affinity)
    if isinstance(refinement, ProposalMerge):
        assert affinity is not None
        return refinement.refine(scores, affinity)
    assert image is not None
    return refinement.refine(scores, image, cell or cell_of(scores, image))
