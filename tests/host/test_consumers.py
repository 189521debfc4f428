"""Masks go straight into the nodes that people use: what each of them asks for, from its documentation, holds.

ComfyUI's own nodes are run. Other packs are not installed; of these the documented or visible contract is checked.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from goca_core.regional import compose, region_weights

from . import tiny
from .device import repeated
from .helpers import job, words_of

LATENT = (17, 25)
PHRASES = "red cat\ngrass\nsky"


@pytest.fixture(scope="module")
def found(host: SimpleNamespace, pack: ModuleType) -> SimpleNamespace:
    """Masks of two images out of Mask From Tokens, at the image's and at the latent's size; an odd size at that."""
    nodes = host.nodes.NODE_CLASS_MAPPINGS
    built = tiny.build("sd15")
    with torch.inference_mode():
        model, recorder = nodes["GOCA_RecordAttention"].execute(built.model, "auto", 0.5, 1.0, 4).result
        positive = built.conditioning(seed=1, goca_words=words_of("a red cat on grass under a sky of blue"))
        latent = job(built, 2, LATENT, positive=positive).run(model)
        attention = nodes["GOCA_CollectAttention"].execute(recorder, latent).result[0]
        made = {
            size: nodes["GOCA_MaskFromTokens"].execute(attention, PHRASES, "auto", "partition", size=size).result
            for size in ("image", "latent")
        }
    masks, background, labels = made["image"]
    assert masks.mean((1, 2)).min() > 0, "a mask is empty, so little is shown"
    return SimpleNamespace(
        built=built, nodes=nodes, masks=masks, background=background, labels=labels.splitlines(), latent=made["latent"]
    )


def one_by_one(masks: Tensor, image: int = 0) -> list[Tensor]:
    """The masks of one image as separate MASK values [1, H, W]."""
    return list(masks.unflatten(0, (-1, 3))[image][:, None])


# -- ComfyUI's conditioning nodes -------------------------------------------------------------------------------------


def run(found: SimpleNamespace, positive: Any, negative: Any = None) -> Tensor:
    work = job(found.built, size=LATENT, positive=positive, steps=2)
    if negative is not None:
        work.negative = negative
    samples: Tensor = work.run(found.built.model)["samples"]
    return samples


@pytest.fixture(scope="module")
def regional(found: SimpleNamespace) -> Tensor:
    """The image that a regional prompt of the first image's masks gives."""
    return sampled(found)


def sampled(found: SimpleNamespace) -> Tensor:
    texts = [found.built.conditioning(seed=seed) for seed in (11, 12, 13, 14)]
    positive = compose(texts[0], texts[1:], region_weights(torch.cat(one_by_one(found.masks)), 3))
    samples: Tensor = repeated(lambda: run(found, positive))
    return samples


def test_conditioning_set_mask(found: SimpleNamespace, regional: Tensor) -> None:
    """mask + background, each set on a prompt, combined: what a regional prompt is."""
    set_mask, combine = found.nodes["ConditioningSetMask"]().append, found.nodes["ConditioningCombine"]().combine
    (positive,) = set_mask(found.built.conditioning(seed=11), found.background[:1], "default", 1.0)
    for mask, seed in zip(one_by_one(found.masks), (12, 13, 14), strict=True):
        (region,) = set_mask(found.built.conditioning(seed=seed), mask, "default", 1.0)
        (positive,) = combine(positive, region)
    texts = [found.built.conditioning(seed=seed) for seed in (11, 12, 13, 14)]
    ours = compose(texts[0], texts[1:], region_weights(torch.cat(one_by_one(found.masks)), 3))
    for theirs, own in zip(positive, ours, strict=True):
        assert theirs[1].keys() == own[1].keys()
        assert torch.equal(theirs[1]["mask"], own[1]["mask"])
    assert torch.equal(run(found, positive), regional)


def test_conditioning_set_default_combine(found: SimpleNamespace, regional: Tensor) -> None:
    """The default prompt takes what the masks leave over: the background, without its mask."""
    properties = found.nodes["ConditioningSetProperties"]().set_properties
    positive = []
    for mask, seed in zip(one_by_one(found.masks), (12, 13, 14), strict=True):
        positive += properties(found.built.conditioning(seed=seed), 1.0, "default", mask=mask)[0]
    default = found.nodes["ConditioningSetDefaultCombine"]().set_default_and_combine
    (positive,) = default(positive, found.built.conditioning(seed=11))
    torch.testing.assert_close(run(found, positive), regional, atol=1e-4, rtol=1e-3)


def test_pair_conditioning_set_properties(found: SimpleNamespace) -> None:
    # The negative is put together of masked parts too, and guidance makes more of the roundings of both: in double precision.
    found = SimpleNamespace(**{**vars(found), "built": tiny.build("sd15", dtype=torch.float64)})
    properties = found.nodes["PairConditioningSetProperties"]().set_properties
    positive, negative, plain = [], [], found.built.conditioning(seed=2)
    for mask, seed in zip(one_by_one(found.masks), (12, 13, 14), strict=True):
        pair = properties(found.built.conditioning(seed=seed), plain, 1.0, "default", mask=mask)
        positive, negative = positive + pair[0], negative + pair[1]
    default = found.nodes["PairConditioningSetDefaultCombine"]().set_default_and_combine
    positive, negative = default(positive, negative, found.built.conditioning(seed=11), plain)
    torch.testing.assert_close(run(found, positive, negative), sampled(found), atol=1e-4, rtol=1e-3)


# -- other packs ------------------------------------------------------------------------------------------------------


def test_attention_couple(found: SimpleNamespace) -> None:
    """Attention couple takes a mask [1, H, W] for the base and one for each prompt, refuses a pixel that none of them
    covers, and divides by their sum; at each attention layer it takes the nearest of its pixels."""
    for image in range(2):
        stack = torch.stack([found.background[[image]], *one_by_one(found.masks, image)])
        assert stack.shape == (4, 1, 8 * LATENT[0], 8 * LATENT[1])
        assert torch.equal(stack.sum(0), torch.ones_like(stack[0]))
        for factor in (1, 2, 4, 8):
            size = [-(-side // factor) for side in LATENT]
            assert torch.equal(F.interpolate(stack, size=size, mode="nearest").sum(0), torch.ones(1, *size))


def test_soft_masks_for_attention_couple(found: SimpleNamespace) -> None:
    """Soft masks may leave a pixel to nobody; the background covers what is left."""
    parts = region_weights(torch.rand(6, 8, 9), 3)
    assert torch.allclose(parts.sum(1), torch.ones(2, 8, 9))


def test_region_nodes_of_the_tooling_pack(found: SimpleNamespace) -> None:
    """Regions must have exactly the size of the image or of the latent, and not overlap, because the background region
    is one minus their sum."""
    for masks, size in ((found.masks, [8 * side for side in LATENT]), (found.latent[0], list(LATENT))):
        for image in range(2):
            stack = torch.stack(one_by_one(masks, image))
            assert list(stack.shape) == [3, 1, *size]
            background = 1 - stack.sum(0)
            assert set(background.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(1 - found.latent[0].unflatten(0, (-1, 3)).sum(1), found.latent[1])


def test_impact_pack(found: SimpleNamespace) -> None:
    """Mask to SEGS takes a MASK batch as numpy arrays and makes a segment of each, dropping empty ones; so mask number n
    is object number n, in the order of the labels."""
    masks = found.masks[:3]
    assert found.labels == PHRASES.splitlines() and masks.dtype == torch.float32 and masks.device.type == "cpu"
    for mask in masks:
        array = mask.cpu().numpy()
        assert array.flags.c_contiguous and array.ndim == 2 and set(array.ravel().tolist()) == {0.0, 1.0}
        rows, columns = array.nonzero()
        assert 0 <= rows.min() <= rows.max() < 8 * LATENT[0] and 0 <= columns.min() <= columns.max() < 8 * LATENT[1]


def test_inpaint_nodes_that_take_only_one_for_opaque(found: SimpleNamespace) -> None:
    """Fill, blur and inpaint-with-model nodes test mask >= 0.99; VAE Encode (for Inpainting) rounds. Nothing is lost,
    also after ComfyUI's Grow Mask and after a resize to the latent by the nearest pixel."""
    grown = found.nodes["GrowMask"].execute(found.masks, 6, True).result[0]
    for masks in (found.masks, found.background, grown, found.latent[0]):
        assert torch.equal((masks >= 0.99).float(), masks)
        assert torch.equal(masks.round(), masks)
    assert bool((grown >= found.masks).all())
