"""Record attention while any sampler runs, and look up the recordings by the latents that the runs returned."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ..attention.record import Attention, AttentionError
from .finished import FinishedRuns
from .hooks import SamplingPatch
from .options import RecordOptions
from .run import RecordingRun
from .window import Window

R = TypeVar("R", bound=RecordingRun)


class RunRecorder(SamplingPatch[R]):
    """A patch whose finished runs can be looked up by the latent that they returned.

    ``finished``: the finished-run cache, shared by all recorders of this kind.
    """

    finished: ClassVar[FinishedRuns[Any]]
    _unknown: ClassVar[str]

    @property
    @abstractmethod
    def asked(self) -> Hashable:
        """The settings of its recordings: recorders with the same settings find each other's runs."""

    def finish_run(self, run: R, samples: Tensor) -> None:
        latents = [samples] if run.denoised is None else [samples, run.denoised]
        run.close()
        self.finished.add(self.asked, latents, run)

    def find(self, samples: Tensor) -> R:
        """The run that returned ``samples`` (of a LATENT), or a video with sound whose video they are.

        Raises AttentionError when there is none.
        """
        if getattr(samples, "is_nested", False):
            samples = samples.unbind()[0]
        if not isinstance(samples, Tensor):
            raise AttentionError(
                f"The latent is a {type(samples).__name__} instead of a tensor; connect the sampler's own LATENT."
            )
        if samples.numel() == 0:
            size = "x".join(map(str, samples.shape))
            raise AttentionError(
                f"The latent is empty (its size is {size}); give the sampler an image of at least one latent pixel."
            )
        run: R | None = self.finished.find(self.asked, samples)
        if run is None:
            raise AttentionError(self._unknown)
        return run


class Recorder(RunRecorder[RecordingRun]):
    """The recorder of Record Attention: while samplers run, it records the attention of each run."""

    key = "goca_record"
    finished = FinishedRuns()
    _unknown = (
        "This LATENT was not made by a sampler that records with this recorder: wire the MODEL that comes out of "
        "Record Attention into the sampler, and the sampler's own LATENT, unchanged, into the node that gets the recorder "
        "(only the last runs are kept)."
    )

    def __init__(self, window: Window, options: RecordOptions) -> None:
        super().__init__()
        self.window, self.options = window, options

    @property
    def asked(self) -> Hashable:
        return self.window, self.options

    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> RecordingRun:
        return RecordingRun(guider, shape, sigmas, self.window, self.options)

    def collect(self, samples: Tensor, entry: int = 0) -> Attention:
        """The recording of the run that returned ``samples`` (of a LATENT).

        ``entry``: which positive conditioning, if several were combined. Raises AttentionError when nothing was recorded;
        the message says why.
        """
        return self.find(samples).attention(entry)


def record(model: Any, window: Window, options: RecordOptions | None = None) -> tuple[Any, Recorder]:
    """A copy of a MODEL that records attention, and its recorder.

    Raises UnknownFamily for a model that cannot be recorded.
    """
    recorder = Recorder(window, options or RecordOptions())
    return recorder.install(model), recorder
