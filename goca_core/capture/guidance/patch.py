"""Semantic guidance with any sampler: record every step, and scale the guidance of each region.

The scaling is a post-CFG function: it comes after the guidance of ComfyUI and of other nodes and works with both. Plain
guidance is u + w (c - u), semantic guidance u + w r (c - u), so the difference w (r - 1) (c - u) is added to the result so
far. ComfyUI passes predictions of the clean latent to these functions; the rate r does not depend on the kind of
prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...guidance.rate import rate_map
from ...guidance.semantic import Settings
from ...words.word_map import WordMap
from ..hooks import SamplingPatch
from .run import GuidanceRun


class SemanticGuidance(SamplingPatch[GuidanceRun]):
    """A patch with a post-CFG function besides the wrappers."""

    key = "goca_semantic_cfg"

    def __init__(self, settings: Settings, start: float = 0.0, end: float = 1.0, words: WordMap | None = None) -> None:
        super().__init__()
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"Semantic guidance cannot work from {start:g} to {end:g}; choose fractions of sampling from 0 to 1, with "
                "start below end."
            )
        self.settings, self.start, self.end, self.words = settings, start, end, words

    def install(self, model: Any) -> Any:
        """A copy of a MODEL (ModelPatcher) with semantic guidance, which replaces any that the MODEL already has.

        Raises UnknownFamily for a model whose attention cannot be recorded.
        """
        patched = super().install(model)
        others = patched.model_options.get("sampler_post_cfg_function", [])
        patched.model_options["sampler_post_cfg_function"] = [
            function for function in others if not isinstance(function, SemanticGuidance)
        ]
        patched.set_model_sampler_post_cfg_function(self)
        return patched

    def open_run(self, guider: Any, shape: Sequence[int], sigmas: Tensor) -> GuidanceRun:
        return GuidanceRun(guider, shape, self.settings, (self.start, self.end), self.words)

    # -- the post-CFG function --------------------------------------------------------------------------------------

    def __call__(self, args: Mapping[str, Any]) -> Tensor:
        denoised: Tensor = args["denoised"]
        run = self.current
        # Without a negative (CFG 1) there is no guidance to scale.
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
            # Some image models have a frame axis of length one between channels and rows.
            rate = rate_map(cond.flatten(1, -3), uncond.flatten(1, -3), masks, fore, scale, *limits)
        except Exception as error:
            # An error here must not stop image generation.
            run.give_up(f"{type(error).__name__}: {error}")
            return denoised
        rate = rate.reshape(-1, *[1] * (cond.ndim - 3), *rate.shape[1:])
        return denoised + (scale * (rate - 1) * (cond - uncond)).to(denoised.dtype)


def guide(model: Any, settings: Settings, start: float = 0.0, end: float = 1.0, words: WordMap | None = None) -> Any:
    """A copy of a MODEL with semantic guidance from ``start`` to ``end`` (fractions of sampling).

    ``words``: the word map of the positive prompt, if its conditioning does not carry one.
    """
    return SemanticGuidance(settings, start, end, words).install(model)
