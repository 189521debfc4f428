"""Parts that several of the example graphs that edit pictures have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.example_graphs import FLUX_DEV, LOOK, PREVIEW, SAID, Node, Note, Wire, checkpoint, save


def sampler(model: Wire, positive: Wire, negative: Wire, latent: Wire, title: str = "", **sampling: Any) -> Node:
    wires = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    muted = sampling.pop("muted", False)
    return Node("KSampler", {**wires, **sampling}, title, more=160, muted=muted)


@dataclass(frozen=True)
class Start:
    """What a graph paints with: a loader, the side of its pictures, and how it samples.

    ``guidance``: for models that were distilled of it.
    """

    name: str
    model: Callable[[], Node]
    size: int
    sampling: dict[str, Any]
    latents: str = "EmptyLatentImage"
    guidance: float | None = None


_KARRAS = {"seed": 3, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
DEMO = Start("demo", lambda: Node("GOCA_DemoModel"), 64, {**_KARRAS, "steps": 20, "cfg": 4.0})
SD15 = Start("sd15_sdxl", checkpoint, 512, {**_KARRAS, "steps": 25, "cfg": 7.0})
FLUX = Start(
    "flux",
    lambda: checkpoint(FLUX_DEV),
    1024,
    {"seed": 3, "steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"},
    "EmptySD3LatentImage",
    3.5,
)


class Beginning:
    """A model, a prompt and an empty latent."""

    def __init__(self, start: Start, prompt: str, note: Note) -> None:
        loader = start.model()
        self.model, self.clip, self.vae = loader[0], loader[1], loader[2]
        positive = Node("GOCA_EncodePrompt", {"clip": self.clip, "text": prompt}, "Prompt", more=150)
        self.negative = Node("GOCA_EncodePrompt", {"clip": self.clip, "text": ""}, "Negative prompt", more=40)
        self.latent = Node(start.latents, {"width": start.size, "height": start.size})
        self.positive = positive[0]
        self.guided: list[Node] = []
        if start.guidance is not None:
            self.guided = [Node("FluxGuidance", {"conditioning": positive[0], "guidance": start.guidance})]
            self.positive = self.guided[0][0]
        self.columns: list[list[Node | Note]] = [[note], [loader, positive], [self.negative, self.latent]]

    def paint(self, start: Start, model: Wire, title: str = "", positive: Wire | None = None) -> tuple[Node, Node]:
        """A sampler and its picture."""
        node = sampler(model, positive or self.positive, self.negative[0], self.latent[0], title, **start.sampling)
        return node, Node("VAEDecode", {"samples": node[0], "vae": self.vae})


class FirstPass(Beginning):
    """A prompt painted and recorded, and masks for phrases of it."""

    def __init__(self, start: Start, prompt: str, phrases: str, note: Note) -> None:
        super().__init__(start, prompt, note)
        record = Node("GOCA_RecordAttention", {"model": self.model})
        self.sampler, self.picture = self.paint(start, record["model"], "First pass")
        collect = Node("GOCA_CollectAttention", {"recorder": record["recorder"], "latent": self.sampler[0]}, more=SAID)
        self.masks = Node("GOCA_MaskFromTokens", {"source": collect[0], "phrases": phrases}, width=330, more=LOOK)
        shown = {"image": self.picture[0], "source": self.masks["masks"], "labels": self.masks["labels"]}
        overlay = Node("GOCA_Overlay", shown, "Masks over the picture", more=PREVIEW)
        self.columns += [[record, *self.guided], [self.sampler, self.picture], [collect, self.masks], [overlay]]
        self.columns += [[save("First picture", "first", self.picture[0])]]


def paste(first: Wire, second: Wire, mask: Wire) -> Node:
    """The second picture where the mask is, the first elsewhere: going through the VAE changes every pixel a little."""
    return Node("ImageCompositeMasked", {"destination": first, "source": second, "mask": mask})


def soft_edge(mask: Wire, expand: int, blur: int, sigma: float) -> tuple[list[Node], Wire]:
    """A mask grown and with a soft edge, by the host's nodes: its blur works on pictures."""
    grow = Node("GrowMask", {"mask": mask, "expand": expand})
    image = Node("MaskToImage", {"mask": grow[0]})
    blurred = Node("ImageBlur", {"image": image[0], "blur_radius": blur, "sigma": sigma})
    soft = Node("ImageToMask", {"image": blurred[0], "channel": "red"})
    return [grow, image, blurred, soft], soft[0]
