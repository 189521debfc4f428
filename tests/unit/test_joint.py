"""Joint attention reduced by every way there is, against the joint softmax written out in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from goca_core import refine, rescale
from goca_core.attention.global_map import aggregate, layer_weights
from goca_core.attention.record import Attention, Defaults, Tokens
from goca_core.capture.families.base import Block, JointSpans, Plan, Site, text_first
from goca_core.capture.options import RecordOptions
from goca_core.capture.reduce import call as reduce
from goca_core.capture.reduce import fused
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.cond_recorder import CondRecorder
from goca_core.capture.reduce.fused import compute_total, exact_total, watch_totals
from goca_core.capture.reduce.one_pass import joint_pass
from goca_core.capture.reduce.spec import ReductionSpec
from goca_core.capture.reduce.text_maps import TextMaps, token_columns
from goca_core.layers import resize_self_map
from goca_core.tensors import Grid

from .recordings import Gathering

B, H, D, TEXT = 2, 3, 8, 9
GRID = (6, 8)
IMAGE = GRID[0] * GRID[1]
REFERENCES = 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def a_call(
    registers: int = 0, mask: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[AttentionCall, JointSpans]:
    total = registers + TEXT + IMAGE + REFERENCES
    q, k, v = (draw(B, H, total, D, seed=number).to(dtype) for number in range(3))
    spans = text_first(registers)(total, TEXT, IMAGE, REFERENCES)
    assert spans is not None
    return AttentionCall(q, k, v, mask, 0.4), spans


def dense(call: AttentionCall) -> Tensor:
    logits = call.q.double() @ call.k.double().transpose(-1, -2) * call.scale
    return torch.softmax(logits if call.mask is None else logits + call.mask.double(), -1)


def reduced(
    call: AttentionCall, spans: JointSpans, targets: list[Grid], tolerance: float = 1e-6
) -> tuple[dict[str, Tensor], Gathering | None]:
    weights = {"average": torch.full((B, IMAGE, H), 1 / H), "other": torch.softmax(draw(B, IMAGE, H), -1)}
    columns = token_columns(TEXT, TEXT, (1, 4), True, torch.device("cpu"))
    gathering, text_maps = Gathering(GRID, targets) if targets else None, TextMaps(weights, columns)
    known = compute_total(call).queries(spans.image)
    joint_pass(known, spans, text_maps, None if gathering is None else gathering.maps)
    found = text_maps.result()
    matrix = dense(call)[:, :, spans.image]
    for name, weight in weights.items():
        whole = torch.einsum("bhnt,bnh->bnt", matrix[..., spans.text], weight.double())
        rest = whole.sum(-1) - whole[..., 1] - whole[..., 4]
        expected = torch.stack((whole[..., 1], whole[..., 4], rest), -1)
        assert torch.allclose(found[name].double(), expected, atol=tolerance)
        # Some of the attention falls on the image, the references and the registers.
        assert found[name].sum(-1).max() < 0.9
    return found, gathering


CPU_KERNEL = "_scaled_dot_product_flash_attention_for_cpu", (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["one pass", "many blocks", "fused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "many blocks":
        monkeypatch.setattr(reduce, "_ELEMENTS", 700)
    if request.param == "fused":  # on a CPU this is slower, but it shows what an accelerator does
        monkeypatch.setitem(fused.FUSED, "cpu", CPU_KERNEL)
    return request.param


@pytest.mark.parametrize("registers", [0, 8])
@pytest.mark.parametrize("targets", [[], [GRID], [(3, 4)], [(3, 4), GRID], [(4, 5), (3, 4)]])
def test_text_and_self_attention(targets: list[Grid], registers: int, way: str) -> None:
    call, spans = a_call(registers)
    assert (compute_total(call).total is not None) is (way == "fused")
    _, gathering = reduced(call, spans, targets)
    own = dense(call)[:, :, spans.image, spans.image].mean(1)
    assert own.sum(-1).max() < 0.95
    for target in targets:
        assert gathering is not None
        found, at = gathering.of(target)
        assert at == target
        assert torch.allclose(found.double(), resize_self_map(own, GRID, target), atol=1e-6)
    assert targets or gathering is None


@pytest.mark.parametrize("elements", [1, 10**9])
def test_denominators_without_a_kernel(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all keys, block by block; those that are known are kept."""
    monkeypatch.setattr(fused, "block_elements", lambda _call: elements)
    call, _ = a_call()
    assert compute_total(call).total is None
    total = exact_total(call).total
    assert total is not None
    logits = call.q.double() @ call.k.double().transpose(-1, -2) * call.scale
    assert torch.allclose(total.double(), logits.logsumexp(-1), atol=1e-5)
    known = call.with_total(total + 1)
    assert exact_total(known).total is known.total


def test_a_mask_is_honoured(way: str) -> None:
    total = TEXT + IMAGE + REFERENCES
    mask = torch.zeros(1, 1, total, total)
    mask[..., 2] = -torch.inf
    mask[..., 20:30, 5] = 1.5
    call, spans = a_call(mask=mask)
    reduced(call, spans, [(3, 4)])
    assert compute_total(call).total is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing(dtype: torch.dtype, way: str) -> None:
    """The maps are those of the given queries and keys; only the fused kernel gives them in the precision of these."""
    call, spans = a_call(dtype=dtype)
    found, _ = reduced(call, spans, [(3, 4)], torch.finfo(dtype).eps / 2 if way == "fused" else 1e-6)
    assert found["average"].dtype == (dtype if way == "fused" else torch.float32)


@pytest.mark.parametrize("inference", [False, True])
def test_the_denominators_of_the_very_call_are_kept(inference: bool) -> None:
    call, _ = a_call()
    with torch.inference_mode(inference):
        plain = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
        with watch_totals() as seen:
            watched = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
    assert torch.equal(plain, watched)
    total = seen.complete(call).total
    assert total is not None
    expected = (call.q.double() @ call.k.double().mT * call.scale).logsumexp(-1)
    assert torch.allclose(total.double(), expected, atol=1e-5)
    assert torch.equal(call.with_total(total).rows(slice(1, 2)).queries(slice(3, 9)).total, total[1:2, :, 3:9])


@pytest.mark.parametrize("change", ["queries", "keys", "scale", "mask", "twice", "not at all"])
def test_denominators_of_another_call_are_not_taken(change: str) -> None:
    """Another node pack may change queries and keys, or compute attention in parts."""
    call, _ = a_call()
    q, k = (call.q.clone() if change == "queries" else call.q), (call.k[:, :, :30] if change == "keys" else call.k)
    mask = torch.zeros(1, 1, 1, call.k.shape[2]) if change == "mask" else None
    with watch_totals() as seen:
        for _ in range({"twice": 2, "not at all": 0}.get(change, 1)):
            v = call.v[:, :, : k.shape[2]]
            scale = 0.3 if change == "scale" else call.scale
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    changed = AttentionCall(call.q, call.k, call.v, mask, call.scale)
    assert seen.complete(changed).total is None


def test_a_kernel_that_says_something_else_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    call, _ = a_call()
    monkeypatch.setitem(fused.FUSED, "cpu", CPU_KERNEL)
    total = compute_total(call).total
    assert total is not None
    for wrong in (total + 0.1, total.transpose(1, 2), total[..., :-1], total * 1.44):
        monkeypatch.setattr(fused, "_trusted", {})
        monkeypatch.setitem(fused.FUSED, "cpu", ("_wrong", (torch.float32,)))
        monkeypatch.setattr(torch.ops.aten, "_wrong", lambda *_a, wrong=wrong, **_k: (None, wrong), raising=False)
        assert compute_total(call).total is None
    monkeypatch.setitem(fused.FUSED, "cpu", ("_not_there", (torch.float32,)))
    assert compute_total(call).total is None


def test_nonsense_stays_nonsense(way: str) -> None:
    call, spans = a_call()
    call.q[0, 0, spans.image.start] = torch.nan
    columns = token_columns(TEXT, TEXT, tuple(range(TEXT)), False, torch.device("cpu"))
    weights = {"average": torch.full((B, IMAGE, H), 1 / H)}
    text_maps = TextMaps(weights, columns)
    joint_pass(compute_total(call).queries(spans.image), spans, text_maps, Gathering(GRID, [(3, 4)]).maps)
    found = text_maps.result()
    assert torch.isnan(found["average"][0, 0]).all() and torch.isfinite(found["average"][1]).all()


@pytest.mark.parametrize("registers, numbers", [(0, (60, 9, 48, 0)), (0, (57, 9, 48, 5)), (8, (57, 9, 48, 0))])
def test_a_sequence_that_does_not_add_up(registers: int, numbers: tuple[int, int, int, int]) -> None:
    assert text_first(registers)(*numbers) is None


def test_the_golden_data_through_the_recorder(golden: Callable[[str], Any], way: str) -> None:
    """The reference implementation's results on a Flux-like joint softmax, from queries and keys that have it."""
    data = golden("core_c_joint")
    size, names = (6, 6), ["layer.0", "layer.1", "layer.2"]
    module = nn.Identity()
    chosen = tuple(names[number] for number in data.ids("in_affinity_layers"))
    defaults = Defaults("average", "dot-product similarity", "sum-1 rescaling + per-token renorm+", 2)
    blocks = tuple(Block(name, Site(2, module, module), None) for name in names)
    plan = Plan(blocks, names[1], chosen, defaults, 0.4)
    spec = ReductionSpec(plan, RecordOptions(("average",), ("dot-product similarity",)), size)
    tokens = Tokens(tuple(range(7)), False, 7)
    recorder = CondRecorder(spec, slice(0, 1), tokens)
    feature = data.batch("in_ref").flatten(2).transpose(1, 2)
    for number, block in enumerate(blocks):
        text, own = data.batch(f"in_A{number}"), data.batch(f"in_S{number}")
        probs = torch.cat((text, own), -1)
        assert torch.allclose(probs.sum(-1), torch.ones(()), atol=1e-5)
        # Keys that are the unit vectors and queries that are logarithms have just this softmax; the text's own queries
        # play no part. The fused kernel wants a head width that is a multiple of 8.
        queries = torch.zeros(1, 2, 43, 48)
        queries[:, :, 7:, :43] = probs.log()
        keys = torch.eye(43, 48).expand(1, 2, 43, 48)
        spans = text_first()(43, 7, 36, 0)
        assert spans is not None
        if number == 1:
            recorder.take_feature(feature, size)
        post = torch.zeros(1, 43, 96)
        recorder.take_joint(block, AttentionCall(queries, keys, keys, None, 1.0), post, size, spans)
    result = recorder.result()
    recorded = Attention("flux", 6, 6, 16, tuple(result.layers.values()), tokens, defaults)
    assert torch.allclose(layer_weights(recorded)[0], data["out_layerw"].float(), atol=1e-6)
    maps = aggregate(recorded).maps
    assert torch.allclose(maps[0], data["out_agg"].float(), atol=1e-5)
    objects = [data.ids(key) for key in ("in_object_tokens_1", "in_object_tokens_4", "in_background_tokens_0")]
    scores = rescale.rescale(maps, objects, data.ids("in_rescaling_token_id"), defaults.rescale)
    assert torch.allclose(scores[0], data["out_merged_default"].float(), atol=1e-5)
    assert result.affinity is not None
    spread = refine.propagate(scores, result.affinity, defaults.propagation_steps)
    assert torch.allclose(spread[0], data["out_affinity_order2"].float(), atol=1e-4)
