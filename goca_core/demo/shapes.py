"""Scenes of six shapes in seven colours, drawn on the CPU, at any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from .scene import BASE, COLOURS, Scene, SceneObject, article, check_size

BACKGROUNDS = ("grass", "sand", "water", "snow", "asphalt")
# Shapes are drawn larger than the image and averaged down, which gives smooth edges.
_SUPERSAMPLE = 4


def _regular(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    radii = [1.0] * corners if inner == 1.0 else [1.0, inner] * corners
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(angles) ** 3 / 17
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 17
    return list(zip(x.tolist(), y.tolist(), strict=True))


_ARM = 0.34
_OUTLINES: dict[str, Callable[[], list[tuple[float, float]]]] = {
    "circle": lambda: _regular(48),
    "square": lambda: [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": lambda: _regular(3),
    "star": lambda: _regular(5, inner=0.42),
    "heart": _heart,
    "cross": lambda: [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
SHAPES = tuple(_OUTLINES)


def _background(name: str, height: int, width: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The textured background, float ``[H, W, 3]`` in 0..255."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    noise = rng.standard_normal((height, width)).astype(np.float32)
    # Neighbours averaged along one axis turn white noise into blades (grass) or grains (the others).
    blades = noise + np.roll(noise, 1, 0) + np.roll(noise, 2, 0)
    grains = noise + np.roll(noise, 1, 1)
    if name == "grass":
        texture = 7 * blades
    elif name == "sand":
        texture = 5 * grains
    elif name == "water":
        phase = rng.uniform(0, 2 * math.pi)
        texture = 14 * np.sin(rows * 0.9 + np.sin(columns * 0.2 + phase) * 1.5 + phase)
    elif name == "snow":
        texture = 3 * grains
    else:
        texture = 6 * noise
    light = 1 + 0.06 * (0.5 - rows / height)
    return (np.asarray(BASE[name], np.float32) * light[..., None]) + strength * texture[..., None]


def stencil(item: SceneObject, height: int, width: int) -> np.ndarray:
    """Coverage of each pixel by the shape, float ``[H, W]`` in 0..1."""
    side = min(height, width)
    canvas = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), 0)
    cosine, sine, radius = math.cos(item.turn), math.sin(item.turn), item.radius * side
    points = [
        (
            (item.x * side + radius * (x * cosine - y * sine)) * _SUPERSAMPLE,
            (item.y * side + radius * (x * sine + y * cosine)) * _SUPERSAMPLE,
        )
        for x, y in _OUTLINES[item.shape]()
    ]
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLE), np.float32) / 255.0


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _arrange(rng: np.random.Generator, count: int, height: int, width: int) -> tuple[SceneObject, ...]:
    side = min(height, width)
    colours, shapes = rng.permutation(list(COLOURS))[:count], rng.permutation(SHAPES)[:count]
    objects: list[SceneObject] = []
    for colour, shape in zip(colours, shapes, strict=True):
        for attempt in range(200):
            # Crowded images shrink their objects a little at each failed attempt, so that this always ends.
            radius = rng.uniform(0.17, 0.30 if count < 3 else 0.22) * (1 - attempt / 400)
            x = rng.uniform(radius, width / side - radius)
            y = rng.uniform(radius, height / side - radius)
            if all(math.hypot(x - o.x, y - o.y) > 0.92 * (radius + o.radius) for o in objects):
                break
        objects.append(
            SceneObject(str(colour), str(shape), float(x), float(y), float(radius), float(rng.uniform(-0.1, 0.1)))
        )
    return tuple(objects)


def _compose(empty: np.ndarray, objects: Sequence[SceneObject]) -> tuple[np.ndarray, np.ndarray]:
    """The image and labels of objects on a background, as in ``Scene``."""
    height, width = empty.shape[:2]
    image, labels = empty, np.zeros((height, width), np.uint8)
    for number, item in enumerate(objects, start=1):
        cover = stencil(item, height, width)
        image = image * (1 - cover[..., None]) + np.asarray(COLOURS[item.colour], np.float32) * cover[..., None]
        labels[cover >= 0.5] = number
    return np.clip(image, 0, 255).astype(np.uint8), labels


def corrupt(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The image of a scene with one object in a wrong colour and, half the time, in a random shape."""
    number = int(rng.integers(len(scene.objects)))
    item = scene.objects[number]
    colour = str(rng.choice([name for name in COLOURS if name != item.colour]))
    shape = str(rng.choice(SHAPES)) if rng.random() < 0.5 else item.shape
    objects = list(scene.objects)
    objects[number] = replace(item, colour=colour, shape=shape)
    return _compose(scene.empty, objects)[0]


def draw(
    seed: int | np.random.Generator,
    height: int = 64,
    width: int = 64,
    *,
    count: int | None = None,
    plain: bool = False,
    texture: float = 0.25,
) -> Scene:
    """`scenes.draw` for shapes. ``texture``: strength of the background's texture."""
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    check_size(height, width)
    if count is None:
        count = int(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2]))
    background = str(rng.choice(BACKGROUNDS))
    objects = _arrange(rng, count, height, width)
    empty = _background(background, height, width, rng, texture)
    image, labels = _compose(empty, objects)
    names = [f"{article(item.name)} {item.name}" for item in objects]
    style = rng.random(3)
    if not plain and style[0] < 0.08:
        names[0] = f"a {objects[0].shape}"
    caption = f"{_join(names)} on {background}"
    if not plain and style[1] < 0.05:
        caption = _join(names)
    elif not plain and style[2] < 0.05:
        caption = f"on {background}, {_join(names)}"
    return Scene(caption, background, objects, image, labels, empty)
