"""The scores of every method, against the functions of the method itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from goca_core.attention.global_map import aggregate, layer_weights, weighted_affinity
from goca_core.attention.merge import merge
from goca_core.attention.record import Attention, AttentionError, Layer
from goca_core.evaluate import scores as scores_module
from goca_core.evaluate.methods import Method, View, parse
from goca_core.evaluate.prompts.captions import Prompt
from goca_core.evaluate.scores import Scorer, find_columns, global_map, group_by_scores, manual_layers
from goca_core.layers import layer_score, normalise_scores, reference_affinity, resize_self_map
from goca_core.pipeline import MaskRequest, Scoring, make_masks, refined
from goca_core.refine.methods import REFINEMENTS
from goca_core.words.match import PhraseError

from ..recordings import DEFAULTS, recording

PROMPT = Prompt("a red cat on grass", {3: ("cat",), 1: ("red",)}, ("grass",))
SIZE = (8, 12)


def resolved(text: str) -> Method:
    return parse(text).resolved("offset", "auto", 1)


def image(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 255, (*size, 3), np.uint8)


def scorer(prompt: Prompt = PROMPT, record: Attention | None = None, size: tuple[int, int] = SIZE) -> Scorer:
    return Scorer({View("auto", 0): record or recording(batch=1)}, prompt, image(size))


@pytest.mark.parametrize(
    "text",
    [
        "goca",
        "vanilla",
        "goca,order=0",
        "goca,order=1,rescale=raw",
        "goca,range=robust",
        "goca,refine=pamr",
        "goca,refine=guided filter,order=0",
        "goca,refine=proposal merge",
    ],
)
def test_the_same_scores_as_the_nodes_use(text: str) -> None:
    method = resolved(text).with_defaults(DEFAULTS)
    found, background = scorer().scores(method)
    maps = Scoring(aggregate(recording(batch=1), method.head, method.layer), method.rescale)
    maps = replace(maps, range_="robust" if method.range == "robust" else "full")
    if method.refine != "none":
        seen = torch.from_numpy(image())[None] / 255
        maps = refined(maps, REFINEMENTS[method.refine](), seen)
    expected = make_masks(maps, MaskRequest("cat\nred", "grass", propagation_steps=method.order, size=SIZE))
    torch.testing.assert_close(found, expected.scores[0])
    assert background is not None and background.shape == SIZE


def test_a_refinement_by_self_attention_needs_some() -> None:
    without = scorer(record=recording(batch=1, affinity=False))
    assert without.scores(resolved("goca"))[0].shape == (2, *SIZE)
    with pytest.raises(AttentionError, match="proposal merge needs"):
        without.scores(resolved("goca,refine=proposal merge"))


def test_propagation_by_score() -> None:
    record = recording(batch=1, parts=True)
    found = scorer(record=record).scores(resolved("goca,affinity=by score"))[0]
    expected = scorer(record=replace(record, affinity=weighted_affinity(record))).scores(resolved("goca"))[0]
    assert torch.equal(found, expected)
    assert not torch.equal(found, scorer(record=record).scores(resolved("goca"))[0])
    # Both in one run, and neither without propagation.
    both = scorer(record=record)
    texts = ("goca", "goca,affinity=by score", "goca,order=0", "goca,order=0,affinity=by score")
    first, second, third, fourth = (both.scores(resolved(text))[0] for text in texts)
    assert torch.equal(second, found) and not torch.equal(first, second) and torch.equal(third, fourth)
    with pytest.raises(AttentionError, match="does not hold the self-attention of each"):
        scorer().scores(resolved("goca,affinity=by score"))


def test_without_words_for_the_background() -> None:
    found, background = scorer(replace(PROMPT, supports=())).scores(resolved("goca"))
    assert background is None and found.shape == (2, *SIZE)


def test_the_background_is_the_largest_of_its_words() -> None:
    def background(*words: str) -> torch.Tensor:
        found = scorer(replace(PROMPT, supports=words), size=(4, 6)).scores(resolved("goca,order=0"))[1]
        assert found is not None
        return found

    assert torch.equal(background("grass", "red"), torch.maximum(background("grass"), background("red")))


def test_each_step_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"global_map": 0, "rescale": 0, "propagate": 0}

    def counting(name: str):  # type: ignore[no-untyped-def]
        original = getattr(scores_module, name)

        def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
            calls[name] += 1
            return original(*args, **kwargs)

        return counted

    for name in calls:
        monkeypatch.setattr(scores_module, name, counting(name))
    one = scorer()
    texts = ["goca", "goca,order=0", "goca,order=1", "goca,rule=max", "goca,rescale=raw", "head=average", "vanilla"]
    for method in group_by_scores(map(resolved, texts)):
        one.scores(method)
    assert calls == {"global_map": 3, "rescale": 4, "propagate": 5}


def test_methods_with_the_same_scores_stand_together() -> None:
    texts = ["goca", "vanilla", "goca,rule=max", "vanilla,rule=avg", "goca,order=2,rule=exact"]
    order = [method.name for method in group_by_scores(map(resolved, texts))]
    assert abs(order.index("goca") - order.index("goca,rule=max")) == 1
    assert abs(order.index("vanilla") - order.index("vanilla,rule=avg")) == 1


def test_levels_and_draws_are_averaged() -> None:
    views = [View(level, draw) for level in ("auto", "0.5") for draw in (0, 1)]
    records = {view: recording(seed, batch=1) for seed, view in enumerate(views)}
    method = parse("goca,noise=auto+0.5,draws=2").resolved("offset", "auto", 1)
    found = Scorer(records, PROMPT, image()).scores(method)[0]
    expected = scorer(record=merge(list(records.values()))).scores(resolved("goca"))[0]
    torch.testing.assert_close(found, expected)


def test_inputs_stay_as_they_are() -> None:
    record = recording(batch=1)
    before = [tensor.clone() for layer in record.layers for tensor in (*layer.maps.values(), *layer.scores.values())]
    one = scorer(record=record)
    for text in ("goca", "manual", "goca,layer=mass-preserving", "vanilla,order=0"):
        one.scores(resolved(text))
    after = [tensor for layer in record.layers for tensor in (*layer.maps.values(), *layer.scores.values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# -- words -------------------------------------------------------------------------------------------------------------


def test_columns_of_a_prompt() -> None:
    tokens = recording(text="red cat and blue cat on grass").tokens
    prompt = Prompt("", {2: ("red cat#1", "blue"), 1: ("cat#2",)}, ("grass",), lost=("on",))
    found = find_columns(prompt, tokens)
    assert found.ids == (2, 1)
    assert found.objects == ((1, 2, 4), (5,))
    assert found.supports == ((7,),)
    assert found.content == (1, 2, 4, 5, 7)
    assert find_columns(replace(prompt, lost=()), tokens).content == (1, 2, 4, 5, 6, 7)
    # Words of an object count, whatever else was lost.
    assert find_columns(replace(prompt, lost=("grass", "on")), tokens).content == (1, 2, 4, 5, 7)


def test_a_phrase_that_is_not_there_is_named() -> None:
    with pytest.raises(PhraseError, match='"dog" is not in the prompt'):
        find_columns(Prompt("", {1: ("dog",)}, ()), recording().tokens)


# -- layers ------------------------------------------------------------------------------------------------------------


def layers_of(*blocks: tuple[str, int]) -> list[Layer]:
    return [Layer(name, side, side, {}, {}) for name, side in blocks]


def test_hand_picked_layers_of_sd15_are_those_of_the_reference() -> None:
    sd15 = layers_of(
        *((f"input.{i}.0", side) for i, side in ((1, 64), (2, 64), (4, 32), (5, 32), (7, 16), (8, 16))),
        ("middle.0.0", 8),
        *((f"output.{i}.0", 16 << (i // 3 - 1)) for i in range(3, 12)),
    )
    names = [sd15[i].name for i in manual_layers(sd15)]
    assert names == [
        "input.7.0", "input.8.0", "middle.0.0", "output.3.0", "output.4.0", "output.5.0", "output.6.0", "output.7.0",
    ]  # fmt: skip


def test_hand_picked_layers_of_other_layouts() -> None:
    sdxl = layers_of(
        ("input.4.0", 64), ("input.7.0", 32), ("input.7.1", 32), ("middle.0.0", 32),
        ("output.0.0", 32), ("output.0.1", 32), ("output.2.0", 32), ("output.2.1", 32), ("output.3.0", 64),
    )  # fmt: skip
    assert [sdxl[i].name for i in manual_layers(sdxl)] == ["middle.0.0", "output.0.0", "output.0.1"]
    sigma = layers_of(*((f"block.{i}", 64) for i in range(28)))
    assert manual_layers(sigma) == tuple(range(10, 18))
    assert manual_layers(layers_of(("block.0", 8))) == (0,)
    small = layers_of(("input.1.0", 8), ("input.2.0", 4), ("output.5.0", 8))
    assert [small[i].name for i in manual_layers(small)] == ["input.2.0"]


def test_mass_preserving_is_the_score_of_rows_that_keep_their_sum() -> None:
    generator = torch.Generator().manual_seed(5)
    reference = reference_affinity(torch.randn(2, 5, 4, 6, generator=generator))
    layers, kept = [], []
    for name, grid in (("a", (4, 6)), ("b", (2, 3)), ("c", (4, 6)), ("d", (8, 12))):
        count = grid[0] * grid[1]
        own = (2 * torch.randn(2, count, count, generator=generator)).softmax(-1)
        score = layer_score(reference, resize_self_map(own, grid, (4, 6)), "dot-product similarity")
        kept.append(layer_score(reference, resize_self_map(own, grid, (4, 6), True), "dot-product similarity"))
        maps = {"average": torch.rand(2, count, 3, generator=generator)}
        layers.append(Layer(name, *grid, maps, {"dot-product similarity": score}))
    record = replace(recording(), layers=tuple(layers))
    torch.testing.assert_close(layer_weights(record, "mass-preserving"), normalise_scores(torch.stack(kept, -1)))


def test_a_selection_keeps_the_finest_size() -> None:
    record = recording(batch=1)
    assert global_map(record, "average", "vanilla", "manual").shape[-2:] == (4, 6)
    alone = replace(record, layers=record.layers[1:2])
    expected = torch.nn.functional.interpolate(aggregate(alone, "average", "vanilla").maps, (4, 6), mode="bilinear")
    torch.testing.assert_close(global_map(record, "average", "vanilla", "manual"), expected)


def test_a_method_that_was_not_recorded_is_an_error() -> None:
    for layers in ("all", "manual"):
        with pytest.raises(AttentionError, match="l2-norm"):
            global_map(recording(batch=1), "l2-norm", "vanilla", layers)
