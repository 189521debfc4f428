"""The bundled demo model, so that everything can be tried without downloading a checkpoint."""

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
            search_aliases=[*types.ALIASES, "demo"],
            description=(
                'A small model that comes with this pack. It paints 64 x 64 scenes such as "a red circle and a blue '
                'square on grass": circles, squares, triangles, stars, hearts and crosses in seven colours on grass, '
                "sand, water, snow or asphalt."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model, of the host's own UNet class."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, behind the real CLIP tokenizer."),
                io.Vae.Output(display_name="vae", tooltip="Its picture code: a wavelet, half the size of the picture."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load())
