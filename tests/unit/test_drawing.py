from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from goca_core.picture import colours, drawing

WORDS = ["chat", "größe", "猫", "кот", "😀 smile", "a\nb\tc", "\ud800", "", "a very long phrase " * 10]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def luminance(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 10.31, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_overlay_colours_where_the_mask_is() -> None:
    image = torch.full((300, 400, 3), 0.5)
    masks = torch.zeros(2, 300, 400)
    masks[0, :, :100] = 1
    masks[1, :, 300:] = 0.5
    actual = pixels(drawing.overlay(image, masks, alpha=0.5, colours=[(255, 0, 0), (0, 0, 255)]))
    assert actual.shape == (300, 400, 3)
    grey = 128
    # A third of how much lighter the grey is than red and blue: 0.5 - 0.299 and 0.5 - 0.114.
    red, blue = ((0.5 - level) / 3 / (1 - level) * 255 for level in (0.299, 0.114))
    assert actual[5, 5].tolist() == pytest.approx([255, red / 2, red / 2], abs=1)
    assert actual[5, 200].tolist() == [grey] * 3
    shade = [(grey + level) / 2 for level in (blue, blue, 255)]
    assert actual[5, 350].tolist() == pytest.approx(
        [0.75 * shade[0], 0.75 * shade[1], 0.75 * shade[2] + 0.25 * 255], abs=1
    )
    assert pixels(drawing.overlay(image, masks, alpha=0)).tolist() == np.full((300, 400, 3), grey).tolist()


@pytest.mark.parametrize("alpha", [0.55, 0.8, 1.0])
def test_masks_have_the_colours_of_their_legend(alpha: float) -> None:
    """Whatever the image: every place is nearer to the colour of its own mask than to that of another."""
    sides = np.meshgrid(*[np.linspace(0, 1, 9)] * 3)
    image = np.kron(np.stack(sides, -1).reshape(27, 27, 3), np.ones((10, 10, 1)))
    palette = np.array(colours.PALETTE)
    for k in range(len(palette)):
        masks = np.zeros((len(palette), 1, 1))
        masks[k] = 1
        distance = np.linalg.norm(pixels(drawing.overlay(image, masks, alpha=alpha))[:, :, None] - palette, axis=-1)
        assert (distance.argmin(-1) == k).all(), f"colour {k}"


def test_overlay_takes_any_image_and_enlarges_small_ones() -> None:
    small = Image.new("RGBA", (40, 20), (10, 20, 30, 255))
    mask = np.zeros((1, 10, 20))
    mask[0, :5] = 1
    actual = drawing.overlay(small, mask)
    assert actual.mode == "RGB" and actual.size == (280, 140)
    assert drawing.overlay(small, mask, scale=2).size == (80, 40)
    colours = {tuple(c) for c in pixels(actual).reshape(-1, 3).tolist()}
    assert len(colours) == 2, "an enlarged mask keeps hard edges"
    assert drawing.overlay(np.zeros((20, 300, 3)), mask).size == (300, 20)
    image = torch.rand(8, 8, 3)
    before = image.clone()
    drawing.overlay(image.half(), torch.full((1, 8, 8), torch.nan))
    drawing.overlay(image, torch.full((1, 8, 8), torch.inf))
    assert torch.equal(image, before)


def test_legend_names_every_map() -> None:
    masks = torch.zeros(len(WORDS), 4, 4)
    actual = drawing.overlay(torch.zeros(4, 4, 3), masks, labels=WORDS)
    assert actual.width == 256 and actual.height > 256
    legend = pixels(actual)[256:]
    for k in range(len(WORDS)):
        assert (legend == colours.colour_of(k)).all(-1).any(), f"no swatch for map {k}"
    assert (legend.sum(-1) < 100).sum() > 100, "no text"
    assert legend[:, -2:].min() > 200, "text runs out of the image"


@pytest.mark.parametrize("scale", [1, None])
def test_legend_on_the_smallest_image(scale: int | None) -> None:
    actual = drawing.overlay(torch.zeros(1, 1, 3), torch.ones(2, 1, 1), labels=["猫", "dog"], scale=scale)
    assert actual.width == (1 if scale else 256)


def test_bitmap_font_draws_any_word(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = (ImageFont.load_default_imagefont(),)
    monkeypatch.setattr(drawing, "_fonts", lambda: fonts)
    drawing.overlay(torch.zeros(4, 4, 3), torch.zeros(len(WORDS), 4, 4), labels=WORDS)
    drawing.contact_sheet([torch.zeros(4, 4, 3)] * len(WORDS), WORDS)


def test_letters_the_font_lacks_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = drawing._fonts()[:1]
    monkeypatch.setattr(drawing, "_fonts", lambda: fonts)
    assert drawing._fit("größe", 500)[0] == "grosse"
    assert drawing._fit("plain words", 500)[0] == "plain words"
    assert drawing._fit("a  b\nc", 500)[0] == "a b c"
    cut, font = drawing._fit("word " * 50, 100)
    assert cut.startswith("word") and cut.endswith("...") and font.getlength(cut) <= 100


def test_palette_is_told_apart() -> None:
    first = [colours.colour_of(k) for k in range(21)]
    assert len(set(first)) == 21
    assert all(0 <= channel <= 255 for colour in first for channel in colour)
    assert colours.colour_of(21) == colours.colour_of(0)
    # a common red-green blindness, roughly: the red and green channels seen as their mean
    seen = [np.array([(r + g) / 2, b]) for r, g, b in colours.PALETTE]
    assert min(np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]) > 20


@pytest.mark.parametrize("name", colours.COLOUR_MAPS)
def test_colour_maps_grow_lighter_throughout(name: str) -> None:
    steps = np.diff(luminance(np.array(colours.COLOUR_MAPS[name], dtype=float)))
    assert (steps > 0).all()


def test_the_browser_is_told_the_same_colours() -> None:
    told = colours.tables()
    assert told["colours"] == [list(colours.colour_of(k)) for k in range(21)]
    assert told["maps"]["viridis"][0] == [68, 1, 84]
    assert json.loads(json.dumps(told)) == told


def test_heat() -> None:
    ramp = torch.linspace(0, 1, 256)[None].repeat(4, 1)
    actual = pixels(drawing.heat(ramp))
    assert actual.shape == (4, 256, 3)
    assert actual[0, 0].tolist() == [68, 1, 84] and actual[0, -1].tolist() == [253, 231, 37]
    assert (np.diff(luminance(actual[0].astype(float))) > -1e-3).all(), "lightness must grow with the score"
    stretched = pixels(drawing.heat(ramp / 7 - 3, low=None, high=None))
    assert np.abs(stretched - actual).max() <= 1
    clipped = pixels(drawing.heat(ramp * 3 - 1))
    assert clipped[0, 0].tolist() == [68, 1, 84] and clipped[0, -1].tolist() == [253, 231, 37]
    assert (pixels(drawing.heat(torch.full((4, 300), 0.7), low=None, high=None)) == [68, 1, 84]).all()
    assert drawing.heat(torch.rand(8, 16).half()).size == (256, 128)


def test_contact_sheet() -> None:
    images = [torch.zeros(300, 300, 3), torch.full((30, 60, 3), 0.5), Image.new("L", (300, 600), 90)]
    sheet = drawing.contact_sheet(images, columns=2)
    assert sheet.width == pytest.approx(2 * 300, abs=30) and sheet.height == pytest.approx(2 * 600, abs=30)
    captioned = drawing.contact_sheet(images, ["one", "zwei – ü", "三" * 300], columns=2)
    assert captioned.width == sheet.width and captioned.height > sheet.height + 20
    assert drawing.contact_sheet(images[:1], columns=4).width < 330, "no empty columns"


def test_to_tensor() -> None:
    image = torch.rand(5, 7, 3)
    again = drawing.to_tensor(drawing.contact_sheet([image]))
    assert again.dtype == torch.float32 and again.max() == 1
    exact = drawing.to_tensor(Image.fromarray((image.numpy() * 255).astype(np.uint8)))
    assert exact.shape == (5, 7, 3)
    torch.testing.assert_close(exact, image, rtol=0, atol=1 / 255)


def test_errors() -> None:
    image, masks = torch.zeros(4, 4, 3), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match="1 labels for 2 maps"):
        drawing.overlay(image, masks, labels=["cat"])
    with pytest.raises(ValueError, match="1 colours for 2 maps"):
        drawing.overlay(image, masks, colours=[(0, 0, 0)])
    with pytest.raises(ValueError, match=r"image has shape \(1, 4, 4, 3\)"):
        drawing.overlay(image[None], masks)
    with pytest.raises(ValueError, match="maps has shape"):
        drawing.overlay(image, masks[0])
    with pytest.raises(ValueError, match="scale is 0"):
        drawing.overlay(image, masks, scale=0)
    with pytest.raises(ValueError, match="scores has shape"):
        drawing.heat(masks)
    with pytest.raises(ValueError, match="0 images"):
        drawing.contact_sheet([])
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        drawing.contact_sheet([image, image], ["a"])
