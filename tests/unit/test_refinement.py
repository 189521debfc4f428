"""Refinements by name: what they ask for, and how scores carry them to the masks."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import Affinity, Attention
from goca_core.picture.batch import draw, overlay_layers
from goca_core.pipeline import MaskRequest, as_scoring, make_masks, phrase_scores, refined, word_scores
from goca_core.refine.image import guided_filter, pamr
from goca_core.refine.methods import REFINEMENTS, GuidedFilter, Pamr, ProposalMerge, Step, apply, cell_of
from goca_core.refine.propagation import propagate
from goca_core.refine.proposals import proposal_merge
from goca_core.rescale import merge_background
from goca_core.tensors import resize_bilinear
from goca_core.words.word_map import resolve

from .recordings import recording

PHRASES = "red cat\ngrass"
SOFT = MaskRequest(PHRASES, "on", mode="soft")


@pytest.fixture
def image(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 32, 48, 3, generator=rng)


def affinity_of(*shape: int) -> Affinity:
    generator = torch.Generator().manual_seed(5)
    return Affinity(
        *shape[1:], torch.softmax(2 * torch.randn(shape[0], *[shape[1] * shape[2]] * 2, generator=generator), -1)
    )


# -- the registry ------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert set(REFINEMENTS) == {"pamr", "guided filter", "proposal merge"}
    for name, kind in REFINEMENTS.items():
        assert kind.name == name and kind() == kind()
        with pytest.raises(FrozenInstanceError):
            kind().name = "other"  # type: ignore[misc]


def test_apply_is_the_function_of_that_name(image: Tensor, rng: torch.Generator) -> None:
    scores, affinity = torch.rand(2, 3, 8, 12, generator=rng), affinity_of(2, 8, 12)
    # A cell is four pixels: the least of 8 for pamr, two cells for the guided filter.
    assert cell_of(scores, image) == 4
    assert torch.equal(apply(Pamr(), scores, image), pamr(scores, image, 10, (8, 4, 2, 1)))
    assert torch.equal(apply(Pamr(3, 12), scores, image), pamr(scores, image, 3, (12, 6, 3, 1)))
    assert torch.equal(apply(Pamr(3), scores, image, cell=16), pamr(scores, image, 3, (16, 8, 4, 2, 1)))
    assert torch.equal(apply(GuidedFilter(), scores, image), guided_filter(scores, image, 8, 1e-3))
    assert torch.equal(apply(GuidedFilter(2, 0.1), scores, image), guided_filter(scores, image, 2, 0.1))
    merged = apply(ProposalMerge(0.4, 2, 0.3), scores, affinity=affinity)
    assert torch.equal(merged, proposal_merge(scores, affinity.matrix, 2, 0.4 / 96, least=0.3))
    assert merged.any()


def test_proposal_merge_brings_scores_to_the_grid_and_rows_to_sum_one(rng: torch.Generator) -> None:
    scores, affinity = torch.rand(2, 3, 4, 6, generator=rng), affinity_of(2, 8, 12)
    expected = apply(ProposalMerge(), resize_bilinear(scores, (8, 12)), affinity=affinity)
    larger = replace(affinity, matrix=affinity.matrix * 16)
    kept = larger.matrix.clone()
    assert torch.equal(apply(ProposalMerge(), scores, affinity=larger), expected)
    assert torch.equal(larger.matrix, kept)


@pytest.mark.parametrize("kind", REFINEMENTS.values(), ids=REFINEMENTS)
def test_a_missing_or_wrong_guide_is_named(kind: type, rng: torch.Generator) -> None:
    scores = torch.rand(2, 1, 4, 6, generator=rng)
    needs = {"image": f"{kind.name} needs the image: connect", "affinity": f"no self-attention, which {kind.name}"}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=needs[kind.guide]) as caught:  # type: ignore[attr-defined]
        apply(kind(), scores)
    assert "\n" not in str(caught.value)


# -- with the scores, to the masks -------------------------------------------------------------------------------------


def by_hand(record: Attention) -> Tensor:
    """Rescaled and propagated scores of the phrases and of "on", the background, at the grid of the affinity."""
    scores, words = as_scoring(record), record.tokens.word_map()
    maps = phrase_scores(scores, resolve(f"{PHRASES}\non", words), words)
    maps = torch.cat((maps[:, :2], merge_background(maps[:, 2:])[:, None]), 1)
    assert record.affinity is not None
    return propagate(maps, record.affinity.matrix, record.defaults.propagation_steps)


def test_the_image_comes_after_propagation_and_before_the_decision(image: Tensor) -> None:
    record = recording()
    expected = pamr(by_hand(record), image, 10, (8, 4, 2, 1))
    scores = refined(record, Pamr(), image)
    result = make_masks(scores, SOFT)
    torch.testing.assert_close(result.scores, expected[:, :2], rtol=0, atol=1e-6)
    # The background was refined too: whoever scores higher of the three has the pixel.
    hard = make_masks(scores, replace(SOFT, mode="partition"))
    level = expected[:, 2]
    torch.testing.assert_close(
        hard.masks[:, 0], ((expected[:, 0] > level) & (expected[:, 0] >= expected[:, 1])).float()
    )
    assert torch.equal(hard.background, (expected[:, :2] <= level[:, None]).all(1).float())
    plain = make_masks(record, replace(SOFT, mode="partition"))
    assert not torch.equal(plain.masks, hard.masks)


def test_steps_follow_one_another(image: Tensor) -> None:
    record = recording()
    assert record.affinity is not None
    merged = apply(ProposalMerge(1.0, 1, 0.1), by_hand(record), affinity=record.affinity)
    # Both measure reach and radius by the cells that there were before the first image, 8 pixels.
    expected = guided_filter(pamr(merged, image, 4, (8, 4, 2, 1)), image[:1], 16)
    first = refined(record, ProposalMerge(1.0, 1, 0.1))
    last = refined(refined(first, Pamr(4), image), GuidedFilter(), image[:1])
    torch.testing.assert_close(make_masks(last, SOFT).scores, expected[:, :2], rtol=0, atol=1e-5)
    assert [step.refinement.name for step in last.steps] == ["proposal merge", "pamr", "guided filter"]
    assert len(first.steps) == 1, "earlier scores changed"
    only = resize_bilinear(merged, (32, 48))
    torch.testing.assert_close(make_masks(first, SOFT).scores, only[:, :2], rtol=0, atol=1e-6)


def test_every_source_can_be_refined(image: Tensor) -> None:
    record = recording()
    expected = make_masks(refined(record, Pamr(), image), SOFT).scores
    for source in (aggregate(record), as_scoring(record)):
        assert torch.equal(make_masks(refined(source, Pamr(), image), SOFT).scores, expected)


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("size", [None, (4, 6), (50, 31), (1, 1)])
def test_sizes_of_images_and_masks(side: int, size: tuple[int, int] | None) -> None:
    scores = refined(recording(), Pamr(), torch.rand(1, side, side * 3 // 2, 3))
    result = make_masks(scores, MaskRequest(PHRASES, size=size))
    assert tuple(result.masks.shape[2:]) == (size or (32, 48))
    assert torch.equal(result.masks.sum(1) + result.background, torch.ones_like(result.background))
    found = make_masks(scores, MaskRequest(PHRASES, mode="soft", size=size)).scores
    assert found.min() >= 0 and found.max() <= 1


def test_fine_scores_are_averaged_into_small_masks(image: Tensor) -> None:
    """From 32 x 48 to 4 x 6: each pixel of the mask stands for its surroundings, not for one pixel of them."""
    scores = refined(recording(), Pamr(), image)
    fine, small = make_masks(scores, SOFT).scores, make_masks(scores, replace(SOFT, latent_size=True)).scores
    means = torch.nn.functional.avg_pool2d(fine, 8)
    assert (small - means).abs().mean() < 0.5 * (resize_bilinear(fine, (4, 6)) - means).abs().mean()


def test_tokens_that_cover_more_than_the_image_are_cut() -> None:
    """A latent of 7 x 11 on patches of 2 x 2 is padded to 8 x 12; the image ends where the latent does."""
    record = replace(recording(batch=1, affinity=False), height=7, width=11)
    image = torch.rand(1, 56, 88, 3)
    words = record.tokens.word_map()
    maps = phrase_scores(as_scoring(record), resolve("cat", words), words)
    step = refined(record, Pamr(2, 5), image)
    expected = pamr(resize_bilinear(maps, (64, 96))[..., :56, :88], image, 2, (5, 2, 1))
    torch.testing.assert_close(
        make_masks(step, MaskRequest("cat", "", mode="soft")).scores, expected, rtol=0, atol=1e-6
    )


def test_heat_maps_show_refined_scores(image: Tensor) -> None:
    record = recording()
    plain, names = word_scores(as_scoring(record))
    shown, again = word_scores(refined(record, Pamr(), image))
    assert again == names and shown.shape == plain.shape
    words = record.tokens.word_map()
    coarse = phrase_scores(as_scoring(record), resolve("\n".join(names), words), words)
    torch.testing.assert_close(shown, pamr(coarse, image, 10, (8, 4, 2, 1)), rtol=0, atol=1e-6)
    layers = overlay_layers(image, refined(record, ProposalMerge()), "")
    assert draw(image, layers, 0.5).shape[0] == 2


def test_refinements_that_cannot_be(image: Tensor) -> None:
    record = recording()
    with pytest.raises(ValueError, match="pamr needs the image"):
        refined(record, Pamr())
    with pytest.raises(ValueError, match="There are 3 images but scores for 2"):
        refined(record, GuidedFilter(), torch.rand(3, 32, 48, 3))
    with pytest.raises(ValueError, match="no self-attention"):
        refined(recording(affinity=False), ProposalMerge())
    with pytest.raises(ValueError, match="put it before that one") as caught:
        refined(refined(record, Pamr(), image), ProposalMerge())
    assert "\n" not in str(caught.value)
    # An image that is not needed is not kept.
    assert refined(record, ProposalMerge(), image).steps == (Step(ProposalMerge()),)
