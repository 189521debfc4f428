"""The settings of an evaluation, and the worker that evaluates its images one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..attention.record import AttentionError
from ..words.match import PhraseError
from ..words.word_map import WordMapError
from .datasets.base import IGNORE, DataError, Dataset, Item
from .datasets.registry import open_dataset
from .methods import Method, needs
from .prompts.captions import Prompt, all_classes_prompt, caption_prompt, load_captions, oracle_prompt, present_classes
from .protocol import predict
from .results_log import Cells, Record, cells
from .scores import Scorer, group_by_scores

if TYPE_CHECKING:
    from ..capture.headless.model import LoadedModel

PROMPTS = ("auto", "present", "all", "captions")


@dataclass(frozen=True)
class Job:
    """All settings that the counts depend on, and the paths of the data and the checkpoint.

    data, root, split, reference, options: arguments of `datasets.registry.open_dataset`. methods: resolved methods.
    limit: evaluate only the first images, at most this many.
    prompts: "present" names the classes of the label, "all" names every class, "captions" uses a caption of the image (from
    the file `captions`, or from the data set). "auto" uses the captions of data sets whose captions are sentences, and
    "present" for all others.
    reference_captions: find the words of captions as the reference implementation does.
    checkpoint: path of the model, None for the demo model. seed: seed of the noise.
    side: side in pixels of the square that images are resized to, None for the model's own. keep_aspect: keep the
    proportions of the image, at the area of that square. lean: propagate on the grid that the nodes use by default instead
    of the finest. channel0: use the reference affinity of the released code.
    cpu: do not use a GPU. threads: CPU threads per worker; with one, results do not depend on the number of CPU cores.
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
        """Open the data set. Raises DataError when it has no images."""
        return open_dataset(self.data, self.root, split=self.split, reference=self.reference, **dict(self.options))

    def items(self, dataset: Dataset) -> tuple[Item, ...]:
        """The images to evaluate. Raises DataError when the limit leaves none."""
        items = dataset.items if self.limit is None else dataset.items[: max(0, self.limit)]
        if not items:
            raise DataError(f"A limit of {self.limit} leaves no images of {self.data}: use 1 or more.", "empty")
        return items

    def mode(self, dataset: Dataset) -> str:
        """The kind of prompts, with "auto" resolved."""
        if self.prompts != "auto":
            return self.prompts
        return "captions" if dataset.sentences else "present"

    def settings(self) -> dict[str, Any]:
        """The settings that the counts depend on, as plain JSON. Files count by their content, not by their path."""
        settings = asdict(self)
        for path in ("root", "checkpoint", "captions"):
            del settings[path]
        if self.captions is not None:
            settings["captions"] = hashlib.sha256(Path(self.captions).read_bytes()).hexdigest()
        return settings


@dataclass(frozen=True)
class Task:
    """An image to count, or, with a method and one of its thetas, an image whose prediction is wanted for a sheet."""

    index: int
    method: str = ""
    theta: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """An image, uint8 [H, W, 3], with the true and the predicted class of every pixel, int64 [H, W]."""

    key: str
    image: NDArray[np.uint8]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]


class Worker:
    """Runs the tasks of a job. Cheap to create: the first task that needs the model loads it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dataset = job.open()
        self.items = job.items(self.dataset)
        self._captions: Mapping[str, str] | None = None
        self._model: LoadedModel | None = None

    def map(self, tasks: Iterable[Task]) -> Iterator[Record | Prediction]:
        """Run tasks one after the other."""
        return map(self.do, tasks)

    def do(self, task: Task) -> Record | Prediction:
        """Run one task. Bad data is reported in the record of its image; any other error is raised."""
        if task.method:
            return self.predict(task.index, task.method, task.theta)
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
        """Count one image with every method."""
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

    def predict(self, index: int, method: str, theta: float) -> Prediction:
        """Repeat a prediction that was counted, for a sheet."""
        item = self.items[index]
        chosen = next(known for known in self.job.methods if known.name == method)
        image, truth, _, found = self._segment(item, [replace(chosen, thetas=(theta,))])
        return Prediction(item.key, image, truth, found[method][0])

    def _segment(
        self, item: Item, methods: Sequence[Method]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], Prompt, dict[str, NDArray[np.int64]]]:
        """Return the image, its label, its prompt, and the predictions [T, H, W] of every method at its thetas."""
        truth = self.dataset.label(item)
        image = self.dataset.image(item)
        prompt = self._prompt(item, present_classes(truth))
        if not prompt.objects:
            # The prompt names no class, so everything is background, and the model is not needed.
            nothing = {method.name: np.zeros((len(method.thetas), *truth.shape), np.int64) for method in methods}
            return image, truth, prompt, nothing
        with torch.inference_mode():
            scorer = self._record(item, image, prompt, methods)
            ids, classes = scorer.columns.ids, len(self.dataset.classes)
            found = {}
            for method in group_by_scores(methods):
                scores, background = scorer.scores(method)
                labels = predict(scores, background, ids, classes, truth.shape, method.rule, method.thetas)
                found[method.name] = labels.cpu().numpy()
        return image, truth, prompt, found

    def _record(self, item: Item, image: NDArray[np.uint8], prompt: Prompt, methods: Sequence[Method]) -> Scorer:
        """Record each noise level and draw once, for all methods together."""
        job, model = self.job, self.model
        encoded = model.encode(image, prompt.text, job.side, job.keep_aspect)
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
        return Scorer(records, prompt, image)

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
            # Captions are listed by file name, so without the folders that a key may contain.
            names = (item.key, PurePosixPath(item.key).name, "" if item.image is None else item.image.stem)
            caption = next((self._captions[name] for name in names if name in self._captions), None)
        if caption is None:
            raise DataError(f"There is no caption for the image {item.key}.", "caption")
        if not caption.strip():
            raise DataError(f"The caption of the image {item.key} is empty.", "caption")
        return caption


def noise_seed(seed: int, key: str, draw: int) -> int:
    """The seed of one draw of the noise. It depends on the image's key, not on the order of images or the worker."""
    return int.from_bytes(hashlib.sha256(f"{seed} {draw} {key}".encode()).digest()[:8], "big") >> 1
