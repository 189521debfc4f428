"""Masks of an existing image in a single node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..goca_core.capture.encode import latent_of
from ..goca_core.capture.options import RecordOptions
from ..goca_core.capture.segment import segment
from . import inputs, types
from .inputs import with_tooltip
from .masks import MaskFromTokens
from .words import EncodePrompt, text_input


class MaskFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_MaskFromImage",
            display_name="Mask From Image (GoCA)",
            category=types.CATEGORY,
            search_aliases=["mask from photo", "photo to mask", "image to mask"],
            description=(
                "Makes one mask for each phrase in an existing image, such as a photo: encodes the image and a prompt that "
                "describes it, evaluates the model once, and makes the masks. Nothing is generated."
            ),
            inputs=[
                with_tooltip(
                    io.Model.Input("model"),
                    "The diffusion model that segments the image, with its LoRAs and other patches. It is not changed.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                with_tooltip(
                    io.Image.Input("image", optional=True),
                    "The image or batch of images. Outlines of the masks follow its edges. Connect the model's VAE too.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the model. Needed only with an image."),
                with_tooltip(
                    io.Latent.Input("latent", optional=True),
                    "The latent of the image, in place of image and vae. With an image too, the latent is not made again.",
                ),
                text_input(
                    "A prompt that names what is in the image, including the surroundings. Its words appear as buttons "
                    "below: click one to make it a phrase."
                ),
                inputs.phrases(),
                inputs.theta(),
                with_tooltip(
                    io.Float.Input("megapixels", default=1.0, min=0.0, max=16.0, step=0.05),
                    "Larger images are scaled down to this size before they are encoded; the masks have the size of the "
                    "image all the same. Models work best at the size they were trained for: 0.25 for SD 1.5, 1 for SDXL "
                    "and Flux. 0: as it is. Not used with a latent.",
                ),
                with_tooltip(
                    io.Int.Input("draws", default=1, min=1, max=64, advanced=True),
                    "How many times new noise is drawn. The results are averaged, which makes the masks more stable. Each "
                    "draw takes about as long as one sampling step.",
                ),
                inputs.flip(advanced=True),
                inputs.seed(advanced=True),
            ],
            outputs=[
                *inputs.masks_and_labels(),
                with_tooltip(
                    types.Attention.Output(display_name="attention"),
                    "The recorded attention, for Mask From Tokens, Overlay or Save Attention.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        phrases: str,
        theta: float = 0.0,
        megapixels: float = 1.0,
        draws: int = 1,
        flip: bool = False,
        seed: int = 0,
        image: Any = None,
        vae: Any = None,
        latent: Any = None,
    ) -> io.NodeOutput:
        found = latent_of(image, vae, latent, megapixels)
        positive = EncodePrompt.execute(clip, text).args[0]
        attention = segment(
            model,
            found["samples"],
            positive,
            seed=seed,
            draws=draws,
            flip=flip,
            noise_mask=found.get("noise_mask"),
            batch_index=found.get("batch_index"),
            options=RecordOptions(method="auto"),
        )
        # The masks have the size of the image, even if it was encoded smaller.
        size = {} if image is None else {"size": "custom", "height": image.shape[1], "width": image.shape[2]}
        made = MaskFromTokens.execute(attention, phrases, "auto", "partition", theta=theta, image=image, **size)
        return io.NodeOutput(*made.args, attention, ui=made.ui)
