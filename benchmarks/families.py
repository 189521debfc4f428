"""How good are the masks on each family of models? Measures trained miniatures and the demo model on scenes with known masks.

    python benchmarks/families.py demo flux.safetensors zimage.safetensors --scenes 100 --out results

Each scene is recorded twice, as Segment Image does it with its two methods, and every setting makes its masks from
the same recordings. "paper" has everything on auto, too, which stands for the paper's choices in such a recording.
Prints Markdown tables with the mean intersection over union of the shapes and the background in percent, untuned,
with the 95 % interval over scenes (bootstrap). There are three kinds of captions: those that name the background,
those that do not, and those that name one more object than the image has. For the last kind, a second table says how
often the mask of that object is empty, or at most 1 % of the image. With the same --out, a stopped run continues, and
scenes that are already there are not measured again; use another folder after a change of the code. A hundred scenes
take two to three minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import Attention
from goca_core.capture.options import RECORD_METHODS, RecordOptions
from goca_core.pipeline import MaskRequest, Scoring, as_scoring, make_masks, sharpened
from scripts.boot import boot

if TYPE_CHECKING:
    from benchmarks.minis.subjects import Case, Subject

# Settings are chosen on scenes of one seed, and reported on those of another.
CHOOSING_SEED = 510_001
REPORTING_SEED = 880_001
# Scenes on which no rule was tried before it was complete; of these, 40 to 139 were measured once, for the final table.
FRESH_SEED = 990_001
SEEDS = {"choosing": CHOOSING_SEED, "reporting": REPORTING_SEED, "fresh": FRESH_SEED}
# Captions that name the objects and the background; the objects alone; the objects, one more, and the background.
KINDS = ("full", "no background", "absent")
# A mask of at most this fraction of the image counts as empty.
EMPTY = 0.01
RESAMPLED = 1000

# (recording, image [F, H, W, 3], phrases, one per line) -> masks [F, K, H, W]
Setting = Callable[[Attention, torch.Tensor, str], torch.Tensor]


def auto(record: Attention, _image: torch.Tensor, phrases: str) -> torch.Tensor:
    """What Mask From Tokens makes of a recording, with everything on auto."""
    return make_masks(record, MaskRequest(phrases)).masks


def auto_with_image(record: Attention, image: torch.Tensor, phrases: str) -> torch.Tensor:
    """The same with the image connected."""
    return make_masks(sharpened(as_scoring(record), image), MaskRequest(phrases)).masks


def every_phrase(record: Attention, _image: torch.Tensor, phrases: str) -> torch.Tensor:
    """Everything on auto, but no phrase is skipped as absent."""
    return make_masks(record, MaskRequest(phrases, skip_absent=False)).masks


def one_by_one(record: Attention, _image: torch.Tensor, phrases: str) -> torch.Tensor:
    """Everything on auto, with a request for each phrase, as of a user who wants one mask."""
    return torch.cat([make_masks(record, MaskRequest(phrase)).masks for phrase in phrases.split("\n")], 1)


def _plain(record: Attention, phrases: str, steps: int, **rule: Any) -> torch.Tensor:
    scoring = Scoring(aggregate(record, "average", "vanilla"), "per-token renorm+")
    return make_masks(scoring, MaskRequest(phrases, propagation_steps=steps, **rule)).masks


def plain(record: Attention, _image: torch.Tensor, phrases: str) -> torch.Tensor:
    """All heads and layers equally, no rescaling, a plain threshold at one half."""
    return _plain(record, phrases, record.defaults.propagation_steps, rule="vanilla", theta=0.5)


def plain_without_propagation(record: Attention, _image: torch.Tensor, phrases: str) -> torch.Tensor:
    return _plain(record, phrases, 0, rule="vanilla", theta=0.5)


def plain_with_background(record: Attention, _image: torch.Tensor, phrases: str) -> torch.Tensor:
    """The same with the paper's background rule instead of the threshold."""
    return _plain(record, phrases, record.defaults.propagation_steps)


AUTO, PAPER = (RecordOptions(method=method) for method in RECORD_METHODS)

# What is recorded for a setting, and how masks are made of it.
SETTINGS: dict[str, tuple[RecordOptions, Setting]] = {
    "auto": (AUTO, auto),
    "auto, with the image": (AUTO, auto_with_image),
    "auto, no phrase skipped": (AUTO, every_phrase),
    "auto, one phrase at a time": (AUTO, one_by_one),
    "paper": (PAPER, auto),
    "paper, one phrase at a time": (PAPER, one_by_one),
    "paper, with the image": (PAPER, auto_with_image),
    "plain averaging, threshold at one half": (PAPER, plain),
    "plain averaging, threshold at one half, no propagation": (PAPER, plain_without_propagation),
    "plain averaging, the paper's background rule": (PAPER, plain_with_background),
}


# -- measuring ------------------------------------------------------------------------------------------------------------


def confusion(case: Case, masks: torch.Tensor, classes: int) -> NDArray[np.int64]:
    """Pixels [true class, class found]. masks: [F, K, H, W] of the case's phrases."""
    table = np.array([0, *case.classes], np.int64)
    found = table[torch.cat((torch.full_like(masks[:, :1], 0.5), masks), 1).argmax(1).numpy()]
    return np.bincount((case.truth * classes + found).ravel(), minlength=classes**2).reshape(classes, classes)


def measure(subject: Subject, seed: int, kind: str, number: int, settings: Iterable[str]) -> dict[str, Any]:
    """One line of the results: for each setting the confusion matrix, and the area of the mask of the absent object."""
    from benchmarks.minis.subjects import record

    case = subject.case(seed, number, kind)
    line, recordings = dict[str, Any](seed=seed, kind=kind, scene=number), dict[RecordOptions, Attention]()
    for name in settings:
        options, setting = SETTINGS[name]
        if options not in recordings:
            recordings[options] = record(subject, case, options)
        with torch.inference_mode():
            masks = setting(recordings[options], case.pixels, "\n".join(case.phrases))
        area = float(masks[:, -1].mean()) if case.absent else None
        line[name] = {"counts": confusion(case, masks, len(subject.names)).tolist(), "absent": area}
    return line


def ious(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class, in percent; NaN for one that is not in the truth."""
    own, true = counts.diagonal(), counts.sum(1)
    union = true + counts.sum(0) - own
    found: NDArray[np.float64] = np.where(true > 0, 100 * own / np.maximum(union, 1), np.nan)
    return found


def miou(counts: NDArray[np.int64]) -> float:
    """The mean over the classes that are in the truth."""
    return float(np.nanmean(ious(counts)))


def together(counts: NDArray[np.int64]) -> float:
    """mIoU of scenes together, from [scenes, C, C]."""
    return miou(counts.sum(0))


def interval(scenes: NDArray[Any], of: Callable[[NDArray[Any]], float] = together) -> tuple[float, float, float]:
    """A measure of some scenes, and its 95 % interval when scenes are drawn again."""
    rng = np.random.default_rng(0)
    again = [of(scenes[rng.integers(len(scenes), size=len(scenes))]) for _ in range(RESAMPLED)]
    low, high = np.percentile(again, [2.5, 97.5])
    return of(scenes), float(low), float(high)


# -- results --------------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that was cut off, at the end of a stopped run, is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def run(subject: Subject, options: argparse.Namespace, file: Path) -> list[dict[str, Any]]:
    """Measure what the results file lacks, adding a line for each scene, and return all that was asked for."""
    seed, numbers = SEEDS[options.seed], range(options.first, options.first + options.scenes)
    known = {(one["seed"], one["kind"], one["scene"]): one for one in read(file)}
    wanted = [(seed, kind, number) for kind in options.kinds for number in numbers]
    for key in wanted:
        missing = [name for name in options.settings if name not in known.get(key, {})]
        if missing:
            known[key] = {**known.get(key, {}), **measure(subject, *key, missing)}
            with file.open("a", encoding="utf-8") as out:
                # On a new line, even where a stopped run has left half of one.
                out.write(("\n" if out.tell() else "") + json.dumps(known[key]))
    return [known[key] for key in wanted]


def tables(results: dict[str, list[dict[str, Any]]], kinds: Sequence[str], settings: Sequence[str]) -> Iterator[str]:
    """One Markdown table of mIoU for each kind of caption, and one of absent objects."""
    heads = f"| setting | {' | '.join(results)} |\n|---|{'---|' * len(results)}"
    for kind in kinds:
        yield f"\n### Captions: {kind}\n\n{heads}"
        for name in settings:
            cells = []
            for lines in results.values():
                counts = np.array([line[name]["counts"] for line in lines if line["kind"] == kind])
                mean, low, high = interval(counts)
                cells.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
            yield f"| {name} | {' | '.join(cells)} |"
    if "absent" not in kinds:
        return
    yield f"\n### Scenes in which the mask of the absent object is empty, percent\n\n{heads}"
    for name in settings:
        areas = [[line[name]["absent"] for line in lines if line["kind"] == "absent"] for lines in results.values()]
        yield f"| {name} | {' | '.join(f'{100 * np.mean(np.array(own) <= EMPTY):.0f}' for own in areas)} |"


def by_class(lines: list[dict[str, Any]], names: Sequence[str], kind: str, settings: Sequence[str]) -> Iterator[str]:
    """Markdown tables of one model and one kind of caption: a row for each class, then the mean of the images."""
    yield f"| | scenes | {' | '.join(settings)} |\n|---|{'---|' * (1 + len(settings))}"
    counts = {name: np.array([line[name]["counts"] for line in lines if line["kind"] == kind]) for name in settings}
    there = counts[settings[0]].sum(2) > 0
    scenes, objects = there.sum(0), there.sum(1) - 1
    found = np.stack([ious(each.sum(0)) for each in counts.values()])
    for number, name in enumerate(names):
        if scenes[number]:
            yield f"| {name} | {scenes[number]} | {' | '.join(f'{value:.1f}' for value in found[:, number])} |"
    numbers = sorted(set(objects.tolist()))
    heads = ("mean of images", "all", *(f"{n} besides the background" for n in numbers))
    yield f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for name, each in counts.items():
        # A scene's own mIoU does not change when scenes are drawn again.
        own = np.array([miou(one) for one in each])
        mean, low, high = interval(own, lambda drawn: float(drawn.mean()))
        several = " | ".join(f"{own[objects == n].mean():.1f}" for n in numbers)
        yield f"| {name} | {mean:.1f} ({low:.1f} to {high:.1f}) | {several} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="+", help="'demo' (shapes), 'things', or files with other weights of these or of miniatures"
    )
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--seed", choices=list(SEEDS), default="reporting", help="which scenes")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of captions")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--by-class", action="store_true", help="also a table of the classes for each model")
    parser.add_argument("--out", type=Path, default=Path("families"), help="folder for the results")
    options = parser.parse_args()
    boot("--cpu")  # miniatures are small, and a CPU gives everyone the same numbers
    from benchmarks.minis.subjects import open_subject

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    names: dict[str, Sequence[str]] = {}
    for model in options.models:
        subject = open_subject(model)
        names[subject.name] = subject.names
        results[subject.name] = run(subject, options, options.out / f"{subject.name}.jsonl")
    which = f"from number {options.first} on, seed {SEEDS[options.seed]} ({options.seed})"
    print(f"{options.scenes} scenes of each kind, {which}, mIoU in percent")
    print("\n".join(tables(results, options.kinds, options.settings)))
    for name, kind in itertools.product(results if options.by_class else (), options.kinds):
        print(f"\n### Classes: {name}, {kind}\n")
        print("\n".join(by_class(results[name], names[name], kind, options.settings)))


if __name__ == "__main__":
    main()
