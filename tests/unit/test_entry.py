"""What a call leaves of attention, whatever the levels of its layers, against the same of whole maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from goca_core.attention.global_map import layer_weights
from goca_core.attention.record import Attention, Defaults, Tokens
from goca_core.capture.families.base import Block, JointSpans, Plan, Site
from goca_core.capture.options import RecordOptions
from goca_core.capture.reduce import spec as spec_module
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.cond_recorder import CondRecorder
from goca_core.capture.reduce.spec import ReductionSpec
from goca_core.heads import HEAD_METHODS, head_weights
from goca_core.layers import layer_score, reference_affinity, resize_self_map

B, H, D = 2, 2, 8
SIZE = (12, 10)
SCORED = ("dot-product similarity", "mse", "iou-like")
DEFAULTS = Defaults("average", SCORED[0], "sum-1 rescaling + per-token renorm+", 2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


# Every pair of values is there: layers that propagate (on the grids of levels 0, 1, 2 and 1), the reference among them, how
# many layers come before its feature is known, frames, the full affinity, and half precision for large grids.
CASES = [
    ((0, 1, 2, 3), 0, 0, 1, False, False),
    ((0, 1, 2, 3), 0, 4, 2, True, True),
    ((0, 1, 2, 3), 1, 2, 1, True, True),
    ((0, 1, 2, 3), 2, 2, 2, False, False),
    ((0, 1, 2, 3), 2, 0, 2, True, False),
    ((1, 2), 0, 2, 2, True, False),
    ((1, 2), 1, 4, 1, False, False),
    ((1, 2), 1, 0, 2, False, True),
    ((1, 2), 2, 4, 1, True, True),
    ((3,), 0, 4, 1, False, False),
    ((3,), 1, 0, 1, True, True),
    ((3,), 1, 2, 2, True, False),
    ((3,), 2, 2, 1, False, True),
    ((3,), 2, 4, 2, False, True),
]


@pytest.mark.parametrize(("averaged", "reference", "known", "frames", "full", "half"), CASES)
def test_scores_and_affinity(
    averaged: tuple[int, ...],
    reference: int,
    known: int,
    frames: int,
    full: bool,
    half: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way there is: layers finer and coarser than both grids, scored at once or held, averaged at once or resized."""
    monkeypatch.setattr(spec_module, "_HOLD_EXACT", 20 if half else 1024)
    site = Site(H, nn.Identity(), nn.Identity())
    blocks = tuple(Block(f"layer.{n}", site, site, level) for n, level in enumerate((0, 1, 2, 1)))
    plan = Plan(blocks, blocks[reference].name, tuple(blocks[n].name for n in averaged), DEFAULTS, 0.4)
    options = RecordOptions(("average",), SCORED, full_affinity=full, affinity_parts=True)
    spec = ReductionSpec(plan, options, SIZE, frames)
    grids = [plan.grid(block.level, *SIZE) for block in blocks]
    recorder = CondRecorder(spec, slice(0, B), Tokens((1,), True, 3))
    feature = draw(B, frames * grids[reference][0] * grids[reference][1], 6)
    layers = []
    for number, (block, grid) in enumerate(zip(blocks, grids, strict=True)):
        if number == known:
            recorder.take_feature(feature, grids[reference])
        count = grid[0] * grid[1]
        q, k = (draw(B, H, frames * count, D, seed=number + extra) for extra in (0, 10))
        recorder.take_text(
            block,
            AttentionCall(q, draw(B, H, 3, D), draw(B, H, 3, D), None, 0.4),
            q.transpose(1, 2).flatten(2),
            grid,
        )
        recorder.take_self(block, AttentionCall(q, k, k, None, 0.8), grid, slice(0, frames * count))
        whole = torch.softmax(q.double() @ k.double().mT * 0.8, -1).mean(1)
        own = [whole[:, part, part] for part in (slice(f * count, (f + 1) * count) for f in range(frames))]
        layers.append(torch.stack(own, 1).flatten(0, 1))
    if known == len(blocks):
        recorder.take_feature(feature, grids[reference])
    result = recorder.result()

    images = feature.double().unflatten(1, (frames, -1)).flatten(0, 1).mT.unflatten(-1, grids[reference])
    affinity = reference_affinity(images)
    for block, grid, layer in zip(blocks, grids, layers, strict=True):
        resized = resize_self_map(layer, grid, spec.reference_grid)
        for method in SCORED:
            found = result.layers[block.name].scores[method].double()
            assert torch.allclose(found, layer_score(affinity, resized, method), rtol=2e-3 if half else 1e-5)
    parts = {blocks[n].name: resize_self_map(layers[n], grids[n], spec.affinity_grid) for n in averaged}
    assert set(result.affinity_parts) == set(parts) and result.affinity_grid == spec.affinity_grid
    for name, expected in parts.items():
        assert torch.allclose(result.affinity_parts[name].double(), expected, atol=1e-6)
    assert result.affinity is not None
    assert torch.allclose(result.affinity.double(), torch.stack(list(parts.values())).mean(0), atol=1e-6)


# -- text attention ---------------------------------------------------------------------------------------------------

GRID, LENGTH = (4, 5), 6
COUNT = GRID[0] * GRID[1]
TOKENS = Tokens((4, 1), True, LENGTH)
ROWS = slice(1, 3)  # the samples of this conditioning, of four in the call


@pytest.fixture
def layer() -> tuple[Block, Tensor]:
    """A layer with an output projection, and the weight of that."""
    out = nn.Linear(H * D, 7)
    with torch.no_grad():
        out.weight.copy_(draw(7, H * D, seed=3))
    site = Site(H, nn.Identity(), out)
    return Block("layer.0", site, site), out.weight.detach()


def spec_of(
    *blocks: Block, heads: tuple[str, ...] = ("average",), scored: tuple[str, ...] = (), frames: int = 1
) -> ReductionSpec:
    plan = Plan(blocks, blocks[0].name, (), DEFAULTS, 0.4)
    return ReductionSpec(plan, RecordOptions(heads, scored), GRID, frames)


def a_call(queries: int, keys: int) -> AttentionCall:
    return AttentionCall(draw(4, H, queries, D), draw(4, H, keys, D, seed=1), draw(4, H, keys, D, seed=2), None, 0.6)


def given(call: AttentionCall) -> Tensor:
    """What attention gives, [B, N, H * D]."""
    probs = torch.softmax(call.q @ call.k.mT * call.scale, -1)
    return (probs @ call.v).transpose(1, 2).flatten(2)


def kept_of(probs: Tensor, weights: Tensor) -> Tensor:
    """The columns of TOKENS of text attention [B, H, N, keys], heads weighted [B, N, H]; the prompt is there repeatedly."""
    text = torch.einsum("bhnt,bnh->bnt", probs, weights.double()).unflatten(-1, (-1, LENGTH)).sum(2)
    return torch.stack((text[..., 4], text[..., 1], text[..., [0, 2, 3, 5]].sum(-1)), -1)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("replaced", [False, True], ids=["as the layer gave it", "what it gave was replaced"])
def test_text_attention_by_every_head_method(layer: tuple[Block, Tensor], frames: int, replaced: bool) -> None:
    """Of the queries of the image alone, where others stand before and after them, and of all copies of the prompt."""
    block, weight = layer
    image = slice(3, 3 + frames * COUNT)
    call = a_call(image.stop + 2, 2 * LENGTH)
    spec = spec_of(block, heads=HEAD_METHODS, frames=frames)
    recorder = CondRecorder(spec, ROWS, TOKENS)
    recorder.take_text(block, call, None if replaced else given(call), GRID, image)
    maps = recorder.result().layers[block.name].maps
    assert tuple(maps) == HEAD_METHODS
    post, probs = given(call)[ROWS, image], torch.softmax(call.q.double() @ call.k.double().mT * call.scale, -1)
    for method, found in maps.items():
        weights = head_weights(post, weight, H, method, call.v[ROWS])
        expected = kept_of(probs[ROWS, :, image], weights).unflatten(1, (frames, COUNT)).flatten(0, 1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_joint_attention_by_every_head_method(layer: tuple[Block, Tensor]) -> None:
    block, weight = layer
    spans = JointSpans(slice(2, 2 + LENGTH), slice(2 + LENGTH, 2 + LENGTH + COUNT))
    call = a_call(spans.image.stop + 1, spans.image.stop + 1)
    spec = spec_of(block, heads=HEAD_METHODS)
    recorder = CondRecorder(spec, ROWS, TOKENS)
    recorder.take_joint(block, call, given(call), GRID, spans)
    post, probs = given(call)[ROWS, spans.image], torch.softmax(call.q.double() @ call.k.double().mT * call.scale, -1)
    for method, found in recorder.result().layers[block.name].maps.items():
        weights = head_weights(post, weight, H, method, call.v[ROWS, :, spans.image])
        expected = kept_of(probs[ROWS, :, spans.image, spans.text], weights)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keys", [LENGTH + 2, LENGTH - 1, 2 * LENGTH + 1])
def test_keys_that_are_no_copies_of_the_prompt_are_not_recorded(layer: tuple[Block, Tensor], keys: int) -> None:
    """Another conditioning was appended to them, so nobody can tell which columns are the prompt's."""
    block, _ = layer
    recorder, call = CondRecorder(spec_of(block), ROWS, TOKENS), a_call(COUNT, keys)
    recorder.take_text(block, call, given(call), GRID)
    assert not recorder.result().layers


def test_a_layer_that_cannot_be_measured_has_no_score_and_counts_as_the_mean(layer: tuple[Block, Tensor]) -> None:
    block, _ = layer
    blocks = [Block(f"layer.{number}", block.cross_attn, block.self_attn) for number in range(3)]
    recorder = CondRecorder(spec_of(*blocks, scored=SCORED), ROWS, TOKENS)
    recorder.take_feature(draw(4, COUNT, 6), GRID)
    text = a_call(COUNT, LENGTH)
    for number, one in enumerate(blocks):
        recorder.take_text(one, text, given(text), GRID)
        if number != 1:  # another node merged its tokens, say
            own = AttentionCall(*(draw(4, H, COUNT, D, seed=number + part) for part in range(3)), None, 0.6)
            recorder.take_self(one, own, GRID, slice(0, COUNT))
    layers = tuple(recorder.result().layers.values())
    assert [layer.name for layer in layers] == [one.name for one in blocks]
    record = Attention("test", *GRID, 8, layers, TOKENS, DEFAULTS)
    for method in SCORED:
        assert [bool(torch.isnan(layer.scores[method]).all()) for layer in layers] == [False, True, False]
        weights = layer_weights(record, method)
        assert weights.shape == (2, 3)
        torch.testing.assert_close(weights[:, 1], weights[:, [0, 2]].mean(1))


# -- the grids ----------------------------------------------------------------------------------------------------------


def grids_of(size: tuple[int, int], frames: int, limit: int = 0) -> tuple[int, int]:
    """Tokens of the reference's grid, of level 1, and of the grid of propagation, of level 0."""
    site = Site(H, nn.Identity(), nn.Identity())
    blocks = tuple(Block(f"layer.{level}", site, site, level) for level in (0, 1))
    spec = ReductionSpec(
        Plan(blocks, "layer.1", ("layer.0",), DEFAULTS, 0.4), RecordOptions((), SCORED, grid_limit=limit), size, frames
    )
    return spec.reference_grid[0] * spec.reference_grid[1], spec.affinity_grid[0] * spec.affinity_grid[1]


@pytest.mark.parametrize("frames", [1, 2, 4, 9, 16])
@pytest.mark.parametrize("size", [(96, 140), (130, 90), (200, 60)])
def test_the_frames_of_a_video_share_the_memory_of_an_image(size: tuple[int, int], frames: int) -> None:
    """The reference affinities of all frames take as much as that of an image on the largest grid, and not much less."""
    tokens, _ = grids_of(size, frames, 30 * 30)
    assert 0.6 < frames * tokens**2 / 900**2 <= 1


@pytest.mark.parametrize("size", [(32, 30), (28, 36), (20, 24), (12, 10)])
def test_propagation_is_on_the_finest_grid_that_all_frames_have_memory_for(size: tuple[int, int]) -> None:
    fine, coarse = size[0] * size[1], size[0] * size[1] // 4
    for frames in (1, 2, 3, 5, 9, 25, 80):
        fits = frames * fine**2 <= 1024**2
        assert grids_of(size, frames) == (coarse, fine if fits else coarse), frames
