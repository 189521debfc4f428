"""The bundled demo model, to try everything without downloading a checkpoint."""

from __future__ import annotations

from comfy_api.latest import io

from ..goca_core.capture.demo_model import load
from . import types


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_DemoModel",
            display_name="Demo Model (GoCA)",
            category=f"{types.CATEGORY}/demo",
            search_aliases=["demo model", "try goca"],
            description=(
                "A small model that comes with this pack, to try everything without a checkpoint. It generates 64 x 64 "
                'scenes such as "a red circle and a blue square on grass": circles, squares, triangles, stars, hearts '
                "and crosses in seven colours on grass, sand, water, snow or asphalt."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model. It uses ComfyUI's own UNet class."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder of the model, with the CLIP tokenizer."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The VAE of the model, a wavelet transform. One latent cell is 2 x 2 pixels.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load())
