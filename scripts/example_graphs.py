"""The example graphs, described by names: which nodes, with which values, wired how, shown where.

`make_graphs.py` turns a description into the two file formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# Pixels of the editor that a shown picture takes, words and masks with their tools, and a line or two of text.
PREVIEW, LOOK, SAID = 290, 430, 90


# -- the parts of a graph --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """An output of a node, by its name or number."""

    node: Node
    output: str | int


@dataclass(eq=False)
class Node:
    """`inputs`: values of widgets and wires, by name; widgets that are left out keep the host's defaults."""

    type: str
    inputs: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    muted: bool = False
    width: int = 300
    more: int = 0  # height for what the node shows after it ran
    properties: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, output: str | int) -> Wire:
        return Wire(self, output)


@dataclass(frozen=True)
class Note:
    text: str
    title: str
    width: int = 380
    height: int = 420


@dataclass(frozen=True)
class Graph:
    """Columns of nodes from left to right, in bands from top to bottom; a titled band gets a frame."""

    name: str
    bands: Sequence[tuple[str, Sequence[Sequence[Node | Note]]]]

    def members(self) -> Iterator[Node | Note]:
        for _, columns in self.bands:
            for column in columns:
                yield from column

    def nodes(self) -> list[Node]:
        return [member for member in self.members() if isinstance(member, Node)]


# -- the graphs ------------------------------------------------------------------------------------------------------

DEMO_NOTE = """\
Everything here comes with the pack: no download, no GPU.

1. Press **Run**. The demo model paints the prompt, and **Record Attention** notes where in the picture it looked for \
each word. The picture is the same as without it.
2. **Mask From Tokens** makes one mask for each line of *phrases*. They are words of the prompt.
3. Click the word *grass* below it, on either node, and run again: only the masks are made anew, nothing is sampled.

The model knows circles, squares, triangles, stars, hearts and crosses, in red, orange, yellow, green, blue, purple and \
pink, on grass, sand, water, snow or asphalt.

Each node has a help page: select it and press the round *i* above it."""

CHECKPOINT_NOTE = """\
1. Choose a checkpoint: SD 1.x, SD 2.x, SDXL or one of their relatives.
2. **SDXL**: set *Empty Latent Image* to 1024 x 1024. Nothing else changes.
3. Write the prompt, and words of it into *phrases*, one object per line. Or click them \
below the prompt.
4. Press **Run**. The masks have the size of the picture.

**Masks too small?** Lower *theta* in **Mask From Tokens** (for example -0.1); too large? Raise it. Changing it samples \
nothing again.

**What is background?** With `auto`, everything else that the prompt names, here the sofa. Name the surroundings in the \
prompt and masks get better."""

SAVE_NOTE = """\
**Above**: the prompt is encoded by the usual *CLIP Text Encode*, so **Prompt Words** says which token is which word. It \
gets the same CLIP and the same text. **Save Attention** keeps the recording in output/goca.

**Below** (muted): other masks from the saved file, without sampling. Run the upper part once, then

1. select the nodes of the upper frame and press Ctrl+M to mute them,
2. select those of the lower frame and press Ctrl+M to wake them,
3. press R, choose the file in **Load Attention**, and run.

`yellow star, purple heart` on one line pools both into one mask."""


CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
INPAINTING = "512-inpainting-ema.safetensors"
FLUX_DEV = "flux1-dev-fp8.safetensors"
# Where the editor finds them.
_FOLDERS = {
    CHECKPOINT: "stable-diffusion-v1-5-archive",
    INPAINTING: "stable_diffusion_2.1_repackaged",
    FLUX_DEV: "flux1-dev",
}


def checkpoint(file: str = CHECKPOINT, muted: bool = False) -> Node:
    url = f"https://huggingface.co/Comfy-Org/{_FOLDERS[file]}/resolve/main/{file}?download=true"
    model = {"name": file, "url": url, "directory": "checkpoints"}
    return Node("CheckpointLoaderSimple", {"ckpt_name": file}, properties={"models": [model]}, muted=muted)


def save(title: str, prefix: str, images: Wire) -> Node:
    return Node("SaveImage", {"images": images, "filename_prefix": f"goca/{prefix}"}, title, more=PREVIEW)


def save_masks(masks: Wire, overlay: Wire, heat: Wire) -> list[Node]:
    return [save("Masks", "mask", masks), save("Overlay", "overlay", overlay), save("Heat maps", "heat", heat)]


REFINE_NOTE = """\
Attention is coarse: a cell of it covers many pixels. **Refine** lets the masks follow finer edges. Press **Run** and compare \
the three overlays.

* **pamr** moves scores to the edges of the picture, thoroughly.
* **guided filter** is faster and softer. Both need the decoded picture in *image*.
* **proposal merge** (try it in either node) looks for segments in the model's self-attention instead; each goes whole to \
one phrase.

Changing any of it samples nothing again. With your own checkpoint it is the same: put **Refine** before **Mask From \
Tokens**."""


FLUX_NOTE = """\
1. Put **flux1-dev-fp8** into *models/checkpoints* (the editor offers the download). It holds the model, both text \
encoders and the VAE. A graph with separate loaders works the same: wire **Record Attention** between the model and the \
sampler, and **Encode Prompt** in the place of the positive *CLIP Text Encode*.
2. Write the prompt, and words of it into *phrases*, one object per line.
3. Press **Run**. One of the steps is recorded, at the noise level at which the paper reads Flux.

Flux has no start token that swallows attention, but padding that does; dividing by the content words takes it out.

**schnell** in 4 steps: no step comes near that noise level. Set *window* of **Record Attention** to percent, 0.5 to 1.

**Little memory?** Set *reference_grid* to 32x32."""


def _words(
    model: Node,
    prompt: str,
    phrases: str,
    size: int,
    sampling: dict[str, Any],
    note: Note,
    name: str,
    latents: str = "EmptyLatentImage",
    guidance: float | None = None,
) -> Graph:
    """From a prompt to masks, with every step as a node of its own. ``guidance``: for models that were distilled of it."""
    clip, vae = model[1], model[2]
    positive = Node("GOCA_EncodePrompt", {"clip": clip, "text": prompt}, "Prompt", more=150)
    negative = Node("GOCA_EncodePrompt", {"clip": clip, "text": ""}, "Negative prompt", more=40)
    record = Node("GOCA_RecordAttention", {"model": model[0]})
    latent = Node(latents, {"width": size, "height": size})
    guided = [] if guidance is None else [Node("FluxGuidance", {"conditioning": positive[0], "guidance": guidance})]
    wanted = (guided or [positive])[0]
    wires = {"model": record["model"], "positive": wanted[0], "negative": negative[0], "latent_image": latent[0]}
    sampler = Node("KSampler", {**wires, **sampling}, more=160)
    picture = Node("VAEDecode", {"samples": sampler[0], "vae": vae})
    collect = Node("GOCA_CollectAttention", {"recorder": record["recorder"], "latent": sampler[0]}, more=SAID)
    aggregate = Node("GOCA_Aggregate", {"attention": collect[0]})
    scores = Node("GOCA_Rescale", {"maps": aggregate[0]})
    masks = Node("GOCA_MaskFromTokens", {"source": scores[0], "phrases": phrases}, width=330, more=LOOK)
    shown = {"image": picture[0], "source": masks["masks"], "labels": masks["labels"]}
    overlay = Node("GOCA_Overlay", shown, "Masks over the picture", more=PREVIEW)
    heat = Node("GOCA_Overlay", {"image": picture[0], "source": scores[0]}, "Heat map of every word", more=PREVIEW)
    images = Node("MaskToImage", {"mask": masks["masks"]})
    saved = [save("Picture", "picture", picture[0]), *save_masks(images[0], overlay[0], heat[0])]
    painting: list[list[Node | Note]] = [
        [note],
        [model, positive],
        [negative, latent],
        [record, *guided],
        [sampler, picture],
        [saved[0]],
    ]
    cutting: list[list[Node | Note]] = [
        [collect, aggregate, scores],
        [masks, images],
        [overlay],
        [heat],
    ]
    cutting += [[node] for node in saved[1:]]
    return Graph(name, [("Paint and record", painting), ("From words to masks", cutting)])


def demo_graph() -> Graph:
    sampling = {"seed": 3, "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    return _words(
        Node("GOCA_DemoModel"),
        "a red circle and a blue square on grass",
        "red circle\nblue square",
        64,
        sampling,
        Note(DEMO_NOTE, "Masks from the words of a prompt", height=400),
        "masks_from_words_demo",
    )


def checkpoint_graph() -> Graph:
    sampling = {"seed": 3, "steps": 25, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    return _words(
        checkpoint(),
        "a cat and a dog on a sofa",
        "cat\ndog",
        512,
        sampling,
        Note(CHECKPOINT_NOTE, "Masks from the words of a prompt", height=400),
        "masks_from_words_sd15_sdxl",
    )


def flux_graph() -> Graph:
    file = "flux1-dev-fp8.safetensors"
    url = f"https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/{file}?download=true"
    model = {"name": file, "url": url, "directory": "checkpoints"}
    sampling = {"seed": 3, "steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    return _words(
        Node("CheckpointLoaderSimple", {"ckpt_name": file}, properties={"models": [model]}),
        "a cat and a dog on a sofa in front of a window",
        "cat\ndog",
        1024,
        sampling,
        Note(FLUX_NOTE, "Masks from the words of a prompt, with Flux", height=460),
        "masks_from_words_flux",
        "EmptySD3LatentImage",
        3.5,
    )


def save_graph() -> Graph:
    model = Node("GOCA_DemoModel")
    text = Node("PrimitiveStringMultiline", {"value": "a yellow star and a purple heart on snow"}, "Prompt")
    words = Node("GOCA_Words", {"clip": model["clip"], "text": text[0]}, more=150)
    positive = Node("CLIPTextEncode", {"clip": model["clip"], "text": text[0]})
    negative = Node("CLIPTextEncode", {"clip": model["clip"], "text": ""}, "Negative prompt")
    record = Node("GOCA_RecordAttention", {"model": model["model"]})
    latent = Node("EmptyLatentImage", {"width": 64, "height": 64})
    wires = {"model": record["model"], "positive": positive[0], "negative": negative[0], "latent_image": latent[0]}
    sampling = {"seed": 3, "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    sampler = Node("KSampler", {**wires, **sampling}, more=160)
    picture = Node("VAEDecode", {"samples": sampler[0], "vae": model["vae"]})
    collect = Node("GOCA_CollectAttention", {"recorder": record["recorder"], "latent": sampler[0]}, more=SAID)
    stored = Node("GOCA_SaveAttention", {"attention": collect[0], "filename_prefix": "demo"}, more=SAID)
    phrases = {"source": collect[0], "phrases": "yellow star\npurple heart", "words": words[0]}
    masks = Node("GOCA_MaskFromTokens", phrases, width=330, more=LOOK)
    shown = {"image": picture[0], "source": masks["masks"], "labels": masks["labels"]}
    overlay = Node("GOCA_Overlay", shown, more=PREVIEW)
    saved = save("Overlay", "overlay", overlay[0])

    load = Node("GOCA_LoadAttention", {"file": "output/demo_00001.safetensors"}, muted=True)
    pooled = {"source": load[0], "phrases": "yellow star, purple heart", "words": words[0]}
    again = Node("GOCA_MaskFromTokens", pooled, width=330, more=LOOK, muted=True)
    images = Node("MaskToImage", {"mask": again["masks"]}, muted=True)
    seen = Node("PreviewImage", {"images": images[0]}, "Masks from the file", muted=True, more=PREVIEW)
    return Graph(
        "save_and_reuse_attention_demo",
        [
            ("", [[Note(SAVE_NOTE, "Save a recording and use it again", height=330)], [model, text], [words]]),
            ("Paint, record and save", [[positive, negative], [record, latent], [sampler, picture], [collect, stored],
                                        [masks], [overlay], [saved]]),
            ("Load, without sampling", [[load], [again], [images], [seen]]),
        ],
    )  # fmt: skip


def refine_graph() -> Graph:
    """Masks of the same phrases as they are, and refined in two ways."""
    model = Node("GOCA_DemoModel")
    positive = Node(
        "GOCA_EncodePrompt",
        {"clip": model["clip"], "text": "a yellow star and a purple heart on asphalt"},
        "Prompt",
        more=150,
    )
    negative = Node("GOCA_EncodePrompt", {"clip": model["clip"], "text": ""}, "Negative prompt", more=40)
    record = Node("GOCA_RecordAttention", {"model": model["model"]})
    latent = Node("EmptyLatentImage", {"width": 64, "height": 64})
    wires = {"model": record["model"], "positive": positive[0], "negative": negative[0], "latent_image": latent[0]}
    sampling = {"seed": 1, "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    sampler = Node("KSampler", {**wires, **sampling}, more=160)
    picture = Node("VAEDecode", {"samples": sampler[0], "vae": model["vae"]})
    collect = Node("GOCA_CollectAttention", {"recorder": record["recorder"], "latent": sampler[0]}, more=SAID)
    phrases = Node("PrimitiveStringMultiline", {"value": "yellow star\npurple heart"}, "Phrases")

    def shown(source: Wire, name: str) -> list[list[Node | Note]]:
        masks = Node("GOCA_MaskFromTokens", {"source": source, "phrases": phrases[0]}, width=330, more=LOOK)
        overlay = {"image": picture[0], "source": masks["masks"], "labels": masks["labels"]}
        return [[masks], [Node("GOCA_Overlay", overlay, name, more=PREVIEW)]]

    pamr, guided = (
        Node("GOCA_Refine", {"source": collect[0], "image": picture[0], "method": method}, f"Refine: {method}")
        for method in ("pamr", "guided filter")
    )
    return Graph(
        "sharper_masks_demo",
        [
            ("Paint and record", [[Note(REFINE_NOTE, "Sharper masks", height=330)], [model, positive], [negative, latent],
                                  [record], [sampler], [picture, collect, phrases]]),
            ("As they are", shown(collect[0], "As they are")),
            ("Refined: pamr", [[pamr], *shown(pamr[0], "pamr")]),
            ("Refined: guided filter", [[guided], *shown(guided[0], "guided filter")]),
        ],
    )  # fmt: skip


def graphs() -> list[Graph]:
    return [
        demo_graph(),
        checkpoint_graph(),
        flux_graph(),
        save_graph(),
        refine_graph(),
    ]
