"""The families beside the UNet, and what is particular about each."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """What is particular about the models of a test."""

    odd: tuple[int, int] | None  # a latent with an odd side; PixArt cannot paint one
    hidden: bool = False  # whether the host's options do not reach its attention
    joint: bool = False
    layout: dict[str, int] = {}  # noqa: RUF012  # of the joint sequence, where it is not just text and picture


CROSS = Kind(None, hidden=True)
JOINT_ODD = Kind((15, 22), joint=True)
FAMILIES = {
    "pixart_alpha": CROSS,
    "pixart_sigma": CROSS,
    "hunyuan_dit": Kind((15, 22), hidden=True),
    "hunyuan_dit_12": Kind((15, 22), hidden=True),
    "flux": JOINT_ODD,
    "flux_schnell": JOINT_ODD,
    "flux_fill": JOINT_ODD,
    "chroma": JOINT_ODD,
    "sd3": JOINT_ODD,
    "sd35_medium": JOINT_ODD,
    "auraflow": Kind((15, 22), joint=True, layout={"registers": 8}),
    "qwen_image": JOINT_ODD,
    "lumina2": Kind((15, 22), joint=True),
    "z_image": Kind((15, 22), joint=True, layout={"filled": 32}),
}
HIDDEN = [name for name, kind in FAMILIES.items() if kind.hidden]
ODD = [name for name, kind in FAMILIES.items() if kind.odd]
