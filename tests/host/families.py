"""The families beside the UNet, and what is particular about each."""

from __future__ import annotations

from typing import NamedTuple

from .probe import HIDING


class Kind(NamedTuple):
    """What is particular about the models of a test."""

    odd: tuple[int, int] | None  # a latent with an odd side; PixArt cannot sample one
    hidden: str = ""  # the module that calls its attention, where ComfyUI's options do not reach that
    joint: bool = False
    layout: dict[str, int] = {}  # noqa: RUF012  # of the joint sequence, where it is not just text and image
    grid: tuple[int, int] = (8, 11)  # the tokens of the odd latent
    other: tuple[int, int] | None = (18, 12)  # a latent that is higher than wide
    together: bool = False  # prompts of all lengths go into one call
    alone: bool = False  # a call has one sample
    since: str = ""  # the ComfyUI that it is tested on from, where the oldest supported one does not have it


CROSS = Kind(None, hidden=HIDING[0], other=None)
JOINT_ODD = Kind((15, 22), joint=True)
CELLS = JOINT_ODD._replace(odd=(7, 11), grid=(7, 11), other=(9, 6))  # each cell of the latent is a token
ODD_SIZED = Kind((15, 22))
IMAGE_FIRST = {"image_first": True}
FAMILIES = {
    "pixart_alpha": CROSS,
    "pixart_sigma": CROSS,
    "hunyuan_dit": Kind((15, 22), hidden=HIDING[1], together=True),
    "hunyuan_dit_12": Kind((15, 22), hidden=HIDING[1], together=True),
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
    "z_image_pixels": Kind((40, 70), joint=True, layout={"filled": 32}, grid=(3, 5), other=(64, 48)),
    "newbie": JOINT_ODD,
    "flux2": CELLS._replace(layout={"filling": 512 - 30}, together=True),
    "longcat_image": JOINT_ODD,
    "ovis_image": JOINT_ODD,
    "chroma_radiance": Kind((40, 70), joint=True, grid=(3, 5), other=(64, 48)),
    "hidream": JOINT_ODD._replace(layout={**IMAGE_FIRST, "more": 2 * 12}),
    "omnigen2": JOINT_ODD,
    "boogu": JOINT_ODD._replace(since="0.30.0"),
    "hunyuan_image": CELLS._replace(layout={"more": 9}),
    "krea2": JOINT_ODD._replace(layout={"gated": True}, since="0.30.0"),
    "cascade_c": CELLS._replace(layout={**IMAGE_FIRST, "after": 8}),
    "mage_flow": CELLS._replace(since="0.30.0"),
    "joyimage": JOINT_ODD._replace(layout=IMAGE_FIRST, since="0.30.0"),
    "lens": CELLS._replace(layout=IMAGE_FIRST),
    "ideogram4": CELLS,
    "ernie": CELLS._replace(layout=IMAGE_FIRST, hidden=HIDING[2]),
    "pixeldit": Kind((40, 70), joint=True, grid=(3, 5), other=(64, 48)),
    "hidream_o1": Kind(None, joint=True, other=(128, 96), together=True),  # sides are whole patches
    "cosmos_predict2": ODD_SIZED,
    # What Kandinsky gives is not cut to an odd size, so ComfyUI cannot sample one.
    "kandinsky5_image": Kind(None),
    # Videos of three frames.
    "wan21": ODD_SIZED,
    "wan21_i2v": ODD_SIZED._replace(layout={"added": True}),
    "wan21_vace": Kind(None),  # the control video is not padded to whole patches
    "wan21_camera": ODD_SIZED._replace(layout={"added": True}),
    "wan22": ODD_SIZED,
    "cosmos_predict2_i2v": ODD_SIZED,
    "kandinsky5": Kind(None),
    "hunyuan_video": Kind(None, joint=True),
    "hunyuan_video15": CELLS._replace(layout={"registers": 7, "more": 9}),
    "ltxv": CELLS._replace(joint=False),
    "ltx2": CELLS._replace(joint=False),
    "ltx23": CELLS._replace(joint=False, layout={"gated": True}),
    # Those of the sound are between those of the prompt and of the video.
    "minimax_h3": JOINT_ODD._replace(layout={"before": 2 * 5}, alone=True, since="0.30.0"),
    "mochi": Kind(None, joint=True, layout={"image_first": True, "more": -4}),
    "cogvideox": JOINT_ODD,
    "cogvideox15": JOINT_ODD,
    "cosmos1": Kind(None),
}
HIDDEN = [name for name, kind in FAMILIES.items() if kind.hidden]
ODD = [name for name, kind in FAMILIES.items() if kind.odd]
