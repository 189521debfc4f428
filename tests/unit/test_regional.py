from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.regional import (
    RegionalError,
    compose,
    count_labels,
    delayed,
    parse_labels,
    parse_prompts,
    region_weights,
)

LABELS = ("red circle", "cat, dog", "embedding:easy")


def random_masks(rng: torch.Generator, number: int, height: int = 6, width: int = 9) -> Tensor:
    return torch.rand(number, height, width, generator=rng)


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red circle: a blue star", {"red circle": "a blue star"}),
        ("  Red  CIRCLE :a (blue:1.3) star, 16:9  ", {"red circle": "a (blue:1.3) star, 16:9"}),
        ("cat,dog: two cats\n\nred circle: x", {"cat, dog": "two cats", "red circle": "x"}),
        ("embedding:easy: a face, embedding:hard", {"embedding:easy": "a face, embedding:hard"}),
        ("red circle:", {}),
        ("", {}),
        (" \n", {}),
        ("a blue star\na cow", {"red circle": "a blue star", "cat, dog": "a cow"}),
        ("16:9 photo, (red: 1.2) <lora:x: 1>", {"red circle": "16:9 photo, (red: 1.2) <lora:x: 1>"}),
    ],
)
def test_prompts(text: str, expected: dict[str, str]) -> None:
    assert parse_prompts(text, LABELS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog: a cow", '"dog" is none of the masks, which are: red circle; cat, dog; embedding:easy; change the label'),
        ("red circle: a\nred circle: b", 'two prompts for "red circle"'),
        ("red circle: a\na cow", 'The line "a cow" has no label.*in this order: red circle'),
        ("a\nb\nc\nd", "There are 4 prompts for 3 masks; these are: red circle"),
    ],
)
def test_prompts_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(RegionalError, match=message) as caught:
        parse_prompts(text, LABELS)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_labels() -> None:
    assert parse_labels("red circle\n\n cat, dog ") == ("red circle", "cat, dog")
    with pytest.raises(RegionalError, match='"cat" is there twice'):
        parse_labels("cat\nCat")


def test_masks_are_shared_out_among_labels() -> None:
    masks = torch.zeros(6, 4, 5)
    assert count_labels(masks, ("a", "b")) == ("a", "b")
    assert count_labels(masks, ()) == ("1", "2", "3", "4", "5", "6")
    assert count_labels(masks, (), torch.zeros(3, 4, 5)) == ("1", "2")
    assert count_labels(torch.zeros(4, 5), ("a",)) == ("a",)
    with pytest.raises(RegionalError, match=re.escape("6 masks cannot be divided among 4 labels (a, b, c, d)")):
        count_labels(masks, ("a", "b", "c", "d"))
    with pytest.raises(RegionalError, match="6 masks cannot be divided among the 4 images"):
        count_labels(masks, (), torch.zeros(4, 4, 5))
    with pytest.raises(RegionalError, match="0 masks"):
        count_labels(masks[:0], ("a",))


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feather", [0.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_shares_sum_to_one_everywhere(rng: torch.Generator, dtype: torch.dtype, feather: float) -> None:
    masks = random_masks(rng, 6).to(dtype)
    kept = masks.clone()
    for background in (None, random_masks(rng, 2, 12, 18), random_masks(rng, 1)):
        parts = region_weights(masks, 3, background, feather)
        assert parts.shape == (2, 4, 6, 9) and parts.min() >= 0
        assert torch.allclose(parts.sum(1), torch.ones(2, 6, 9, dtype=parts.dtype), atol=1e-6)
    assert torch.equal(masks, kept)


def test_a_partition_stays_as_it_is(rng: torch.Generator) -> None:
    labels = torch.randint(0, 4, (2, 6, 9), generator=rng)
    masks = torch.stack([labels == k for k in (1, 2, 3)], 1).float()
    parts = region_weights(masks.flatten(0, 1), 3)
    assert torch.equal(parts[:, :3], masks)
    assert torch.equal(parts[:, 3], (labels == 0).float())


def test_overlaps_share_and_gaps_are_background() -> None:
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.2]], [[1.0, 0.0, 0.0, 0.2]]])
    parts = region_weights(masks, 2)[0, :, 0]
    torch.testing.assert_close(parts, torch.tensor([[0.5, 1, 0, 0.2], [0.5, 0, 0, 0.2], [0, 0, 1, 0.6]]))
    # A background of zero claims nothing, but somebody must have the third pixel.
    parts = region_weights(masks, 2, torch.zeros(1, 1, 4))[0, :, 0]
    torch.testing.assert_close(parts, torch.tensor([[0.5, 1, 0, 0.5], [0.5, 0, 0, 0.5], [0, 0, 1, 0]]))


def test_shares_of_a_batch_are_those_of_its_samples(rng: torch.Generator) -> None:
    masks, background = random_masks(rng, 6), random_masks(rng, 3)
    parts = region_weights(masks, 2, background, 2.0)
    for sample in range(3):
        alone = region_weights(masks[2 * sample : 2 * sample + 2], 2, background[[sample]], 2.0)
        torch.testing.assert_close(parts[[sample]], alone)


def test_feathering_widens_the_seam_only() -> None:
    masks = torch.zeros(1, 40, 60)
    masks[..., 30:] = 1
    parts = region_weights(masks, 1, feather=8.0)[0, 0, 20]
    assert parts[:10].max() < 1e-4 and parts[50:].min() > 1 - 1e-4
    inside = ((parts > 0.16) & (parts < 0.84)).sum()
    assert inside == 8, "the width is the distance over which a prompt goes from a sixth to five sixths"
    assert bool((parts.diff() >= 0).all())


def test_a_background_for_another_batch_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(RegionalError, match="masks for 2 images but a background for 3"):
        region_weights(random_masks(rng, 4), 2, random_masks(rng, 3))


def test_nonsense_in_masks_is_harmless() -> None:
    masks = torch.full((2, 3, 4), torch.nan)
    masks[1] = torch.inf
    parts = region_weights(masks, 2)
    assert torch.isfinite(parts).all() and torch.equal(parts[0, 1], torch.ones(3, 4))


# -- conditioning -----------------------------------------------------------------------------------------------------


def text(value: float, **extra: Any) -> list[list[Any]]:
    return [[torch.full((1, 3, 2), value), extra]]


def weight_of(entry: list[Any]) -> Tensor:
    weight: Tensor = entry[1]["mask"] * entry[1]["mask_strength"]
    return weight


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_weights_of_the_entries_sum_to_one(rng: torch.Generator, strength: float) -> None:
    parts = region_weights(random_masks(rng, 6), 3, feather=2.0)
    result = compose(text(0), [text(1), None, text(2)], parts, strength)
    assert [entry[0][0, 0, 0].item() for entry in result] == [0, 1, 2]
    total = sum(weight_of(entry) for entry in result)
    assert isinstance(total, Tensor) and torch.allclose(total, torch.ones(2, 6, 9), atol=1e-6)
    torch.testing.assert_close(weight_of(result[1]), parts[:, 0] * strength)
    # A label without a prompt belongs to the base.
    torch.testing.assert_close(weight_of(result[0]), 1 - strength * (parts[:, 0] + parts[:, 2]))


def test_masks_with_one_prompt_become_one_region(rng: torch.Generator) -> None:
    parts = region_weights(random_masks(rng, 3), 3)
    same = text(1)
    result = compose(text(0), [same, None, same], parts)
    assert len(result) == 2
    torch.testing.assert_close(result[1][1]["mask"], parts[:, 0] + parts[:, 2])


def test_what_has_no_share_is_left_out() -> None:
    full, empty = torch.ones(1, 4, 5), torch.zeros(1, 4, 5)
    one = compose(text(0), [text(1)], region_weights(full, 1))
    assert [entry[0][0, 0, 0].item() for entry in one] == [1]
    assert compose(text(0), [text(1), text(2)], region_weights(torch.cat((full, empty)), 2))[0][0][0, 0, 0] == 1
    for result in (
        compose(text(0), [text(1)], region_weights(empty, 1)),
        compose(text(0), [None], region_weights(full, 1)),
        compose(text(0), [text(1)], region_weights(full, 1), strength=0.0),
    ):
        assert len(result) == 1 and result[0][0][0, 0, 0] == 0 and "mask" not in result[0][1]


def test_the_base_lends_everything_but_its_text(rng: torch.Generator) -> None:
    base = text(0, control="net", guidance=3.5, pooled_output="base", start_percent=0.2, default=False)
    prompt = text(1, pooled_output="own")
    before, own = dict(base[0][1]), dict(prompt[0][1])
    result = compose(base, [prompt], region_weights(random_masks(rng, 1), 1), to_bounds=True)
    assert (
        result[1][1].items()
        >= {"control": "net", "guidance": 3.5, "pooled_output": "own", "start_percent": 0.2}.items()
    )
    assert [entry[1]["set_area_to_bounds"] for entry in result] == [False, True]
    assert base[0][1] == before and prompt[0][1] == own


def test_a_base_that_has_a_mask_keeps_it(rng: torch.Generator) -> None:
    earlier = torch.zeros(12, 18)
    earlier[:, 9:] = 1
    base = text(0, mask=earlier, mask_strength=0.5, set_area_to_bounds=True)
    result = compose(base, [text(1)], region_weights(random_masks(rng, 2), 1), 0.8)
    total = sum(weight_of(entry) for entry in result)
    expected = torch.cat((torch.zeros(2, 6, 4), torch.full((2, 6, 1), 0.25), torch.full((2, 6, 4), 0.5)), -1)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(total[..., [0, 1, 2, 3, 5, 6, 7, 8]], expected[..., [0, 1, 2, 3, 5, 6, 7, 8]])
    assert all(entry[1]["set_area_to_bounds"] for entry in result)
    with pytest.raises(RegionalError, match="masks for 2 images, but the base conditioning has a mask for 3"):
        compose(text(0, mask=random_masks(rng, 3)), [text(1)], region_weights(random_masks(rng, 2), 1))


def test_every_entry_of_the_base_is_parted(rng: torch.Generator) -> None:
    parts = region_weights(random_masks(rng, 1), 1)
    base = text(0, start_percent=0.0, end_percent=0.5) + text(9, start_percent=0.5, end_percent=1.0)
    result = compose(base, [text(1)], parts)
    assert [(entry[0][0, 0, 0].item(), entry[1]["start_percent"]) for entry in result] == [
        (0, 0.0),
        (9, 0.5),
        (1, 0.0),
        (1, 0.5),
    ]


def test_a_default_entry_takes_what_the_others_leave(rng: torch.Generator) -> None:
    result = compose(text(0, default=True), [text(1)], region_weights(random_masks(rng, 1), 1))
    assert "mask" not in result[0][1] and result[0][1]["default"]
    assert "default" not in result[1][1]


def test_schedules_of_text_encoders_meet_where_they_overlap(rng: torch.Generator) -> None:
    def pieces(value: float) -> list[list[Any]]:
        return text(value, clip_start_percent=0.0, clip_end_percent=0.4) + text(
            value, clip_start_percent=0.4, clip_end_percent=1.0
        )

    result = compose(pieces(0), [pieces(1)], region_weights(random_masks(rng, 1), 1))
    times = [(entry[1]["clip_start_percent"], entry[1]["clip_end_percent"]) for entry in result]
    assert times == [(0.0, 0.4), (0.4, 1.0), (0.0, 0.4), (0.4, 1.0)]


def test_a_delay_lets_the_base_begin_alone() -> None:
    base = text(0, end_percent=0.9) + text(5, start_percent=0.5)
    regional = text(1, start_percent=0.1) + text(2, end_percent=0.2)
    assert delayed(base, regional, 0.0) is regional
    result = delayed(base, regional, 0.3)
    ranges = [(e[0][0, 0, 0].item(), e[1]["start_percent"], e[1]["end_percent"]) for e in result]
    assert ranges == [(0, 0.0, pytest.approx(0.3, abs=2e-5)), (1, 0.3, 1.0)]
    assert ranges[0][2] < 0.3, "at the edge only one of them works"
    assert regional[0][1] == {"start_percent": 0.1}
