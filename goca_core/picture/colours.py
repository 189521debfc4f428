"""The colours of masks and heat maps. The browser gets them from here, so they are defined only once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Colour = tuple[int, int, int]

# Okabe & Ito (2008), "Color Universal Design": distinguishable with every common colour blindness. Their black is left
# out, because it would vanish in dark images. The most different colours come first.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
)
_VARIANTS = ((0, 0.0), (255, 0.5), (0, 0.45))  # unchanged, lighter, darker: (target, fraction of the way to it)

# Seventeen equidistant colours of each colour map. Linear interpolation is within two 8-bit steps nearly everywhere.
# Viridis: Smith & van der Walt, CC0. Cividis: Nunez, Anderton & Renslow (2018), for red-green colour blindness.
# Both are perceptually uniform, and their lightness increases throughout.
COLOUR_MAPS: Mapping[str, tuple[Colour, ...]] = {
    "viridis": (
        (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
        (38, 129, 142), (33, 144, 140), (31, 159, 136), (40, 174, 128), (62, 188, 116), (93, 201, 99), (130, 211, 76),
        (171, 220, 50), (213, 226, 26), (253, 231, 37),
    ),
    "cividis": (
        (0, 34, 78), (0, 46, 106), (26, 56, 111), (50, 67, 109), (67, 78, 108), (82, 89, 109), (97, 101, 111),
        (111, 112, 115), (124, 123, 120), (139, 135, 120), (155, 147, 118), (171, 160, 114), (187, 173, 108),
        (204, 186, 100), (221, 201, 88), (239, 215, 72), (254, 232, 56),
    ),
    "gray": ((0, 0, 0), (255, 255, 255)),
}  # fmt: skip

LIGHT = (0.299, 0.587, 0.114)
"""How much red, green and blue count for the brightness of a colour."""
CONTRAST = 1 / 3
"""How much of its contrast an image keeps under a mask. With more, dark orange would be taken for vermilion."""


def colour_of(index: int) -> Colour:
    """Colour number `index` of the palette. After the first seven come lighter, then darker versions of them."""
    target, fraction = _VARIANTS[index // len(PALETTE) % len(_VARIANTS)]
    red, green, blue = (round(value + (target - value) * fraction) for value in PALETTE[index % len(PALETTE)])
    return red, green, blue


def tables() -> dict[str, Any]:
    """Mask colours and colour maps as plain data: ``colours``, all before they repeat, ``maps`` by name, and the
    ``light`` and ``contrast`` of an image under a mask.
    """
    return {
        "colours": [list(colour_of(index)) for index in range(len(PALETTE) * len(_VARIANTS))],
        "light": list(LIGHT),
        "contrast": CONTRAST,
        "maps": {name: [list(colour) for colour in colours] for name, colours in COLOUR_MAPS.items()},
    }
