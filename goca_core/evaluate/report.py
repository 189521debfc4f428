"""The report of an evaluation: its table, all figures as JSON, and sheets of the best, median and worst images."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..metrics import Confusion
from ..picture.drawing import contact_sheet, overlay
from .datasets.base import Dataset
from .methods import UNTUNED, Method
from .protocol import mean_iou
from .results_log import ResultsLog, add_cells
from .worker import Prediction

ROOT = Path(__file__).resolve().parents[2]
SHEETS = ("best", "median", "worst")


def pack_version() -> str:
    """The version of this pack: from its pyproject.toml, or from the installed package if that file is missing."""
    file = ROOT / "pyproject.toml"
    if file.is_file():
        found = re.search(r'^version = "(.+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    try:
        return importlib.metadata.version("goca")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers may depend on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "pillow")
    }


@dataclass(frozen=True)
class Figures:
    """The figures of one method at one theta. miou: mean over the classes that the data set scores."""

    theta: float
    miou: float
    accuracy: float
    iou: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        return {"theta": self.theta, "miou": self.miou, "accuracy": self.accuracy}


def figures(method: Method, sums: Sequence[Confusion], dataset: Dataset) -> list[Figures]:
    """Compute the figures of a resolved method at each of its thetas."""
    return [
        Figures(theta, mean_iou(counts, dataset.scored), counts.pixel_accuracy(), tuple(counts.iou().tolist()))
        for theta, counts in zip(method.thetas, sums, strict=True)
    ]


def best(found: Iterable[Figures]) -> Figures:
    """The figures at the theta with the highest mIoU, the smallest theta on a tie: as if theta had been tuned on labels."""
    return max(found, key=lambda one: (one.miou, -one.theta))


def untuned(method: Method, found: Iterable[Figures]) -> Figures | None:
    """The figures at the theta that needs no labels (`UNTUNED`), if the sweep contains it."""
    return next((one for one in found if abs(one.theta - UNTUNED[method.rule]) < 1e-9), None)


def results(methods: Sequence[Method], dataset: Dataset, log: ResultsLog) -> dict[str, Any]:
    """All figures of an evaluation as plain JSON."""
    classes = len(dataset.classes)
    sums = log.totals(classes)
    names = [name.name for name in dataset.classes]
    records = list(log.records())
    devices = Counter(record.on for record in records if record.on)
    unnamed = Counter(names[number] for record in records for number in record.unnamed)
    found: dict[str, Any] = {
        "pictures": len(log.done),
        "devices": dict(devices),
        "skipped": [{"key": one.key, "kind": one.kind, "error": one.error} for one in log.failed.values()],
        "skipped_by_kind": dict(Counter(one.kind for one in log.failed.values())),
        "unnamed": dict(unnamed.most_common()),
        "classes": names,
        "scored": [names[number] for number in dataset.scored],
        "methods": {},
    }
    for method in methods:
        matrices = sums.get(method.name, [Confusion(classes) for _ in method.thetas])
        sweep = figures(method, matrices, dataset)
        top, plain = best(sweep), untuned(method, sweep)
        seen = matrices[sweep.index(top)].matrix.sum(1) > 0
        found["methods"][method.name] = {
            "rule": method.rule,
            "best": {
                **top.summary(),
                "iou": dict(zip(names, top.iou, strict=True)),
                "miou_of_classes_that_occur": float(np.mean([top.iou[i] for i in dataset.scored if seen[i]] or [0.0])),
            },
            "untuned": None if plain is None else plain.summary(),
            "sweep": [one.summary() for one in sweep],
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table with one row per method. The first column names the evaluation and is the same in all rows."""
    lines = [
        "| run | method | rule | mIoU untuned | best mIoU | at theta | pixel accuracy | images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, method in found["methods"].items():
        plain, top = method["untuned"], method["best"]
        first = "-" if plain is None else f"{100 * plain['miou']:.1f}"
        lines.append(
            f"| {found['run']} | {name} | {method['rule']} | {first} | {100 * top['miou']:.1f} | {top['theta']:g} "
            f"| {100 * top['accuracy']:.1f} | {found['pictures']} |"
        )
    return "\n".join(lines)


def class_table(found: Mapping[str, Any]) -> str:
    """A Markdown table of the IoU of every class (rows) for every method (columns) at its best theta."""
    methods = found["methods"]
    lines = [f"| class | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for name in found["classes"]:
        values = (f"{100 * method['best']['iou'][name]:.1f}" for method in methods.values())
        mark = "" if name in found["scored"] else " (not in the mean)"
        lines.append(f"| {name}{mark} | {' | '.join(values)} |")
    return "\n".join(lines)


def skipped(found: Mapping[str, Any]) -> str:
    """One sentence about the skipped images; empty if there are none."""
    kinds = found["skipped_by_kind"]
    if not kinds:
        return ""
    total = sum(kinds.values())
    which = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{total} of {total + found['pictures']} images were skipped ({which})."


def unnamed(found: Mapping[str, Any]) -> str:
    """One sentence about the classes that images show but their prompts do not name; empty if there are none."""
    classes = found["unnamed"]
    if not classes:
        return ""
    which = ", ".join(f"{name} in {count}" for name, count in classes.items())
    return f"Some prompts do not name every class of their image; such a class counts as not found: {which}."


# -- sheets -----------------------------------------------------------------------------------------------------------


def ranking(log: ResultsLog, method: Method, theta: float, classes: int) -> list[tuple[float, str]]:
    """(mIoU, key) of every counted image, worst first. The mean is over the classes that occur in its label or prediction."""
    place = method.thetas.index(theta)
    found = (
        (add_cells(Confusion(classes), record.counts[method.name][place]).miou(present_only=True), record.key)
        for record in log.records()
        if not record.error
    )
    return sorted(found)


def picked(ranked: Sequence[tuple[float, str]], count: int) -> dict[str, list[tuple[float, str]]]:
    """Choose the images of each sheet: the best (best first), those around the median, and the worst (worst first)."""
    middle = max(0, (len(ranked) - count) // 2)
    chosen = (list(ranked[::-1][:count]), list(ranked[middle : middle + count]), list(ranked[:count]))
    return dict(zip(SHEETS, chosen, strict=True))


def sheet(shown: Sequence[tuple[Prediction, float]], names: Sequence[str], side: int = 320) -> Image.Image:
    """Draw one row per image: the image, its label, and its prediction with the mIoU of this image."""
    tiles: list[Image.Image] = []
    captions: list[str] = []
    for one, miou in shown:
        image = Image.fromarray(one.image)
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        present = sorted({*np.unique(one.truth).tolist(), *np.unique(one.prediction).tolist()} - {-1, 0})
        grey = image.convert("L").convert("RGB")  # so that colour always stands for a class
        tiles += [image, *(_tinted(grey, labels, present, names) for labels in (one.truth, one.prediction))]
        captions += [one.key, "label", f"predicted, mIoU {100 * miou:.1f}"]
    return contact_sheet(tiles, captions, columns=3)


def _tinted(image: Image.Image, labels: NDArray[np.int64], present: Sequence[int], names: Sequence[str]) -> Image.Image:
    if not present:
        return image
    masks = np.stack([labels == number for number in present])
    return overlay(image, masks, [names[number] for number in present], alpha=0.6)
