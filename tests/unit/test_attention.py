"""The record: averaging, the global map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from goca_core.attention.global_map import aggregate, layer_weights, weighted_affinity
from goca_core.attention.merge import merge
from goca_core.attention.record import Attention, AttentionError, Tokens
from goca_core.words.word_map import WordMapError

from .recordings import DEFAULTS, recording, same, with_scores, words_of

# -- what it says of itself -------------------------------------------------------------------------------------------


def test_noise_levels_are_told_once_each() -> None:
    record = replace(recording(), sigmas=(0.3461, 0.9, 0.3459, 0.346, 14.6))
    assert record.describe().splitlines() == [
        "2 x 48 x 32 pixels, 3 layers",
        "recorded at noise level 0.346 (3 times), 0.9, 14.6",
        "a note",
    ]


# -- averaging --------------------------------------------------------------------------------------------------------


def test_merge_is_the_mean() -> None:
    records = [recording(seed) for seed in range(5)]
    merged = merge(iter(records))
    for number, layer in enumerate(merged.layers):
        for method in layer.maps:
            expected = torch.stack([record.layers[number].maps[method].double() for record in records]).mean(0)
            assert torch.allclose(layer.maps[method].double(), expected, atol=1e-6)
        expected = torch.stack([record.layers[number].scores[DEFAULTS.layer] for record in records]).mean(0)
        assert torch.allclose(layer.scores[DEFAULTS.layer], expected, atol=1e-6)
    assert merged.affinity is not None
    expected = torch.stack([record.affinity.matrix for record in records if record.affinity]).mean(0)
    assert torch.allclose(merged.affinity.matrix, expected, atol=1e-6)
    assert merged.sigmas == (0.35,) * 5


def test_merge_of_the_layers_of_propagation() -> None:
    records = [recording(seed, parts=True) for seed in range(3)]
    merged = merge(records).affinity
    assert merged is not None and list(merged.parts) == ["input.1.0", "output.3.0"]
    for name, part in merged.parts.items():
        expected = torch.stack([record.affinity.parts[name] for record in records if record.affinity]).mean(0)
        assert torch.allclose(part, expected, atol=1e-6)


def test_merge_of_one_is_that_one() -> None:
    assert same(merge([recording(3)]), recording(3))
    with pytest.raises(AttentionError, match="at least one"):
        merge([])


def test_a_score_measured_only_once_counts_as_it_is() -> None:
    nan = torch.nan
    merged = merge([with_scores(recording(1), nan, 2.0, nan), with_scores(recording(2), 4.0, nan, nan)])
    assert [float(layer.scores[DEFAULTS.layer][0]) for layer in merged.layers[:2]] == [4.0, 2.0]
    assert torch.isnan(merged.layers[2].scores[DEFAULTS.layer]).all()


@pytest.mark.parametrize(
    "other",
    [
        recording(batch=1),
        recording(text="a red cat"),
        recording(text=None),
        replace(recording(), layers=recording().layers[:2]),
    ],
    ids=["batch", "prompt", "words", "layers"],
)
def test_recordings_that_do_not_fit_are_not_averaged(other: Attention) -> None:
    with pytest.raises(AttentionError, match="cannot be averaged"):
        merge([recording(), other])


# -- the global map ---------------------------------------------------------------------------------------------------


def test_unmeasured_layers_count_as_the_mean_of_the_others() -> None:
    weights = layer_weights(with_scores(recording(), 1.0, torch.nan, 3.0))
    assert torch.allclose(weights, torch.tensor([1.0, 2.0, 3.0]) / 6)
    assert torch.allclose(layer_weights(with_scores(recording(), *[torch.nan] * 3)), torch.tensor(1 / 3))
    assert torch.allclose(layer_weights(recording(), "vanilla"), torch.tensor(1 / 3))


def test_mass_preserving_counts_a_layer_by_its_tokens_as_well() -> None:
    """The middle layer has a quarter of the tokens, so its rows weigh four times as much on the reference's grid."""
    weights = layer_weights(with_scores(recording(), 1.0, 4.0, 2.0), "mass-preserving")
    assert torch.allclose(weights, torch.tensor([1.0, 1.0, 2.0]) / 4)
    unknown = layer_weights(with_scores(recording(), 1.0, torch.nan, 3.0), "mass-preserving")
    assert torch.allclose(unknown, torch.tensor([1.0, 2.0, 3.0]) / 6)
    trusting = replace(recording(), defaults=replace(DEFAULTS, layer="mass-preserving"))
    assert torch.equal(layer_weights(trusting), layer_weights(recording(), "mass-preserving"))


def information_by_hand(record: Attention, columns: list[int], grid: tuple[int, int], frames: int = 1) -> torch.Tensor:
    """Weights [B, L] of layers on ``grid`` and coarser, in float64, word by word."""
    assert record.affinity is not None
    matrix = record.affinity.matrix.double()
    matrix = matrix / matrix.sum(-1, keepdim=True)
    scores = torch.zeros(record.batch, len(record.layers), dtype=torch.float64)
    for number, layer in enumerate(record.layers):
        maps = layer.maps["average"].double().mT.unflatten(-1, (layer.height, layer.width))
        maps = torch.nn.functional.interpolate(maps, grid, mode="bilinear", align_corners=False).flatten(2)
        for column in columns:
            p = torch.einsum("bij,bjk,bk->bi", matrix, matrix, maps[:, column])
            mean = p.unflatten(0, (-1, frames)).mean((1, 2)).repeat_interleave(frames)[:, None]
            scores[:, number] += (p * (p / mean).log()).mean(-1)
    scores = scores.unflatten(0, (-1, frames)).mean(1).repeat_interleave(frames, 0)
    return scores / scores.sum(-1, keepdim=True)


@pytest.mark.parametrize("frames", [1, 3])
def test_information_by_hand(frames: int) -> None:
    record = replace(recording(batch=2 * frames), frames=frames)
    words = record.tokens.words
    assert words is not None and record.affinity is not None
    columns = record.tokens.columns(words.content())
    weights = layer_weights(record, "information", "average")
    torch.testing.assert_close(
        weights, information_by_hand(record, columns, (4, 6), frames).float(), rtol=1e-4, atol=1e-5
    )
    # Rows that sum to another value, as those of the image in joint attention do, count the same.
    rows = torch.rand(record.batch, 24, 1) + 0.1
    joint = replace(record, affinity=replace(record.affinity, matrix=record.affinity.matrix * rows))
    torch.testing.assert_close(layer_weights(joint, "information", "average"), weights)
    torch.testing.assert_close(aggregate(record, "average", "information").weights, weights)
    # Each sample or video by itself.
    alone = recording(batch=2 * frames)
    layers = tuple(replace(o, maps={m: v[:frames] for m, v in o.maps.items()}, scores={}) for o in alone.layers)
    spread = replace(record.affinity, matrix=record.affinity.matrix[:frames])
    first = replace(record, layers=layers, affinity=spread)
    torch.testing.assert_close(layer_weights(first, "information", "average"), weights[:frames])


def test_information_prefers_layers_that_separate_words() -> None:
    record = recording(text="red cat")
    first, _, last = record.layers
    spread = {method: value.mean(1, keepdim=True).expand_as(value) for method, value in last.maps.items()}
    half = {method: value.half() for method, value in first.maps.items()}
    even = replace(record, layers=(replace(first, maps=half, scores={}), replace(last, maps=spread, scores={})))
    weights = layer_weights(even, "information")
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0]]).expand(2, -1), rtol=0, atol=1e-4)
    # Nothing to tell the layers by: all count equally.
    nothing = replace(record, layers=(even.layers[1],) * 2)
    assert torch.isfinite(layer_weights(nothing, "information")).all()
    # Without self-attention, the maps as they are.
    alone = layer_weights(replace(record, affinity=None), "information")
    assert torch.isfinite(alone).all() and not torch.allclose(alone, layer_weights(record, "information"))


def test_information_needs_words() -> None:
    with pytest.raises(AttentionError, match=r"needs the words of the prompt.*Encode Prompt"):
        aggregate(recording(text=None), "auto", "information")
    with pytest.raises(AttentionError, match=r"head method 'cosine' was not recorded"):
        layer_weights(recording(), "information", "cosine")


# -- self-attention for propagation -----------------------------------------------------------------------------------


def test_propagation_layers_weighted_by_their_scores() -> None:
    record = with_scores(recording(parts=True), 1.0, 50.0, 3.0)
    assert record.affinity is not None
    first, last = record.affinity.parts.values()
    found = weighted_affinity(record)
    assert torch.allclose(found.matrix, (first + 3 * last) / 4, atol=1e-6)
    assert torch.allclose(weighted_affinity(record, "vanilla").matrix, record.affinity.matrix, atol=1e-6)
    # A layer without a score counts as the mean of the others, here of one.
    unknown = weighted_affinity(with_scores(record, 2.0, 5.0, torch.nan))
    assert torch.allclose(unknown.matrix, record.affinity.matrix, atol=1e-6)


@pytest.mark.parametrize("affinity", [True, False])
def test_weighting_needs_each_layer(affinity: bool) -> None:
    with pytest.raises(AttentionError, match="affinity_parts"):
        weighted_affinity(recording(affinity=affinity))


# -- the global map, made ---------------------------------------------------------------------------------------------


def test_aggregate_takes_the_finest_grid_and_sums_to_one() -> None:
    maps = aggregate(recording())
    assert maps.maps.shape == (2, 7, 4, 6)
    assert torch.allclose(maps.maps.sum(1), torch.ones(()), atol=1e-5)
    assert torch.allclose(maps.weights.sum(-1), torch.ones(()))


def test_aggregate_by_hand() -> None:
    record = with_scores(recording(batch=1), 1.0, 0.0, 3.0)
    mixed = record.layers[0].maps["average"] / 4 + record.layers[2].maps["average"] * 3 / 4
    assert torch.allclose(aggregate(record, "average").maps, mixed.mT.unflatten(-1, (4, 6)), atol=1e-6)


@pytest.mark.parametrize(
    ("head", "layer", "words"),
    [
        ("cosine", "auto", "head method 'cosine' was not recorded .*head_methods to 'all'"),
        ("auto", "mse", "layer method 'mse' was not recorded .*layer_methods to 'all'"),
        ("loudest", "auto", "Unknown head method 'loudest'"),
        ("auto", "best", "Unknown layer method 'best'"),
    ],
)
def test_methods_that_are_not_there(head: str, layer: str, words: str) -> None:
    with pytest.raises(AttentionError, match=words):
        aggregate(recording(), head, layer)


def test_numbers_that_are_none_are_refused() -> None:
    record = recording()
    record.layers[1].maps["average"][0, 0, 0] = torch.nan
    with pytest.raises(AttentionError, match=r"not a number .* layer middle\.1\.0"):
        aggregate(record)


def test_columns_of_positions() -> None:
    tokens = Tokens((4, 1, 9), True, 12)
    assert tokens.count == 4
    assert tokens.columns([9, 4]) == [2, 0]
    with pytest.raises(AttentionError, match=r"Tokens \[3\] were not recorded"):
        tokens.columns([1, 3])


def test_words_of_a_recording() -> None:
    own = recording().tokens
    assert own.word_map() == own.words
    other = words_of("two dogs", length=12)
    assert recording(text=None).tokens.word_map(other) == other
    with pytest.raises(WordMapError, match='another prompt, "two dogs", than the conditioning'):
        own.word_map(other)
    with pytest.raises(WordMapError, match="24 tokens but this one has 12"):
        own.word_map(words_of("two dogs", length=24))
    with pytest.raises(WordMapError, match=r"Encode Prompt \(GoCA\).*Prompt Words \(GoCA\)"):
        recording(text=None).tokens.word_map()
