"""Segment a picture that is already there."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.segment import segment, sigmas_at, spread
from . import options, types


def _share(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


_LEVELS = [
    io.DynamicCombo.Option("auto", []),
    io.DynamicCombo.Option(
        "sigma",
        [
            io.Float.Input(
                "sigma",
                default=0.35,
                min=0.0,
                max=1000.0,
                step=0.01,
                round=0.0001,
                tooltip="The noise level as the model's sampling counts it (what samplers call sigma).",
            )
        ],
    ),
    io.DynamicCombo.Option(
        "percent",
        [
            _share(
                "percent",
                0.9,
                "The noise level at this share of sampling: 0 is nothing but noise, 1 the finished picture.",
            )
        ],
    ),
    io.DynamicCombo.Option(
        "percent range",
        [
            _share("start_percent", 0.8, "The first noise level, as a share of sampling."),
            _share("end_percent", 0.95, "The last noise level, as a share of sampling."),
            io.Int.Input(
                "levels",
                default=3,
                min=1,
                max=64,
                tooltip="How many noise levels from the first to the last; the model looks once at each, and the mean counts.",
            ),
        ],
    ),
]


def _sigmas(model: Any, level: dict[str, Any]) -> list[float] | None:
    """The noise levels that are meant by the values of the noise_level group; None is the paper's."""
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
            search_aliases=[*types.ALIASES, "segment photo", "mask from prompt", "open vocabulary"],
            description=(
                "Finds the words of a prompt in any picture, such as a photo: adds a little noise to it and lets the model "
                "look at it once. Nothing is painted."
            ),
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that looks at the picture. It is not changed."),
                io.Latent.Input("latent", tooltip="The picture or pictures, from VAE Encode with the model's own VAE."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A prompt that names what is in the picture, from Encode Prompt (GoCA). No negative is needed.",
                ),
                io.DynamicCombo.Input(
                    "noise_level",
                    options=_LEVELS,
                    tooltip=(
                        "How much noise is added. auto: the paper's for this kind of model. percent range: several "
                        "levels, averaged."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the noise. The same seed gives the same masks.",
                ),
                io.Int.Input(
                    "draws",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How often new noise is drawn. The mean is steadier; each draw takes as long as a sampling step.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    tooltip="Look at the mirrored picture too and average; takes twice as long.",
                ),
                *options.inputs(),
            ],
            outputs=[
                types.Attention.Output(
                    display_name="attention",
                    tooltip="The recorded attention, for Aggregate or straight into Mask From Tokens.",
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
            options=options.chosen(head_methods, layer_methods, propagation_grid, reference_channel0, reference_grid),
        )
        return io.NodeOutput(attention, ui=ui.PreviewText(attention.describe()))
