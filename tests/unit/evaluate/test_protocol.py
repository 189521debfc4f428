"""Predictions of the evaluation against the reference's stored counts and against the plain way of making them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.evaluate.protocol import mean_iou, predict
from goca_core.masks import BACKGROUND_RULES, assign, resize_scores
from goca_core.metrics import Confusion

THETAS = (-0.4, -0.1, 0.0, 0.3)


def plainly(
    scores: Tensor,
    background: Tensor | None,
    ids: list[int],
    classes: int,
    size: tuple[int, int],
    rule: str,
    theta: float,
) -> Tensor:
    """A map for every class, zero for those without one, and one argmax over all of them."""
    volume = torch.zeros(1, classes - 1, *size)
    for number, score in zip(ids, scores, strict=True):
        volume[0, number - 1] = resize_scores(score[None, None], size)[0, 0]
    level = None if background is None else resize_scores(background[None, None], size)[0]
    return assign(volume, level, rule, theta)[0]


@pytest.mark.parametrize("rule", BACKGROUND_RULES)
@pytest.mark.parametrize("name", ["core_a", "core_b_noninteger"])
def test_counts_of_the_reference(name: str, rule: str, golden: Callable[[str], Any]) -> None:
    data = golden(name)
    label, maps = data["out_eval_label"], data["out_affinity_order2"]
    ids = [int(key.rsplit("_", 1)[1]) for key in sorted(k for k in data.keys if "object_tokens" in k)]
    classes = max(ids) + 1
    thetas = data["out_eval_thresholds"].tolist()
    predictions = predict(maps[:-1], maps[-1], ids, classes, tuple(label.shape), rule, thetas)
    assert predictions.shape == (len(thetas), *label.shape)
    for row, prediction in enumerate(predictions):
        counts = Confusion(classes).update(prediction, label)
        assert counts.intersection().tolist() == data[f"out_eval_{rule}_inter"][row].tolist()
        assert counts.union().tolist() == data[f"out_eval_{rule}_union"][row].tolist()
        expected = float(data[f"out_eval_{rule}_miou"][row])
        assert mean_iou(counts, range(classes)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rule", BACKGROUND_RULES)
@pytest.mark.parametrize("ids", [[3], [5, 2, 9], [1, 2, 3], [4, 1], list(range(1, 11)), list(range(10, 0, -1)), []])
def test_the_plain_way(ids: list[int], rule: str, rng: torch.Generator) -> None:
    """Negative scores, ties and zeros are where the classes without a map can win."""
    scores = torch.randn(len(ids), 5, 3, generator=rng).mul(2).round().div(2)
    for background in (None, torch.randn(5, 3, generator=rng).mul(2).round().div(2)):
        for size in ((5, 3), (11, 4)):
            predictions = predict(scores, background, ids, 11, size, rule, THETAS)
            for theta, prediction in zip(THETAS, predictions, strict=True):
                expected = plainly(scores, background, ids, 11, size, rule, theta)
                assert torch.equal(prediction.long(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision_and_broken_values(dtype: torch.dtype, rng: torch.Generator) -> None:
    scores = torch.rand(2, 4, 6, generator=rng).to(dtype)
    scores[0, 1, 2] = float("nan")
    before = scores.clone()
    predictions = predict(scores, scores[1], [1, 2], 3, (7, 9), "offset", [0.0])
    assert predictions.shape == (1, 7, 9)
    assert torch.equal(scores.nan_to_num(), before.nan_to_num())
    assert torch.equal(predictions[0].long(), plainly(scores, scores[1], [1, 2], 3, (7, 9), "offset", 0.0))


def test_worked_by_hand() -> None:
    """One row of four pixels: object 2 against the background, which wins where they are equal."""
    scores = torch.tensor([[[0.9, 0.5, 0.2, 0.0]]])
    background = torch.tensor([[0.1, 0.5, 0.4, 0.0]])
    rows = predict(scores, background, [2], 4, (1, 4), "offset", (-0.3, 0.0, 0.6)).tolist()
    # At -0.3 the last pixel's background is -0.3, so class 1, which has no map and scores 0, comes first of equals.
    assert rows == [[[2, 2, 2, 1]], [[2, 0, 0, 0]], [[2, 0, 0, 0]]]
    assert predict(scores, background, [2], 4, (1, 4), "vanilla", (0.3,)).tolist() == [[[2, 2, 0, 0]]]


def test_arguments_that_do_not_fit() -> None:
    scores = torch.rand(2, 3, 4)
    for ids, classes in (([1], 5), ([1, 1], 5), ([0, 1], 5), ([1, 5], 5), ([], 1)):
        with pytest.raises(ValueError, match="expected"):
            predict(scores[: len(ids)] if not ids else scores, None, ids, classes, (3, 4), "offset", (0.0,))
    with pytest.raises(ValueError, match="background is"):
        predict(scores, torch.rand(4, 3), [1, 2], 5, (3, 4), "offset", (0.0,))
    with pytest.raises(ValueError, match="background rule"):
        predict(scores, None, [1, 2], 5, (3, 4), "none", (0.0,))


def test_mean_over_the_scored_classes() -> None:
    counts = Confusion(4)
    counts.matrix[1, 1], counts.matrix[1, 0], counts.matrix[2, 2] = 3, 1, 5
    assert mean_iou(counts, (1, 2)) == pytest.approx((3 / 4 + 1) / 2)
    assert mean_iou(counts, (1, 2, 3)) == pytest.approx((3 / 4 + 1) / 3)
    assert mean_iou(counts, range(4)) == pytest.approx(counts.miou())
    assert mean_iou(counts, ()) == 0.0
