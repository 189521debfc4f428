"""Semantic guidance while any sampler runs: record every step, and weigh guidance by region.

The weighing is done after the guidance of the host and of other nodes (a post-CFG function), so that they compose:
plain guidance is u + w (c - u), semantic guidance u + w r (c - u), and the difference w (r - 1) (c - u) is added to
whatever came before. The host hands these functions predictions of the clean latent; the rate r does not depend on the
kind of prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...guidance.rate import rate_map
from ...guidance.semantic import Settings
from ...words.word_map import WordMap
from ..hooks import SamplingPatch
from .run import GuidanceRun


class SemanticGuidance(SamplingPatch[GuidanceRun]):
    """What a guided MODEL carries: the wrappers of every patch, and a post-CFG function."""

    key = "goca_semantic_cfg"

    def __init__(self, settings: Settings, start: float = 0.0, end: float = 1.0, words: WordMap | None = None) -> None:
        super().__init__()
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"Semantic guidance would work from {start:g} to {end:g} of sampling (0 to 1); start must be below end."
            )
        self.settings, self.start, self.end, self.words = settings, start, end, words

    def install(self, model: Any) -> Any:
        """A copy of a MODEL (ModelPatcher) with semantic guidance; a second one on it takes the place of the first.

        Raises UnknownFamily for a kind whose attention cannot be recorded.
        """
        patched = super().install(model)
        others = patched.model_options.get("sampler_post_cfg_function", [])
        patched.model_options["sampler_post_cfg_function"] = [
            function for function in others if not isinstance(function, SemanticGuidance)
        ]
        patched.set_model_sampler_post_cfg_function(self)
        return patched

    def open_run(self, guider: Any, noise: Tensor, sigmas: Tensor) -> GuidanceRun:
        return GuidanceRun(guider, noise, self.settings, (self.start, self.end), self.words)

    # -- the post-CFG function --------------------------------------------------------------------------------------

    def __call__(self, args: Mapping[str, Any]) -> Tensor:
        denoised: Tensor = args["denoised"]
        run = self.current
        # Without a negative there is no guidance to weigh (cfg 1).
        if run is None or not run.working or args.get("uncond") is None:
            return denoised
        cond, uncond, scale = args["cond_denoised"], args["uncond_denoised"], float(args["cond_scale"])
        try:
            regions = run.regions(args["cond"], args["uncond"])
            if regions is None:
                return denoised
            chosen = self.settings
            limits = chosen.minimum, chosen.maximum, chosen.ceiling, chosen.smooth
            masks, fore = regions.masks.to(cond.device), regions.foreground.to(cond.device)
            # Some image models have an axis of one frame between channels and rows.
            rate = rate_map(cond.flatten(1, -3), uncond.flatten(1, -3), masks, fore, scale, *limits)
        except Exception as error:
            # Nothing that goes wrong here is worth a picture.
            run.give_up(f"{type(error).__name__}: {error}")
            return denoised
        rate = rate.reshape(-1, *[1] * (cond.ndim - 3), *rate.shape[1:])
        return denoised + (scale * (rate - 1) * (cond - uncond)).to(denoised.dtype)


def guide(model: Any, settings: Settings, start: float = 0.0, end: float = 1.0, words: WordMap | None = None) -> Any:
    """A copy of a MODEL with semantic guidance from ``start`` to ``end`` (shares of sampling).

    ``words``: the word map of the positive prompt, if its conditioning does not carry one.
    """
    return SemanticGuidance(settings, start, end, words).install(model)
