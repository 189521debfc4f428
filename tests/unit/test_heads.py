from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goca_core import heads
from goca_core.heads import _value_norms

BATCH, TOKENS, HEADS, WIDTH, OUT, TEXT = 2, 15, 3, 4, 10, 7


@pytest.fixture
def layer(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """post_value, out_weight, value"""
    return (
        torch.randn(BATCH, TOKENS, HEADS * WIDTH, generator=rng),
        torch.randn(OUT, HEADS * WIDTH, generator=rng),
        torch.randn(BATCH, HEADS, TEXT, WIDTH, generator=rng),
    )


def naive(post: Tensor, weight: Tensor, value: Tensor, method: str) -> Tensor:
    """Unnormalised weights from every head's own output, the long way, in float64."""
    post, weight, value = post.double(), weight.double(), value.double()
    split = weight.unflatten(1, (HEADS, WIDTH))
    own = torch.einsum("bnhd,ohd->bnho", post.unflatten(-1, (HEADS, WIDTH)), split)
    total = own.sum(2, keepdim=True)
    dot = (own * total).sum(-1)
    norm = torch.linalg.matrix_norm(torch.einsum("bhtd,ohd->bhto", value, split), ord=2)[:, None]
    return {
        "average": torch.ones_like(dot),
        "l2-norm": own.norm(dim=-1),
        "cosine": torch.cosine_similarity(own, total, dim=-1),
        "dot-product": dot.clamp_min(0),
        "dot-product w/o clamp": dot,
        "cosine + VW": torch.cosine_similarity(own, total, dim=-1) * norm,
        "dot-product + VW": dot.clamp_min(0) * norm,
    }[method]


@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_agrees_with_the_long_way(layer: tuple[Tensor, Tensor, Tensor], method: str) -> None:
    post, weight, value = layer
    scores = naive(post, weight, value, method)
    total = scores.sum(-1, keepdim=True)
    usable = total > 1e-2 * scores.abs().amax(-1, keepdim=True)  # elsewhere rounding is magnified
    assert usable.float().mean() > 0.9
    actual = heads.head_weights(post, weight, HEADS, method, value=value)
    assert actual.shape == (BATCH, TOKENS, HEADS)
    torch.testing.assert_close(
        torch.where(usable, actual.double(), 0.0), torch.where(usable, scores / total, 0.0), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_properties(layer: tuple[Tensor, Tensor, Tensor], method: str) -> None:
    post, weight, value = layer
    copies = [t.clone() for t in layer]
    actual = heads.head_weights(post, weight, HEADS, method, value=value)
    torch.testing.assert_close(actual.sum(-1), torch.ones(BATCH, TOKENS), rtol=0, atol=1e-4)
    singles = torch.cat([heads.head_weights(post[i : i + 1], weight, HEADS, method, value[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(actual, singles, rtol=1e-3, atol=1e-5)

    order = [2, 0, 1]
    permuted = heads.head_weights(
        post.unflatten(-1, (HEADS, WIDTH))[:, :, order].flatten(2),
        weight.unflatten(-1, (HEADS, WIDTH))[:, order].flatten(1),
        HEADS,
        method,
        value=value[:, order],
    )
    torch.testing.assert_close(permuted, actual[..., order], rtol=1e-3, atol=1e-5)
    for copy, original in zip(copies, layer, strict=True):
        assert torch.equal(copy, original)


@pytest.mark.parametrize("factor", [1e-30, -3.0, 1e25])
@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_scale_of_the_weight_is_free(layer: tuple[Tensor, Tensor, Tensor], method: str, factor: float) -> None:
    post, weight, value = layer
    expected = heads.head_weights(post, weight, HEADS, method, value=value)
    for arguments in ((post, weight * factor), (post * abs(factor), weight)):
        actual = heads.head_weights(*arguments, HEADS, method, value=value)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_undefined_weights_fall_back_to_the_average(layer: tuple[Tensor, Tensor, Tensor], method: str) -> None:
    post, weight, value = layer
    post[0, 3] = 0
    actual = heads.head_weights(post, weight, HEADS, method, value=value)
    torch.testing.assert_close(actual[0, 3], torch.full((HEADS,), 1 / HEADS))
    zero = heads.head_weights(post, torch.zeros_like(weight), HEADS, method, value=value)
    torch.testing.assert_close(zero, torch.full_like(zero, 1 / HEADS))


def test_negative_sum_falls_back() -> None:
    scores = torch.tensor([[1.0, -3.0], [2.0, -2.0], [torch.nan, 1.0], [torch.inf, 1.0], [3.0, 1.0]])
    expected = torch.tensor([[0.5, 0.5]] * 4 + [[0.75, 0.25]])
    torch.testing.assert_close(heads.normalise_heads(scores), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_finite_output(layer: tuple[Tensor, Tensor, Tensor], method: str, bad: float) -> None:
    post, weight, value = (t.clone() for t in layer)
    post[0, 1, 2] = post[1, 4] = bad
    weight[1, 1] = bad
    value[0, 1, 2, 3] = bad
    assert torch.isfinite(heads.head_weights(post, weight, HEADS, method, value=value)).all()
    cross = torch.full((BATCH, HEADS, TOKENS, TEXT), bad)
    assert torch.isfinite(heads.aggregate_heads(cross, torch.ones(BATCH, TOKENS, HEADS))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_half_precision_is_computed_in_single(
    layer: tuple[Tensor, Tensor, Tensor], method: str, dtype: torch.dtype
) -> None:
    post, weight, value = (t.to(dtype) for t in layer)
    post = post * 30  # o . o_h leaves the range of float16
    actual = heads.head_weights(post, weight, HEADS, method, value=value)
    assert actual.dtype == torch.float32
    widened = heads.head_weights(post.float(), weight.float(), HEADS, method, value=value.float())
    torch.testing.assert_close(actual, widened)
    assert heads.head_weights(post.double(), weight, HEADS, method, value=value).dtype == torch.float64


def test_aggregate_heads(attention: object, rng: torch.Generator) -> None:
    cross = attention(BATCH, HEADS, TOKENS, TEXT, dtype=torch.float16)  # type: ignore[operator]
    weights = torch.randn(BATCH, TOKENS, HEADS, generator=rng)
    expected = torch.einsum("bnh,bhnt->bnt", weights, cross.float())
    torch.testing.assert_close(heads.aggregate_heads(cross, weights), expected)
    uniform = heads.aggregate_heads(cross, torch.full((BATCH, TOKENS, HEADS), 1 / HEADS))
    torch.testing.assert_close(uniform, cross.float().mean(1))


def test_errors(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    post, weight, value = layer
    with pytest.raises(ValueError, match=r"Unknown head method 'dot'.*'average'"):
        heads.head_weights(post, weight, HEADS, "dot")
    for method in ("cosine + VW", "dot-product + VW"):
        with pytest.raises(ValueError, match="needs the value vectors"):
            heads.head_weights(post, weight, HEADS, method)
        with pytest.raises(ValueError, match=r"value has shape .* expected \[2, 3, T, 4\]"):
            heads.head_weights(post, weight, HEADS, method, value=value.flatten(0, 1)[None])
    with pytest.raises(ValueError, match="12 channels cannot be split into 5 heads"):
        heads.head_weights(post, weight, 5, "average")
    with pytest.raises(ValueError, match=r"10 input columns .* \[C_out, C\]\.$"):
        heads.head_weights(post, weight.T, HEADS, "cosine")
    with pytest.raises(ValueError, match=r"weights has shape .* expected \[B, N, H\] = \[2, 15, 3\]"):
        heads.aggregate_heads(torch.ones(2, 3, 15, 4), torch.ones(2, 3, 15))


def test_heads_that_cancel_to_rounding_count_alike(rng: torch.Generator) -> None:
    """Two heads that undo each other leave a sum in which no digit is right; a sum that is merely small is still used."""
    own = torch.randn(BATCH, TOKENS, 1, WIDTH, generator=rng).double()
    columns = torch.randn(OUT, 1, WIDTH, generator=rng).double()
    weight = columns.expand(-1, 2, -1).flatten(1)

    def weights(rest: float) -> Tensor:
        return heads.head_weights(torch.cat([own, (rest - 1) * own], 2).flatten(2), weight, 2, "dot-product w/o clamp")

    torch.testing.assert_close(weights(1e-8), torch.full((BATCH, TOKENS, 2), 0.5).double())
    torch.testing.assert_close(weights(1e-3), torch.tensor([1e3, 1 - 1e3]).double().expand(BATCH, TOKENS, 2))
    scores = torch.rand(2, 3, 5, generator=rng).double() + 0.1
    scores[..., 0] = 1e-8 - scores[..., 1:].sum(-1)
    torch.testing.assert_close(heads.normalise_heads(scores), torch.full_like(scores, 0.2))


@pytest.mark.parametrize("method", heads.HEAD_METHODS)
def test_each_pixel_has_a_scale_of_its_own(
    layer: tuple[Tensor, Tensor, Tensor], method: str, rng: torch.Generator
) -> None:
    """Activations of one pixel may be far larger than those of another; neither overflows nor vanishes."""
    post, weight, value = layer
    scale = 10.0 ** (50 * torch.rand(BATCH, TOKENS, 1, generator=rng) - 25)
    expected = heads.head_weights(post, weight, HEADS, method, value=value)
    torch.testing.assert_close(
        heads.head_weights(post * scale, weight, HEADS, method, value=value), expected, rtol=1e-3, atol=1e-4
    )
    scores = torch.rand(BATCH, TOKENS, HEADS, generator=rng) - 0.2
    torch.testing.assert_close(
        heads.normalise_heads(scores * scale), heads.normalise_heads(scores), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", [m for m in heads.HEAD_METHODS if m != "average"])
def test_a_head_that_gives_nothing_weighs_nothing(layer: tuple[Tensor, Tensor, Tensor], method: str) -> None:
    post, weight, value = layer
    split = post.unflatten(-1, (HEADS, WIDTH)).clone()
    split[0, :, 1] = split[1, ::2, 0] = 0
    found = heads.head_weights(split.flatten(2), weight, HEADS, method, value=value)
    equal = (found == 1 / HEADS).all(-1)  # where what is left cancels
    assert equal.float().mean() < 0.3
    assert not found[0, :, 1][~equal[0]].any() and not found[1, ::2, 0][~equal[1, ::2]].any()
    others = heads.head_weights(
        split[:1, :, [0, 2]].flatten(2),
        weight.unflatten(1, (HEADS, WIDTH))[:, [0, 2]].flatten(1),
        2,
        method,
        value=value[:1, [0, 2]],
    )
    torch.testing.assert_close(found[:1, :, [0, 2]][~equal[:1]], others[~equal[:1]], rtol=1e-3, atol=1e-4)


def spread(width: int, kind: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Values [2, 3, 20, width] and a projection [40, 3 * width] whose products have certain spectra."""
    value, weight = torch.randn(2, 3, 20, width, generator=rng), torch.randn(40, 3 * width, generator=rng)
    if kind in ("equal", "nearly equal"):
        value = torch.linalg.qr(torch.randn(2, 3, max(20, width), width, generator=rng)).Q
        weight = torch.linalg.qr(torch.randn(3 * width + 1, 3 * width, generator=rng)).Q
        value = value * torch.linspace(1, 1 if kind == "equal" else 0.999, width)
    elif kind == "large channels":
        value[..., 0], weight[:, 0::width] = value[..., 0] * 1e3, weight[:, 0::width] / 1e3
        value[..., -1] *= 100
    elif kind == "low rank":
        weight = weight[:, :2] @ torch.randn(2, 3 * width, generator=rng)
    elif kind == "small":
        value, weight = value * 1e-15, weight * 1e6
    return value, weight


@pytest.mark.parametrize("kind", ["random", "equal", "nearly equal", "large channels", "low rank", "small"])
@pytest.mark.parametrize("width", [8, 64])
def test_norms_of_values_without_an_eigenvalue_solver(kind: str, width: int, rng: torch.Generator) -> None:
    value, weight = spread(width, kind, rng)
    expected = _value_norms(value, weight)
    found = _value_norms(value, weight, exact=False).double()
    assert (found / expected - 1).abs().max() < 5e-4
    value[:, 1] = 0
    assert (_value_norms(value, weight, exact=False)[:, 1] < 1e-20).all()


def test_norms_of_values_do_not_wait(rng: torch.Generator) -> None:
    """On the meta device, whatever waits for the device is an error."""
    post, weight = torch.empty(2, 15, 24, device="meta"), torch.empty(10, 24, device="meta")
    value = torch.empty(2, 3, 20, 8, device="meta")
    for method in heads.HEAD_METHODS:
        assert heads.head_weights(post, weight, 3, method, value, exact=False).shape == (2, 15, 3)
