"""Finds everyday things in an image of the demo model by matching the sprites that its training images were made of.

Used by prompts.py. No model is involved. Each sprite, in several sizes and rotations and with a rim of the background
around it, is compared with the image at every position. A thing is there if its sprite fits well somewhere and no other
sprite fits better at that place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goca_core.demo.things import SPRITES, sprites

# As captions have them, in the order of the sprites.
NAMES = [f"{colour} {thing}".strip() for colour, thing in SPRITES]
# Images are compared at half of their size. The transform has room for the largest sprite beyond the image.
SIDE, ROOM = 64, 112
# Radii as fractions of the side, and rotations in radians, of things in the training images.
RADII = tuple(np.geomspace(0.11, 0.34, 13).tolist())
TURNS = (-0.08, 0.08)
# The rim counts less than the thing itself, because another thing may be close.
RIM, RIM_WEIGHT = 2, 0.3
# The largest mean squared difference (colours 0..1) at which a sprite fits. In drawn scenes a thing has at most 0.022.
FITS = 0.03


@dataclass(frozen=True)
class Match:
    """Where a sprite fits best: mean squared difference, place (row, column) and radius, in fractions of the side."""

    sprite: int
    difference: float
    row: float
    column: float
    radius: float


class Judge:
    """Matches all sprites. Making one takes seconds and 400 MB, judging an image about a second."""

    def __init__(self) -> None:
        tiles = torch.from_numpy(sprites()).permute(0, 3, 1, 2).float() / 255  # [S, 4, 96, 96], premultiplied
        self.variants = [(radius, turn) for radius in RADII for turn in TURNS]
        self.spectra, self.constants, self.weights, self.rims = [], [], [], []
        for radius, turn in self.variants:
            cover = self._drawn(tiles, radius, turn)
            colours, opacity = cover[:, :3], cover[:, 3:]
            rim = (F.max_pool2d(opacity, 2 * RIM + 1, 1, RIM) > 0.5).float() * (1 - opacity) * RIM_WEIGHT
            weight = opacity + rim
            # sum w (image - template)^2, where the template is c + (1 - a) * background in the rim: see `differences`.
            self.spectra.append(torch.fft.rfft2(torch.cat((weight, colours, rim), 1)))
            self.constants.append((colours**2 / opacity.clamp_min(1e-4)).sum((1, 2, 3)))
            self.weights.append(weight.sum((1, 2, 3)))
            self.rims.append(rim.sum((1, 2, 3)))

    @staticmethod
    def _drawn(tiles: Tensor, radius: float, turn: float) -> Tensor:
        """All sprites in the middle of an empty image [S, 4, ROOM, ROOM]."""
        line = (torch.arange(ROOM) + 0.5 - ROOM / 2) / (radius * SIDE)
        dy, dx = line.view(-1, 1), line.view(1, -1)
        grid = torch.stack((dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)), -1)
        # Averaged like a smaller image, so that small sprites have no jagged edges.
        level = max(1, round(48 / (radius * SIDE)))
        small = F.avg_pool2d(tiles, level) if level > 1 else tiles
        return F.grid_sample(small, grid[None].expand(len(tiles), -1, -1, -1), align_corners=False)

    def differences(self, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """The least mean squared difference of each sprite at each place, over sizes and rotations, [S, SIDE, SIDE].

        image: [128, 128, 3] in 0..255. Also returns the index of the variant [S, SIDE, SIDE].
        """
        pixels = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None] / 255
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="area")[0]
        background = _background(pixels)
        padded = F.pad(pixels, (0, ROOM - SIDE, 0, ROOM - SIDE))
        square = (padded**2).sum(0, keepdim=True)
        signal = torch.fft.rfft2(torch.cat((square, padded, (padded * background.view(3, 1, 1)).sum(0, keepdim=True))))
        best = torch.full((len(SPRITES), SIDE, SIDE), math.inf)
        chosen = torch.zeros(len(SPRITES), SIDE, SIDE, dtype=torch.long)
        for number in range(len(self.variants)):
            # w i^2 - 2 i c - 2 i b rim + c^2 / a + b^2 rim, each summed over the template
            product = self.spectra[number].conj()
            total = (
                product[:, 0] * signal[0] - 2 * (product[:, 1:4] * signal[1:4]).sum(1) - 2 * product[:, 4] * signal[4]
            )
            field = torch.fft.irfft2(total, s=(ROOM, ROOM))
            # The template's middle is at ROOM / 2, so a shift of it puts the sprite's middle at the pixel.
            field = field.roll((ROOM // 2, ROOM // 2), (1, 2))[:, :SIDE, :SIDE]
            constant = self.constants[number] + (background**2).sum() * self.rims[number]
            mean = (field + constant[:, None, None]) / (3 * self.weights[number])[:, None, None]
            chosen = torch.where(mean < best, number, chosen)
            best = torch.minimum(best, mean)
        return best, chosen

    def find(self, image: np.ndarray, names: list[str]) -> list[Match | None]:
        """For each name, such as "red balloon", where it is; None if it is not there or something else fits better."""
        best, chosen = self.differences(image)
        least = best.amin(0)
        found: list[Match | None] = []
        taken = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for name in names:
            sprite = NAMES.index(name)
            field = best[sprite].masked_fill(taken, math.inf)
            place = int(field.argmin())
            row, column = divmod(place, SIDE)
            value = float(field[row, column])
            near = least[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].min()
            if value > FITS or float(near) < value:
                found.append(None)
                continue
            radius = self.variants[int(chosen[sprite, row, column])][0]
            found.append(Match(sprite, value, row / SIDE, column / SIDE, radius))
            reach = max(2, round(radius * SIDE / 2))
            taken[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
        return found

    def shows(self, image: np.ndarray, names: list[str]) -> list[bool]:
        """Which of these things are in an image."""
        return [match is not None for match in self.find(image, names)]


def _background(pixels: Tensor) -> Tensor:
    """The colour [3] of the background: of the base colours the one that most pixels are near to, as it is in this image."""
    from goca_core.demo.scene import BASE

    base = torch.tensor(list(BASE.values())).float() / 255
    flat = pixels.flatten(1).T
    nearest = torch.cdist(flat, base)
    share = (nearest < 0.16).sum(0)
    return flat[nearest[:, int(share.argmax())] < 0.16].mean(0) if int(share.max()) else flat.median(0).values
