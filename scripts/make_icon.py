#!/usr/bin/env python3
"""Draw the icon and the banner that the registry shows: docs/images/icon.png and docs/images/banner.png.

.host/venv/bin/python scripts/make_icon.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
# The registry asks for a square of at most 400 pixels, and for a banner of 21 to 9.
ICON, BANNER = (400, 400), (1260, 540)
GROUND, LAWN, GRASS, RED, BLUE, WHITE = "#14213d", "#3a7d44", "#6bbf78", "#e4572e", "#4d9de0", "#f5f5f5"
_SCALE = 4  # drawn larger, for smooth edges


def drawing(size: tuple[int, int], left: float, side: float) -> Image.Image:
    """A circle and a square on a lawn, each with its outline as a mask; ``left`` and ``side`` place the square picture."""
    image = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), GROUND)
    draw = ImageDraw.Draw(image)

    def box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        top = size[1] * _SCALE / 2 - side * _SCALE / 2
        corner = left * _SCALE + x * side * _SCALE, top + y * side * _SCALE
        return (*corner, corner[0] + width * side * _SCALE, corner[1] + height * side * _SCALE)

    width = round(0.02 * side * _SCALE)
    draw.rounded_rectangle(box(0.06, 0.06, 0.88, 0.88), radius=0.08 * side * _SCALE, fill=LAWN)
    draw.ellipse(box(0.16, 0.2, 0.4, 0.4), fill=RED, outline=WHITE, width=width)
    draw.rectangle(box(0.52, 0.48, 0.32, 0.32), fill=BLUE, outline=WHITE, width=width)
    return image


def main() -> None:
    for name, size, left, side in (("icon", ICON, 0.0, 400.0), ("banner", BANNER, 60.0, 520.0)):
        image = drawing(size, left, side)
        if name == "banner":
            draw = ImageDraw.Draw(image)
            draw.text((656 * _SCALE, 90 * _SCALE), "GoCA", fill=WHITE, font_size=96 * _SCALE)
            for number, (text, colour) in enumerate((("red circle", RED), ("blue square", BLUE), ("lawn", GRASS))):
                draw.text((660 * _SCALE, (230 + 76 * number) * _SCALE), text, fill=colour, font_size=54 * _SCALE)
        image = image.resize(size, Image.Resampling.LANCZOS).quantize(64)
        image.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
