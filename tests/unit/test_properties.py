"""What holds whatever the numbers are: properties of the method, tried on examples that hypothesis makes up.

Sizes, values and words are drawn; large arrays come from a drawn seed. The examples are the same in every run.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from goca_core import classes, heads, layers, masks, refine, rescale, tensors
from goca_core.attention import load, save
from goca_core.capture.reduce import call as calls
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.one_pass import ALL, one_pass, self_pass
from goca_core.capture.reduce.text_maps import TextMaps, token_columns
from goca_core.words.match import PhraseError
from goca_core.words.word_map import label_of, parse_phrases, resolve

from .recordings import Gathering, recording, words_of

few = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 7)
grids = st.tuples(sides, sides)
batches = st.integers(1, 3)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(seed: int, *shape: int) -> Tensor:
    return torch.softmax(2 * normal(seed, *shape), -1)


def area(grid: tensors.Grid) -> int:
    return grid[0] * grid[1]


# -- masks ------------------------------------------------------------------------------------------------------------

# Few values, so that there are ties, and those that a broken model gives.
values = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, float("nan"), float("inf"), -float("inf")])


@st.composite
def score_maps(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """Scores [B, K, h, w], and the background [B, h, w] or None."""
    batch, objects, (height, width) = draw(batches), draw(st.integers(1, 4)), draw(grids)
    count = batch * (objects + 1) * area((height, width))
    numbers = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)))
    maps = numbers.reshape(batch, objects + 1, height, width)
    return maps[:, 1:], draw(st.sampled_from([None, maps[:, 0]]))


@few
@given(score_maps(), st.sampled_from(masks.BACKGROUND_RULES), st.sampled_from([-0.5, 0.0, 0.25, 0.5]))
def test_a_partition_gives_each_pixel_to_one_object_or_the_background(
    maps: tuple[Tensor, Tensor | None], rule: str, theta: float
) -> None:
    scores, background = maps
    labels = masks.assign(scores, background, rule, theta)
    made = masks.one_hot(labels, scores.shape[1])
    assert set(made.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(made.sum(1) + (labels == 0), torch.ones(labels.shape))
    # The owner of a pixel has the highest score there, and one above the level; of the background's pixels none has.
    level = masks.background_level(scores, background, rule, theta)
    best = tensors.finite(scores).amax(1)
    assert torch.equal(labels > 0, best > level)
    assert torch.equal((tensors.finite(scores) * made).sum(1)[labels > 0], best[labels > 0])


@few
@given(score_maps())
def test_two_classes_are_a_partition(maps: tuple[Tensor, Tensor | None]) -> None:
    scores, background = maps
    measured = classes.two_classes(scores, background)
    assert measured.shape == scores.shape and torch.isfinite(measured).all()
    labels = masks.assign(measured, theta=0.5)
    made = masks.one_hot(labels, scores.shape[1])
    assert torch.equal(made.sum(1) + (labels == 0), torch.ones(labels.shape))
    # Each sample is divided by itself.
    alone = [
        classes.two_classes(scores[[b]], None if background is None else background[[b]]) for b in range(len(scores))
    ]
    torch.testing.assert_close(torch.cat(alone), measured)


@few
@given(seeds, batches, st.integers(1, 4), st.tuples(st.integers(3, 12), st.integers(3, 12)))
def test_a_partition_with_its_holes_filled_is_one_still(
    seed: int, batch: int, objects: int, grid: tensors.Grid
) -> None:
    labels = torch.randint(0, objects + 1, (batch, *grid), generator=torch.Generator().manual_seed(seed))
    made = masks.one_hot(labels, objects)
    filled = masks.fill_holes(made, disjoint=True)
    assert filled.sum(1).max() <= 1 and torch.all(filled >= made)
    assert torch.equal(masks.fill_holes(filled, disjoint=True), filled)


# -- a batch is its samples -------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from(heads.HEAD_METHODS), st.integers(1, 4), st.integers(1, 5), grids)
def test_heads_of_a_batch(seed: int, method: str, number: int, width: int, grid: tensors.Grid) -> None:
    post, weight = normal(seed, 3, area(grid), number * width), normal(seed + 1, 6, number * width)
    value, cross = normal(seed + 2, 3, number, 4, width), softmax(seed + 3, 3, number, area(grid), 4)
    whole = heads.head_weights(post, weight, number, method, value)
    torch.testing.assert_close(whole.sum(-1), torch.ones_like(whole[..., 0]))
    parts = [heads.head_weights(post[[b]], weight, number, method, value[[b]]) for b in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-6, atol=1e-6)
    mixed = torch.cat([heads.aggregate_heads(cross[[b]], whole[[b]]) for b in range(3)])
    torch.testing.assert_close(heads.aggregate_heads(cross, whole), mixed)


@few
@given(seeds, st.sampled_from(layers.LAYER_METHODS), grids, st.lists(grids, min_size=1, max_size=3))
def test_layers_of_a_batch(seed: int, method: str, reference: tensors.Grid, own: list[tensors.Grid]) -> None:
    affinity = layers.reference_affinity(normal(seed, 3, 4, *reference))
    selves = [softmax(seed + n, 3, area(grid), area(grid)) for n, grid in enumerate(own)]
    maps = [softmax(seed + n, 3, area(grid), 5) for n, grid in enumerate(own)]
    weights = layers.layer_scores(affinity, reference, selves, own, method)
    whole = layers.aggregate_layers(maps, own, weights, reference)
    assert bool((whole >= 0).all())
    torch.testing.assert_close(whole.sum(1), torch.ones(3, *reference, dtype=whole.dtype))
    for b in range(3):
        part = layers.layer_scores(affinity[[b]], reference, [m[[b]] for m in selves], own, method)
        torch.testing.assert_close(weights[[b]], part)
        torch.testing.assert_close(whole[[b]], layers.aggregate_layers([m[[b]] for m in maps], own, part, reference))


@few
@given(seeds, st.sampled_from(rescale.RESCALE_METHODS), grids, st.integers(1, 3), st.sampled_from(tensors.RANGES))
def test_rescaled_maps_of_a_batch(
    seed: int, method: str, grid: tensors.Grid, frames: int, range_: tensors.Range
) -> None:
    """The samples are images, or the frames of one video each."""
    maps = softmax(seed, 2 * frames, *grid, 6).movedim(-1, 1)

    def made(given: Tensor) -> Tensor:
        return rescale.rescale(given, [[1], [0, 4]], [0, 1, 2, 4], method, range_=range_, frames=frames)

    whole = made(maps)
    torch.testing.assert_close(whole, torch.cat([made(maps[:frames]), made(maps[frames:])]))
    if method.endswith(("renorm", "renorm+")):
        assert bool((whole >= 0).all()) and bool((whole <= 1).all())


# -- propagation ------------------------------------------------------------------------------------------------------


@st.composite
def propagated(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Scores [2, 2, h, w], an affinity whose rows sum to one and do not flatten the scores, and a number of steps."""
    seed, grid = draw(seeds), draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    own = torch.eye(area(grid), dtype=torch.float64)
    return (
        normal(seed, 2, 2, *grid),
        0.5 * own + 0.5 * softmax(seed + 1, 2, area(grid), area(grid)),
        draw(st.integers(1, 4)),
    )


@few
@given(propagated(), st.floats(1e-12, 1e12), st.floats(1e-12, 1e12), st.sampled_from(tensors.RANGES))
def test_the_scale_of_scores_and_of_affinity_is_free(
    case: tuple[Tensor, Tensor, int], of_scores: float, of_affinity: float, range_: tensors.Range
) -> None:
    scores, affinity, steps = case
    expected = refine.propagate(scores, affinity, steps, range_)
    actual = refine.propagate(of_scores * scores, of_affinity * affinity, steps, range_)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    # In single precision the same to its rounding, and the other way round for scores that are turned over.
    single = refine.propagate((-of_scores * scores).float(), affinity.float(), steps, range_)
    torch.testing.assert_close(single, 1 - expected.float(), rtol=0, atol=1e-3)


@few
@given(propagated(), st.floats(-3, 3))
def test_steps_of_propagation_add_up_where_rows_sum_to_one(case: tuple[Tensor, Tensor, int], shift: float) -> None:
    """Such rows keep what is added to a map, so the stretch between two calls changes nothing."""
    scores, affinity, steps = case
    expected = refine.propagate(scores, affinity, steps + 1)
    once = refine.propagate(scores, affinity, 1)
    torch.testing.assert_close(refine.propagate(once, affinity, steps), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(refine.propagate(scores + shift, affinity, steps + 1), expected, rtol=0, atol=1e-9)


@few
@given(propagated(), st.sampled_from(tensors.RANGES))
def test_pixels_keep_the_order_that_the_affinity_gives_them(
    case: tuple[Tensor, Tensor, int], range_: tensors.Range
) -> None:
    scores, affinity, steps = case
    spread = scores.flatten(2)
    for _ in range(steps):
        spread = spread @ affinity.mT
    found = refine.propagate(scores, affinity, steps, range_).flatten(2).gather(-1, spread.argsort(-1))
    assert bool((found.diff(dim=-1) >= -1e-9).all()) and bool(
        (found[..., 0] == 0).all() and (found[..., -1] == 1).all()
    )


@few
@given(propagated())
def test_propagation_of_a_batch(case: tuple[Tensor, Tensor, int]) -> None:
    scores, affinity, steps = case
    whole = refine.propagate(scores, affinity, steps)
    parts = [refine.propagate(scores[[b]], affinity[[b]], steps) for b in (0, 1)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-9)
    maps = [refine.propagate(scores[:, [k]], affinity, steps) for k in (0, 1)]
    torch.testing.assert_close(whole, torch.cat(maps, 1), rtol=0, atol=1e-9)


# -- frames -----------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), grids)
def test_stacking_the_frames_of_videos_can_be_undone(
    seed: int, videos: int, frames: int, maps: int, grid: tensors.Grid
) -> None:
    given = normal(seed, videos * frames, maps, *grid)
    stacked = tensors.stack_frames(given, frames)
    assert stacked.shape == (videos, maps, frames * grid[0], grid[1])
    assert torch.equal(tensors.unstack_frames(stacked, frames), given)
    assert torch.equal(tensors.stack_frames(tensors.unstack_frames(stacked, frames), frames), stacked)
    for video in range(videos):
        own = given[video * frames : (video + 1) * frames]
        assert torch.equal(stacked[video], torch.cat(list(own), 1))


# -- reduction --------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 2000), st.integers(1, 3), grids, st.integers(1, 3), grids)
def test_reduction_does_not_depend_on_the_size_of_its_blocks(
    seed: int, elements: int, number: int, grid: tensors.Grid, copies: int, target: tensors.Grid
) -> None:
    q, k = normal(seed, 2, number, area(grid), 4), normal(seed + 1, 2, number, 5 * copies, 4)
    text, own = AttentionCall(q, k, k, None, 0.7), AttentionCall(q, q.flip(-1), q, None, 0.7)
    weights = {"one": softmax(seed, 2, area(grid), number), "other": normal(seed, 2, area(grid), number)}
    columns = token_columns(5 * copies, 5, (3, 1), True, torch.device("cpu"))

    def reduced() -> list[Tensor]:
        gathering, maps = Gathering(grid, [target]), TextMaps(weights, columns)
        self_pass(own, ALL, gathering.maps)
        one_pass(text, (maps, ALL))
        return [*maps.result().values(), gathering.of(target)[0]]

    whole = reduced()
    with patch.object(calls, "_ELEMENTS", elements):
        for part, expected in zip(reduced(), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-9)


# -- words ------------------------------------------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab é猫,\\()#:1\n\r\u2028 "), max_size=30) | st.text(max_size=30)


@settings(few, max_examples=200)
@given(texts)
def test_phrases_can_be_written_down_again(text: str) -> None:
    phrases = parse_phrases(text)
    for parts in phrases:
        assert parse_phrases(label_of(parts)) == [parts]
    assert parse_phrases("\n".join(label_of(parts) for parts in phrases)) == phrases


vocabulary = st.sampled_from(
    ["cat", "red", "Cat", "dog", "the", "猫", "man's", "#2", "(", ")", ":1.2", "\\", ",", "\\,"]
)


@settings(few, max_examples=100)
@given(st.lists(vocabulary, min_size=3, max_size=12), st.data())
def test_a_label_finds_the_phrase_that_it_is_of(prompt: list[str], data: st.DataObject) -> None:
    words = words_of(" ".join(prompt), length=40)
    start = data.draw(st.integers(0, len(prompt) - 1))
    run = prompt[start : data.draw(st.integers(start + 1, len(prompt)))]
    phrase = data.draw(st.sampled_from([" ", "\\, ", "\\,"])).join(run)
    pooled = data.draw(st.sampled_from(["", ", cat", ",red#1", "\\, dog", "\\ , the"]))
    try:
        (found,) = resolve(phrase + pooled, words)
    except PhraseError:
        assume(False)
    assert resolve(found.label, words) == [found]


# -- files ------------------------------------------------------------------------------------------------------------


@settings(few, max_examples=15)
@given(
    seeds,
    batches,
    st.sampled_from([None, "a red cat", "кот и 🙂"]),
    st.booleans(),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.floats(0, 1000, width=32), max_size=3),
)
def test_a_file_gives_back_what_was_saved(
    seed: int, batch: int, text: str | None, parts: bool, half: bool, note: str, sigmas: list[float]
) -> None:
    record = recording(seed, batch, text, parts=parts, affinity=parts or bool(seed % 2))
    record = replace(record, note=note, sigmas=tuple(sigmas))
    record.layers[1].scores[record.defaults.layer][0] = torch.nan
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "one.safetensors")
        save(path, record, half)
        found = load(path)

    def kept(value: Tensor) -> Tensor:
        return value.half().float() if half else value

    assert replace(found, layers=(), affinity=None) == replace(record, layers=(), affinity=None)
    for layer, expected in zip(found.layers, record.layers, strict=True):
        assert (layer.name, layer.height, layer.width) == (expected.name, expected.height, expected.width)
        assert layer.maps.keys() == expected.maps.keys() and layer.scores.keys() == expected.scores.keys()
        assert all(torch.equal(layer.maps[name], kept(value)) for name, value in expected.maps.items())
        for name, value in expected.scores.items():
            torch.testing.assert_close(layer.scores[name], value, rtol=0, atol=0, equal_nan=True)
    assert (found.affinity is None) == (record.affinity is None)
    if found.affinity is not None and record.affinity is not None:
        assert torch.equal(found.affinity.matrix, kept(record.affinity.matrix))
        assert found.affinity.parts.keys() == record.affinity.parts.keys()
        assert all(torch.equal(found.affinity.parts[name], kept(part)) for name, part in record.affinity.parts.items())
