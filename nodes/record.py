"""Record cross-attention while a sampler runs, and collect what was recorded."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.recorder import record
from ..goca_core.capture.window import Window
from . import options, types


class RecordAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_RecordAttention",
            display_name="Record Attention (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "record", "cross attention"],
            description=(
                "Lets any sampler record which parts of the picture attend to which words. The picture "
                "itself does not change by a bit."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to record. It is copied; the original stays as it is."),
                io.Combo.Input(
                    "window",
                    options=["auto", "percent"],
                    default="auto",
                    tooltip=(
                        "auto: one evaluation, at the noise level at which the paper reads attention. percent: "
                        "the evaluations between start and end."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Start of the window as a share of sampling (with window = percent).",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="End of the window as a share of sampling (with window = percent).",
                ),
                io.Int.Input(
                    "max_evaluations",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip=(
                        "At most so many evaluations of the window are recorded, evenly spread, and averaged "
                        "(with window = percent)."
                    ),
                ),
                *options.inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The recording model: wire it into the sampler."),
                types.Recorder.Output(
                    display_name="recorder", tooltip=("What is recorded ends up here: wire it into Collect Attention.")
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        window: str,
        start_percent: float,
        end_percent: float,
        max_evaluations: int,
        head_methods: str = "auto",
        layer_methods: str = "auto",
        propagation_grid: str = "auto",
        reference_channel0: bool = False,
        reference_grid: str = "auto",
    ) -> io.NodeOutput:
        chosen = Window(window == "auto", start_percent, end_percent, max_evaluations)
        return io.NodeOutput(
            *record(
                model,
                chosen,
                options.chosen(head_methods, layer_methods, propagation_grid, reference_channel0, reference_grid),
            )
        )


class CollectAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_CollectAttention",
            display_name="Collect Attention (GoCA)",
            category=types.CATEGORY,
            search_aliases=[*types.ALIASES, "collect"],
            description="Waits for the sampler and hands out what was recorded while it made this latent.",
            has_intermediate_output=True,
            inputs=[
                types.Recorder.Input("recorder", tooltip="From Record Attention."),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The sampler's own LATENT output, unchanged. It tells which run is meant when samplers "
                        "share a recorder."
                    ),
                ),
                io.Int.Input(
                    "conditioning",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Which positive conditioning, when several were combined: 0 is the first that was recorded."
                    ),
                ),
            ],
            outputs=[
                types.Attention.Output(
                    display_name="attention", tooltip="The recorded attention, reduced to one small map per layer."
                )
            ],
        )

    @classmethod
    def execute(cls, recorder: Any, latent: dict, conditioning: int = 0) -> io.NodeOutput:
        attention = recorder.collect(latent["samples"], conditioning)
        return io.NodeOutput(attention, ui=ui.PreviewText(attention.describe()))
