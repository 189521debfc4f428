"""Draw the pictures of the demo model's card: its loss curve and a contact sheet of what it paints.

python scripts/demo_card.py        needs matplotlib; reads training/loss.json, writes into demo/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from boot import ROOT, boot, use
from demo_scenes import Demo
from PIL import Image

PROMPTS = (
    "a red circle on grass",
    "a blue square on sand",
    "a green triangle on snow",
    "a yellow star on asphalt",
    "a pink heart on water",
    "a purple cross on grass",
    "a red circle and a blue square on grass",
    "a yellow star and a purple heart on water",
    "an orange cross and a green circle on snow",
    "a pink triangle and a blue star on sand",
    "a purple square and a yellow heart on asphalt",
    "a red star, a blue circle and a green heart on sand",
)
SEEDS = (1, 2)
README = ("a red circle, a yellow star and a blue square on grass", "red circle\nyellow star\nblue square", 3)
TWO = ("a red circle and a blue square on grass", "red circle\nblue square", 3)
OTHER = ("a yellow star and a purple heart on snow", "yellow star\npurple heart", 3)
SEGMENTED = ("a yellow star and a blue heart on snow", "blue heart\nyellow star", 3)


def contact_sheet(demo: Demo, path: Path) -> None:
    pictures = [picture for prompt in PROMPTS for picture in demo.paint(prompt, SEEDS)[0]]
    captions = [prompt for prompt in PROMPTS for _ in SEEDS]
    sheet = use("goca_core.picture").contact_sheet(pictures, captions, columns=6, scale=3)
    sheet.save(path, optimize=True)


def result(demo: Demo, prompt: str, phrases: str, seed: int, look_again: bool = False) -> list:
    """A picture, its masks, the masks over it, and the heat map of every word.

    ``look_again``: by what the model attends to in the finished picture, not while it painted.
    """
    pipeline, show = use("goca_core.pipeline"), use("goca_core.show")
    image, attention = demo.paint(prompt, (seed,))
    if look_again:
        attention = demo.segment(image, prompt)
    cut = pipeline.cut(attention, pipeline.Request(phrases))
    masks = [mask[..., None].expand(-1, -1, 3) for mask in cut.masks[0]]
    overlay = show.overlay_batch(image, show.flatten(cut.masks), "\n".join(cut.labels), 0.55)[0]
    heat = show.overlay_batch(image, attention, "", 0.55)[0]
    return [image[0], *masks, overlay, heat]


def readme_picture(demo: Demo, path: Path) -> None:
    phrases = README[1].splitlines()
    *panels, heat = result(demo, *README)
    sheet = use("goca_core.picture").contact_sheet(
        panels, [README[0], *phrases, "all masks"], columns=len(panels), scale=4
    )
    heat = use("goca_core.picture").contact_sheet([heat], scale=1)
    heat = heat.resize((sheet.width, round(heat.height * sheet.width / heat.width)))
    whole = Image.new("RGB", (sheet.width, sheet.height + heat.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(heat, (0, sheet.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, optimize=True)


def thumbnail(
    demo: Demo, name: str, which: int, prompt: str, phrases: str, seed: int, look_again: bool = False
) -> None:
    shown = use("goca_core.picture").contact_sheet([result(demo, prompt, phrases, seed, look_again)[which]], scale=1)
    shown.thumbnail((400, 400))
    shown.save(ROOT / "workflows" / f"{name}.jpg", quality=88)


def loss_curve(losses: list[float], path: Path) -> None:
    from matplotlib import pyplot

    window = 100
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.semilogy(np.arange(window, len(losses) + 1), smooth, color="#0072b2")
    axes.set(xlabel="step", ylabel=f"v-prediction loss (mean of {window} steps)")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


def main() -> None:
    source = ROOT / "training" / "loss.json"
    if not source.is_file():
        sys.exit("There is no training/loss.json: run scripts/train_demo.py first.")
    boot()
    demo = Demo()
    loss_curve(json.loads(source.read_text()), ROOT / "demo" / "loss.png")
    contact_sheet(demo, ROOT / "demo" / "contact_sheet.png")
    readme_picture(demo, ROOT / "docs" / "images" / "demo.png")
    thumbnail(demo, "masks_from_words_demo", -2, *TWO)
    thumbnail(demo, "masks_from_words_sd15_sdxl", -1, *TWO)
    thumbnail(demo, "save_and_reuse_attention_demo", -2, *OTHER)
    thumbnail(demo, "segment_photo_demo", -2, *SEGMENTED, look_again=True)
    thumbnail(demo, "segment_photo_sd15_sdxl", -1, *SEGMENTED, look_again=True)


if __name__ == "__main__":
    main()
