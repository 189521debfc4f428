"""The example graphs that make masks of a picture that is already there, described as in example_graphs.py."""

from __future__ import annotations

from scripts.example_graphs import LOOK, PREVIEW, SAID, Graph, Node, Note, Wire, save, save_masks
from scripts.graph_parts import FLUX, SD15, Start

SEGMENT_DEMO_NOTE = """\
Masks for a picture that is already there, made by any other means. Everything here comes with the pack.

1. Press **Run**. The upper row only stands for your picture: the demo model paints one, and it goes on as a plain picture.
2. Below, *VAE Encode* takes it up again. **Segment Image** adds a little noise and lets the model look at it once, with a \
prompt that says what is in it. Nothing is painted.
3. Change the second prompt and *phrases*: the upper row does not run again.

With more *draws*, *flip* or a range of noise levels the model looks more often and the masks are steadier."""

SEGMENT_PHOTO_NOTE = """\
1. Choose a checkpoint (SD 1.x, SD 2.x, SDXL or a relative) and a picture; *example.png* comes with ComfyUI.
2. **SDXL**: set *megapixels* to 1.00. Models see best at the size they were trained for: 0.25 for SD 1.x.
3. Write a prompt that says what is in the picture, the surroundings too, and words of it into *phrases*, one object per \
line.
4. Press **Run**. It takes about as long as one sampling step.

**Masks too small?** Lower *theta* in **Mask From Tokens** (for example -0.1); too large? Raise it. That runs nothing again.

**Ragged masks?** Set *draws* to 4 and turn *flip* on: the mean of several looks is steadier."""

SEGMENT_FLUX_NOTE = """\
1. Put **flux1-dev-fp8** into *models/checkpoints* (the editor offers the download), and choose a picture; *example.png* comes \
with ComfyUI.
2. Write a prompt that says what is in the picture, the surroundings too, and words of it into *phrases*, one object per \
line.
3. Press **Run**. It takes about as long as one sampling step.

**Masks too small?** Lower *theta* in **Mask From Tokens** (for example -0.1); too large? Raise it. That runs nothing again.

**Ragged masks?** Set *draws* to 4 and turn *flip* on. **Little memory?** Set *reference_grid* to 32x32."""


def _segmented(model: Node, picture: Wire, prompt: str, phrases: str) -> list[list[Node | Note]]:
    """From a picture to masks, in columns."""
    positive = Node("GOCA_EncodePrompt", {"clip": model[1], "text": prompt}, "What is in the picture", more=150)
    latent = Node("VAEEncode", {"pixels": picture, "vae": model[2]})
    wires = {"model": model[0], "latent": latent[0], "positive": positive[0]}
    segment = Node("GOCA_SegmentImage", wires, more=SAID)
    masks = Node("GOCA_MaskFromTokens", {"source": segment[0], "phrases": phrases}, width=330, more=LOOK)
    shown = {"image": picture, "source": masks["masks"], "labels": masks["labels"]}
    overlay = Node("GOCA_Overlay", shown, "Masks over the picture", more=PREVIEW)
    heat = Node("GOCA_Overlay", {"image": picture, "source": segment[0]}, "Heat map of every word", more=PREVIEW)
    images = Node("MaskToImage", {"mask": masks["masks"]})
    columns: list[list[Node | Note]] = [[positive, latent], [segment], [masks, images], [overlay], [heat]]
    return columns + [[node] for node in save_masks(images[0], overlay[0], heat[0])]


def segment_demo_graph() -> Graph:
    model = Node("GOCA_DemoModel")
    text = "a yellow star and a blue heart on snow"
    painted = Node("CLIPTextEncode", {"clip": model["clip"], "text": text}, "Prompt of the painter")
    negative = Node("CLIPTextEncode", {"clip": model["clip"], "text": ""}, "Negative prompt")
    latent = Node("EmptyLatentImage", {"width": 64, "height": 64})
    wires = {"model": model["model"], "positive": painted[0], "negative": negative[0], "latent_image": latent[0]}
    sampling = {"seed": 3, "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    sampler = Node("KSampler", {**wires, **sampling}, more=160)
    picture = Node("VAEDecode", {"samples": sampler[0], "vae": model["vae"]})
    painting: list[list[Node | Note]] = [
        [Note(SEGMENT_DEMO_NOTE, "Segment a picture", height=400)],
        [model, latent],
        [painted, negative],
        [sampler, picture],
        [save("Picture", "picture", picture[0])],
    ]
    cutting = _segmented(model, picture[0], "a blue heart and a yellow star on snow", "blue heart\nyellow star")
    return Graph("segment_photo_demo", [("Any picture", painting), ("From the picture to masks", cutting)])


def photo_graph(start: Start, megapixels: float, step: int, note: str) -> Graph:
    model = start.model()
    load = Node("LoadImage", {"image": "example.png"}, more=PREVIEW)
    size = {"image": load["image"], "upscale_method": "lanczos", "megapixels": megapixels, "resolution_steps": step}
    scale = Node("ImageScaleToTotalPixels", size)
    reading: list[list[Node | Note]] = [[Note(note, "Segment a photo", height=400)], [load], [model, scale]]
    prompt = "a girl with yellow hair and a pink dress on a green hill under a blue sky"
    cutting = _segmented(model, scale[0], prompt, "yellow hair\npink dress\ngreen hill")
    return Graph(f"segment_photo_{start.name}", [("The picture", reading), ("From the picture to masks", cutting)])


def segment_graphs() -> list[Graph]:
    """The graphs of this file."""
    return [
        segment_demo_graph(),
        photo_graph(SD15, 0.25, 64, SEGMENT_PHOTO_NOTE),
        photo_graph(FLUX, 1.0, 16, SEGMENT_FLUX_NOTE),
    ]
