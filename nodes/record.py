"""Record cross-attention while a sampler runs, and collect the recording."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..goca_core.capture.options import PROMPTS
from ..goca_core.capture.recorder import record as start_recording
from ..goca_core.capture.window import Window
from . import inputs, types
from .inputs import with_tooltip


class RecordAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_RecordAttention",
            display_name="Record Attention (GoCA)",
            category=types.CATEGORY,
            search_aliases=["record attention", "cross attention", "attention map", "daam"],
            description=(
                "Records cross-attention while a sampler runs: which parts of the image attend to which words of the "
                "prompt. The sampled latent stays the same, bit for bit."
            ),
            inputs=[
                with_tooltip(
                    io.Model.Input("model"),
                    "The model to record, with its LoRAs and other patches. The node works on a copy; the original "
                    "stays unchanged.",
                ),
                with_tooltip(
                    io.Combo.Input("window", options=["auto", "percent"], default="auto"),
                    "Which model evaluations are recorded. auto: the one evaluation whose noise level is closest "
                    "to the one that the paper uses for this kind of model. percent: the evaluations between "
                    "start_percent and end_percent, averaged.",
                ),
                with_tooltip(
                    io.Float.Input("start_percent", default=0.5, min=0.0, max=1.0, step=0.01),
                    "Start of the window as a fraction of sampling, from 0 (first step) to 1 (end). Must be below "
                    "end_percent. Used only when window is percent.",
                ),
                with_tooltip(
                    io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01),
                    "End of the window as a fraction of sampling, from 0 (first step) to 1 (end). Must be above "
                    "start_percent. Used only when window is percent.",
                ),
                with_tooltip(
                    io.Int.Input("max_evaluations", default=4, min=1, max=1000),
                    "Maximum number of recorded evaluations. If the window contains more, they are chosen at even "
                    "intervals. Used only when window is percent.",
                ),
                *inputs.recording(),
                with_tooltip(
                    io.Combo.Input("record", options=list(PROMPTS), default="positive", optional=True, advanced=True),
                    "Whose attention is recorded: that of the positive or of the negative prompt. The maps of the negative "
                    "prompt show where the model would have put its words. They need a CFG scale above 1.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The recording model. Connect it to the sampler."),
                types.Recorder.Output(
                    display_name="recorder",
                    tooltip="Receives the recording. Connect it, with the sampler's LATENT, to Mask From Tokens, Overlay, "
                    "Aggregate, Refine, Save Attention or Collect Attention.",
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
        method: str = "paper",  # what graphs from before this input expect
        record: str = "positive",
    ) -> io.NodeOutput:
        chosen = Window(window == "auto", start_percent, end_percent, max_evaluations)
        options = inputs.options(
            head_methods,
            layer_methods,
            propagation_grid,
            reference_channel0,
            reference_grid,
            method,
            record,
        )
        return io.NodeOutput(*start_recording(model, chosen, options))


class CollectAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_CollectAttention",
            display_name="Collect Attention (GoCA)",
            category=types.CATEGORY,
            search_aliases=["collect attention", "recorded attention"],
            description="Waits for the sampler and returns the attention that was recorded while it made this latent.",
            has_intermediate_output=True,
            inputs=[
                types.Recorder.Input("recorder", tooltip="From Record Attention."),
                with_tooltip(
                    io.Latent.Input("latent"),
                    "The LATENT output of the sampler, unchanged. It identifies the sampling run when several "
                    "samplers share one recorder.",
                ),
                with_tooltip(
                    io.Int.Input("conditioning", default=0, min=0, max=1000, optional=True, advanced=True),
                    "Which positive conditioning to use when several were combined, counted from 0. 0: the first "
                    "one that was active in the recorded step.",
                ),
            ],
            outputs=[
                with_tooltip(
                    types.Attention.Output(display_name="attention"),
                    "The recorded attention, reduced to small maps for each layer. Connect it to Aggregate, Mask "
                    "From Tokens, Overlay or Save Attention.",
                )
            ],
        )

    @classmethod
    def execute(cls, recorder: Any, latent: dict, conditioning: int = 0) -> io.NodeOutput:
        attention = recorder.collect(latent["samples"], conditioning)
        return io.NodeOutput(attention, ui=ui.PreviewText(attention.describe()))
