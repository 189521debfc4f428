"""Whole graphs of other models on a real server: tiny networks, real tokenizers, and the nodes that users wire.

Each graph gives the same with and without a recorder, and the words of its prompt are where their tokens are.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from goca_core.attention import Attention, load
from scripts.comfy_server import ComfyServer, Prompt

from .device import repeated
from .tiny_encoders import IMAGE, read

TEXT = "a red cat sits on the wooden table"
RUN = itertools.count(1)


def of(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


RECORD = {
    "window": "auto", "start_percent": 0.5, "end_percent": 1.0, "max_evaluations": 4, "head_methods": "auto",
    "layer_methods": "auto", "propagation_grid": "auto", "reference_channel0": False, "reference_grid": "auto",
    "method": "auto", "record": "positive",
}  # fmt: skip
MASKS = {
    "phrases": "red cat\nwooden table", "background": "auto", "mode": "partition", "background_rule": "auto", "theta": 0.0,
    "propagation": -1, "smooth": 0.0, "largest_component": False, "size": "image", "width": 512, "height": 512,
    "remove_small": 0.0, "fill_holes": False, "skip_absent": False,
}  # fmt: skip
SAMPLE = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


POSITIVE, NEGATIVE = ("positive", 0), ("negative", 0)
Link = tuple[str, int]


def base(name: str, **nodes: dict[str, Any]) -> Prompt:
    """A model, its recorder, and both prompts."""
    return {
        "model": of("TestTinyModel", name=name),
        "vae": of("TestTinyVAE", name=name),
        "record": of("GOCA_RecordAttention", model=["model", 0], **RECORD),
        "positive": of("CLIPTextEncode", clip=["model", 1], text=TEXT),
        "negative": of("CLIPTextEncode", clip=["model", 1], text="a blue dog"),
        **nodes,
    }


def sampled(graph: Prompt, positive: Link = POSITIVE, negative: Link = NEGATIVE, latent: Link = ("model", 2)) -> Prompt:
    prompts = {"positive": list(positive), "negative": list(negative), "latent_image": list(latent)}
    return {**graph, "sample": of("KSampler", model=["record", 0], **prompts, **SAMPLE)}


class Found(NamedTuple):
    """What a graph made of one latent. ``latent``: its streams. ``positive``: what the text encoder gave."""

    attention: Attention
    masks: Tensor
    latent: dict[str, Tensor]
    positive: Tensor


class Graph:
    """A graph on the server, with and without the pack's nodes.

    ``latents``: those whose attention is collected. ``compared``: more that must be the same with and without recording.
    """

    def __init__(
        self,
        server: ComfyServer,
        prompt: Prompt,
        latents: tuple[Link, ...] = (("sample", 0),),
        compared: tuple[Link, ...] = (),
        positive: Link = POSITIVE,
    ) -> None:
        self.server = server
        self.plain = {k: copy.deepcopy(n) for k, n in prompt.items() if not n["class_type"].startswith("GOCA_")}
        for node in self.plain.values():
            if node["inputs"].get("model") == ["record", 0]:
                node["inputs"]["model"] = ["model", 0]
        for link in (*latents, *compared, positive):
            keep = of("TestKeep", value=list(link), name=_name(link))
            self.plain, prompt = {**self.plain, f"keep {link}": keep}, {**prompt, f"keep {link}": keep}
        self.latents, self.compared, self.positive = latents, compared, positive
        self.recorded = dict(prompt)
        for link in latents:
            name, latent = _name(link), list(link)
            self.recorded |= {
                f"collect {name}": of("GOCA_CollectAttention", recorder=["record", 1], latent=latent),
                f"save {name}": of(
                    "GOCA_SaveAttention", attention=[f"collect {name}", 0], filename_prefix=name, precision="float32"
                ),
                f"masks {name}": of("GOCA_MaskFromTokens", source=["record", 1], latent=latent, **MASKS),
                f"keep masks {name}": of("TestKeep", value=[f"masks {name}", 0], name=f"masks-{name}"),
            }

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """What is kept of a run of which nothing comes from the cache, and the recordings."""
        prompt, number = copy.deepcopy(prompt), next(RUN)
        for node in prompt.values():
            if node["class_type"] in ("TestTinyModel", "TestKeep"):
                node["inputs"]["run"] = number
        done = self.server.run(prompt)
        assert "sample" in done.executed
        found: dict[str, Any] = {}
        for name, node in prompt.items():
            if node["class_type"] in ("TestKeep", "GOCA_SaveAttention"):
                (file,) = done.outputs[name]["text"]
                if node["class_type"] == "TestKeep":
                    found[node["inputs"]["name"]] = load_file(self.server.output / file)
                else:
                    path = self.server.output / file.replace("output", "goca", 1)
                    found[node["inputs"]["filename_prefix"] + " attention"] = load(path)
        return found

    def check(self, kind: str) -> list[Found]:
        """What recording changes, which is nothing, and where the words are, which is at their tokens."""
        names = [_name(link) for link in (*self.latents, *self.compared)]

        def plain() -> Tensor:
            found = self.run(self.plain)
            return torch.cat([tensor.flatten() for name in names for tensor in found[name].values()])

        before = repeated(plain)
        found = self.run(self.recorded)
        assert torch.equal(before, torch.cat([part.flatten() for name in names for part in found[name].values()]))
        assert all(part.isfinite().all() and part.std() > 0 for name in names for part in found[name].values())
        return [self._found(found, _name(link), kind) for link in self.latents]

    def _found(self, found: dict[str, Any], name: str, kind: str) -> Found:
        attention, positive = found[f"{name} attention"], found[_name(self.positive)]["0"]
        masks = found[f"masks-{name}"]["0"]
        words = attention.tokens.words
        assert words is not None and [word.text for word in words.words] == TEXT.split()
        for word in words.words:
            assert read(kind, positive, word.positions) == word.text, "the words are at other tokens"
        assert masks.shape[0] == 2 * max(1, attention.images) and set(masks.unique().tolist()) <= {0.0, 1.0}
        return Found(attention, masks, found[name], positive)


def _name(link: Link) -> str:
    return f"{link[0]}{link[1]}"


def test_two_stages(server: ComfyServer) -> None:
    """The first stage leaves noise to the second; each is a recording of its own."""
    common = {key: SAMPLE[key] for key in ("cfg", "sampler_name", "scheduler")} | {"steps": 6, "noise_seed": 5}
    common |= {"model": ["record", 0], "positive": list(POSITIVE), "negative": list(NEGATIVE)}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 3, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "start_at_step": 3, "end_at_step": 99, "return_with_leftover_noise": "disable"}
    graph = base(
        "sd15",
        half=of("KSamplerAdvanced", latent_image=["model", 2], **common, **first),
        sample=of("KSamplerAdvanced", latent_image=["half", 0], **common, **second),
        image=of("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
    )
    early, late = Graph(server, graph, (("half", 0), ("sample", 0)), (("image", 0),)).check("sd15")
    assert "far from the best level" in early.attention.note
    assert early.attention.sigmas[0] > late.attention.sigmas[0]


def test_an_edit_of_two_images(server: ComfyServer) -> None:
    """The words follow both images, of which the text encoder makes several vectors each; and both are references."""
    images = {f"image{n}": of("EmptyImage", width=64 * n, height=64, batch_size=1, color=n * 100) for n in (1, 2)}
    nodes = {
        **images,
        "encoded": of(
            "TextEncodeQwenImageEditPlus", clip=["model", 1], prompt=TEXT, **{name: [name, 0] for name in images}
        ),
    }
    conditioning = "encoded"
    for name in images:
        nodes[f"latent {name}"] = of("VAEEncode", pixels=[name, 0], vae=["vae", 0])
        given = {"conditioning": [conditioning, 0], "latent": [f"latent {name}", 0]}
        nodes[conditioning := f"with {name}"] = of("ReferenceLatent", **given)
    nodes["positive"] = nodes.pop(conditioning)
    nodes["image"] = of("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    (found,) = Graph(server, sampled(base("qwen_image", **nodes)), compared=(("image", 0),)).check("qwen_image")
    assert found.attention.family == "qwen-image"
    assert found.attention.tokens.words is not None
    assert min(found.attention.tokens.words.find("red")) > 2 * IMAGE


def test_a_control_video(server: ComfyServer) -> None:
    """Wan Vace: a node hands both prompts on with what the control video is, and gives the latent."""
    size = {"width": 96, "height": 64, "length": 9, "batch_size": 1}
    prompts = {"positive": list(POSITIVE), "negative": list(NEGATIVE), "vae": ["vae", 0], "strength": 0.8}
    graph = base(
        "wan21_vace",
        frames=of("EmptyImage", width=96, height=64, batch_size=9, color=0x204080),
        video=of("WanVaceToVideo", control_video=["frames", 0], **prompts, **size),
        image=of("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
    )
    graph = sampled(graph, ("video", 0), ("video", 1), ("video", 2))
    (found,) = Graph(server, graph, compared=(("image", 0),)).check("wan21_vace")
    assert (found.attention.family, found.attention.frames, found.attention.images) == ("wan", 3, 9)


def test_a_video_with_sound(server: ComfyServer) -> None:
    """LTX-2: the latent with the sound, and the video alone after the sound was taken away."""
    prompts = {"positive": list(POSITIVE), "negative": list(NEGATIVE)}
    graph = sampled(base("ltx2", timed=of("LTXVConditioning", frame_rate=25.0, **prompts)), ("timed", 0), ("timed", 1))
    graph["video"] = of("LTXVSeparateAVLatent", av_latent=["sample", 0])
    for found in Graph(server, graph, (("video", 0), ("sample", 0)), (("video", 1),)).check("ltx2"):
        assert (found.attention.family, found.attention.frames, found.attention.images) == ("ltx2", 3, 17)
