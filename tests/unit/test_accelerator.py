"""What is computed in another way on a GPU, computed in that way on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from goca_core import tensors
from goca_core.capture.reduce import call as calls
from goca_core.capture.reduce.call import AttentionCall, probabilities
from goca_core.capture.reduce.fused import watch_totals
from goca_core.capture.reduce.stack import LayerStack, Room
from goca_core.heads import HEAD_METHODS, head_weights, head_weights_of_layers
from goca_core.layers import LAYER_METHODS, LayerScore


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU is treated as a GPU."""
    usual = set(tensors.CPUS)
    tensors.CPUS.clear()
    monkeypatch.setattr(calls, "HALF_PRECISION", {"cpu"})
    yield
    tensors.CPUS.update(usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", HEAD_METHODS)
def test_head_weights_of_layers_are_those_of_each(rng: torch.Generator, method: str, dtype: torch.dtype) -> None:
    layers, batch, pixels, count, width = 3, 2, 20, 4, 8
    post = torch.randn(layers * batch, pixels, count * width, generator=rng).to(dtype)
    weights = torch.randn(layers, 24, count * width, generator=rng).to(dtype)
    value = torch.randn(layers * batch, count, 7, width, generator=rng).to(dtype)
    found = head_weights_of_layers(post, weights, count, method, value)
    parts = zip(post.chunk(layers), weights, value.chunk(layers), strict=True)
    expected = torch.cat([head_weights(part, weight, count, method, v, exact=False) for part, weight, v in parts])
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_a_reference_is_compared_with_several_layers(rng: torch.Generator, method: str) -> None:
    reference, layers = (torch.rand(count, 12, 15, generator=rng) for count in (2, 6))
    found, whole = [], LayerScore(method)
    whole.accumulate(reference, layers)
    for layer in layers.chunk(3):
        score = LayerScore(method)
        score.accumulate(reference, layer)
        found.append(score.result())
    torch.testing.assert_close(whole.result(), torch.cat(found))


@pytest.mark.parametrize("size", [(3, 5), (4, 7), (9, 3), (12, 20), (6, 10)])
def test_many_maps_are_resized_as_few_are(
    rng: torch.Generator, accelerator: None, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(tensors, "_ELEMENTS", 200 * 60 * 2)  # in two parts
    maps = torch.rand(3, 200, 6, 10, generator=rng)
    expected = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(tensors.resize_bilinear(maps, size), expected)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_in_half_precision(
    rng: torch.Generator, accelerator: None, dtype: torch.dtype, known: bool
) -> None:
    """Some keys of a call, whose softmax stays that over all keys if its denominators are known."""
    q, k = (torch.randn(2, 3, count, 24, generator=rng).mul(2).to(dtype) for count in (20, 35))
    logits = q.double() @ k.double().mT * 24**-0.5
    total = logits.logsumexp(-1).float() if known else None
    call = AttentionCall(q, k, k, None, 24**-0.5, total)
    kept = slice(5, 30) if known else slice(0, 35)
    blocks = list(probabilities(call.keys(kept), elements=7 * 6 * 35))
    assert len(blocks) > 1
    found = torch.cat([block for _, block in blocks], 2)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), logits.softmax(-1)[..., kept], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("width", [40, 64, 96, 128])
def test_denominators_for_any_head_width(rng: torch.Generator, width: int) -> None:
    """The kernel divides by a square root, which is not always the same number as the power."""
    q, k, v = (torch.randn(1, 2, 9, width, generator=rng) for _ in range(3))
    with watch_totals() as seen:
        F.scaled_dot_product_attention(q, k, v)
    assert seen.complete(AttentionCall(q, k, v, None, width**-0.5)).total is not None


def test_a_stack_gives_back_what_was_put_in(rng: torch.Generator) -> None:
    given = [[torch.randn(2, 5, generator=rng), torch.randn(3, generator=rng).half()] for _ in range(5)]
    stack = LayerStack[int](given[0], most=4)
    assert stack.capacity == 4 and stack.bytes == 4 * (40 + 6)
    for first, last in ((0, 4), (4, 5)):
        full = [stack.add(number, given[number]) for number in range(first, last)]
        assert full == [number == 3 for number in range(first, last)]
        layers, parts = stack.take()
        assert layers == tuple(range(first, last))
        for place, part in enumerate(parts):
            expected = torch.stack([tensors_of[place] for tensors_of in given[first:last]])
            assert torch.equal(part, expected) and part.dtype == expected.dtype
    assert LayerStack[int]([torch.zeros(1000)], most=4, limit=1000).capacity == 1


def test_room_for_copies_grows_with_the_model_and_has_an_end() -> None:
    room = Room()
    small = room.limit, room.total
    room.see(1000)
    assert (room.limit, room.total) == small
    room.see(4 << 20)
    assert (room.limit, room.total) == (28 << 20, 96 << 20)
    room.see(1 << 30)
    assert (room.limit, room.total) == (34 << 20, 125 << 20)
