"""Segmentation metrics by the protocol of the paper's benchmarks: pixels are counted over the whole data set first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_EPS = 1e-8


class Confusion:
    """A confusion matrix, filled image by image. Rows are the true classes, columns the predicted ones.

    classes: number of classes, including the background. Raises ValueError if it is below 1.

    >>> counts = Confusion(3).update([0, 1, 2, 2], [0, 1, 2, 255], ignore=255)  # prediction, label
    >>> counts.matrix.tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> round(counts.miou(), 3)
    1.0
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"classes is {classes}: pass the number of classes including the background, at least 1.")
        self.classes = classes
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)

    def update(
        self, prediction: Tensor | ArrayLike, label: Tensor | ArrayLike, ignore: int | Sequence[int] | None = None
    ) -> Confusion:
        """Count one image or a batch, and return self.

        prediction, label: integer arrays or tensors of the same shape. ignore: label value or values that do not count.
        Raises ValueError for different shapes, values that are not integers, or classes outside 0..classes-1.
        """
        predicted, true = _integers(prediction, "prediction"), _integers(label, "label")
        if predicted.shape != true.shape:
            raise ValueError(
                f"prediction {predicted.shape} and label {true.shape} differ: resize the scores to the label before assigning."
            )
        if ignore is not None:
            keep = ~np.isin(true, ignore)
            predicted, true = predicted[keep], true[keep]
        for what, values in (("prediction", predicted), ("label", true)):
            if values.size and not 0 <= values.min() <= values.max() < self.classes:
                raise ValueError(
                    f"{what} holds classes from {values.min()} to {values.max()}: expected 0 to {self.classes - 1}; "
                    "name values that are not classes in `ignore`."
                )
        pairs = true.ravel() * self.classes + predicted.ravel()
        self.matrix += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)
        return self

    def __add__(self, other: Confusion) -> Confusion:
        """Add the counts of both into a new matrix. Raises ValueError if the numbers of classes differ."""
        if self.classes != other.classes:
            raise ValueError(
                f"Cannot add counts over {self.classes} and {other.classes} classes: use the same class list for both."
            )
        total = Confusion(self.classes)
        total.matrix = self.matrix + other.matrix
        return total

    def intersection(self) -> NDArray[np.int64]:
        """Number of pixels of each class that are predicted as that class, [classes]."""
        return np.diagonal(self.matrix).copy()

    def union(self) -> NDArray[np.int64]:
        """Number of pixels that belong to each class or are predicted as it, [classes]."""
        union: NDArray[np.int64] = self.matrix.sum(0) + self.matrix.sum(1) - self.intersection()
        return union

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, [classes]; 0 for a class that never occurs."""
        return self.intersection() / (self.union() + _EPS)

    def miou(self, present_only: bool = False) -> float:
        """Mean IoU over all classes, including the background. As in the paper's protocol, an absent class counts as 0.

        present_only: leave out classes that occur neither in the labels nor in the predictions.
        """
        values = self.iou()
        if present_only:
            values = values[self.union() > 0]
        return float(values.mean()) if values.size else 0.0

    def pixel_accuracy(self) -> float:
        """Fraction of the counted pixels whose class is correct; 0 if none were counted."""
        return float(np.trace(self.matrix) / max(int(self.matrix.sum()), 1))


def _integers(values: Tensor | ArrayLike, what: str) -> NDArray[np.int64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{what} holds {array.dtype} values: pass integer class labels, not scores.")
    return array.astype(np.int64)
