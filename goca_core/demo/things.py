"""Scenes of everyday things: planned and drawn in torch, many at once, on any device.

`plan` turns seeds into positions, sprites and captions. A seed gives the same plan on every device and in every batch,
because all its random numbers are a hash of the seed. `Renderer` draws a plan. The sprites are in demo/things/.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .scene import BASE, COLOURS, Scene, SceneObject, article, check_size
from .shapes import SHAPES

BACKGROUNDS = tuple(BASE)
PLAIN = (
    "cat", "dog", "tree", "house", "moon", "sun", "fish", "bird", "flower", "mushroom", "rocket", "rabbit", "panda", "pig",
    "penguin", "fox", "owl", "duck", "elephant", "apple", "banana", "cake", "robot", "snowman", "frog", "lion", "cow",
    "pumpkin", "turtle", "train",
)  # fmt: skip
COLOURED = ("car", "balloon", "umbrella", "book", *SHAPES)
THINGS = (*PLAIN, *COLOURED)
# One sprite per plain thing, then one per colour of each coloured thing: (colour, thing), in the order of the file.
SPRITES = tuple([("", thing) for thing in PLAIN] + [(colour, thing) for thing in COLOURED for colour in COLOURS])
WORDS = ("a", "an", "and", ",", "on", *COLOURS, *THINGS, *BACKGROUNDS)
# The longest caption has three coloured things: 14 words and a comma.
MOST, CAPTION = 3, 16

_FILE = Path(__file__).resolve().parents[2] / "demo" / "things" / "sprites.webp"
_SPRITE_SIDE, _SPRITES_PER_ROW = 96, 10
# How often a thing is drawn. Shapes and colours are shared by more sprites, but shapes are simple.
_WEIGHT = tuple(0.55 if thing in SHAPES else 1.5 if thing in COLOURED else 1.0 for thing in THINGS)
_ATTEMPTS = 24
_WORD = {word: number for number, word in enumerate(WORDS)}
_NONE = -1


@dataclass
class Plan:
    """Scenes to be drawn. All tensors have one row per scene.

    ``sprite`` [B, 3]: index into SPRITES, -1 for no object. ``wrong`` [B, 3]: the same with one object replaced.
    ``place`` [B, 3, 4]: x, y, radius (fractions of the shorter side) and turn (radians). ``background`` [B]: index into
    BACKGROUNDS. ``words`` [B, CAPTION]: index into WORDS, -1 after the last word. ``phase`` [B]: of waves and planks.
    """

    sprite: Tensor
    wrong: Tensor
    place: Tensor
    background: Tensor
    words: Tensor
    phase: Tensor

    def captions(self) -> list[str]:
        return [
            " ".join(WORDS[word] for word in row if word >= 0).replace(" ,", ",") for row in self.words.cpu().tolist()
        ]


# -- random numbers --------------------------------------------------------------------------------------------------------


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right as if ``x`` were unsigned."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


class _Draws:
    """Uniform random numbers in 0..1 that only depend on the seed: SplitMix64 (Steele, Lea and Flood 2014)."""

    def __init__(self, seeds: Tensor) -> None:
        self._state, self._used = self._mix(seeds.long()), 0

    @staticmethod
    def _mix(x: Tensor) -> Tensor:
        x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
        x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
        return x ^ _shift(x, 31)

    def next(self, *shape: int) -> Tensor:
        """The next numbers of each seed, float64 [B, *shape]."""
        count = math.prod(shape)
        place = torch.arange(self._used + 1, self._used + count + 1, device=self._state.device)
        self._used += count
        mixed = self._mix(self._state[:, None] + place * _signed(0x9E3779B97F4A7C15))
        return (_shift(mixed, 11).double() * 2.0**-53).view(-1, *shape)

    def below(self, limit: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to ``limit`` - 1."""
        return (self.next(*shape) * limit).long()


# -- plans -----------------------------------------------------------------------------------------------------------------


def _arrange(draws: _Draws, count: Tensor, height: int, width: int) -> Tensor:
    """Positions with little overlap: x, y, radius, turn [B, 3, 4]."""
    side, many = min(height, width), len(count)
    size = torch.stack([torch.full_like(count, value, dtype=torch.double) for value in (0.32, 0.29, 0.22)], 1)
    largest = size.gather(1, count[:, None] - 1)
    attempt = torch.arange(_ATTEMPTS, device=count.device)
    found: list[Tensor] = []
    for _ in range(MOST):
        u = draws.next(3, _ATTEMPTS)
        # Crowded images shrink their objects a little at each failed attempt.
        radius = (0.17 + u[:, 0] * (largest - 0.17)) * (1 - attempt / (1.8 * _ATTEMPTS))
        x = 0.92 * radius + u[:, 1] * (width / side - 1.84 * radius)
        y = 0.92 * radius + u[:, 2] * (height / side - 1.84 * radius)
        tries = torch.stack((x, y, radius), -1)
        gap = torch.full_like(x, 1.0)
        for other in found:
            ox, oy, oradius = other[:, None].unbind(-1)
            gap = torch.minimum(gap, torch.hypot(x - ox, y - oy) - 0.95 * (radius + oradius))
        # The first attempt that fits, or the one that is nearest to it.
        best = (gap.clamp_max(0) - 1e-6 * attempt).argmax(1)
        found.append(tries[torch.arange(many, device=count.device), best])
    turn = (draws.next(MOST) - 0.5) * 0.24
    return torch.cat((torch.stack(found, 1), turn[..., None]), -1).float()


@functools.cache
def _log_weight(device: torch.device) -> Tensor:
    # Kept, because a copy to the device would make the CPU wait for it.
    return torch.tensor(_WEIGHT, dtype=torch.double).log().to(device)


def _choose(draws: _Draws, count: Tensor) -> tuple[Tensor, Tensor]:
    """Different things in different colours: sprites [B, 3], and the same with one wrong."""
    device = count.device
    # The largest of log(weight) + Gumbel noise are a weighted choice without repetition.
    noise = -torch.log(-torch.log(draws.next(len(THINGS)).clamp(1e-12, 1 - 1e-12)))
    thing = (_log_weight(device) + noise).topk(MOST).indices
    colour = draws.next(len(COLOURS)).argsort(1)[:, :MOST]
    sprite = _sprite(thing, colour)
    present = torch.arange(MOST, device=device) < count[:, None]
    # In half of the wrong images a coloured object has another colour, in the others any object is another one.
    which = torch.arange(MOST, device=device) == (draws.next() * count).long()[:, None]
    other = (sprite + 1 + draws.below(len(SPRITES) - 1, 1)) % len(SPRITES)
    recoloured = _sprite(thing, (colour + 1 + draws.below(len(COLOURS) - 1, 1)) % len(COLOURS))
    recolour = (draws.next(1) < 0.5) & (thing >= len(PLAIN))
    wrong = torch.where(which, torch.where(recolour, recoloured, other), sprite)
    return torch.where(present, sprite, _NONE), torch.where(present, wrong, _NONE)


def _sprite(thing: Tensor, colour: Tensor) -> Tensor:
    coloured = thing - len(PLAIN)
    return torch.where(coloured < 0, thing, len(PLAIN) + coloured * len(COLOURS) + colour)


@functools.cache
def _name_words(device: torch.device) -> Tensor:
    """Article, colour and thing of each sprite, as indices into WORDS; article and thing for its name without a colour."""
    rows = [
        [_WORD[article(colour or thing)], _WORD.get(colour, _NONE), _WORD[thing], _WORD[article(thing)]]
        for colour, thing in SPRITES
    ]
    return torch.tensor(rows, device=device)


def _caption(sprite: Tensor, count: Tensor, background: Tensor, style: Tensor) -> Tensor:
    """Words [B, CAPTION]. ``style`` [B, 3]: random numbers that decide what the caption leaves out or names first."""
    names = _name_words(sprite.device)[sprite]
    names[:, 0, 0] = torch.where(style[:, 0] < 0.08, names[:, 0, 3], names[:, 0, 0])
    names[:, 0, 1] = torch.where(style[:, 0] < 0.08, _NONE, names[:, 0, 1])
    names = torch.where((sprite >= 0)[..., None], names[..., :3], _NONE)
    silent = style[:, 1] < 0.05
    first = ~silent & (style[:, 2] < 0.05)
    last = ~silent & ~first

    def word(text: str, where: Tensor) -> Tensor:
        return torch.where(where, _WORD[text], _NONE)[:, None]

    place = (background + _WORD[BACKGROUNDS[0]])[:, None]
    slots = torch.cat(
        (
            word("on", first), torch.where(first[:, None], place, _NONE), word(",", first),
            names[:, 0],
            torch.maximum(word("and", count == 2), word(",", count == 3)),
            names[:, 1],
            word("and", count == 3),
            names[:, 2],
            word("on", last), torch.where(last[:, None], place, _NONE),
        ),
        1,
    )  # fmt: skip
    # Move the words to the front, in their order.
    return slots.gather(1, (slots < 0).to(torch.int8).argsort(stable=True, dim=1))[:, :CAPTION]


def plan(seeds: Tensor, height: int, width: int, *, count: int | None = None, plain: bool = False) -> Plan:
    """Plan one scene per seed [B] (int64), on the device of the seeds. ``count`` and ``plain`` as in `scenes.draw`."""
    draws = _Draws(seeds)
    u = draws.next(1)
    number = 1 + (u > 0.4).long() + (u > 0.8).long() if count is None else torch.full_like(u, count, dtype=torch.long)
    number = number[:, 0]
    background, phase = draws.below(len(BACKGROUNDS)), draws.next() * 2 * math.pi
    style = draws.next(3)
    sprite, wrong = _choose(draws, number)
    place = _arrange(draws, number, height, width)
    words = _caption(sprite, number, background, torch.ones_like(style) if plain else style)
    return Plan(sprite, wrong, place, background, words, phase.float())


# -- images ----------------------------------------------------------------------------------------------------------------


@functools.cache
def sprites() -> np.ndarray:
    """All sprites, uint8 [S, 96, 96, 4]: colours multiplied by their opacity, and the opacity."""
    if not _FILE.is_file():
        raise ValueError(f'The sprites are missing: there is no file "{_FILE}"; install the pack again.')
    sheet = np.asarray(Image.open(_FILE).convert("RGBA"))
    tiles = sheet.reshape(-1, _SPRITE_SIDE, _SPRITES_PER_ROW, _SPRITE_SIDE, 4).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles.reshape(-1, _SPRITE_SIDE, _SPRITE_SIDE, 4)[: len(SPRITES)])


class Renderer:
    """Draws plans at one size on one device."""

    def __init__(self, device: torch.device, height: int, width: int) -> None:
        self.device, self.height, self.width = device, height, width
        tiles = torch.from_numpy(sprites()).to(device).permute(0, 3, 1, 2).float() / 255
        self._sprites = torch.cat((tiles, torch.zeros_like(tiles[:1])))  # the last one, index -1, is empty
        self._base = torch.tensor(list(BASE.values()), device=device).float() / 255

    def _noise(self, many: int, cell: float, generator: torch.Generator) -> Tensor:
        """Smooth noise [B, 1, H, W] whose spots are about ``cell`` pixels wide."""
        grid = [max(2, round(side / cell)) for side in (self.height, self.width)]
        coarse = torch.randn(many, 1, *grid, generator=generator, device=self.device)
        return F.interpolate(coarse, (self.height, self.width), mode="bicubic", align_corners=False)

    def backgrounds(self, plan: Plan, generator: torch.Generator, texture: float = 1.0) -> Tensor:
        """Images without objects, [B, 3, H, W] in 0..1. The grain comes from the generator, all else from the plan."""
        many, side = len(plan.background), min(self.height, self.width)
        y = (torch.arange(self.height, device=self.device).view(1, 1, -1, 1) + 0.5) / side
        x = (torch.arange(self.width, device=self.device).view(1, 1, 1, -1) + 0.5) / side
        phase = plan.phase.view(-1, 1, 1, 1)
        # The grain is two pixels wide or more: nothing can learn single pixels of noise.
        fine, soft = self._noise(many, 2, generator), self._noise(many, 10, generator)
        blades = F.avg_pool2d(fine, (11, 1), 1, (5, 0), count_include_pad=False)
        fibres = F.avg_pool2d(fine, (1, 31), 1, (0, 15), count_include_pad=False)
        waves = torch.sin(76 * y + 1.6 * torch.sin(14 * x + phase) + phase)
        planks = torch.sin(44 * y + 0.9 * torch.sin(6 * x + phase) + phase)
        kinds = {
            "grass": 0.040 * blades + 0.012 * soft,
            "sand": 0.008 * fine + 0.012 * soft,
            "water": 0.022 * waves + 0.010 * soft,
            "snow": 0.004 * fine + 0.010 * soft,
            "asphalt": 0.010 * fine + 0.008 * soft,
            "wood": 0.022 * planks + 0.050 * fibres,
        }
        textures = torch.stack([kinds[name] for name in BACKGROUNDS], 1)
        chosen = textures[torch.arange(many, device=self.device), plan.background]
        light = 1 + 0.06 * (0.5 - y * side / self.height)
        return (self._base[plan.background].view(-1, 3, 1, 1) * light + texture * chosen).clamp(0, 1)

    def covers(self, sprite: Tensor, place: Tensor) -> Tensor:
        """Sprites [B] at their places [B, 4]: colours times opacity, and opacity, [B, 4, H, W]."""
        side = min(self.height, self.width)
        # Twice as fine as the image, then averaged, for smooth edges.
        y = (torch.arange(2 * self.height, device=self.device).view(1, -1, 1) + 0.5) / (2 * side)
        x = (torch.arange(2 * self.width, device=self.device).view(1, 1, -1) + 0.5) / (2 * side)
        cx, cy, radius, turn = (value.view(-1, 1, 1) for value in place.unbind(-1))
        dx, dy = (x - cx) / radius, (y - cy) / radius
        grid = torch.stack((dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()), -1)
        return F.avg_pool2d(F.grid_sample(self._sprites[sprite], grid, align_corners=False), 2)

    def compose(self, empty: Tensor, sprite: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Objects [B, 3] on backgrounds: images [B, 3, H, W] in 0..1, and labels [B, H, W] as in `scene.Scene`."""
        image, labels = empty, torch.zeros(len(empty), self.height, self.width, dtype=torch.uint8, device=self.device)
        for number in range(sprite.shape[1]):
            cover = self.covers(sprite[:, number], place[:, number])
            image = image * (1 - cover[:, 3:]) + cover[:, :3]
            labels = torch.where(cover[:, 3] >= 0.5, number + 1, labels)
        return image.clamp(0, 1), labels


def draw(
    seed: int | np.random.Generator,
    height: int,
    width: int,
    *,
    count: int | None = None,
    plain: bool = False,
    texture: float = 1.0,
) -> Scene:
    """`scenes.draw` for things."""
    check_size(height, width)
    number = int(seed.integers(2**62)) if isinstance(seed, np.random.Generator) else seed
    scene = plan(torch.tensor([number]), height, width, count=count, plain=plain)
    renderer = Renderer(torch.device("cpu"), height, width)
    empty = renderer.backgrounds(scene, torch.Generator().manual_seed(number), texture)
    image, labels = renderer.compose(empty, scene.sprite, scene.place)
    objects = tuple(
        SceneObject(*SPRITES[sprite], *place)
        for sprite, place in zip(scene.sprite[0].tolist(), scene.place[0].tolist(), strict=True)
        if sprite >= 0
    )
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return Scene(
        scene.captions()[0],
        BACKGROUNDS[int(scene.background[0])],
        objects,
        pixels,
        labels[0].numpy(),
        (empty[0].permute(1, 2, 0) * 255).numpy(),
    )
