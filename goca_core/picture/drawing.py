"""Draw results as images: coloured overlays with a legend, heat maps and contact sheets."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .colours import COLOUR_MAPS, CONTRAST, LIGHT, Colour, colour_of

_MIN_WIDTH = 256  # least width of a result in pixels, so that text fits
_FONT_SIZE = 14
_PAD = 6

# Pillow's built-in font covers little more than English. For other text, these system fonts are tried.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "arial.ttf",
    "msyh.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def overlay(
    image: Image.Image | Tensor | ArrayLike,
    maps: Tensor | ArrayLike,
    labels: Sequence[str] | None = None,
    alpha: float = 0.5,
    colours: Sequence[Colour] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Tint an image with one colour for each map, and name the colours in a legend below it.

    image: PIL image or [H, W, 3] with values in [0, 1]. maps: masks or scores [K, h, w] in [0, 1], at any size.
    labels: one name for each map, in any script; without labels there is no legend. alpha: opacity of the colour where a map
    is 1. From 0.55 the result is nearer to a map's own colour than to any other of `colour_of`, whatever the image: under a
    map only the brightness of the image is left, and that in shades of the colour.
    colours: one RGB triple (0-255) for each map, default `colour_of`.
    scale: integer factor to enlarge the image by; the default makes it at least 256 pixels wide. Images of up to 64 pixels
    are enlarged with hard pixels, so that single pixels can be seen, larger images smoothly.
    Returns an RGB image. Raises ValueError for shapes or counts that do not fit.
    """
    base = _to_pil(image)
    layers = _array(maps)
    if layers.ndim != 3:
        raise ValueError(f"maps has shape {layers.shape}: expected [K, h, w], one map for each object.")
    count = len(layers)
    chosen = [colour_of(k) for k in range(count)] if colours is None else list(colours)
    for what, number in (("colours", len(chosen)), ("labels", count if labels is None else len(labels))):
        if number != count:
            raise ValueError(f"Got {number} {what} for {count} maps: pass one for each map.")
    base = _enlarge(base, scale)
    tinted = np.asarray(base, dtype=np.float64)
    light = tinted @ LIGHT / 255
    for layer, colour in zip(layers, chosen, strict=True):
        inside = np.clip(_resized(layer, base.size), 0, 1)[..., None]
        for own, opacity in ((_shades(colour, light), min(1.0, 2 * alpha)), (np.array(colour), alpha)):
            tinted = tinted * (1 - opacity * inside) + own * (opacity * inside)
    result = Image.fromarray(np.rint(np.clip(tinted, 0, 255)).astype(np.uint8))
    return _with_legend(result, labels, chosen) if labels else result


def heat(
    scores: Tensor | ArrayLike, low: float | None = 0.0, high: float | None = 1.0, scale: int | None = None
) -> Image.Image:
    """Draw scores [H, W] in the colours of viridis, from `low` (dark violet) to `high` (yellow).

    low, high: the ends of the colour scale; None uses the smallest or largest score. scale: as in `overlay`.
    Returns an RGB image. Raises ValueError for scores without exactly two axes.
    """
    values = _array(scores)
    if values.ndim != 2:
        raise ValueError(f"scores has shape {values.shape}: expected [H, W]; pick one map.")
    bottom = float(values.min()) if low is None else low
    top = float(values.max()) if high is None else high
    position = np.clip((values - bottom) / (top - bottom), 0, 1) if top > bottom else np.zeros_like(values)
    table = np.array(COLOUR_MAPS["viridis"], dtype=np.float64)
    stops = np.linspace(0, 1, len(table))
    rgb = np.stack([np.interp(position, stops, table[:, channel]) for channel in range(3)], -1)
    return _enlarge(Image.fromarray(np.rint(rgb).astype(np.uint8)), scale)


def contact_sheet(
    images: Sequence[Image.Image | Tensor | ArrayLike],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    scale: int | None = None,
) -> Image.Image:
    """Arrange images in a grid, each with its caption below.

    images: PIL images or [H, W, 3] in [0, 1], of any size; smaller ones are resized to fit the largest, with their
    proportions kept. captions: one for each image; long ones are shortened with dots. scale: as in `overlay`.
    Returns an RGB image. Raises ValueError without images, for fewer than one column, or a wrong number of captions.
    """
    if not images or columns < 1:
        raise ValueError(f"Got {len(images)} images and {columns} columns: pass at least one of each.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"Got {len(captions)} captions for {len(images)} images: pass one for each.")
    tiles = [_enlarge(_to_pil(image), scale) for image in images]
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    line = 0 if captions is None else _line_height() + _PAD
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    size = (columns * (width + _PAD) + _PAD, rows * (height + line + _PAD) + _PAD)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        x = _PAD + index % columns * (width + _PAD)
        y = _PAD + index // columns * (height + line + _PAD)
        ratio = min(width / tile.width, height / tile.height)
        fitted = tile.resize((round(tile.width * ratio), round(tile.height * ratio)), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2))
        if captions is not None:
            text, font = _fit(captions[index], width)
            draw.text((x, y + height + _PAD // 2), text, fill=(0, 0, 0), font=font)
    return sheet


def _shades(colour: Colour, light: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour, darker or lighter by part of what an image [H, W] is darker or lighter than it. Returns [H, W, 3]."""
    own = np.array(colour, dtype=np.float64)
    level = float(own @ LIGHT) / 255
    shift = CONTRAST * (light - level)[..., None]
    darker = own * (1 + np.minimum(shift, 0) / max(level, CONTRAST))
    return np.asarray(darker + (255 - own) * np.maximum(shift, 0) / max(1 - level, CONTRAST))


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image to a float32 tensor [H, W, 3] with values in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)


def _array(values: Tensor | ArrayLike) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=1.0, neginf=0.0)


def _to_pil(image: Image.Image | Tensor | ArrayLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = _array(image)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"image has shape {array.shape}: expected [H, W, 3] with values in [0, 1]; pick one of a batch."
        )
    return Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8))


def _enlarge(image: Image.Image, scale: int | None) -> Image.Image:
    factor = math.ceil(_MIN_WIDTH / image.width) if scale is None else scale
    if factor < 1:
        raise ValueError(f"scale is {scale}: use a whole number from 1, or None to choose it.")
    if factor == 1:
        return image
    hard = max(image.size) <= 64
    kind = Image.Resampling.NEAREST if hard else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), kind)


def _resized(layer: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resize one map to (width, height); masks keep hard edges, scores are interpolated."""
    hard = bool(np.isin(layer, (0.0, 1.0)).all())
    kind = Image.Resampling.NEAREST if hard else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(layer.astype(np.float32)).resize(size, kind), dtype=np.float64)


def _with_legend(image: Image.Image, labels: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """Draw colour swatches with their names below an image, in as many lines as its width requires."""
    line, width = _line_height() + _PAD, image.width
    places: list[tuple[int, int, str, Font]] = []
    x, y = _PAD, image.height + _PAD
    for label in labels:
        text, font = _fit(label, width - line - 2 * _PAD)
        wide = line + math.ceil(font.getlength(text)) + 2 * _PAD
        if x > _PAD and x + wide > width:
            x, y = _PAD, y + line
        places.append((x, y, text, font))
        x += wide
    sheet = Image.new("RGB", (width, y + line), (255, 255, 255))
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    side = line - _PAD
    for (x, y, text, font), colour in zip(places, colours, strict=True):
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=tuple(colour), outline=(0, 0, 0))
        draw.text((x + side + _PAD // 2, y), text, fill=(0, 0, 0), font=font)
    return sheet


@lru_cache(maxsize=1)
def _fonts() -> tuple[Font, ...]:
    """Pillow's built-in font, then those of _SYSTEM_FONTS that are installed."""
    try:
        found: list[Font] = [ImageFont.load_default(size=_FONT_SIZE)]
    except (ImportError, OSError):  # without FreeType, Pillow has only its bitmap font
        return (ImageFont.load_default(),)
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, _FONT_SIZE))
        except OSError:
            continue
    return tuple(found)


def _line_height() -> int:
    return math.ceil(_fonts()[0].getbbox("Ágy")[3]) + 2  # other fonts extend a little lower


def _missing(text: str, font: Font) -> set[str]:
    """Characters that the font does not have, and would draw as a box."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return {c for c in text if ord(c) > 255}
    unknown = bytes(font.getmask("\U0010ffff"))
    return {c for c in set(text) if not c.isascii() and bytes(font.getmask(c)) == unknown}


def _plain(character: str) -> str:
    """The nearest ASCII spelling, such as o for ö and ss for ß; the character itself if there is none."""
    for form in (unicodedata.normalize("NFKD", character), character.casefold()):
        letters = "".join(c for c in form if c.isascii())
        if letters:
            return letters
    return character


def _fit(text: str, width: int) -> tuple[str, Font]:
    """Shorten text to one line of at most `width` pixels, with dots at the end, and choose the font that covers most of it."""
    line = " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")  # no font can draw lone surrogates
    font = min(_fonts(), key=lambda f: len(_missing(line, f)))
    missing = _missing(line, font)
    line = "".join(_plain(c) if c in missing else c for c in line)
    if not isinstance(font, ImageFont.FreeTypeFont):
        line = line.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(line) <= width:
        return line, font
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "...", font
