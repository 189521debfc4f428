"""One run's settings, and the worker that counts its pictures one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..attention.record import AttentionError
from ..words.match import PhraseError
from ..words.word_map import WordMapError
from .datasets.registry import IGNORE, DataError, Dataset, Item, open_dataset
from .methods import Method, needs
from .prompts.captions import (
    Prompt,
    all_classes_prompt,
    caption_prompt,
    load_captions,
    oracle_prompt,
    present_classes,
)
from .protocol import predict
from .results_log import Cells, Record, cells
from .scores import Scorer, alike

if TYPE_CHECKING:
    from ..capture.headless.model import LoadedModel

PROMPTS = ("auto", "present", "all", "captions")


@dataclass(frozen=True)
class Job:
    """Everything that the counts depend on, and where things are.

    data, root, split, reference, options: as `data.open_dataset` takes them. limit: only the first so many pictures.
    prompts: "present" names the classes of the ground truth, "all" every class, "captions" is a caption of the picture (from
    the file `captions`, or the data set's own), "auto" its own sentences where it has them and else "present".
    reference_captions: find the words of captions as the reference implementation does. methods: settled.
    checkpoint: None = the demo model. seed: of the noise. side: of the squares in which the model sees pictures, None = its
    own. keep_aspect: not squares, but of that area. lean: propagation on the grid that the nodes use by default, rather
    than on the finest. channel0: the reference affinity of the released code. threads: of the processor, per worker; with one
    thread, the result does not depend on the machine's number of them.
    """

    data: str
    methods: tuple[Method, ...]
    root: str | None = None
    split: str | None = None
    reference: bool = False
    options: tuple[tuple[str, int], ...] = ()
    limit: int | None = None
    prompts: str = "auto"
    captions: str | None = None
    reference_captions: bool = False
    checkpoint: str | None = None
    seed: int = 0
    side: int | None = None
    keep_aspect: bool = False
    lean: bool = False
    channel0: bool = False
    cpu: bool = False
    threads: int = 1

    def open(self) -> Dataset:
        """The data set. Raises DataError when there is nothing in it."""
        return open_dataset(self.data, self.root, split=self.split, reference=self.reference, **dict(self.options))

    def items(self, dataset: Dataset) -> tuple[Item, ...]:
        """The pictures of this run. Raises DataError when the limit leaves none."""
        items = dataset.items if self.limit is None else dataset.items[: max(0, self.limit)]
        if not items:
            raise DataError(f"No pictures are left of {self.data} with a limit of {self.limit}.", "empty")
        return items

    def mode(self, dataset: Dataset) -> str:
        """The kind of prompts, with "auto" decided."""
        if self.prompts != "auto":
            return self.prompts
        return "captions" if dataset.sentences else "present"

    def settings(self) -> dict[str, Any]:
        """What the counts depend on, as plain JSON; of files their content rather than their place."""
        said = asdict(self)
        for place in ("root", "checkpoint", "captions"):
            del said[place]
        if self.captions is not None:
            said["captions"] = hashlib.sha256(Path(self.captions).read_bytes()).hexdigest()
        return said


@dataclass(frozen=True)
class Task:
    """A picture to count; or, with a method and one of its thetas, a picture to show."""

    index: int
    method: str = ""
    theta: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """A picture [H, W, 3] with the true and the predicted class of every pixel [H, W]."""

    key: str
    picture: NDArray[np.uint8]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]


class Worker:
    """Does the tasks of a job. Cheap to make; the model is opened by the first task."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dataset = job.open()
        self.items = job.items(self.dataset)
        self._captions: Mapping[str, str] | None = None
        self._model: LoadedModel | None = None

    def do(self, task: Task) -> Record | Prediction:
        """Count or show. What is wrong with a picture is part of its record; anything else is raised."""
        if task.method:
            return self.show(task.index, task.method, task.theta)
        return self.count(task.index)

    @property
    def model(self) -> LoadedModel:
        if self._model is None:
            from ..capture.headless import open_model

            checkpoint = None if self.job.checkpoint is None else Path(self.job.checkpoint)
            self._model = open_model(checkpoint, cpu=self.job.cpu)
            torch.set_num_threads(self.job.threads)
        return self._model

    def count(self, index: int) -> Record:
        """The counts of one picture, by every method."""
        item = self.items[index]
        try:
            _, truth, prompt, found = self._segment(item, self.job.methods)
        except DataError as error:
            return Record(item.key, error=str(error), kind=error.kind)
        except (PhraseError, WordMapError) as error:
            return Record(item.key, error=f"{item.key}: {error}", kind="words")
        except AttentionError as error:
            return Record(item.key, error=f"{item.key}: {error}", kind="attention")
        except OSError as error:
            return Record(item.key, error=f"{item.key}: {error}", kind="unreadable")
        counts: dict[str, tuple[Cells, ...]] = {
            name: cells(labels, truth, len(self.dataset.classes), IGNORE) for name, labels in found.items()
        }
        unnamed = [number for number in present_classes(truth) if number not in prompt.objects]
        return Record(item.key, counts, on="" if self._model is None else self._model.device, unnamed=unnamed)

    def show(self, index: int, method: str, theta: float) -> Prediction:
        """The same prediction as was counted, to look at."""
        item = self.items[index]
        chosen = next(known for known in self.job.methods if known.name == method)
        picture, truth, _, found = self._segment(item, [replace(chosen, thetas=(theta,))])
        return Prediction(item.key, picture, truth, found[method][0])

    def _segment(
        self, item: Item, methods: Sequence[Method]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], Prompt, dict[str, NDArray[np.int64]]]:
        """The picture, its label, its prompt, and for every method the predictions [T, H, W] at its thetas."""
        truth = self.dataset.label(item)
        picture = self.dataset.picture(item)
        prompt = self._prompt(item, present_classes(truth))
        if not prompt.objects:
            # Nothing is asked for, so everything is background; no model is needed for that.
            nothing = {method.name: np.zeros((len(method.thetas), *truth.shape), np.int64) for method in methods}
            return picture, truth, prompt, nothing
        with torch.inference_mode():
            scorer = self._record(item, picture, prompt, methods)
            found = {}
            for method in alike(methods):
                scores, background = scorer.scores(method)
                labels = predict(
                    scores,
                    background,
                    scorer.columns.ids,
                    len(self.dataset.classes),
                    truth.shape,
                    method.rule,
                    method.thetas,
                )
                found[method.name] = labels.cpu().numpy()
        return picture, truth, prompt, found

    def _record(self, item: Item, picture: NDArray[np.uint8], prompt: Prompt, methods: Sequence[Method]) -> Scorer:
        """One recording for each noise level and draw, for all methods together."""
        job, model = self.job, self.model
        encoded = model.encode(picture, prompt.text, job.side, job.keep_aspect)
        records = {
            view: model.record(
                encoded,
                model.sigma(view.level),
                noise_seed(job.seed, item.key, view.draw),
                flip=view.flip,
                head_methods="all" if maps.all_heads else "auto",
                layer_methods="all" if maps.all_layers else "auto",
                affinity_parts=maps.affinity_parts,
                full_affinity=not job.lean,
                reference_channel0=job.channel0,
            )
            for view, maps in needs(methods, model.defaults).items()
        }
        return Scorer(records, prompt, picture)

    def _prompt(self, item: Item, present: tuple[int, ...]) -> Prompt:
        mode = self.job.mode(self.dataset)
        if mode == "all":
            return all_classes_prompt(self.dataset)
        if mode == "present":
            return oracle_prompt(self.dataset, present)
        caption = self._caption(item)
        return caption_prompt(self.dataset, caption, present, reference=self.job.reference_captions)

    def _caption(self, item: Item) -> str:
        if self.job.captions is None:
            caption = self.dataset.caption(item)
        else:
            if self._captions is None:
                self._captions = load_captions(self.job.captions)
            # Written by file, and so by the last part of names that have folders in them.
            names = (item.key, PurePosixPath(item.key).name, "" if item.image is None else item.image.stem)
            caption = next((self._captions[name] for name in names if name in self._captions), None)
        if caption is None:
            raise DataError(f"There is no caption for the picture {item.key}.", "caption")
        if not caption.strip():
            raise DataError(f"The caption of the picture {item.key} is empty.", "caption")
        return caption


def noise_seed(seed: int, key: str, draw: int) -> int:
    """The seed of the noise of one draw: of the picture's name, so that neither order nor worker changes it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {draw} {key}".encode()).digest()[:8], "big") >> 1
