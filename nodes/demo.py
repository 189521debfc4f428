"""The bundled demo models, to try everything without downloading a checkpoint."""

from __future__ import annotations

from comfy_api.latest import io

from ..goca_core.capture.demo_model import SCENES, load_scenes
from . import types
from .inputs import with_tooltip


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_DemoModel",
            display_name="Demo Model (GoCA)",
            category=f"{types.CATEGORY}/demo",
            search_aliases=["demo model", "try goca"],
            description=(
                "A small model that comes with this pack, to try everything without a checkpoint. It generates 128 x 128 "
                'scenes of everyday things such as "a cat and a red balloon on grass", or 64 x 64 scenes of shapes such '
                'as "a red circle and a blue square on grass". The help page of this node lists the words it knows.'
            ),
            inputs=[
                with_tooltip(
                    # Optional: older graphs in API format do not have it.
                    io.Combo.Input("scenes", options=list(SCENES), default="things", optional=True),
                    "What the model generates. things: animals, food, vehicles, houses and other everyday things, also "
                    "shapes, in images of 128 x 128. shapes: circles, squares, triangles, stars, hearts and crosses, in "
                    "images of 64 x 64; several times as fast. Set the size of the latent to match.",
                )
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model. It uses ComfyUI's own UNet class."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder of the model, with the CLIP tokenizer."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The VAE of the model, a wavelet transform. One latent cell is 4 x 4 pixels with things, "
                    "2 x 2 with shapes.",
                ),
            ],
        )

    @classmethod
    def execute(cls, scenes: str = "shapes") -> io.NodeOutput:
        return io.NodeOutput(*load_scenes(scenes))
