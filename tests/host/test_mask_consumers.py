"""Masks by word in the nodes that docs/masks-into-other-nodes.md names, beside those of test_consumers.

ComfyUI's own nodes are run. Of nodes of other packs, which are not installed, there are stand-ins: their inputs as documented,
and what they do with a mask.
"""

from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts import demo
from scripts.graphs.files import api_file

from . import tiny
from .helpers import job, words_of
from .older import need
from .test_consumers import LATENT, found, one_by_one
from .test_graphs import problems
from .tiny_video import FRAMES

__all__ = ["found"]  # a fixture

SIZE = tuple(8 * side for side in LATENT)
SAM = 1008  # pixels a side, to which SAM 3 scales every image


def boxes_of(found: SimpleNamespace, masks: Tensor, labels: str = "", **options: Any) -> Any:
    return (
        found.nodes["GOCA_BoxFromMask"]
        .execute(masks, labels=labels, **{"margin": 0.0, "shape": "tight", **options})
        .result
    )


# -- detailers --------------------------------------------------------------------------------------------------------


def test_crop_by_bounding_boxes(found: SimpleNamespace) -> None:
    """The box cuts the same part out of each image of a batch, at its own size, and it is pasted back where it was."""
    need("CropByBBoxes" in found.nodes, "Crop By Bounding Boxes")
    images = torch.rand(2, *SIZE, 3)
    mask = one_by_one(found.masks)[0]
    box, _, x, y, width, height, _ = boxes_of(found, mask, margin=0.25, shape="square")
    (crop,) = found.nodes["CropByBBoxes"].execute(images, box, width, height, 0, "stretch").result
    assert torch.equal(crop, images[:, y : y + height, x : x + width])
    (part,) = found.nodes["CropMask"].execute(mask, x, y, width, height).result
    assert part.sum() == mask.sum() and part.shape == (1, height, width)
    (pasted,) = found.nodes["ImageCompositeMasked"].execute(images, crop, x, y, False, part).result
    torch.testing.assert_close(pasted, images)
    (changed,) = found.nodes["ImageCompositeMasked"].execute(images, 1 - crop, x, y, False, part).result
    assert torch.equal(((changed - images).abs().amax(-1) > 0) & (mask == 0), torch.zeros(2, *SIZE, dtype=torch.bool))


def test_inpaint_crop_and_stitch(found: SimpleNamespace) -> None:
    """Inpaint Crop takes mask and optional_context_mask with exactly the image's size, and one for each image or one for all; it
    refuses others. Which pixels count is a threshold of its own, so masks of 0 and 1 pass it unchanged."""
    images = torch.rand(2, *SIZE, 3)
    mask = torch.cat([one_by_one(found.masks, image)[0] for image in range(2)])
    context = torch.cat([one_by_one(found.masks, image)[1] for image in range(2)])
    for given in (mask, context, mask[:1]):
        assert given.ndim == 3 and given.shape[1:] == images.shape[1:3] and given.shape[0] in (1, images.shape[0])
        assert set(given.unique().tolist()) == {0.0, 1.0}


# -- SAM 3 ------------------------------------------------------------------------------------------------------------


class Segments:
    """In place of SAM 3: says yes within a box, or near positive points and not near negative ones."""

    def __init__(self) -> None:
        self.diffusion_model = self

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def forward_segment(
        self, frame: Tensor, box_inputs: Any = None, point_inputs: Any = None, mask_inputs: Any = None
    ) -> Any:
        if mask_inputs is not None:
            return mask_inputs
        assert frame.shape == (1, 3, SAM, SAM)
        y, x = torch.meshgrid(torch.arange(SAM) + 0.5, torch.arange(SAM) + 0.5, indexing="ij")
        if box_inputs is not None:
            (left, top), (right, bottom) = box_inputs[0].tolist()
            inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        else:
            inside = torch.zeros(SAM, SAM, dtype=torch.bool)
            for (px, py), label in zip(
                point_inputs["point_coords"][0].tolist(), point_inputs["point_labels"][0].tolist(), strict=True
            ):
                near = ((x - px).abs() < 60) & ((y - py).abs() < 60)
                inside = inside | near if label else inside & ~near
        return torch.where(inside, 9.0, -9.0)[None, None]


@pytest.fixture
def detect(found: SimpleNamespace, host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    need("SAM3_Detect" in found.nodes, "SAM3 Detect")
    monkeypatch.setattr(host.comfy.model_management, "load_model_gpu", lambda model: None)
    model = SimpleNamespace(model=Segments())
    return lambda images, **given: found.nodes["SAM3_Detect"].execute(model, images, **given).result[0]


def test_sam3_by_boxes(found: SimpleNamespace, detect: Any) -> None:
    """One mask for each box, image by image, in the order of the phrases; an empty mask gives none."""
    masks = found.masks.clone()
    masks[4] = 0
    _, boxes, *_ = boxes_of(found, masks, found_labels(found))
    assert [len(image) for image in boxes] == [3, 2]
    given = detect(torch.rand(2, *SIZE, 3), bboxes=boxes, individual_masks=True)
    assert given.shape == (5, *SIZE)
    for mask, segment in zip(masks[[0, 1, 2, 3, 5]], given, strict=True):
        assert (segment[mask > 0] == 1).float().mean() > 0.95, "the mask is not in its box"
        rows, columns = mask.any(1).sum() + 2, mask.any(0).sum() + 2
        assert segment.sum() <= rows * columns * 1.1 or mask.mean() > 0.3


def found_labels(found: SimpleNamespace) -> str:
    return "\n".join(found.labels)


def test_sam3_by_points(found: SimpleNamespace, detect: Any) -> None:
    """A point of one phrase is segmented, one of another is left out."""
    one, other = one_by_one(found.masks)[:2]
    points = [boxes_of(found, mask)[6] for mask in (one, other)]
    for mask, point in zip((one, other), points, strict=True):
        (place,) = json.loads(point)
        assert mask[0, place["y"], place["x"]] == 1
    (segment,) = detect(torch.rand(1, *SIZE, 3), positive_coords=points[0], negative_coords=points[1])
    places = [json.loads(point)[0] for point in points]
    assert segment[places[0]["y"], places[0]["x"]] == 1 and segment[places[1]["y"], places[1]["x"]] == 0


# -- ControlNet -------------------------------------------------------------------------------------------------------


def test_a_control_net_for_one_word(found: SimpleNamespace) -> None:
    """With its mask on the conditioning, nothing else is predicted differently."""
    nodes, built = found.nodes, found.built
    positive, negative = built.conditioning(seed=11), built.conditioning(seed=2)
    mask = one_by_one(found.masks)[0]
    controlled = nodes["ControlNetApplyAdvanced"]().apply_controlnet(
        positive, negative, tiny.control("sd15"), torch.rand(1, *SIZE, 3), 1.0, 0.0, 1.0
    )
    pair = nodes["PairConditioningSetProperties"]().set_properties(*controlled, 1.0, "default", mask=mask)
    pair = nodes["PairConditioningSetDefaultCombine"]().set_default_and_combine(*pair, positive, negative)

    def once(positive: Any, negative: Any) -> Tensor:
        work = job(built, size=LATENT, positive=positive, negative=negative, steps=1)
        samples: Tensor = work.run(built.model)["samples"]
        return samples

    plain, whole, part = once(positive, negative), once(*controlled), once(*pair)
    inside = F.interpolate(mask[None], size=LATENT, mode="bilinear")[0, 0]
    torch.testing.assert_close(part[..., inside == 0], plain[..., inside == 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(part[..., inside == 1], whole[..., inside == 1], atol=1e-5, rtol=1e-4)
    assert (whole - plain)[..., inside == 1].abs().mean() > 1e-3, "the ControlNet does nothing"


# -- video ------------------------------------------------------------------------------------------------------------


def test_masks_of_a_phrase_for_each_frame_of_a_wan_video(found: SimpleNamespace) -> None:
    """Get Image From Batch cuts out the frames of one phrase; those of the same phrase alone, in their order."""
    nodes, built = found.nodes, tiny.build("wan21")
    model, recorder = nodes["GOCA_RecordAttention"].execute(built.model, "auto", 0.5, 1.0, 4).result
    positive = built.conditioning(seed=1, goca_words=words_of("a red cat on grass", 30))
    latent = job(built, 1, positive=positive).run(model)
    attention = nodes["GOCA_CollectAttention"].execute(recorder, latent).result[0]
    make, length = nodes["GOCA_MaskFromTokens"].execute, 1 + 4 * (FRAMES - 1)
    by_image, by_phrase = (
        make(attention, "red cat\ngrass", "", "soft", order=order).result[0]
        for order in ("image by image", "phrase by phrase")
    )
    for number, name in enumerate(("red cat", "grass")):
        (images,) = nodes["MaskToImage"].execute(by_phrase).result
        (cut,) = nodes["ImageFromBatch"].execute(images, number * length, length).result
        (mask,) = nodes["ImageToMask"].execute(cut, "red").result
        assert torch.equal(mask, by_image[number::2]) and mask.shape[0] == length
        alone = make(attention, name, "", "soft").result[0]
        assert alone.shape == mask.shape


def test_masks_for_wan_vace(found: SimpleNamespace) -> None:
    """It keeps of each frame what its mask leaves out, and gives the model the mask of each latent frame."""
    frames, (height, width) = 5, (64, 96)
    masks = (torch.rand(frames, height // 8, width // 8) > 0.5).float()
    masks = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    video, encoded = torch.rand(frames, height, width, 3), list[Tensor]()

    def encode(images: Tensor) -> Tensor:
        encoded.append(images)
        return torch.zeros(1, 16, 2, height // 8, width // 8)

    given = found.built.conditioning(seed=1)
    vace = found.nodes["WanVaceToVideo"].execute
    positive = vace(given, given, SimpleNamespace(encode=encode), width, height, frames, 1, 1.0, video, masks).result[0]
    kept, renewed = encoded
    torch.testing.assert_close(kept[masks == 0], video[masks == 0])
    torch.testing.assert_close(renewed[masks == 1], video[masks == 1])
    assert (kept[masks == 1] == 0.5).all() and (renewed[masks == 0] == 0.5).all()
    (latent,) = positive[0][1]["vace_mask"]
    assert latent.shape == (1, 64, 2, height // 8, width // 8)
    assert all(any(torch.equal(frame, mask[::8, ::8]) for mask in masks) for frame in latent[0, 0])


# -- identity adapters ------------------------------------------------------------------------------------------------


def test_attention_masks_of_identity_adapters(found: SimpleNamespace) -> None:
    """IPAdapter, InstantID and PuLID scale a mask [B, H, W] to the tokens of each layer and multiply by it what the adapter adds.
    Of more masks than images they take the first, of fewer they repeat the last: so they need those of one phrase."""
    for number in range(3):
        mask = found.masks[number::3]  # what order = phrase by phrase gives in one piece
        assert mask.shape == (2, *SIZE) and mask.dtype == torch.float32
        for factor in (1, 2, 4, 8):
            height, width = (-(-side // factor) for side in LATENT)
            scaled = F.interpolate(mask.unsqueeze(1), size=(height, width), mode="bilinear").squeeze(1)
            assert scaled.shape[0] == 2 and scaled.min() >= 0 and scaled.max() <= 1
            # Each image's own: where it is 1, the adapter counts in full.
            for image in range(2):
                ours = F.interpolate(mask[image][None, None], size=(height, width), mode="bilinear")[0, 0]
                assert torch.equal(scaled[image], ours)
    # Phrases do not share a token in full, so two adapters never add up to more than one.
    assert found.masks.unflatten(0, (2, 3)).sum(1).max() == 1


class IPAdapterUnifiedLoader:
    """The inputs of ComfyUI_IPAdapter_plus."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "preset": (["PLUS (high strength)"],)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "IPADAPTER"), "run", "test"


class IPAdapterAdvanced:
    """The same."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("FLOAT", {"default": 1.0, "min": -1.0, "max": 5.0})
        required = {"model": ("MODEL",), "ipadapter": ("IPADAPTER",), "image": ("IMAGE",), "weight": number}
        required |= {"weight_type": (["linear", "ease in"],), "combine_embeds": (["concat", "average"],)}
        required |= {"start_at": number, "end_at": number, "embeds_scaling": (["V only", "K+V"],)}
        return {"required": required, "optional": {"image_negative": ("IMAGE",), "attn_mask": ("MASK",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"


def test_the_graph_of_identity_adapters(
    host: SimpleNamespace, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every wire fits: no complaint but that models are not there."""
    for kind in (IPAdapterUnifiedLoader, IPAdapterAdvanced):
        monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, kind.__name__, kind)
    prompt = demo.load_graph(api_file("Identity adapters"))
    found = [text for text in problems(prompt, host) if "example.png" not in text]
    assert not found
    masks = {key for key, node in prompt.items() if node["class_type"] == "GOCA_MaskFromTokens"}
    adapters = [node["inputs"] for node in prompt.values() if node["class_type"] == "IPAdapterAdvanced"]
    assert {inputs["attn_mask"][0] for inputs in adapters} == masks and len(masks) == 2
    # The check itself works.
    adapters[0]["attn_mask"] = adapters[0]["image"]
    assert any("IPAdapterAdvanced" in text for text in problems(prompt, host))
