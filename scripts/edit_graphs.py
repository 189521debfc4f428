"""The example graphs that edit pictures, described as in example_graphs.py."""

from __future__ import annotations

from dataclasses import replace

from scripts.example_graphs import INPAINTING, PREVIEW, Graph, Node, Note, Wire, checkpoint, save
from scripts.graph_parts import DEMO, FLUX, SD15, Beginning, FirstPass, Start, paste, sampler, soft_edge
from scripts.region_graphs import region_graphs

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


SEMANTIC_FLUX_NOTE = """\
1. Put **flux1-dev-fp8** into *models/checkpoints* (the editor offers the download).
2. Press **Run**. The same prompt, seed and scale are painted plainly, weighed by **S-CFG**'s regions and weighed by **GoCA**'s.

Semantic guidance weighs the difference between prompt and negative prompt, so it needs a **cfg above 1**. Flux dev is made to \
run without: its own *guidance* is a number that it was trained with. Here that is set low and *cfg* to 2.5; each step then takes \
twice as long. At *cfg* 1 all three pictures are the same.

Models without built-in guidance, such as Chroma, run with a cfg anyway: take *Flux Guidance* out for them."""

FLUX_REPLACE_NOTE = """\
1. Put **flux1-dev-fp8** into *models/checkpoints* (the editor offers the download).
2. *phrases* says what is to be replaced, the second prompt by what: say the whole picture.
3. Press **Run**.

**A mask too small?** Lower *theta*, or raise *expand*. **Seams?** Raise *blur_radius*."""


# -- replace by word --------------------------------------------------------------------------------------------------


def _replaced(
    start: Start, first: FirstPass, text: str, expand: int, blur: int, sigma: float
) -> tuple[list[list[Node | Note]], Wire]:
    """The mask painted again with another prompt, in columns; and the mask."""
    edge, mask = soft_edge(first.masks["masks"], expand, blur, sigma)
    new = Node("CLIPTextEncode", {"clip": first.clip, "text": text}, "New prompt")
    guided = []
    if start.guidance is not None:
        guided = [
            Node("FluxGuidance", {"conditioning": new[0], "guidance": start.guidance}, "Guidance of the new prompt")
        ]
    latent = Node("SetLatentNoiseMask", {"samples": first.sampler[0], "mask": mask})
    blended = Node("DifferentialDiffusion", {"model": first.model})
    again = {**start.sampling, "seed": 4}
    positive = (guided or [new])[0]
    second = sampler(blended[0], positive[0], first.negative[0], latent[0], "Paint the mask again", **again)
    picture = Node("VAEDecode", {"samples": second[0], "vae": first.vae})
    pasted = paste(first.picture[0], picture[0], mask)
    seen = Node("MaskPreview", {"mask": mask}, "What is painted again", more=PREVIEW)
    columns: list[list[Node | Note]] = [[*edge], [seen], [new, *guided, blended, latent], [second, picture, pasted]]
    return [*columns, [save("Second picture", "second", pasted[0])]], mask


def replace_graph(start: Start, prompt: str, phrase: str, text: str, edge: tuple[int, int, float], note: str) -> Graph:
    first = FirstPass(start, prompt, phrase, Note(note, "Replace by word", height=400))
    again, mask = _replaced(start, first, text, *edge)
    bands: list[tuple[str, list[list[Node | Note]]]] = [
        ("Paint, record and find", first.columns),
        ("Paint the mask again", again),
    ]
    if start is SD15:
        bands.append(("The same with an inpainting checkpoint", _inpainted(start, first, text, mask)))
    return Graph(f"replace_by_word_{start.name}", bands)


def _inpainted(start: Start, first: FirstPass, text: str, mask: Wire) -> list[list[Node | Note]]:
    """A muted row that does the same with a model that sees what is around the hole."""
    other = checkpoint(INPAINTING, muted=True)
    new = Node("CLIPTextEncode", {"clip": other[1], "text": text}, "New prompt", muted=True)
    nothing = Node("CLIPTextEncode", {"clip": other[1], "text": ""}, "Negative prompt", muted=True)
    hole = {
        "positive": new[0], "negative": nothing[0], "vae": other[2], "pixels": first.picture[0], "mask": mask,
    }  # fmt: skip
    inpaint = Node("InpaintModelConditioning", hole, muted=True)
    wires = inpaint["positive"], inpaint["negative"], inpaint["latent"]
    third = sampler(other[0], *wires, "Paint the hole", muted=True, **start.sampling)
    filled = Node("VAEDecode", {"samples": third[0], "vae": other[2]}, muted=True)
    whole = paste(first.picture[0], filled[0], mask)
    saved = save("Picture of the inpainting model", "inpainted", whole[0])
    whole.muted = saved.muted = True
    return [[other], [new, nothing], [inpaint], [third, filled, whole], [saved]]


# -- semantic guidance ------------------------------------------------------------------------------------------------


def semantic_graph(start: Start, prompt: str, note: str) -> Graph:
    first = Beginning(start, prompt, Note(note, "Semantic guidance", height=400 if start.guidance else 300))
    if start.guidance is not None:
        # Without it the host takes another number for the negative prompt, and the difference means less.
        wires = {"conditioning": first.negative[0], "guidance": start.guidance}
        first.negative = Node("FluxGuidance", wires, "Guidance of the negative prompt")
        first.guided.append(first.negative)

    def row(source: Wire, title: str, prefix: str) -> list[list[Node | Note]]:
        painted, picture = first.paint(start, source, title)
        return [[painted], [picture], [save(title, prefix, picture[0])]]

    scfg, goca = (
        Node("GOCA_SemanticCFG", {"model": first.model, "regions": rule}, f"Regions: {rule}")
        for rule in ("S-CFG", "GoCA")
    )
    return Graph(
        f"semantic_cfg_{start.name}",
        [
            ("", [*first.columns, *([[*first.guided]] if first.guided else [])]),
            ("Plain guidance", row(first.model, "Plain guidance", "plain")),
            ("Weighed by S-CFG's regions", [[scfg], *row(scfg[0], "S-CFG's regions", "scfg")]),
            ("Weighed by GoCA's regions", [[goca], *row(goca[0], "GoCA's regions", "semantic")]),
        ],
    )


def edit_graphs() -> list[Graph]:
    """The graphs of this file and of region_graphs.py."""
    scene = "a red circle and a green square on grass", "red circle", "a blue star and a green square on grass"
    photo = "a photo of a dog on a lawn in front of a house", "dog", "a photo of a cat on a lawn in front of a house"
    # The two things have room between them.
    apart = replace(DEMO, sampling={**DEMO.sampling, "seed": 5})
    guided = replace(DEMO, sampling={**DEMO.sampling, "seed": 5, "cfg": 6.0})
    undistilled = replace(FLUX, sampling={**FLUX.sampling, "cfg": 2.5}, guidance=1.5)
    objects = "a photo of a red apple and a green cup on a wooden table"
    return [
        *region_graphs(),
        replace_graph(apart, *scene, (4, 3, 2.0), REPLACE_NOTE),
        replace_graph(SD15, *photo, (24, 15, 6.0), REPLACE_PHOTO_NOTE),
        replace_graph(FLUX, *photo, (48, 31, 10.0), FLUX_REPLACE_NOTE),
        semantic_graph(guided, "a yellow star, a purple heart and a red circle on snow", SEMANTIC_NOTE),
        semantic_graph(SD15, objects, SEMANTIC_NOTE),
        semantic_graph(undistilled, objects, SEMANTIC_FLUX_NOTE),
    ]
