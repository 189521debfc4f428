"""Reducing attention calls, against softmax written out on whole tensors in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.capture.reduce.call import AttentionCall, bind, probabilities
from goca_core.capture.reduce.one_pass import ALL, one_pass, self_pass
from goca_core.capture.reduce.text_maps import TextMaps, token_columns
from goca_core.heads import aggregate_heads
from goca_core.layers import resize_self_map

from .recordings import Gathering

B, H, D = 2, 3, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def a_call(queries: int = 12, keys: int = 7, mask: Tensor | None = None, scale: float = 0.6) -> AttentionCall:
    return AttentionCall(draw(B, H, queries, D), draw(B, H, keys, D, seed=1), draw(B, H, keys, D, seed=2), mask, scale)


def dense(call: AttentionCall, bias: Tensor | None = None) -> Tensor:
    logits = call.q.double() @ call.k.double().transpose(-1, -2) * call.scale
    return torch.softmax(logits if bias is None else logits + bias.double(), -1)


def whole(call: AttentionCall, index: Tensor | None = None) -> Tensor:
    parts = list(probabilities(call, index))
    assert [part.shape[2] for _, part in parts] == [rows.stop - rows.start for rows, _ in parts]
    return torch.cat([part for _, part in parts], 2)


# -- arguments --------------------------------------------------------------------------------------------------------


def packed(x: Tensor) -> Tensor:
    """[B, H, N, d] -> [B, N, H * d], ComfyUI's usual layout."""
    return x.transpose(1, 2).flatten(2)


def test_every_way_to_pass_arguments() -> None:
    call = a_call(scale=D**-0.5)
    q, k, v = packed(call.q), packed(call.k), packed(call.v)
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((q, k, v, H), {}),
        ((q, k), {"v": v, "heads": H, "mask": None, "transformer_options": {}}),
        ((), {"q": q, "k": k, "v": v, "heads": H, "skip_reshape": False}),
        ((q, k, v.unflatten(-1, (H, D)), H), {}),
        ((call.q, call.k, call.v, H), {"skip_reshape": True}),
        ((call.q, call.k, call.v, H, None, None, True), {}),
    ]
    for args, kwargs in ways:
        bound = bind(args, kwargs)
        assert torch.equal(bound.q, call.q) and torch.equal(bound.k, call.k) and torch.equal(bound.v, call.v)
        assert bound.scale == pytest.approx(D**-0.5) and bound.mask is None
    assert bind((q, k, v, H), {"scale": 0.25}).scale == 0.25


@pytest.mark.parametrize("skip_reshape", [False, True])
def test_grouped_query_attention(skip_reshape: bool) -> None:
    """Four query heads share two key heads: query heads 0 and 1 the first, 2 and 3 the second."""
    q, k, v = draw(B, 4, 6, D), draw(B, 2, 7, D, seed=1), draw(B, 2, 7, D, seed=2)
    given = (q, k, v) if skip_reshape else (packed(q), packed(k), packed(v))
    bound = bind((*given, 4), {"skip_reshape": skip_reshape, "enable_gqa": True})
    assert torch.equal(bound.k, k[:, [0, 0, 1, 1]]) and torch.equal(bound.v, v[:, [0, 0, 1, 1]])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(whole(bound) @ bound.v, expected, atol=1e-5)


SHAPES = {
    "keys": (7,),
    "queries and keys": (12, 7),
    "batch and keys": (B, 7),
    "one row per batch": (B, 1, 7),
    "batch": (B, 12, 7),
    "one for all": (1, 12, 7),
    "heads": (B, H, 12, 7),
    "shared heads": (B, 1, 12, 7),
    "shared batch": (1, H, 1, 7),
}


def as_bias(mask: Tensor) -> Tensor:
    """What a mask adds to the logits, its axes put where they belong by hand."""
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
    if mask.ndim == 2 and mask.shape[0] == B:
        return bias[:, None, None]
    return bias.unsqueeze(1) if mask.ndim == 3 else bias


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_masks_of_every_shape(shape: tuple[int, ...], boolean: bool, elements: int) -> None:
    mask = draw(*shape)
    if boolean:
        mask = mask > -0.3
        mask[..., 0] = True
    base = a_call(scale=D**-0.5)
    call = bind((packed(base.q), packed(base.k), packed(base.v), H), {"mask": mask})
    expected = dense(base.__class__(base.q, base.k, base.v, None, D**-0.5), as_bias(mask))
    assert torch.allclose(whole(call).double(), expected, atol=1e-6)
    index = torch.tensor([5, 0, 11])
    assert torch.allclose(whole(call, index).double(), expected[:, :, index], atol=1e-6)
    part = call.rows(slice(1, 2))
    assert torch.allclose(whole(part).double(), expected[1:2], atol=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    call = a_call(200, 77)
    half = AttentionCall(call.q.half(), call.k.half(), call.v.half(), None, call.scale)
    assert whole(half).dtype == torch.float32
    assert torch.allclose(whole(half).double(), dense(half), atol=1e-6)


# -- text columns -----------------------------------------------------------------------------------------------------


def test_all_columns() -> None:
    assert torch.equal(token_columns(5, 5, tuple(range(5)), False, torch.device("cpu")).matrix, torch.eye(5))


def test_repeats_are_added_and_the_rest_is_summed() -> None:
    matrix = token_columns(8, 4, (2, 0), True, torch.device("cpu")).matrix
    row = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128])
    assert (row @ matrix).tolist() == [4 + 64, 1 + 16, 2 + 8 + 32 + 128]


def test_columns_without_a_rest_drop_the_others() -> None:
    matrix = token_columns(4, 4, (3, 1), False, torch.device("cpu")).matrix
    assert (torch.tensor([1.0, 2, 4, 8]) @ matrix).tolist() == [8, 2]


def test_cross_maps(elements: int) -> None:
    call = a_call(30, 14)
    weights = {"a": torch.softmax(draw(B, 30, H), -1), "b": draw(B, 30, H, seed=4)}
    columns = token_columns(14, 7, (1, 3), True, torch.device("cpu"))
    text_maps = TextMaps(weights, columns)
    one_pass(call, (text_maps, ALL))
    maps = text_maps.result()
    for name, weight in weights.items():
        expected = aggregate_heads(dense(call), weight.double()) @ columns.matrix.double()
        assert torch.allclose(maps[name].double(), expected, atol=1e-5)
    assert torch.allclose(maps["a"].sum(-1), torch.ones(()), atol=1e-5)


# -- self-attention ---------------------------------------------------------------------------------------------------


def self_maps(call: AttentionCall, grid: tuple[int, int], targets: list[tuple[int, int]]) -> Gathering:
    gathering = Gathering(grid, targets)
    self_pass(call, ALL, gathering.maps)
    return gathering


GRIDS = [((6, 8), (3, 4)), ((7, 9), (4, 5)), ((9, 5), (4, 3)), ((5, 7), (5, 7)), ((3, 4), (6, 8)), ((4, 6), (6, 4))]


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_self_map_is_the_whole_map_resized(grid: tuple[int, int], target: tuple[int, int], elements: int) -> None:
    count = grid[0] * grid[1]
    call = a_call(count, count)
    full = dense(call).mean(1)
    found, at = self_maps(call, grid, [target]).of(target)
    coarser = target[0] * target[1] < count
    assert at == (target if coarser else grid)
    expected = resize_self_map(full, grid, target) if coarser else full
    assert torch.allclose(found.double(), expected, atol=1e-6)
    # Comparing on the target grid afterwards gives the same, whichever of the two was kept.
    assert torch.allclose(resize_self_map(found, at, target).double(), resize_self_map(full, grid, target), atol=1e-6)


@pytest.mark.parametrize("targets", [[(6, 8), (3, 4)], [(3, 4), (4, 6)], [(2, 9), (9, 2), (12, 16)], [(1, 1)]])
def test_several_grids_in_one_pass(targets: list[tuple[int, int]], elements: int) -> None:
    """Each is what it is alone, whichever rows the others need."""
    grid = (6, 8)
    call = a_call(48, 48)
    together = self_maps(call, grid, targets)
    for target in targets:
        alone, at = self_maps(call, grid, [target]).of(target)
        found, where = together.of(target)
        assert where == at and torch.allclose(found, alone, atol=1e-7)
