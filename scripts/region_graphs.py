"""The example graphs in which masks have prompts of their own, described as in example_graphs.py."""

from __future__ import annotations

from scripts.example_graphs import PREVIEW, SAID, Graph, Node, Note, save
from scripts.graph_parts import DEMO, FLUX, SD15, Beginning, FirstPass, Start

REGIONAL_NOTE = """\
Two passes with the same seed.

1. **Above** the prompt is painted and recorded, and **Mask From Tokens** makes a mask for each phrase.
2. **Below**, **Regional Prompt** gives the masks prompts of their own, written as `label: prompt`, one per line. What has \
none follows the base prompt.

The same seed keeps the layout, because up to *start_percent* of sampling the base paints alone. *feather* hides the seams; \
much of it lets the base into the edges of a thing.

Try `blue square: a green heart on grass` as a second line of *prompts*."""

ONE_PASS_NOTE = """\
Regional prompts without a second sampling run.

1. The prompt paints plainly up to *start_percent* of sampling. **Regional Pass** records the last steps before it and makes a \
mask for each of its *phrases*, which are words of the prompt.
2. From there on each mask follows its own prompt, written as `phrase: prompt`, one per line. What has none follows the prompt.
3. **Collect Masks** hands out the masks that were used.

**Nothing changes?** Lower *start_percent*: what has its colour and shape keeps them. **Masks too rough?** Raise it, or lower \
*theta* to make them larger.

The two-pass way, **Regional Prompt**, sees a finished picture and has better masks, for twice the time."""

_OTHERS = """\
The masks into the **host's own nodes**, one by one.

1. **Above** the prompt is painted and recorded, and **Mask From Tokens** makes a mask for each phrase, as one batch.
2. **Below** *Get Image from Batch* takes single masks out of it: number 0 is the first phrase. *Cond Set Props* gives each a \
prompt, and *Cond Set Default Combine* gives all that is left to the prompt of the rest, which names the whole new picture.

%s**Region nodes** want masks that do not overlap, at the size of the picture or of the latent: set *size* to latent for the \
latter. Detailers and inpainting nodes take them as they are."""

OTHERS_NOTE = (
    _OTHERS
    % """\
**Attention couple** nodes, of several other packs, mix prompts inside the attention layers instead. They take the same wires: \
the *background* of **Mask From Tokens** goes to the base mask, each single mask beside its prompt, and the model and \
the base prompt as here. Those masks cover every pixel and sum to one, which such nodes ask for (keep *mode* at partition).

"""
)

OTHERS_FLUX_NOTE = (
    _OTHERS
    % """\
**Attention couple** nodes mix prompts inside cross-attention layers, which Flux does not have; the way below is its own.

"""
)


# When the masks' own prompts begin, by model: as late as what is to change still can.
TURN = {"demo": 0.3, "sd15_sdxl": 0.2, "flux": 0.2}


def regional_graph(start: Start, prompt: str, phrases: str, prompts: str, feather: float) -> Graph:
    first = FirstPass(start, prompt, phrases, Note(REGIONAL_NOTE, "Regional prompts from words"))
    regional = Node(
        "GOCA_RegionalPrompt",
        {
            "conditioning": first.positive,
            "clip": first.clip,
            "masks": first.masks["masks"],
            "labels": first.masks["labels"],
            "prompts": prompts,
            "feather": feather,
            "start_percent": TURN[start.name],
        },
        width=360,
        more=SAID + 20,
    )
    # The unrecorded model: nothing is to be learnt from the second pass.
    second, picture = first.paint(start, first.model, "Second pass", regional[0])
    saved = save("Second picture", "second", picture[0])
    return Graph(
        f"regional_prompts_{start.name}",
        [
            ("First pass: paint, record, find", first.columns),
            ("Second pass: each mask with its own prompt", [[regional], [second, picture], [saved]]),
        ],
    )


def one_pass_graph(start: Start, prompt: str, phrases: str, prompts: str, feather: float) -> Graph:
    first = Beginning(start, prompt, Note(ONE_PASS_NOTE, "Regional prompts in one pass", height=440))
    plain, shown = first.paint(start, first.model, "The prompt alone")
    regional = Node(
        "GOCA_RegionalPass",
        {
            "model": first.model,
            "clip": first.clip,
            "phrases": phrases,
            "prompts": prompts,
            "start_percent": TURN[start.name],
            "feather": feather,
        },
        width=360,
        more=80,
    )
    painted, picture = first.paint(start, regional["model"], "In one pass")
    wires = {"regions": regional["regions"], "latent": painted[0]}
    masks = Node("GOCA_CollectMasks", wires, width=330, more=SAID + 20)
    over = {"image": picture[0], "source": masks["masks"], "labels": masks["labels"]}
    overlay = Node("GOCA_Overlay", over, "The masks that were used", more=PREVIEW)
    return Graph(
        f"regional_one_pass_{start.name}",
        [
            ("The prompt alone, to compare", [*first.columns, [*first.guided, plain], [shown],
                                              [save("Plain picture", "plain", shown[0])]]),
            ("Each mask with its own prompt, in one pass", [[regional], [painted, picture], [masks], [overlay],
                                                            [save("Picture", "regional", picture[0])]]),
        ],
    )  # fmt: skip


def others_graph(
    start: Start, prompt: str, phrases: str, texts: tuple[str, str], whole: str, note: str = OTHERS_NOTE
) -> Graph:
    """``texts``: a prompt for each mask. ``whole``: what the second picture shows, for the rest of it."""
    first = FirstPass(start, prompt, phrases, Note(note, "Masks into other nodes", height=520))
    images = Node("MaskToImage", {"mask": first.masks["masks"]})
    single, prompts = [], []
    for number, text in enumerate(texts):
        picked = Node("ImageFromBatch", {"image": images[0], "batch_index": number}, f"Mask {number + 1}")
        single.append((picked, Node("ImageToMask", {"image": picked[0], "channel": "red"})))
        prompts.append(Node("CLIPTextEncode", {"clip": first.clip, "text": text}, f"Prompt of mask {number + 1}"))
    prompts.append(Node("CLIPTextEncode", {"clip": first.clip, "text": whole}, "Prompt of the rest"))
    guided: list[Node] = []
    own: list[Node] = prompts
    if start.guidance is not None:
        guided = own = [
            Node("FluxGuidance", {"conditioning": text[0], "guidance": start.guidance}, f"Guidance: {text.title}")
            for text in prompts
        ]
    one = Node("ConditioningSetProperties", {"cond_NEW": own[0][0], "mask": single[0][1][0]})
    two = Node("ConditioningSetPropertiesAndCombine", {"cond": one[0], "cond_NEW": own[1][0], "mask": single[1][1][0]})
    three = Node("ConditioningSetDefaultCombine", {"cond": two[0], "cond_DEFAULT": own[2][0]})
    second, picture = first.paint(start, first.model, "Second pass", three[0])
    return Graph(
        f"masks_into_other_nodes_{start.name}",
        [
            ("First pass: paint, record, find", first.columns),
            ("Second pass: the host's own masked prompts", [
                [images, *single[0]], [*single[1]], [*prompts], *([[*guided]] if guided else []), [one, two, three],
                [second, picture], [save("Second picture", "second", picture[0])],
            ]),
        ],
    )  # fmt: skip


def region_graphs() -> list[Graph]:
    """The graphs of this file."""
    shapes = "a red circle and a blue square on grass", "red circle\nblue square"
    animals = "a cat and a dog on a sofa", "cat\ndog"
    pets = "a black cat on a sofa", "a white poodle on a sofa"
    both = "a black cat and a white poodle on a sofa"
    yellow = "red circle: a yellow circle and a blue square on grass"
    own = f"cat: {pets[0]}\ndog: {pets[1]}"
    return [
        graph(start, *scene, prompts, feather)
        for graph in (regional_graph, one_pass_graph)
        for start, scene, prompts, feather in (
            (DEMO, shapes, yellow, 2.0),
            (SD15, animals, own, 24.0),
            (FLUX, animals, own, 48.0),
        )
    ] + [
        others_graph(
            DEMO,
            *shapes,
            ("a yellow circle on grass", "a green square on grass"),
            "a yellow circle and a green square on grass",
        ),
        others_graph(SD15, *animals, pets, both),
        others_graph(FLUX, *animals, pets, both, OTHERS_FLUX_NOTE),
    ]
