from __future__ import annotations

import numpy as np
import pytest
import torch

from goca_core.metrics import Confusion

LABEL = [[0, 0, 1], [1, 2, 2]]
PREDICTION = [[0, 1, 1], [1, 2, 0]]


def test_counts() -> None:
    matrix = Confusion(4).update(torch.tensor(PREDICTION), torch.tensor(LABEL))
    assert matrix.matrix.dtype == np.int64
    assert matrix.intersection().tolist() == [1, 2, 1, 0]
    assert matrix.union().tolist() == [3, 3, 2, 0]
    np.testing.assert_allclose(matrix.iou(), [1 / 3, 2 / 3, 1 / 2, 0], atol=1e-7)
    assert matrix.miou() == pytest.approx(1.5 / 4)
    assert matrix.miou(present_only=True) == pytest.approx(0.5)
    assert matrix.pixel_accuracy() == pytest.approx(4 / 6)
    assert matrix.matrix[1, 0] == 0 and matrix.matrix[0, 1] == 1, "rows are the true classes"


def test_accumulates_and_adds() -> None:
    prediction, label = np.array(PREDICTION), np.array(LABEL, dtype=np.uint8)
    twice = Confusion(3).update(prediction, label).update(prediction, label)
    one = Confusion(3).update(prediction, label)
    total = one + one
    assert (total.matrix == twice.matrix).all()
    assert (one.matrix * 2 == twice.matrix).all(), "adding leaves the parts alone"
    batch = Confusion(3).update(np.stack([prediction] * 2), np.stack([label] * 2))
    assert (batch.matrix == twice.matrix).all()
    with pytest.raises(ValueError, match="3 and 4 classes"):
        one + Confusion(4)


def test_ignore() -> None:
    label = torch.tensor(LABEL)
    label[0, 0], label[1, 2] = 255, 254
    matrix = Confusion(3).update(torch.tensor(PREDICTION), label, ignore=[254, 255])
    assert int(matrix.matrix.sum()) == 4
    one = Confusion(256).update(torch.tensor(PREDICTION), label, ignore=255)
    assert int(one.matrix.sum()) == 5
    nothing = Confusion(3).update(torch.tensor(PREDICTION), torch.full((2, 3), 7), ignore=7)
    assert (nothing.miou(), nothing.miou(present_only=True), nothing.pixel_accuracy()) == (0.0, 0.0, 0.0)


def test_errors() -> None:
    label = torch.tensor(LABEL)
    with pytest.raises(ValueError, match="label holds classes from 0 to 2: expected 0 to 1"):
        Confusion(2).update(label.clamp_max(1), label)
    with pytest.raises(ValueError, match="prediction holds classes from -1"):
        Confusion(3).update(label - 1, label)
    with pytest.raises(ValueError, match="differ: resize"):
        Confusion(3).update(label[:1], label)
    with pytest.raises(ValueError, match="integer class labels"):
        Confusion(3).update(label.float(), label)
    with pytest.raises(ValueError, match="classes is 0"):
        Confusion(0)
