"""Head-wise aggregation: the weight of each attention head at each pixel (paper: head-wise aggregation).

A head gets a large weight where its contribution to the layer's output points along that output. With Y the attention
output before the output projection and W the projection's weight, head h contributes o_h = Y_h W_h, and the layer's
output is o = sum_h o_h. All o_h together would be a heads x pixels x channels tensor; two identities avoid it:

    o_h . o   = sum over the columns of head h of  Y * g,   with  g = o W
    |o_h|^2   = Y_h G_h Y_h^T,                              with  G_h = W_h W_h^T  (head width x head width)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import check_choice, check_ndim, finite, working_dtype

HEAD_METHODS: tuple[str, ...] = (
    "average",
    "l2-norm",
    "cosine",
    "dot-product",
    "dot-product w/o clamp",
    "cosine + VW",
    "dot-product + VW",
)

_NORM_FLOOR = 1e-8  # lower bound of each norm in a cosine
_SQUARINGS = 13  # of the matrix whose largest eigenvalue is wanted without an eigenvalue solver
_SUM_FLOOR = 1e-6  # below this ratio of sum to largest weight, normalised weights would be noise


def head_weights(
    post_value: Tensor,
    out_weight: Tensor,
    heads: int,
    method: str,
    value: Tensor | None = None,
    exact: bool = True,
) -> Tensor:
    """Compute the weight of every head at every pixel.

    post_value: [B, N, C] attention output before the output projection, heads concatenated on C.
    out_weight: [C_out, C] weight of that projection as a Linear layer stores it (the bias is not used).
    heads: number of heads H; C must be a multiple of it.
    method: one of HEAD_METHODS (the names of the reference implementation).
    value: [B, H, T, d] value vectors, used only by the two "+ VW" methods.
    exact: compute in float32 or better. Otherwise the products of the dot-product methods have the precision of the inputs, as
    the layer's own have, which saves an accelerator time and memory; and the "+ VW" methods compute the norms of the values
    on the device, to 0.05 %, without making the CPU wait for it.

    Returns [B, N, H], summing to one over H. Weights of "w/o clamp" and cosine methods may be negative or above one.
    Where the unnormalised weights have no usable sum (zero, negative, or lost to cancellation), every head gets 1/H.
    NaN in an input counts as 0, an infinity as a large finite number (`tensors.finite`).
    Raises ValueError for an unknown method, shapes that do not fit, or a missing `value`.

    >>> post_value = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]])  # one pixel, two heads of three channels
    >>> head_weights(post_value, torch.eye(6), 2, "dot-product").tolist()  # 3 to 1
    [[[0.75, 0.25]]]
    """
    check_choice("head method", method, HEAD_METHODS)
    check_ndim("post_value", post_value, "B N C")
    check_ndim("out_weight", out_weight, "C_out C")
    batch, tokens, channels = post_value.shape
    if heads < 1 or channels % heads:
        raise ValueError(
            f"{channels} channels cannot be split into {heads} heads: pass the number of heads of this layer."
        )
    if out_weight.shape[1] != channels:
        raise ValueError(
            f"out_weight has {out_weight.shape[1]} input columns but post_value has {channels} channels: "
            "pass the weight of the projection that follows this attention, [C_out, C]."
        )
    width = channels // heads
    if method.endswith("VW"):
        if value is None:
            raise ValueError(
                f"Head method {method!r} needs the value vectors: pass value=[B, H, T, d] or choose another method."
            )
        check_ndim("value", value, "B H T d")
        if (value.shape[0], value.shape[1], value.shape[3]) != (batch, heads, width):
            raise ValueError(
                f"value has shape {tuple(value.shape)}: expected [{batch}, {heads}, T, {width}] to match post_value and heads."
            )
    if method == "average":
        return post_value.new_full((batch, tokens, heads), 1.0 / heads, dtype=working_dtype(post_value))

    if _fits(post_value, out_weight, method, exact):
        agreement = _agreement(post_value, post_value @ out_weight.T @ out_weight, heads)
    else:
        dtype = working_dtype(post_value, out_weight)
        # every method is homogeneous in Y (per pixel) and in W, so the scale does not matter: removing it keeps products
        # of large float32 activations from overflowing and products of small ones from vanishing
        y = _unit_peak(finite(post_value, dtype), (-1,))
        w = _unit_peak(finite(out_weight, dtype), (-2, -1))
        y_heads = y.unflatten(-1, (heads, width))
        if method == "l2-norm":
            return normalise_heads(_head_norms(y_heads, w))
        output = y @ w.T
        agreement = (y * (output @ w)).unflatten(-1, (heads, width)).sum(-1)
    if method.startswith("cosine"):
        lengths = _head_norms(y_heads, w).clamp_min(_NORM_FLOOR)
        agreement = agreement / lengths / output.norm(dim=-1, keepdim=True).clamp_min(_NORM_FLOOR)
    elif method != "dot-product w/o clamp":
        agreement = agreement.clamp_min(0)
    if method.endswith("VW"):
        assert value is not None
        agreement = agreement * _value_norms(value, out_weight, exact)[:, None, :].to(agreement)
    return normalise_heads(agreement)


def head_weights_of_layers(
    post_value: Tensor, out_weights: Tensor, heads: int, method: str, value: Tensor | None = None
) -> Tensor:
    """`head_weights` of several layers at once, in the precision of the inputs (``exact`` is False).

    post_value [L * B, N, C], out_weights [L, C_out, C] and value [L * B, H, T, d], one layer after the other.
    Returns [L * B, N, H].

    >>> layers = torch.tensor([[[1.0, 1.0]], [[3.0, 1.0]]])  # two layers of one pixel and two heads
    >>> head_weights_of_layers(layers, torch.eye(2).expand(2, 2, 2), 2, "dot-product").tolist()
    [[[0.5, 0.5]], [[0.8999999761581421, 0.10000000149011612]]]
    """
    layers = len(out_weights)
    if method.endswith("VW") or not _fits(post_value, out_weights, method, exact=False):
        values = [None] * layers if value is None else value.chunk(layers)
        parts = zip(post_value.chunk(layers), out_weights, values, strict=True)
        return torch.cat([head_weights(part, weight, heads, method, v, exact=False) for part, weight, v in parts])
    reached = post_value.unflatten(0, (layers, -1)).flatten(1, 2) @ out_weights.mT @ out_weights
    agreement = _agreement(post_value, reached.view_as(post_value), heads)
    return normalise_heads(agreement if method == "dot-product w/o clamp" else agreement.clamp_min(0))


def _fits(post_value: Tensor, out_weight: Tensor, method: str, exact: bool) -> bool:
    """Whether products may have the precision of the inputs: they are those of the layer itself and its transpose, so they
    fit where the layer's own output did."""
    return not exact and post_value.dtype == out_weight.dtype and method.startswith("dot-product")


def _agreement(post_value: Tensor, reached: Tensor, heads: int) -> Tensor:
    """o_h . o of each head [B, N, H], from Y and g [B, N, C]."""
    return (post_value.to(working_dtype(post_value)) * reached).unflatten(-1, (heads, -1)).sum(-1)


def normalise_heads(scores: Tensor) -> Tensor:
    """Divide [..., H] by its sum over H; 1/H where that sum is not finite or not above 1e-6 of the largest entry."""
    total = scores.sum(-1, keepdim=True)
    largest = torch.linalg.vector_norm(scores, torch.inf, -1, keepdim=True)
    # An infinity or NaN among the scores is in the largest, too, and then the comparison is false.
    equal = torch.tensor(1.0 / scores.shape[-1], dtype=scores.dtype)  # on the CPU: passed to the kernel by value
    return torch.where(total > _SUM_FLOOR * largest, scores / total, equal)


def aggregate_heads(cross: Tensor, weights: Tensor) -> Tensor:
    """Compute a layer's map: the weighted sum of its heads' cross-attention at each pixel.

    cross: [B, H, N, T] attention probabilities. weights: [B, N, H] from `head_weights`.
    Returns [B, N, T]; entries may be negative if weights are (they are clamped after the sum over layers).
    Raises ValueError when the shapes do not fit.

    >>> cross = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])  # two heads, one pixel, two tokens
    >>> aggregate_heads(cross, torch.tensor([[[0.5, 0.5]]])).tolist()
    [[[0.75, 0.25]]]
    """
    check_ndim("cross", cross, "B H N T")
    batch, heads, tokens, _ = cross.shape
    if tuple(weights.shape) != (batch, tokens, heads):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}: expected [B, N, H] = [{batch}, {tokens}, {heads}] to match cross."
        )
    dtype = working_dtype(cross, weights)
    weights = finite(weights, dtype)
    # one head at a time, so that only one head is converted to float32 at once
    total = finite(cross[:, 0], dtype) * weights[:, :, :1]
    for head in range(1, heads):
        total.addcmul_(finite(cross[:, head], dtype), weights[:, :, head : head + 1])
    return total


def _unit_peak(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Divide by the largest magnitude over `axes`; all-zero stays zero."""
    peak = tensor.abs().amax(axes, keepdim=True)
    return tensor / torch.where(peak > torch.finfo(tensor.dtype).tiny, peak, 1.0)


def _head_norms(y_heads: Tensor, out_weight: Tensor) -> Tensor:
    """|o_h| from [B, N, H, d] and [C_out, H*d] -> [B, N, H], computed with Gram matrices."""
    w_heads = out_weight.unflatten(-1, tuple(y_heads.shape[-2:]))
    gram = torch.einsum("ohd,ohe->hde", w_heads, w_heads)
    squared = (torch.einsum("bnhd,hde->bnhe", y_heads, gram) * y_heads).sum(-1)
    return squared.clamp_min(0).sqrt()  # rounding can leave a small negative


def _value_norms(value: Tensor, out_weight: Tensor, exact: bool = True) -> Tensor:
    """Spectral norm of V_h W_h for each head, up to a common factor: [B, H, T, d] and [C_out, H*d] -> [B, H].

    exact: in float64 on the CPU; otherwise in float32 on the device.
    |V W|^2 is the largest eigenvalue of R^T (V^T V) R with R R^T = W W^T, a d x d matrix for any number of tokens.
    In double precision on the CPU, because the matrices are small, squaring loses digits, and some devices lack
    eigenvalue solvers.
    """
    if not exact:
        return _value_norms_on_device(value, out_weight)
    v = finite(value, torch.float64).cpu()
    w = finite(out_weight, torch.float64).cpu().unflatten(-1, (value.shape[1], value.shape[3]))
    v, w = _unit_peak(v, (-3, -2, -1)), _unit_peak(w, (-3, -2, -1))
    eigenvalues, vectors = torch.linalg.eigh(torch.einsum("ohd,ohe->hde", w, w))
    root = vectors * eigenvalues.clamp_min(0).sqrt()[..., None, :]
    projected = v @ root
    return torch.linalg.eigvalsh(projected.mT @ projected)[..., -1].clamp_min(0).sqrt()


def _value_norms_on_device(value: Tensor, out_weight: Tensor) -> Tensor:
    """The same from products alone, because eigenvalue solvers make the CPU wait.

    The eigenvalues l of M = (V^T V)(W W^T) are those of the symmetric matrix above. Squaring M n times gives the trace of
    M^p with p = 2^n, from which l_max <= (sum of l^p)^(1/p) <= d^(1/p) l_max, whether or not the largest are close together:
    0.07 % above for d = 256, half of that for its root.
    """
    v = _unit_peak(finite(value, torch.float32), (-3, -2, -1))
    w = _unit_peak(finite(out_weight, torch.float32), (-2, -1)).unflatten(-1, (value.shape[1], value.shape[3]))
    # Only the product counts. With columns of length one in W, channels of different size do not cost digits.
    length = w.norm(dim=0, keepdim=True)
    w = w / length.clamp_min(torch.finfo(w.dtype).tiny)
    v = v * length[..., None, :]
    power = (v.mT @ v) @ torch.einsum("ohd,ohe->hde", w, w)
    scales = []
    for step in range(_SQUARINGS + 1):
        power = power @ power if step else power
        scales.append(torch.linalg.vector_norm(power, torch.inf, (-2, -1)).clamp_min(torch.finfo(w.dtype).tiny))
        power = power / scales[-1][..., None, None]
    trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(w.dtype).tiny)
    # l^p = scale_0^p * scale_1^(p/2) * ... * scale_n * trace, in logarithms because it would overflow
    logarithm = trace.log() / 2**_SQUARINGS
    for step, scale in enumerate(scales):
        logarithm = logarithm + scale.log() / 2**step
    return (logarithm / 2).exp()
