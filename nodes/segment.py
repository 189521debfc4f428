"""Segment an existing image."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.segment import segment, sigmas_at, spread
from . import inputs, types
from .inputs import with_tooltip

_LEVELS = [
    io.DynamicCombo.Option("auto", []),
    io.DynamicCombo.Option(
        "sigma",
        [
            with_tooltip(
                io.Float.Input("sigma", default=0.35, min=0.0, max=1000.0, step=0.01, round=0.0001),
                "The noise level (sigma) in the units of the model's own noise schedule, within the range that the "
                "model was trained on. Lower values add less noise.",
            )
        ],
    ),
    io.DynamicCombo.Option(
        "percent",
        [
            with_tooltip(
                io.Float.Input("percent", default=0.9, min=0.0, max=1.0, step=0.01),
                "The noise level at this point of sampling, as a fraction from 0 (pure noise) to 1 (finished image).",
            )
        ],
    ),
    io.DynamicCombo.Option(
        "percent range",
        [
            with_tooltip(
                io.Float.Input("start_percent", default=0.8, min=0.0, max=1.0, step=0.01),
                "The first noise level, as a fraction of sampling from 0 (pure noise) to 1 (the finished image).",
            ),
            with_tooltip(
                io.Float.Input("end_percent", default=0.95, min=0.0, max=1.0, step=0.01),
                "The last noise level, as a fraction of sampling from 0 (pure noise) to 1 (the finished image).",
            ),
            with_tooltip(
                io.Int.Input("levels", default=3, min=1, max=64),
                "Number of noise levels, evenly spaced from start_percent to end_percent. The model is evaluated "
                "once at each of them and the results are averaged. 1: only the middle of the range.",
            ),
        ],
    ),
]


def _sigmas(model: Any, level: dict[str, Any]) -> list[float] | None:
    """The noise levels for the values of the noise_level group; None for the paper's."""
    kind = level["noise_level"]
    if kind == "sigma":
        return [level["sigma"]]
    if kind == "percent":
        return sigmas_at(model, [level["percent"]])
    if kind == "percent range":
        return sigmas_at(model, spread(level["start_percent"], level["end_percent"], level["levels"]))
    return None


class SegmentImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_SegmentImage",
            display_name="Segment Image (GoCA)",
            category=types.CATEGORY,
            search_aliases=["segment image", "segment photo", "segmentation", "open vocabulary"],
            description=(
                "Finds the words of a prompt in an existing image, such as a photo. It adds a little noise to the "
                "image and evaluates the model once with the prompt. Nothing is generated."
            ),
            has_intermediate_output=True,
            inputs=[
                with_tooltip(
                    io.Model.Input("model"),
                    "The diffusion model that segments the image, with its LoRAs and other patches. It is not changed.",
                ),
                io.Latent.Input(
                    "latent", tooltip="The image or batch of images, from VAE Encode with the model's own VAE."
                ),
                with_tooltip(
                    io.Conditioning.Input("positive"),
                    "A prompt that names what is in the image, including the surroundings, from CLIP Text Encode or another "
                    "node that encodes a prompt. No negative prompt is needed.",
                ),
                with_tooltip(
                    io.DynamicCombo.Input("noise_level", options=_LEVELS),
                    "How much noise is added. auto: the paper's noise level for this kind of model. sigma: a noise "
                    "level in the model's own units. percent: the noise level at one point of sampling. percent "
                    "range: the average over several noise levels.",
                ),
                inputs.seed(),
                with_tooltip(
                    io.Int.Input("draws", default=1, min=1, max=64),
                    "How many times new noise is drawn, with seed, seed + 1 and so on. The results are averaged, "
                    "which makes the masks more stable. Each draw takes about as long as one sampling step for "
                    "every noise level.",
                ),
                inputs.flip(),
                *inputs.recording(),
            ],
            outputs=[
                with_tooltip(
                    types.Attention.Output(display_name="attention"),
                    "The recorded attention. Connect it to Aggregate, Mask From Tokens, Overlay or Save Attention.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict,
        positive: Any,
        noise_level: dict[str, Any],
        seed: int,
        draws: int = 1,
        flip: bool = False,
        head_methods: str = "auto",
        layer_methods: str = "auto",
        propagation_grid: str = "auto",
        reference_channel0: bool = False,
        reference_grid: str = "auto",
        method: str = "paper",  # what graphs from before this input expect
    ) -> io.NodeOutput:
        attention = segment(
            model,
            latent["samples"],
            positive,
            sigmas=_sigmas(model, noise_level),
            seed=seed,
            draws=draws,
            flip=flip,
            noise_mask=latent.get("noise_mask"),
            batch_index=latent.get("batch_index"),
            options=inputs.options(
                head_methods, layer_methods, propagation_grid, reference_channel0, reference_grid, method
            ),
        )
        return io.NodeOutput(attention, ui=ui.PreviewText(attention.describe()))
