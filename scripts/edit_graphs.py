"""The example graphs that edit pictures, described as in example_graphs.py."""

from __future__ import annotations

from typing import Any

from scripts.example_graphs import LOOK, PREVIEW, Graph, Node, Note, Wire

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
INPAINTING = "512-inpainting-ema.safetensors"

REGIONAL_NOTE = """\
Two passes with the same seed.

1. **Above** the prompt is painted and recorded, and **Mask From Tokens** makes a mask for each phrase.
2. **Below**, **Regional Prompt** gives the masks prompts of their own, written as `label: prompt`, one per line. What has \
none follows the base prompt.

The same seed and *start_percent* 0.2 keep the layout: in the first fifth of sampling the base paints alone. *feather* \
hides the seams.

Try `blue square: a green heart on grass` as a second line of *prompts*."""

REPLACE_NOTE = """\
**Replace the red circle by a blue star**: a picture is made, and then only the masked part of it is painted again.

1. **Above** the picture is painted and recorded. *phrases* says what is to be replaced.
2. **Below** the mask is grown and its edge blurred, so that the new thing may be a little larger. *Set Latent Noise Mask* \
keeps everything else as it is, **Differential Diffusion** lets grey parts of the mask follow later, which blends them in, and \
*Image Composite Masked* puts the new part into the first picture.

*denoise* 1 replaces, less only varies. A prompt for the whole picture works best: say what is around the new thing, too."""

REPLACE_PHOTO_NOTE = """\
1. Choose a checkpoint, for SD 1.x or SDXL (set the size to 1024 then).
2. *phrases* says what is to be replaced, the second prompt by what.
3. Press **Run**.

**A mask too small?** Lower *theta*, or raise *expand*. **Seams?** Raise *blur_radius*.

The muted row below does the same with an **inpainting checkpoint** and *InpaintModelConditioning*: wake it with Ctrl+M. Such \
models see what is around the hole and match it better."""

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
        self.masks = Node("GOCA_MaskFromTokens", {"source": collect[0], "phrases": phrases}, width=330, more=LOOK)
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


def _paste(first: Wire, second: Wire, mask: Wire) -> Node:
    """The second picture where the mask is, the first elsewhere: going through the VAE changes every pixel a little."""
    return Node("ImageCompositeMasked", {"destination": first, "source": second, "mask": mask})


def _soft_edge(mask: Wire, expand: int, blur: int, sigma: float) -> tuple[list[Node], Wire]:
    """A mask grown and with a soft edge, by the host's nodes: its blur works on pictures."""
    grow = Node("GrowMask", {"mask": mask, "expand": expand})
    image = Node("MaskToImage", {"mask": grow[0]})
    blurred = Node("ImageBlur", {"image": image[0], "blur_radius": blur, "sigma": sigma})
    soft = Node("ImageToMask", {"image": blurred[0], "channel": "red"})
    return [grow, image, blurred, soft], soft[0]


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


def replace_demo_graph() -> Graph:
    sampling = {"seed": 3, "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    first = _FirstPass(
        Node("GOCA_DemoModel"),
        "a red circle and a green square on grass",
        "red circle",
        64,
        Note(REPLACE_NOTE, "Replace by word", height=400),
        sampling,
    )
    edge, mask = _soft_edge(first.masks["masks"], 4, 3, 2.0)
    positive = Node(
        "CLIPTextEncode", {"clip": first.clip, "text": "a blue star and a green square on grass"}, "New prompt"
    )
    latent = Node("SetLatentNoiseMask", {"samples": first.sampler[0], "mask": mask})
    blended = Node("DifferentialDiffusion", {"model": first.model})
    second = _sampler(
        blended[0], positive[0], first.negative[0], latent[0], "Paint the mask again", **{**sampling, "seed": 4}
    )
    picture = Node("VAEDecode", {"samples": second[0], "vae": first.vae})
    pasted = _paste(first.picture[0], picture[0], mask)
    seen = Node("MaskPreview", {"mask": mask}, "What is painted again", more=PREVIEW)
    return Graph(
        "replace_by_word_demo",
        [
            ("Paint, record and find", [*first.columns, [_save("First picture", "first", first.picture[0])]]),
            ("Paint the mask again", [edge, [seen], [positive, blended, latent], [second, picture, pasted],
                                      [_save("Second picture", "second", pasted[0])]]),
        ],
    )  # fmt: skip


def replace_checkpoint_graph() -> Graph:
    sampling = {"seed": 3, "steps": 25, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    first = _FirstPass(
        _checkpoint(
            CHECKPOINT,
            f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true",
        ),
        "a photo of a dog on a lawn in front of a house",
        "dog",
        512,
        Note(REPLACE_PHOTO_NOTE, "Replace by word", height=400),
        sampling,
    )
    edge, mask = _soft_edge(first.masks["masks"], 24, 15, 6.0)
    text = "a photo of a cat on a lawn in front of a house"
    positive = Node("CLIPTextEncode", {"clip": first.clip, "text": text}, "New prompt")
    latent = Node("SetLatentNoiseMask", {"samples": first.sampler[0], "mask": mask})
    blended = Node("DifferentialDiffusion", {"model": first.model})
    second = _sampler(
        blended[0], positive[0], first.negative[0], latent[0], "Paint the mask again", **{**sampling, "seed": 4}
    )
    picture = Node("VAEDecode", {"samples": second[0], "vae": first.vae})
    pasted = _paste(first.picture[0], picture[0], mask)
    seen = Node("MaskPreview", {"mask": mask}, "What is painted again", more=PREVIEW)

    url = f"https://huggingface.co/Comfy-Org/stable_diffusion_2.1_repackaged/resolve/main/{INPAINTING}?download=true"
    other = _checkpoint(INPAINTING, url, muted=True)
    new = Node("CLIPTextEncode", {"clip": other[1], "text": text}, "New prompt", muted=True)
    nothing = Node("CLIPTextEncode", {"clip": other[1], "text": ""}, "Negative prompt", muted=True)
    hole = {
        "positive": new[0], "negative": nothing[0], "vae": other[2], "pixels": first.picture[0], "mask": mask,
    }  # fmt: skip
    inpaint = Node("InpaintModelConditioning", hole, muted=True)
    third = _sampler(
        other[0], inpaint["positive"], inpaint["negative"], inpaint["latent"], "Paint the hole", muted=True, **sampling
    )
    filled = Node("VAEDecode", {"samples": third[0], "vae": other[2]}, muted=True)
    whole = _paste(first.picture[0], filled[0], mask)
    saved = _save("Picture of the inpainting model", "inpainted", whole[0])
    whole.muted = saved.muted = True
    return Graph(
        "replace_by_word_sd15_sdxl",
        [
            ("Paint, record and find", [*first.columns, [_save("First picture", "first", first.picture[0])]]),
            ("Paint the mask again", [edge, [seen], [positive, blended, latent], [second, picture, pasted],
                                      [_save("Second picture", "second", pasted[0])]]),
            ("The same with an inpainting checkpoint", [[other], [new, nothing], [inpaint], [third, filled, whole], [saved]]),
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
        replace_demo_graph(),
        replace_checkpoint_graph(),
        semantic_graph(),
    ]
