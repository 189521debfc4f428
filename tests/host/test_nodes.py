"""The nodes as ComfyUI knows them: their schemas, one whole chain of them, and their errors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from . import tiny
from .helpers import job, words_of

IDS = {
    *("GOCA_EncodePrompt", "GOCA_Words", "GOCA_RecordAttention", "GOCA_CollectAttention", "GOCA_Aggregate"),
    *("GOCA_Rescale", "GOCA_Refine", "GOCA_MaskFromTokens", "GOCA_Overlay", "GOCA_SaveAttention", "GOCA_LoadAttention"),
    "GOCA_SegmentImage",
}
# Types of wires of ComfyUI that the nodes use; every other one must be the pack's own.
HOST_TYPES = {
    "MODEL",
    "CLIP",
    "VAE",
    "LATENT",
    "CONDITIONING",
    "IMAGE",
    "BOUNDING_BOX",
    "MASK",
    "STRING",
    "INT",
    "FLOAT",
    "BOOLEAN",
    "COMBO",
    "COMFY_DYNAMICCOMBO_V3",
}
OWN_TYPES = {"GOCA_RECORDER", "GOCA_ATTENTION", "GOCA_MAPS", "GOCA_SCORES", "GOCA_WORDS", "GOCA_REGIONS"}


@pytest.fixture(scope="module")
def node(host: SimpleNamespace, pack: ModuleType) -> Callable[..., Any]:
    """Runs a node by its short name; gives its outputs, or the one it has."""

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            result = host.nodes.NODE_CLASS_MAPPINGS[f"GOCA_{name}"].execute(*args, **kwargs).result
        return result[0] if len(result) == 1 else result

    return run


@pytest.fixture(scope="module")
def infos(host: SimpleNamespace, pack: ModuleType) -> dict[str, dict[str, Any]]:
    classes = host.nodes.NODE_CLASS_MAPPINGS
    return {name: cls.GET_NODE_INFO_V1() for name, cls in classes.items() if name.startswith("GOCA_")}


# -- schemas ----------------------------------------------------------------------------------------------------------


def test_every_node_of_the_pack_is_registered(infos: dict[str, dict[str, Any]], pack: ModuleType) -> None:
    assert set(infos) >= IDS
    declared = importlib.import_module(f"{pack.__name__}.nodes").NODES
    assert {cls.define_schema().node_id for cls in declared} == set(infos)
    assert len(declared) == len(infos)


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def test_types_names_and_defaults_are_sane(infos: dict[str, dict[str, Any]]) -> None:
    for name, info in infos.items():
        for key, (kind, *rest) in inputs_of(info).items():
            options = rest[0] if rest else {}
            assert key.isidentifier() and key == key.lower(), (name, key)
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices is not None and choices:
                assert options.get("default", choices[0]) in choices, (name, key)
            if isinstance(kind, str):
                assert set(kind.split(",")) <= HOST_TYPES | OWN_TYPES, (name, key, kind)
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], (name, key)
        assert set(info["output"]) <= HOST_TYPES | OWN_TYPES, name
        assert len(set(info["output_name"])) == len(info["output_name"]), name


def test_inputs_that_came_later_are_optional_and_last(infos: dict[str, dict[str, Any]]) -> None:
    """Saved graphs hold values of widgets by their place, and prompts need only what is required."""
    groups = infos["GOCA_MaskFromTokens"]["input"]
    assert list(groups["required"])[-1] == "height"
    assert list(groups["optional"]) == [
        "words",
        "remove_small",
        "fill_holes",
        "image",
        "skip_absent",
        "latent",
        "order",
    ]


def test_every_own_type_is_made_and_taken(infos: dict[str, dict[str, Any]]) -> None:
    made = {kind for info in infos.values() for kind in info["output"]}
    taken = {
        part
        for info in infos.values()
        for kind, *_ in inputs_of(info).values()
        if isinstance(kind, str)
        for part in kind.split(",")
    }
    assert made >= OWN_TYPES and taken >= OWN_TYPES


# -- the chain --------------------------------------------------------------------------------------------------------

RECORD = ("auto", 0.5, 1.0, 4)


@pytest.fixture(scope="module")
def chain(node: Callable[..., Any]) -> SimpleNamespace:
    """From a MODEL to scores of two images, node by node, with a graph's own defaults."""
    built = tiny.build("sd15")
    model, recorder = node("RecordAttention", built.model, *RECORD)
    words = words_of("a red cat on grass")
    work = job(built, 2, positive=built.conditioning(seed=1, goca_words=words))
    latent = work.run(model)
    attention = node("CollectAttention", recorder, latent)
    maps = node("Aggregate", attention, "auto", "auto")
    return SimpleNamespace(
        built=built,
        latent=latent,
        recorder=recorder,
        attention=attention,
        maps=maps,
        scores=node("Rescale", maps, "auto"),
    )


PHRASES = "red cat\ngrass\non"


def masks_of(
    node: Callable[..., Any], source: Any, mode: str = "partition", phrases: str = PHRASES, **options: Any
) -> Any:
    return node("MaskFromTokens", source, phrases, options.pop("background", ""), mode, **options)


@pytest.mark.parametrize("background", ["auto", "a", ""])
def test_a_partition_covers_each_pixel_once(node: Callable[..., Any], chain: SimpleNamespace, background: str) -> None:
    masks, rest, labels = masks_of(node, chain.scores, background=background)
    assert masks.shape == (6, 128, 192) and rest.shape == (2, 128, 192)
    assert labels == PHRASES
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masks.reshape(2, 3, 128, 192).sum(1) + rest, torch.ones(2, 128, 192))


def test_masks_come_image_by_image(node: Callable[..., Any], chain: SimpleNamespace) -> None:
    masks, _, _ = masks_of(node, chain.scores, "soft")
    for number, phrase in enumerate(PHRASES.splitlines()):
        alone, _, _ = masks_of(node, chain.scores, "soft", phrase)
        # The stretch to 0..1 makes the rounding of products of other sizes visible.
        assert torch.allclose(alone, masks[[number, 3 + number]], atol=5e-3), phrase
    assert (masks[0] - masks[3]).abs().mean() > 0.05, "the two images are alike, so the order shows nothing"


def test_a_threshold_gives_zeros_and_ones_and_soft_gives_shades(
    node: Callable[..., Any], chain: SimpleNamespace
) -> None:
    hard, _, _ = masks_of(node, chain.scores, "threshold", background_rule="vanilla", theta=0.4)
    soft, _, _ = masks_of(node, chain.scores, "soft")
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard, (soft > 0.4).float())
    assert len(soft.unique()) > 100 and soft.min() >= 0 and soft.max() <= 1


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (128, 192)),
        ({"size": "latent"}, (16, 24)),
        ({"size": "custom", "width": 50, "height": 31}, (31, 50)),
        ({"size": "custom", "width": 0, "height": 31}, (31, 192)),
    ],
)
def test_sizes(
    node: Callable[..., Any], chain: SimpleNamespace, options: dict[str, Any], size: tuple[int, int]
) -> None:
    masks, rest, _ = masks_of(node, chain.scores, **options)
    assert tuple(masks.shape[1:]) == tuple(rest.shape[1:]) == size


def test_steps_that_are_left_out_are_done_with_the_defaults(node: Callable[..., Any], chain: SimpleNamespace) -> None:
    expected = masks_of(node, chain.scores, "soft")[0]
    for source in (chain.maps, chain.attention):
        assert torch.equal(masks_of(node, source, "soft")[0], expected)


def test_overlays(node: Callable[..., Any], chain: SimpleNamespace) -> None:
    masks, _, labels = masks_of(node, chain.scores)
    images = torch.rand(2, 128, 192, 3)
    drawn = node("Overlay", images, masks, labels, 0.5)
    assert drawn.shape[0] == 2 and torch.isfinite(drawn).all()
    assert node("Overlay", images, chain.attention, "", 0.5).shape[0] == 2


def test_every_method_can_be_asked_for(node: Callable[..., Any]) -> None:
    built = tiny.build("sd15")
    model, recorder = node("RecordAttention", built.model, "percent", 0.2, 1.0, 2, "all", "all", "full", True)
    attention = node("CollectAttention", recorder, job(built, size=(8, 16)).run(model))
    assert len(attention.sigmas) == 2
    for head in attention.head_methods:
        assert torch.isfinite(node("Aggregate", attention, head, "mse").maps).all()


def test_layers_that_keep_the_sum_of_their_rows(node: Callable[..., Any], chain: SimpleNamespace) -> None:
    maps = node("Aggregate", chain.attention, "auto", "mass-preserving")
    layers = chain.attention.layers
    scores = torch.stack([one.scores["dot-product similarity"] * one.height * one.width for one in layers], -1)
    torch.testing.assert_close(maps.weights, scores / scores.sum(-1, keepdim=True))
    assert not torch.allclose(maps.weights, chain.maps.weights, atol=1e-3)


def test_layers_by_information(node: Callable[..., Any], chain: SimpleNamespace) -> None:
    maps = node("Aggregate", chain.attention, "average", "information")
    assert torch.isfinite(maps.maps).all() and not torch.allclose(maps.weights, chain.maps.weights, atol=1e-3)
    torch.testing.assert_close(maps.weights.sum(-1), torch.ones(len(maps.weights)))


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phrases": "dog"}, '"dog".*red, cat'),
        ({"phrases": "cat\ncat"}, "twice"),
        ({"phrases": ""}, "There is no phrase"),
        ({"size": "custom", "width": -1, "height": 9}, "-1 x 9 pixels.*1 or more"),
        ({"words": words_of("a cat", length=154)}, "154 tokens but this one has 77"),
    ],
)
def test_masks_that_cannot_be_made(
    node: Callable[..., Any], chain: SimpleNamespace, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        masks_of(node, chain.scores, **options)


def test_a_window_the_wrong_way_round(node: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="start below end"):
        node("RecordAttention", tiny.build("sd15").model, "percent", 0.8, 0.2, 4)


def test_methods_that_were_not_recorded(node: Callable[..., Any], chain: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="head_methods to 'all'"):
        node("Aggregate", chain.attention, "cosine", "auto")
