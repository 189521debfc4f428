"""What is recorded equals the method written out densely, in double precision, from attention captured apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate, layer_weights, weighted_affinity
from goca_core.capture.recorder import Window
from goca_core.heads import HEAD_METHODS
from goca_core.layers import LAYER_METHODS

from . import tiny
from .dense import (
    assert_near,
    check,
    check_maps,
    check_scores,
    dense_affinity,
    dense_global,
    dense_map,
    dense_resize,
    dense_scores,
    probe_and_record,
)
from .device import EXACT, STORED, half_precision
from .helpers import blocks_of, job, with_lora, words_of
from .probe import Evaluation

pytestmark = pytest.mark.usefixtures("host")

DEFAULT_HEAD, DEFAULT_LAYER = "dot-product w/o clamp", "dot-product similarity"


@pytest.mark.parametrize(
    ("name", "batch", "size"),
    [("sd15", 2, (16, 24)), ("sd15", 1, (17, 25)), ("sd20", 2, (24, 16)), ("sdxl", 2, (16, 24)), ("sdxl", 1, (15, 22))],
)
def test_positive_and_negative_in_one_call(name: str, batch: int, size: tuple[int, int]) -> None:
    built = tiny.build(name)
    probe, attention = probe_and_record(built.model, job(built, batch, size, cfg=4.0))
    assert all(call.chunks == [1, 0] for call in probe.calls)
    check(attention, probe)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_positive_and_negative_in_calls_of_their_own(name: str) -> None:
    """Little memory makes ComfyUI run them one by one."""
    built = tiny.build(name)
    built.model.model.memory_required = lambda *_args, **_kwargs: 1e30
    probe, attention = probe_and_record(built.model, job(built, 2, cfg=4.0))
    assert {tuple(call.chunks) for call in probe.calls} == {(1,), (0,)}
    check(attention, probe)


def test_without_a_negative() -> None:
    built = tiny.build("sd20")
    probe, attention = probe_and_record(built.model, job(built, 2, cfg=1.0))
    assert all(call.chunks == [0] for call in probe.calls)
    check(attention, probe)


def test_the_negative_is_not_what_was_recorded() -> None:
    """The check above would see it if the rows were exchanged."""
    built = tiny.build("sd15")
    work = job(built, cfg=4.0)
    probe, attention = probe_and_record(built.model, work)
    (call,) = [call for call in probe.calls if call.sigma == pytest.approx(attention.sigmas[0])]
    last = attention.layers[-1]
    negative = dense_map(call.rows(0).cross[last.name], DEFAULT_HEAD, 77)
    assert (last.maps[DEFAULT_HEAD].double() - negative).abs().max() > 1e-2 * negative.abs().max()


@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (231, 154)])
def test_prompts_of_different_lengths_share_a_call(lengths: tuple[int, int]) -> None:
    """ComfyUI repeats the shorter one up to a common multiple; the repeats are added up again."""
    built = tiny.build("sd15")
    positive, negative = (built.conditioning(seed=n, tokens=count) for n, count in enumerate(lengths, start=1))
    probe, attention = probe_and_record(built.model, job(built, 2, positive=positive, negative=negative, cfg=4.0))
    call = probe.positive(attention.sigmas[0])
    assert call.chunks == [1, 0]
    assert (
        next(iter(call.cross.values())).k.shape[1]
        == torch.tensor(lengths).apply_(int).lcm(torch.tensor(lengths[::-1]))[0]
    )
    assert attention.tokens.length == lengths[0]
    check(attention, probe)


def test_two_positives_of_different_lengths() -> None:
    built = tiny.build("sd15")
    positive = built.conditioning(seed=1) + built.conditioning(seed=3, tokens=154)
    work = job(built, positive=positive, cfg=4.0)
    probe, first = probe_and_record(built.model, work)
    second = probe_and_record(built.model, work, entry=1)[1]
    assert (first.tokens.length, second.tokens.length) == (77, 154)
    # ComfyUI takes conditionings in reverse order.
    check(second, probe, number=0)
    check(first, probe, number=1)


def test_kept_words_and_the_sum_of_the_others() -> None:
    built = tiny.build("sd15")
    words = words_of("a red cat on grass")
    positive = built.conditioning(seed=1, goca_words=words)
    probe, attention = probe_and_record(built.model, job(built, 2, positive=positive, cfg=4.0))
    kept = list(range(7))
    assert attention.tokens.positions == tuple(kept)
    call = probe.positive(attention.sigmas[0])
    for layer in attention.layers:
        dense = dense_map(call.cross[layer.name], DEFAULT_HEAD, 77)
        expected = torch.cat((dense[..., kept], dense[..., 7:].sum(-1, keepdim=True)), -1)
        assert_near(layer.maps[DEFAULT_HEAD], expected)
    check_scores(attention, dense_scores(call, probe.plan.reference, DEFAULT_LAYER))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_method(name: str) -> None:
    built = tiny.build(name)
    probe, attention = probe_and_record(built.model, job(built, 2, cfg=4.0), head_methods="all", layer_methods="all")
    call = probe.positive(attention.sigmas[0])
    assert attention.head_methods == HEAD_METHODS and set(attention.layer_methods) == set(LAYER_METHODS)
    maps = {method: check_maps(attention, call, method) for method in HEAD_METHODS}
    for method in ("dot-product similarity", "mse", "iou-like"):
        scores = dense_scores(call, probe.plan.reference, method)
        check_scores(attention, scores, method)
        # Cosine weights can nearly cancel, so the global map is compared for a method that cannot.
        expected = dense_global(maps["l2-norm"], scores, call.grids)
        assert_near(aggregate(attention, "l2-norm", method).maps, expected, STORED)


def test_scores_by_one_channel_of_the_reference() -> None:
    built = tiny.build("sd15")
    probe, attention = probe_and_record(built.model, job(built, 2), reference_channel0=True)
    call = probe.positive(attention.sigmas[0])
    one = dense_scores(call, probe.plan.reference, DEFAULT_LAYER, channel0=True)
    check_scores(attention, one)
    whole = dense_scores(call, probe.plan.reference, DEFAULT_LAYER)
    assert any((one[name] / whole[name] - 1).abs().max() > 1e-3 for name in one)


def test_head_weights_see_a_lora() -> None:
    built = tiny.build("sd15")
    plain = {block.name: block.cross_attn.out.weight.clone() for block in blocks_of(built.model).blocks}
    probe, attention = probe_and_record(with_lora(built.model), job(built))
    check(attention, probe)
    patched = probe.positive(attention.sigmas[0]).cross
    assert all((patched[name].weight - weight).abs().max() > 0.1 for name, weight in plain.items())


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_affinity_of_a_small_image_is_that_of_the_finest_layers(name: str) -> None:
    built = tiny.build(name)
    probe, attention = probe_and_record(built.model, job(built, 2))
    affinity = attention.affinity
    assert affinity is not None
    call = probe.positive(attention.sigmas[0])
    grid = max((call.grids[name] for name in probe.plan.affinity), key=lambda g: g[0] * g[1])
    assert (affinity.height, affinity.width) == grid
    assert_near(affinity.matrix, dense_affinity(probe, call, grid))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_each_layer_of_the_affinity(name: str) -> None:
    built = tiny.build(name)
    probe, attention = probe_and_record(built.model, job(built, 2), affinity_parts=True)
    affinity, call = attention.affinity, probe.positive(attention.sigmas[0])
    assert affinity is not None and set(affinity.parts) == set(probe.plan.affinity)
    grid = affinity.height, affinity.width
    for layer, part in affinity.parts.items():
        assert_near(part, dense_resize(call.own[layer].to_itself().mean(1), call.grids[layer], grid))
    assert_near(affinity.matrix, dense_affinity(probe, call, grid))
    exact = dense_scores(call, probe.plan.reference, "dot-product similarity")
    weighted = sum(exact[layer][:, None, None] * part.double() for layer, part in affinity.parts.items())
    total = sum(exact[layer] for layer in affinity.parts)
    assert_near(weighted_affinity(attention).matrix, weighted / total[:, None, None], STORED)


@pytest.mark.parametrize(
    ("name", "full", "size"),
    [
        ("sd15", False, (16, 24)),
        ("sd15", True, (26, 42)),
        ("sdxl", False, (26, 42)),
        ("flux", False, (26, 42)),
    ],
)
def test_propagation_along_the_last_third(name: str, full: bool, size: tuple[int, int]) -> None:
    built = tiny.build(name)
    work = job(built, 2, size=size)
    probe, attention = probe_and_record(built.model, work, full_affinity=full, method="auto")
    call, affinity, blocks = probe.positive(attention.sigmas[0]), attention.affinity, probe.plan.blocks
    assert affinity is not None
    grid, finest = (affinity.height, affinity.width), min(block.level for block in blocks)
    late = [
        block.name for block in blocks[round(2 * len(blocks) / 3) :] if block.level == finest
    ] or probe.plan.affinity
    if full:
        assert grid == max(call.grids.values())
    total, weights = torch.zeros(()).double(), torch.zeros(()).double()
    for layer in late:
        rows = dense_resize(call.own[layer].to_itself().mean(1), call.grids[layer], grid)
        rows = rows / rows.sum(-1, keepdim=True)
        weight = torch.special.entr(rows).sum(-1).mean(-1)[:, None, None].exp() ** 2
        total, weights = total + weight * rows, weights + weight
    assert_near(affinity.matrix, total / weights, max(EXACT, STORED if full else EXACT))
    check(attention, probe)


@pytest.mark.parametrize("full", [False, True])
def test_affinity_of_a_larger_image_is_on_the_grid_of_the_reference(full: bool) -> None:
    built = tiny.build("sd15")
    probe, attention = probe_and_record(built.model, job(built, size=(26, 42), steps=1, cfg=1.0), full_affinity=full)
    affinity = attention.affinity
    assert affinity is not None
    grid = (26, 42) if full else (13, 21)
    assert (affinity.height, affinity.width) == grid
    assert_near(affinity.matrix, dense_affinity(probe, probe.positive(attention.sigmas[0]), grid))
    check(attention, probe)


def mean_maps(calls: list[Evaluation], length: int = 77) -> dict[str, Tensor]:
    every = [{name: dense_map(seen, DEFAULT_HEAD, length) for name, seen in call.cross.items()} for call in calls]
    return {name: torch.stack([maps[name] for maps in every]).mean(0) for name in every[0]}


def test_several_evaluations_are_averaged() -> None:
    built = tiny.build("sd15")
    probe, attention = probe_and_record(built.model, job(built, 2, steps=5), Window(False, 0.3, 1.0, 3))
    sigmas = [call.sigma for call in probe.calls]
    assert len(attention.sigmas) == 3
    assert list(attention.sigmas) == pytest.approx(
        [s for s in sigmas if any(abs(s / t - 1) < 1e-3 for t in attention.sigmas)]
    )
    calls = [probe.positive(sigma) for sigma in attention.sigmas]
    dense = mean_maps(calls)
    for layer in attention.layers:
        assert_near(layer.maps[DEFAULT_HEAD], dense[layer.name])
    scores = [dense_scores(call, probe.plan.reference, DEFAULT_LAYER) for call in calls]
    check_scores(attention, {name: torch.stack([one[name] for one in scores]).mean(0) for name in scores[0]})


def test_only_the_first_visit_to_a_noise_level_is_recorded() -> None:
    """Heun evaluates each level but the first twice, the first time at a guess of the image."""
    built = tiny.build("sd15")
    probe, attention = probe_and_record(built.model, job(built, sampler="heun", steps=3), Window(False, 0.0, 1.0, 10))
    sigmas = [call.sigma for call in probe.calls]
    assert len(sigmas) == 5 and len(attention.sigmas) == 3
    assert list(attention.sigmas) == pytest.approx(list(dict.fromkeys(sigmas)))
    dense = mean_maps([probe.positive(sigma) for sigma in attention.sigmas])
    for layer in attention.layers:
        assert_near(layer.maps[DEFAULT_HEAD], dense[layer.name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_models_of_half_precision(name: str, dtype: torch.dtype) -> None:
    """The maps are float32 and those of the model's own queries and keys; they differ from a float32 model's by its rounding only."""
    whole, half = tiny.build(name), tiny.build(name, dtype=dtype)
    work = job(whole, steps=1, cfg=4.0)
    probe, attention = probe_and_record(half.model, work)
    check_maps(attention, probe.positive(attention.sigmas[0]), tolerance=half_precision(2e-2))
    exact = probe_and_record(whole.model, work)[1]
    for layer, other in zip(attention.layers, exact.layers, strict=True):
        assert torch.isfinite(layer.maps[DEFAULT_HEAD]).all()
        assert_near(layer.maps["average"], other.maps["average"].double(), 0.1)
    assert torch.allclose(layer_weights(attention), layer_weights(exact), atol=0.02)
