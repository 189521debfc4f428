"""The example graph with a film model, described as in example_graphs.py."""

from __future__ import annotations

from typing import Any

from scripts.example_graphs import LOOK, PREVIEW, SAID, Graph, Node, Note, Wire

REPOSITORY = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
RATE = 16.0  # pictures of the film in a second

WAN_NOTE = """\
1. Put the three files into *models* (the editor offers the download): **Wan 2.1** with 1.3 billion parameters, its text \
encoder and its VAE.
2. Write the prompt, and words of it into *phrases*, one object per line.
3. Press **Run**. One of the steps is recorded, for all frames.

**Mask From Tokens** gives one mask for each frame of the film. All frames share a scale: where the fox leaves the picture, \
its mask is empty. With several phrases the masks of the first frame come first; write a single phrase where a node wants the \
masks of one thing, in the order of the frames.

With *size* = latent there is one mask for each frame of the **latent**, as *Set Latent Noise Mask* wants it. A latent frame \
of Wan is four frames of the film, the first is one.

**Wan 2.2** has two models with a sampler each. Record the one with low noise."""


def _file(kind: str, folder: str, name: str, **inputs: Any) -> Node:
    widget = {"UNETLoader": "unet_name", "CLIPLoader": "clip_name", "VAELoader": "vae_name"}[kind]
    model = {"name": name, "url": f"{REPOSITORY}/{folder}/{name}?download=true", "directory": folder}
    return Node(kind, {widget: name, **inputs}, properties={"models": [model]}, width=330)


def _film(title: str, prefix: str, images: Wire) -> Node:
    inputs = {"images": images, "filename_prefix": f"goca/{prefix}", "fps": RATE, "lossless": False, "quality": 85}
    return Node("SaveAnimatedWEBP", inputs, title, more=PREVIEW)


def wan_graph() -> Graph:
    model = _file("UNETLoader", "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors")
    clip = _file("CLIPLoader", "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    vae = _file("VAELoader", "vae", "wan_2.1_vae.safetensors")
    text = "a fox runs across a snowy field in front of a dark forest"
    positive = Node("GOCA_EncodePrompt", {"clip": clip[0], "text": text}, "Prompt", more=120)
    negative = Node("GOCA_EncodePrompt", {"clip": clip[0], "text": "blurry, static"}, "Negative prompt", more=40)
    shifted = Node("ModelSamplingSD3", {"model": model[0], "shift": 8.0})
    record = Node("GOCA_RecordAttention", {"model": shifted[0]})
    latent = Node("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 33})
    wires = {"model": record["model"], "positive": positive[0], "negative": negative[0], "latent_image": latent[0]}
    sampling = {"seed": 3, "steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple"}
    sampler = Node("KSampler", {**wires, **sampling}, more=160)
    film = Node("VAEDecode", {"samples": sampler[0], "vae": vae[0]})
    collect = Node("GOCA_CollectAttention", {"recorder": record["recorder"], "latent": sampler[0]}, more=SAID)
    masks = Node("GOCA_MaskFromTokens", {"source": collect[0], "phrases": "fox\nforest"}, width=330, more=LOOK)
    shown = {"image": film[0], "source": masks["masks"], "labels": masks["labels"]}
    overlay = Node("GOCA_Overlay", shown, "Masks over the film", more=PREVIEW)
    fox = Node("GOCA_MaskFromTokens", {"source": collect[0], "phrases": "fox"}, "The fox alone", width=330, more=LOOK)
    images = Node("MaskToImage", {"mask": fox["masks"]})
    making: list[list[Node | Note]] = [
        [Note(WAN_NOTE, "Masks for the frames of a film", height=470)],
        [model, clip, vae],
        [positive, negative],
        [shifted, record, latent],
        [sampler, film],
        [_film("Film", "film", film[0])],
    ]
    cutting: list[list[Node | Note]] = [
        [collect, masks],
        [overlay],
        [_film("Overlay", "film_overlay", overlay[0])],
        [fox, images],
        [_film("Mask of the fox", "film_mask", images[0])],
    ]
    return Graph("masks_from_words_wan", [("Make a film and record", making), ("From words to masks", cutting)])


def film_graphs() -> list[Graph]:
    return [wan_graph()]
