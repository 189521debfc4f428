"""The results log: the counts of every image, one line of JSON each, appended as soon as they are known.

An evaluation that was killed continues where it stopped. An image is in the file completely or not at all, and is never
counted twice. Counts are integers, so neither the order of the images nor the number of workers changes the sums.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import why_not
from ..metrics import Confusion
from ..words.word import is_within

FORMAT = 1
_HEAD = "goca_evaluation"
_MOST_PIXELS = 2**40

Cells = tuple[int, ...]
"""The non-zero cells of a confusion matrix, as pairs of index (true class * classes + predicted class) and pixel count."""


class ResultsLogError(ValueError):
    """The log has other settings or cannot be read. The message is one sentence that says what to do."""


@dataclass(frozen=True)
class Record:
    """The result of one image: `counts`, method -> the cells for each of its thetas; or an `error` and its `kind`.

    on: the device. unnamed: ids of classes that the image shows but its prompt does not name; they count as not found.
    """

    key: str
    counts: Mapping[str, Sequence[Cells]] = field(default_factory=dict)
    error: str = ""
    kind: str = ""
    on: str = ""
    unnamed: Sequence[int] = ()


def cells(labels: NDArray[Any], truth: NDArray[np.int64], classes: int, ignore: int) -> tuple[Cells, ...]:
    """Count the pixels of one image by true and predicted class, for each threshold.

    labels: integer predictions [T, H, W] for T thresholds. truth: label [H, W]; pixels with the value `ignore` do not count.
    Raises ValueError for sizes that differ or classes outside 0..classes-1.
    """
    if labels.shape[1:] != truth.shape:
        raise ValueError(
            f"The prediction is {labels.shape[1:]} and the label {truth.shape}: they must have the same size."
        )
    keep = truth != ignore
    # Indexing with a mask copies, even when the mask keeps every pixel.
    true, found = (truth.ravel(), labels.reshape(len(labels), -1)) if keep.all() else (truth[keep], labels[:, keep])
    for what, values in (("label", true), ("prediction", found)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"The {what} holds classes from {values.min()} to {values.max()}, outside 0..{classes - 1}."
            )
    size = classes**2
    shift = np.arange(len(found), dtype=np.int64)[:, None] * size
    sums = np.bincount((found + true * classes + shift).ravel(), minlength=len(found) * size).reshape(len(found), size)
    rows = []
    for row in sums:
        (used,) = row.nonzero()
        rows.append(tuple(np.stack((used, row[used]), 1).ravel().tolist()))
    return tuple(rows)


def add_cells(counts: Confusion, row: Sequence[int]) -> Confusion:
    """Add one row of `cells` to the counts of a confusion matrix, and return it."""
    pairs = np.asarray(row, dtype=np.int64).reshape(-1, 2)
    counts.matrix.ravel()[pairs[:, 0]] += pairs[:, 1]
    return counts


@dataclass(frozen=True)
class Expected:
    """What the lines of a log may hold: the keys of the images, method -> its number of thetas, the number of classes."""

    keys: Collection[str]
    thetas: Mapping[str, int]
    classes: int

    def fits(self, line: Mapping[str, Any]) -> bool:
        """Whether a line could have been written by this evaluation."""
        if not all(type(line.get(name, "")) is str for name in ("key", "error", "kind", "on")):
            return False
        if line["key"] not in self.keys or not self._are_classes(line.get("unnamed", [])):
            return False
        counts = line.get("counts", {})
        if line.get("error"):
            return counts == {}
        if type(counts) is not dict or counts.keys() != self.thetas.keys():
            return False
        if not all(type(counts[name]) is list and len(counts[name]) == many for name, many in self.thetas.items()):
            return False
        rows = [row for rows in counts.values() for row in rows]
        # Every prediction covers the same pixels.
        return all(self._are_cells(row) for row in rows) and len({sum(row[1::2]) for row in rows}) <= 1

    def _are_classes(self, numbers: Any) -> bool:
        if type(numbers) is not list or not all(is_within(number, 1, self.classes - 1) for number in numbers):
            return False
        return len(set(numbers)) == len(numbers)

    def _are_cells(self, row: Any) -> bool:
        if type(row) is not list or len(row) % 2:
            return False
        places, pixels = row[::2], row[1::2]
        return (
            all(is_within(place, 0, self.classes**2 - 1) for place in places)
            and all(first < second for first, second in pairwise(places))
            and all(is_within(count, 1, _MOST_PIXELS) for count in pixels)
        )


class ResultsLog:
    """The log file of one evaluation.

    head: everything that the counts depend on, as plain JSON; a file with another head is refused.
    expected: what its lines may hold; a file with other lines is refused.
    done: keys of the images already counted. failed: images that ended in an error, which are tried again.
    Raises ResultsLogError for a file with other settings or one that cannot be read, and when it cannot be written.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], expected: Expected) -> None:
        self.path, self.done, self.failed = path, set[str](), dict[str, Record]()
        self._head = json.loads(json.dumps(head))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_partial_line()
            if path.is_file() and path.stat().st_size:
                self._check_head()
                self._read_lines(expected)
            else:
                self._append({_HEAD: FORMAT, **self._head})
        except OSError as error:
            raise ResultsLogError(f"{path} cannot be read or written: {why_not(error)}.") from error

    def add(self, record: Record) -> bool:
        """Append a record. Does nothing and returns False if its image has already been counted."""
        if record.key in self.done:
            return False
        line: dict[str, Any] = {"key": record.key, "on": record.on}
        line |= {"error": record.error, "kind": record.kind} if record.error else {"counts": record.counts}
        line |= {"unnamed": list(record.unnamed)} if record.unnamed else {}
        self._append(line)
        self._note(record)
        return True

    def records(self) -> Iterator[Record]:
        """Yield each image once: its first counts, in the order of the file, or else its last error."""
        counted: set[str] = set()
        errors: dict[str, Record] = {}
        for line in self._lines():
            record = _record(line)
            if record.error:
                errors[record.key] = record
            elif record.key not in counted:
                counted.add(record.key)
                yield record
        yield from (record for key, record in errors.items() if key not in counted)

    def totals(self, classes: int) -> dict[str, list[Confusion]]:
        """The sums over all images: method -> one matrix for each of its thetas."""
        sums: dict[str, list[Confusion]] = {}
        for record in self.records():
            for method, rows in record.counts.items():
                totals = sums.setdefault(method, [Confusion(classes) for _ in rows])
                for total, row in zip(totals, rows, strict=True):
                    add_cells(total, row)
        return sums

    def _note(self, record: Record) -> None:
        """Take a line of the file into account; an error after the counts of its image does not matter."""
        if record.error:
            if record.key not in self.done:
                self.failed[record.key] = record
        else:
            self.failed.pop(record.key, None)
            self.done.add(record.key)

    def _append(self, line: Mapping[str, Any]) -> None:
        # One write, flushed to disk before the next image: a killed process leaves at most the last line incomplete.
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._drop_partial_line()
            raise ResultsLogError(
                f"{self.path} cannot be written: {why_not(error)}. (Everything counted so far is kept.)"
            ) from error

    def _drop_partial_line(self) -> None:
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        with self.path.open("r+b") as file:
            # Mapped, not read: a log may be large.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                end = data.rfind(b"\n") + 1
            file.truncate(end)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The lines after the head."""
        with self.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if number > 1:
                    yield self._read(number, text)

    def _read(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text, object_pairs_hook=_once)
            if type(line) is dict and "key" in line:
                return line
        except (ValueError, RecursionError):
            pass
        raise self._wrong_line(number, "cannot be read")

    def _wrong_line(self, number: int, why: str) -> ResultsLogError:
        return ResultsLogError(
            f"Line {number} of {self.path.name} {why}: delete that line (its image is then counted again), or choose "
            "another folder."
        )

    def _wrong_version(self) -> ResultsLogError:
        return ResultsLogError(f"{self.path} is not a results log of this version: choose another folder.")

    def _check_head(self) -> None:
        with self.path.open("rb") as file:
            text = file.readline()
        try:
            found = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            found = None
        if type(found) is not dict or found.pop(_HEAD, None) != FORMAT:
            raise self._wrong_version()
        for group in {**self._head, **found}:
            ours, theirs = (head.get(group) for head in (self._head, found))
            if ours == theirs:
                continue
            where = _difference(group, theirs, ours)
            raise ResultsLogError(
                f"{self.path.parent} holds an evaluation with other settings ({where}): use the same settings to continue "
                "it, or choose another folder."
            )

    def _read_lines(self, expected: Expected) -> None:
        """Note what was counted. Lines that no evaluation writes are refused, such as those that were edited by hand: they
        would count wrongly."""
        for number, line in enumerate(self._lines(), start=2):
            if not expected.fits(line):
                raise self._wrong_line(number, "does not hold the counts of an image of this evaluation")
            self._note(_record(line))


def _record(line: Mapping[str, Any]) -> Record:
    return Record(**{one.name: line[one.name] for one in fields(Record) if one.name in line})


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that occurs twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("repeated name")
    return found


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """Describe the first setting that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        key = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
        return _difference(key, theirs.get(key), ours.get(key))
    shown = [text if len(text) <= 60 else f"{text[:60]}..." for text in (json.dumps(theirs), json.dumps(ours))]
    return f"{name} was {shown[0]} and is now {shown[1]}"
