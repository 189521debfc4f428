"""The two methods of recording, through the nodes and with the bundled demo model: what auto stands for afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.families import CHOOSING_SEED
from benchmarks.minis.subjects import Case, Demo
from goca_core.attention import load, save
from goca_core.attention.global_map import aggregate
from goca_core.capture.families import plan_of
from goca_core.pipeline import MaskRequest, Scoring, make_masks
from goca_core.refine.methods import Pamr

ABSENT, SEVERAL = 1, 0  # scenes of several things


@pytest.fixture(scope="module")
def node(host: SimpleNamespace, pack: ModuleType) -> Callable[..., Any]:
    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return host.nodes.NODE_CLASS_MAPPINGS[f"GOCA_{name}"].execute(*args, **kwargs)

    return run


@pytest.fixture(scope="module")
def demo(host: SimpleNamespace) -> Demo:
    return Demo()


@pytest.fixture(scope="module")
def segmented(demo: Demo, node: Callable[..., Any]) -> Callable[..., tuple[Any, Case]]:
    def run(kind: str, number: int = 1, method: str | None = "auto", **options: Any) -> tuple[Any, Case]:
        case = demo.case(CHOOSING_SEED, number, kind)
        latent, positive = demo.inputs(case)
        chosen = {} if method is None else {"method": method}
        found = node(
            "SegmentImage", demo.model, {"samples": latent}, positive, {"noise_level": "auto"}, 3, **chosen, **options
        )
        return found.result[0], case

    return run


def test_auto_of_later_nodes_is_decided_by_the_recording(
    segmented: Callable[..., Any], node: Callable[..., Any], demo: Demo
) -> None:
    ours, case = segmented("full")
    paper, _ = segmented("full", method="paper")
    family = plan_of(demo.model.model).defaults
    assert vars(paper.defaults) == vars(family) and paper.defaults.rule == "offset"
    assert (ours.defaults.layer, ours.defaults.rule, ours.defaults.head) == (
        "information",
        "clearest classes",
        "average",
    )
    assert ours.head_methods == ("average",) and ours.layer_methods == ("vanilla",), "nothing more is kept"
    assert set(paper.layer_methods) == {"vanilla", "dot-product similarity"}
    phrases = "\n".join(case.phrases)
    for record, known in ((ours, ours.defaults), (paper, family)):
        maps = node("Aggregate", record, "auto", "auto").result[0]
        assert torch.equal(maps.maps, aggregate(record, known.head, known.layer).maps)
        masks, *_ = node("MaskFromTokens", record, phrases, "auto", "partition").result
        request = MaskRequest(phrases, rule=known.rule, propagation_steps=known.propagation_steps)
        assert torch.equal(masks, make_masks(Scoring(maps, known.rescale), request).masks.flatten(0, 1))


def test_a_graph_without_the_input_gets_the_published_method(segmented: Callable[..., Any]) -> None:
    assert segmented("full", method=None)[0].defaults.rule == "offset"


def test_everything_can_still_be_recorded(segmented: Callable[..., Any]) -> None:
    record, _ = segmented("full", head_methods="all", layer_methods="all")
    assert len(record.head_methods) == 7 and len(record.layer_methods) == 4 and record.defaults.layer == "information"
    assert torch.isfinite(aggregate(record, "cosine", "mse").maps).all()


def test_a_phrase_that_was_not_drawn_has_an_empty_mask_and_is_named(
    segmented: Callable[..., Any], node: Callable[..., Any]
) -> None:
    record, case = segmented("absent", ABSENT)
    phrases = "\n".join(case.phrases)
    drawn = len(case.phrases) - 1
    found = node("MaskFromTokens", record, phrases, "auto", "partition")
    masks = found.result[0]
    assert found.ui["goca_masks"][0]["absent"] == [[False] * drawn + [True]]
    assert masks[-1].sum() == 0 and (masks[:-1].mean((1, 2)) > 0.01).all()
    alone = node("MaskFromTokens", record, "\n".join(case.phrases[:-1]), "auto", "partition", background_rule="auto")
    both = (masks[:-1] * alone.result[0]).sum((1, 2)) / torch.maximum(masks[:-1], alone.result[0]).sum((1, 2))
    assert (both > 0.8).all(), "the others are as they are without it"
    every = node("MaskFromTokens", record, phrases, "auto", "partition", skip_absent=False)
    assert every.ui["goca_masks"][0]["absent"] == []
    paper = node("MaskFromTokens", record, phrases, "auto", "partition", background_rule="offset")
    assert paper.ui["goca_masks"][0]["absent"] == [] and paper.result[0][-1].sum() > 0


@pytest.mark.parametrize("rule", ["clearest classes", "two classes"])
def test_a_mask_of_one_thing_leaves_out_the_others(
    segmented: Callable[..., Any], node: Callable[..., Any], rule: str
) -> None:
    """In this scene, things stand out from the background together, so that each was in the masks of the others."""
    record, case = segmented("full", SEVERAL)
    truth = torch.from_numpy(case.truth[0])
    for phrase, number in zip(case.phrases, case.classes, strict=True):
        mask = node("MaskFromTokens", record, phrase, "auto", "partition", background_rule=rule).result[0][0]
        others = [other for other in case.classes if other != number]
        assert mask[truth == number].mean() > 0.85
        assert all(mask[truth == other].mean() < 0.05 for other in others), phrase


def test_the_image_gives_the_outlines(segmented: Callable[..., Any], node: Callable[..., Any]) -> None:
    record, case = segmented("no background")
    phrases = "\n".join(case.phrases)
    truth = torch.from_numpy(case.truth.copy())
    classes = torch.tensor([0, *case.classes])

    def right(masks: torch.Tensor) -> float:
        labels = torch.cat((torch.full_like(masks[:1], 0.5), masks)).argmax(0)
        return float((classes[labels] == truth[0]).float().mean())

    coarse, sharp = (
        node("MaskFromTokens", record, phrases, "auto", "partition", image=image).result[0]
        for image in (None, case.pixels)
    )
    assert right(coarse) > 0.95 and right(sharp) > max(0.99, right(coarse))
    scores = node("Rescale", node("Aggregate", record, "auto", "auto").result[0], "auto").result[0]
    refined = node("Refine", scores, {"method": "pamr", **vars(Pamr())}, image=case.pixels).result[0]
    for more in ({}, {"image": case.pixels}):
        assert torch.equal(node("MaskFromTokens", refined, phrases, "auto", "partition", **more).result[0], sharp)
    with pytest.raises(ValueError, match="image"):
        node("MaskFromTokens", record, phrases, "auto", "partition", image=case.pixels.expand(3, -1, -1, -1))


def test_without_words_all_layers_count_the_same(segmented: Callable[..., Any]) -> None:
    record, _ = segmented("full")
    unknown = replace(record, tokens=replace(record.tokens, words=None))
    assert torch.equal(aggregate(unknown).weights, aggregate(record, "average", "vanilla").weights)
    with pytest.raises(ValueError, match="'information' needs the words"):
        aggregate(unknown, "average", "information")


def test_the_method_is_saved(segmented: Callable[..., Any], tmp_path: Any) -> None:
    for method in ("auto", "paper"):
        record, _ = segmented("full", method=method)
        save(tmp_path / "record.safetensors", record)
        assert vars(load(tmp_path / "record.safetensors").defaults) == vars(record.defaults)
