"""The example graphs that edit pictures, described as in example_graphs.py."""

from __future__ import annotations

from typing import Any

from scripts.example_graphs import PREVIEW, Graph, Node, Note, Wire

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"

REGIONAL_NOTE = """\
Two passes with the same seed.

1. **Above** the prompt is painted and recorded, and **Mask From Tokens** makes a mask for each phrase.
2. **Below**, **Regional Prompt** gives the masks prompts of their own, written as `label: prompt`, one per line. What has \
none follows the base prompt.

The same seed and *start_percent* 0.2 keep the layout: in the first fifth of sampling the base paints alone. *feather* \
hides the seams.

Try `blue square: a green heart on grass` as a second line of *prompts*."""

SEMANTIC_NOTE = """\
The same prompt, seed and guidance scale three times:

* **plain** guidance, one number for the whole picture,
* weighed by **S-CFG**'s regions,
* weighed by **GoCA**'s regions.

Each region of a word is pushed as hard as the foreground on average. What that changes depends on the prompt and the scale; \
raise *cfg* of all three to see more of it."""


# -- parts that several graphs have -----------------------------------------------------------------------------------


def _save(title: str, prefix: str, images: Wire) -> Node:
    return Node("SaveImage", {"images": images, "filename_prefix": f"goca/{prefix}"}, title, more=PREVIEW)


def _checkpoint(file: str, url: str, muted: bool = False) -> Node:
    model = {"name": file, "url": url, "directory": "checkpoints"}
    return Node("CheckpointLoaderSimple", {"ckpt_name": file}, properties={"models": [model]}, muted=muted)


def _sampler(model: Wire, positive: Wire, negative: Wire, latent: Wire, title: str = "", **sampling: Any) -> Node:
    wires = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    muted = sampling.pop("muted", False)
    return Node("KSampler", {**wires, **sampling}, title, more=160, muted=muted)


class _FirstPass:
    """A prompt painted and recorded, and masks for phrases of it."""

    def __init__(self, model: Node, prompt: str, phrases: str, size: int, note: Note, sampling: dict[str, Any]) -> None:
        self.model, self.clip, self.vae = model[0], model[1], model[2]
        self.positive = Node("GOCA_EncodePrompt", {"clip": self.clip, "text": prompt}, "Prompt", more=150)
        self.negative = Node("GOCA_EncodePrompt", {"clip": self.clip, "text": ""}, "Negative prompt", more=40)
        self.record = Node("GOCA_RecordAttention", {"model": self.model})
        self.latent = Node("EmptyLatentImage", {"width": size, "height": size})
        self.sampler = _sampler(
            self.record["model"], self.positive[0], self.negative[0], self.latent[0], "First pass", **sampling
        )
        self.picture = Node("VAEDecode", {"samples": self.sampler[0], "vae": self.vae})
        collect = Node(
            "GOCA_CollectAttention", {"recorder": self.record["recorder"], "latent": self.sampler[0]}, more=80
        )
        self.masks = Node("GOCA_MaskFromTokens", {"source": collect[0], "phrases": phrases}, width=330, more=90)
        shown = {"image": self.picture[0], "source": self.masks["masks"], "labels": self.masks["labels"]}
        self.overlay = Node("GOCA_Overlay", shown, "Masks over the picture", more=PREVIEW)
        self.columns: list[list[Node | Note]] = [
            [note],
            [model, self.positive],
            [self.negative, self.latent],
            [self.record],
            [self.sampler, self.picture],
            [collect, self.masks],
            [self.overlay],
        ]


# -- the graphs -------------------------------------------------------------------------------------------------------


def regional_graph(
    name: str, model: Node, prompt: str, phrases: str, prompts: str, size: int, feather: float, sampling: dict[str, Any]
) -> Graph:
    first = _FirstPass(model, prompt, phrases, size, Note(REGIONAL_NOTE, "Regional prompts from words"), sampling)
    regional = Node(
        "GOCA_RegionalPrompt",
        {
            "conditioning": first.positive[0],
            "clip": first.clip,
            "masks": first.masks["masks"],
            "labels": first.masks["labels"],
            "prompts": prompts,
            "feather": feather,
            "start_percent": 0.2,
        },
        width=360,
        more=100,
    )
    # The unrecorded model: nothing is to be learnt from the second pass.
    second = _sampler(first.model, regional[0], first.negative[0], first.latent[0], "Second pass", **sampling)
    picture = Node("VAEDecode", {"samples": second[0], "vae": first.vae})
    return Graph(
        name,
        [
            ("First pass: paint, record, find", [*first.columns, [_save("First picture", "first", first.picture[0])]]),
            ("Second pass: each mask with its own prompt", [[regional], [second, picture],
                                                             [_save("Second picture", "second", picture[0])]]),
        ],
    )  # fmt: skip


def semantic_graph() -> Graph:
    sampling = {"seed": 5, "steps": 20, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    model = Node("GOCA_DemoModel")
    text = "a yellow star, a purple heart and a red circle on snow"
    positive = Node("GOCA_EncodePrompt", {"clip": model["clip"], "text": text}, "Prompt", more=150)
    negative = Node("GOCA_EncodePrompt", {"clip": model["clip"], "text": ""}, "Negative prompt", more=40)
    latent = Node("EmptyLatentImage", {"width": 64, "height": 64})

    def row(source: Wire, title: str, prefix: str) -> list[list[Node | Note]]:
        sampler = _sampler(source, positive[0], negative[0], latent[0], title, **sampling)
        picture = Node("VAEDecode", {"samples": sampler[0], "vae": model["vae"]})
        return [[sampler], [picture], [_save(title, prefix, picture[0])]]

    scfg, goca = (
        Node("GOCA_SemanticCFG", {"model": model["model"], "regions": rule}, f"Regions: {rule}")
        for rule in ("S-CFG", "GoCA")
    )
    return Graph(
        "semantic_cfg_demo",
        [
            ("", [[Note(SEMANTIC_NOTE, "Semantic guidance", height=300)], [model, latent], [positive], [negative]]),
            ("Plain guidance", row(model["model"], "Plain guidance", "plain")),
            ("Weighed by S-CFG's regions", [[scfg], *row(scfg[0], "S-CFG's regions", "scfg")]),
            ("Weighed by GoCA's regions", [[goca], *row(goca[0], "GoCA's regions", "semantic")]),
        ],
    )


def edit_graphs() -> list[Graph]:
    """The graphs of this file."""
    demo = {"seed": 3, "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    return [
        regional_graph(
            "regional_prompts_demo",
            Node("GOCA_DemoModel"),
            "a red circle and a blue square on grass",
            "red circle\nblue square",
            "red circle: a yellow circle and a blue square on grass",
            64,
            4.0,
            demo,
        ),
        regional_graph(
            "regional_prompts_sd15_sdxl",
            _checkpoint(
                CHECKPOINT,
                f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true",
            ),
            "a cat and a dog on a sofa",
            "cat\ndog",
            "cat: a black cat on a sofa\ndog: a white poodle on a sofa",
            512,
            24.0,
            {"seed": 3, "steps": 25, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
        ),
        semantic_graph(),
    ]
