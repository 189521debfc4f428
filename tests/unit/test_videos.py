"""Videos: attention of a frame to itself, a common scale for all frames, and masks for the images that they become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from goca_core import attention, pipeline
from goca_core.attention.global_map import aggregate, layer_weights
from goca_core.attention.record import AttentionError, Defaults
from goca_core.batches import expand_frames, latent_frames
from goca_core.capture.families.base import Block, JointSpans, Plan, Site
from goca_core.capture.families.plans import CROSS
from goca_core.capture.options import RecordOptions
from goca_core.capture.reduce.call import AttentionCall
from goca_core.capture.reduce.one_pass import joint_pass, self_pass
from goca_core.capture.reduce.self_maps import by_latent_frame
from goca_core.capture.reduce.spec import ReductionSpec
from goca_core.capture.reduce.text_maps import TextMaps, token_columns
from goca_core.layers import resize_self_map
from goca_core.picture.batch import ORDERS, flatten
from goca_core.pipeline import MaskRequest, make_masks, refined, word_scores
from goca_core.refine.methods import Pamr, ProposalMerge
from goca_core.refine.propagation import propagate
from goca_core.rescale import RESCALE_METHODS, rescale
from goca_core.tensors import RANGES, Range

from .recordings import Gathering, recording, words_of

FRAMES, GRID = 3, (3, 5)
COUNT = GRID[0] * GRID[1]


def call_of(before: int, after: int, seed: int = 0, heads: int = 2) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)
    total = before + FRAMES * COUNT + after
    q, k, v = (torch.randn(2, heads, total, 8, generator=generator) * 2 for _ in range(3))
    return AttentionCall(q, k, v, None, 0.4)


def dense(call: AttentionCall) -> Tensor:
    return torch.softmax(call.q.double() @ call.k.double().mT * call.scale, -1)


def own_part(probs: Tensor, first: int) -> Tensor:
    """What each frame sees of itself, [2 * FRAMES, COUNT, COUNT]."""
    parts = []
    for sample in probs.mean(1):
        for frame in range(FRAMES):
            start = first + frame * COUNT
            parts.append(sample[start : start + COUNT, start : start + COUNT])
    return torch.stack(parts)


@pytest.mark.parametrize("target", [GRID, (2, 3)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (7, 4)])
@pytest.mark.parametrize("known", [False, True], ids=["by blocks", "with known denominators"])
def test_a_frame_on_itself(target: tuple[int, int], before: int, after: int, known: bool) -> None:
    call = call_of(before, after)
    video = slice(before, before + FRAMES * COUNT)
    asked = call.queries(video)
    if known:
        asked = asked.with_total((asked.q.double() @ asked.k.double().mT * asked.scale).logsumexp(-1).float())
    gathering = Gathering(GRID, [target, GRID], FRAMES)
    self_pass(asked, video, gathering.maps)
    found, grid = gathering.of(target)
    assert grid == target and found.dtype == torch.float32
    expected = resize_self_map(own_part(dense(call), before), GRID, target)
    assert torch.allclose(found.double(), expected, atol=1e-6)


@pytest.mark.parametrize("text_first", [False, True])
def test_joint_attention_of_a_video(text_first: bool) -> None:
    call = call_of(6, 0) if text_first else call_of(0, 6)
    start = 6 if text_first else 0
    video = slice(start, start + FRAMES * COUNT)
    spans = JointSpans(slice(0, 6) if text_first else slice(video.stop, video.stop + 6), video)
    columns = token_columns(6, 6, (1, 4), True, torch.device("cpu"))
    weights = {"average": torch.full((2, FRAMES * COUNT, 2), 0.5)}
    gathering, text_maps = Gathering(GRID, [GRID], FRAMES), TextMaps(weights, columns)
    joint_pass(call.queries(video), spans, text_maps, gathering.maps)
    maps = text_maps.result()
    probs = dense(call)
    text = probs[:, :, video, spans.text].mean(1)
    expected = torch.stack((text[..., 1], text[..., 4], text[..., [0, 2, 3, 5]].sum(-1)), -1)
    assert torch.allclose(maps["average"].double(), expected, atol=1e-6)
    assert torch.allclose(gathering.of(GRID)[0].double(), own_part(probs, start), atol=1e-6)


def test_all_frames_have_the_memory_of_an_image() -> None:
    site = Site(2, torch.nn.Identity(), torch.nn.Identity())
    plan = Plan((Block("block.0", site, site),), "block.0", ("block.0",), CROSS, 0.3, patch=2, frame_patch=1)
    options = RecordOptions(("average",), ("dot-product similarity",))
    for frames in (1, 5, 21, 81):
        spec = ReductionSpec(plan, options, (90, 160), frames)
        for height, width in (spec.reference_grid, spec.affinity_grid):
            assert frames * (height * width) ** 2 <= 4096**2
            assert width / height == pytest.approx(16 / 9, rel=0.12)
    assert ReductionSpec(plan, options, (16, 24), 5).reference_grid == (8, 12)
    assert ReductionSpec(plan, replace(options, grid_limit=0), (90, 160), 21).reference_grid == (45, 80)


def test_frames_of_tokens_for_frames_of_the_latent() -> None:
    values = torch.arange(2 * 3)
    assert by_latent_frame(values, 3, 2, 5).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
    assert by_latent_frame(values, 3, 1, 3) is values


# -- a common scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_", RANGES)
@pytest.mark.parametrize("method", [name for name in RESCALE_METHODS if "+" not in name.replace(" + ", "")])
def test_frames_are_rescaled_as_one_image(method: str, range_: Range) -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.softmax(torch.randn(2 * FRAMES, 4, 4, 6, generator=generator) * 2, 1)
    found = rescale(maps, [[0], [1, 2]], [0, 1, 2], method, range_=range_, frames=FRAMES)
    for video in range(2):
        own = slice(video * FRAMES, (video + 1) * FRAMES)
        tall = torch.cat(list(maps[own]), 1)[None]
        expected = rescale(tall, [[0], [1, 2]], [0, 1, 2], method, range_=range_)
        assert torch.allclose(torch.cat(list(found[own]), 1)[None], expected, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in RESCALE_METHODS if "+" in name.replace(" + ", "")])
def test_what_leaves_the_video_leaves_its_map(method: str) -> None:
    maps = torch.full((FRAMES, 3, 8, 12), 0.1)
    maps[0, 0, 2:6, 2:6] = 0.8
    maps[1, 0, 2:6, 2:6] = 0.4
    maps[:, 2] = 1
    found = rescale(maps, [[0]], [0, 1, 2], method, frames=FRAMES)
    tops = found.amax((1, 2, 3))
    assert tops[0] == (0.8 if method.endswith("x raw") else 1)
    assert 0.1 < tops[1] / tops[0] < 0.9 and tops[2] / tops[0] < 0.05
    # The blur does not go over from one frame into the next.
    alone = rescale(maps[2:], [[0]], [0, 1, 2], method)
    assert alone.abs().max() == 0


@pytest.mark.parametrize("range_", RANGES)
def test_frames_spread_by_their_own_affinity_on_one_scale(range_: Range) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(2 * FRAMES, 2, 4, 6, generator=generator)
    affinity = torch.softmax(torch.randn(2 * FRAMES, 24, 24, generator=generator) * 2, -1)
    affinity = affinity * torch.rand(2 * FRAMES, 1, 1, generator=generator)
    found = propagate(scores, affinity, 3, range_, FRAMES)
    for video in range(2):
        own = slice(video * FRAMES, (video + 1) * FRAMES)
        whole = torch.block_diag(*affinity[own])[None]
        expected = propagate(torch.cat(list(scores[own]), 1)[None], whole, 3, range_)
        assert torch.allclose(torch.cat(list(found[own]), 1)[None], expected, atol=1e-5)


def test_all_frames_weigh_layers_alike() -> None:
    record = replace(recording(batch=2 * FRAMES), frames=FRAMES)
    weights = layer_weights(record).unflatten(0, (2, FRAMES))
    assert torch.equal(weights, weights[:, :1].expand(-1, FRAMES, -1))
    assert not torch.equal(weights[0], weights[1])
    lost = replace(record.layers[0], scores={name: s.clone() for name, s in record.layers[0].scores.items()})
    lost.scores[record.defaults.layer][1] = torch.nan
    spoiled = replace(record, layers=(lost, *record.layers[1:]))
    assert torch.isfinite(layer_weights(spoiled)).all()


# -- the images of a video --------------------------------------------------------------------------------------------


def video(stride: int = 4, videos: int = 2) -> attention.Attention:
    return replace(recording(batch=videos * FRAMES), frames=FRAMES, temporal_compression=stride)


@pytest.mark.parametrize("size", [None, (20, 30)])
def test_a_mask_for_each_image(size: tuple[int, int] | None) -> None:
    record = video()
    assert record.images == 9
    result = make_masks(record, MaskRequest("cat\ngrass", mode="soft", size=size))
    height, width = size or (32, 48)
    assert result.masks.shape == (2 * 9, 2, height, width) and result.background.shape == (2 * 9, height, width)
    videos = result.masks.unflatten(0, (2, 9))
    # The first latent frame is one image, each other is four.
    for first, last in ((1, 4), (5, 8)):
        assert torch.equal(videos[:, first : last + 1], videos[:, first : first + 1].expand(-1, 4, -1, -1, -1))
    assert not torch.equal(videos[:, 0], videos[:, 1]) and not torch.equal(videos[:, 4], videos[:, 5])
    assert word_scores(aggregate_scores(record), "cat")[0].shape[0] == 2 * 9


def aggregate_scores(record: attention.Attention) -> pipeline.Scoring:
    return pipeline.as_scoring(aggregate(record))


def test_a_mask_for_each_latent_frame() -> None:
    latent = make_masks(video(), MaskRequest("cat", mode="soft", latent_size=True)).masks
    assert latent.shape == (2 * FRAMES, 1, 4, 6)
    plain = make_masks(video(stride=1), MaskRequest("cat", mode="soft", latent_size=True)).masks
    assert torch.equal(latent, plain)


def test_refining_by_the_images_of_a_video() -> None:
    images = torch.rand(2 * 9, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    scores = refined(refined(video(), ProposalMerge()), Pamr(), images)
    assert make_masks(scores, MaskRequest("cat")).masks.shape == (2 * 9, 1, 32, 48)
    assert make_masks(scores, MaskRequest("cat", latent_size=True)).masks.shape == (2 * FRAMES, 1, 4, 6)
    with pytest.raises(ValueError, match="18"):
        refined(video(), Pamr(), images[: 2 * FRAMES])


def test_latent_frames_in_groups() -> None:
    """Of MiniMax-H3 the first of each five latent frames is decoded to one frame, and the others to four each."""
    generator = torch.Generator().manual_seed(4)
    record = replace(recording(batch=2 * 7), frames=7, temporal_compression=4, frame_group=5)
    sizes = [1, 4, 4, 4, 4, 1, 4]
    assert record.images == sum(sizes) == 22 and [record.decoded(n + 1) - record.decoded(n) for n in range(7)] == sizes
    maps = torch.rand(2 * 7, 2, 3, 4, generator=generator)
    expected = torch.cat([maps[n : n + 1].expand(sizes[n % 7], -1, -1, -1) for n in range(14)])
    assert torch.equal(expand_frames(maps, record), expected)
    assert torch.equal(expand_frames(maps[8:12], record, 8), expected[22 + 1 : 22 + 1 + 16])
    assert torch.allclose(latent_frames(expected, record), maps)
    assert torch.allclose(latent_frames(expected[22 + 1 : 22 + 18], record, 8), maps[8:13])
    request = MaskRequest("cat\ngrass", mode="soft")
    whole = make_masks(record, request).masks
    assert torch.equal(make_masks(record, request, place=pipeline.Workplace(torch.device("cpu"), room=1)).masks, whole)
    assert whole.shape[0] == 2 * 22 and torch.equal(whole[18], whole[21]) and not torch.equal(whole[16], whole[17])


def test_what_is_told_of_a_video() -> None:
    assert video().describe().startswith("2 x 9 frames (3 latent frames) x 48 x 32 pixels, 3 layers\n")


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_of_a_video(tmp_path: Path) -> None:
    attention.save(str(tmp_path / "video.safetensors"), video())
    loaded = attention.load(str(tmp_path / "video.safetensors"))
    assert (loaded.frames, loaded.temporal_compression, loaded.images) == (FRAMES, 4, 9)
    assert torch.equal(make_masks(loaded, MaskRequest("cat")).masks, make_masks(video(), MaskRequest("cat")).masks)
    attention.save(str(tmp_path / "video.safetensors"), replace(video(), frame_group=2))
    assert attention.load(str(tmp_path / "video.safetensors")).images == 1 + 4 + 1


def rewritten(path: Path, **changes: int | None) -> Path:
    """The file with other entries of its header; None takes one out."""
    with safetensors.safe_open(str(path), "pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    header = {**json.loads(metadata["header"]), **changes}
    header = {name: value for name, value in header.items() if value is not None}
    safetensors.torch.save_file(tensors, path, {**metadata, "header": json.dumps(header)})
    return path


def test_files_of_before_there_were_videos(tmp_path: Path) -> None:
    attention.save(str(tmp_path / "old.safetensors"), recording())
    loaded = attention.load(str(rewritten(tmp_path / "old.safetensors", frames=None, stride=None, group=None)))
    assert (loaded.frames, loaded.temporal_compression, loaded.images) == (1, 1, 1)


@pytest.mark.parametrize("changes", [{"frames": 4}, {"frames": 0}, {"stride": 0}, {"group": -1}])
def test_frames_that_cannot_be(tmp_path: Path, changes: dict[str, int]) -> None:
    attention.save(str(tmp_path / "video.safetensors"), video())
    with pytest.raises(AttentionError, match="damaged"):
        attention.load(str(rewritten(tmp_path / "video.safetensors", **changes)))


@pytest.mark.parametrize("rule", ["two classes", "clearest classes"])
def test_two_classes_do_not_depend_on_how_many_frames_are_worked_on_at_once(rule: str) -> None:
    video = replace(recording(batch=2 * FRAMES), frames=FRAMES, temporal_compression=4)
    request = MaskRequest("red cat\ngrass", rule=rule)
    whole = make_masks(video, request)
    few = make_masks(video, request, place=pipeline.Workplace(torch.device("cpu"), room=1))
    assert torch.equal(few.masks, whole.masks) and 0 < float(whole.masks.mean()) < 1
    # Levels are those of the video: its frames as single images have others.
    alone = make_masks(replace(video, frames=1), replace(request, latent_size=True))
    assert not torch.equal(alone.masks, make_masks(video, replace(request, latent_size=True)).masks)


# -- a phrase stays on its thing ---------------------------------------------------------------------------------------


def crossing(frames: int = 4, grid: tuple[int, int] = (6, 9)) -> tuple[attention.Attention, Tensor]:
    """Two videos in which the attention of "cat" moves to the right and that of "dog" to the left, in rows of their own.

    And where each of them is: [videos, frames, 2, height, width].
    """
    words = words_of("a cat and a dog on grass")
    height, width = grid
    where = torch.zeros(2, frames, 2, height, width)
    for frame in range(frames):
        for video, shift in enumerate((0, 1)):
            where[video, frame, 0, 1:3, 2 * frame + shift : 2 * frame + shift + 2] = 1
            where[video, frame, 1, 3:5, 6 - 2 * frame + shift : 8 - 2 * frame + shift] = 1
    maps = torch.full((2 * frames, height * width, 8), 0.02)
    maps += 0.01 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(2))
    maps[..., 2] += 0.5 * where[:, :, 0].flatten(0, 1).flatten(1)
    maps[..., 5] += 0.5 * where[:, :, 1].flatten(0, 1).flatten(1)
    maps[..., 7] += 0.5 * (1 - where.sum(2)).flatten(0, 1).flatten(1)
    maps[..., 0] += 1 - maps.sum(-1)
    layer = attention.Layer("cross.0", height, width, {"average": maps}, {})
    found = replace(
        recording(batch=2 * frames, text="a cat and a dog on grass", affinity=False),
        height=height,
        width=width,
        layers=(layer,),
        tokens=attention.Tokens(tuple(range(8)), True, 12, words),
        defaults=Defaults("average", "vanilla", "sum-1 rescaling + per-token renorm+", 0),
        frames=frames,
        temporal_compression=4,
    )
    return found, where


def on_their_things(masks: Tensor, where: Tensor) -> bool:
    """Whether each mask [..., 2, H, W] has all of its thing and nothing of the other; the auto method smooths their edges."""
    other = where.flip(-3)
    return bool((masks * where == where).all() and (masks * other == 0).all() and masks.mean() < 2 * where.mean())


@pytest.mark.parametrize("order", ORDERS)
def test_a_phrase_stays_on_its_thing(order: str) -> None:
    """The things cross: what is left of the other in the first frame is right of it in the last."""
    found, where = crossing()
    result = make_masks(found, MaskRequest("cat\ndog", latent_size=True))
    masks = flatten(result.masks, order)
    ours = masks.unflatten(0, (2, 4, 2)) if order == ORDERS[0] else masks.unflatten(0, (2, 2, 4)).movedim(0, 2)
    assert on_their_things(ours, where)
    # Of the frames of the video the same: one batch for each phrase, in the order of the frames.
    frames = flatten(make_masks(found, MaskRequest("cat\ndog")).masks, ORDERS[1]).unflatten(0, (2, 2, found.images))
    scale = found.vae_scale
    for frame, latent in [(0, 0), (1, 1), (4, 1), (5, 2), (12, 3)]:
        centres = frames[:, :, frame, scale // 2 :: scale, scale // 2 :: scale]
        assert on_their_things(centres.transpose(0, 1), where[:, latent]), frame


def test_orders_of_masks() -> None:
    masks = torch.rand(3, 2, 4, 5)
    assert torch.equal(flatten(masks)[1], masks[0, 1]) and torch.equal(flatten(masks, ORDERS[1])[1], masks[1, 0])
    assert torch.equal(flatten(masks, ORDERS[1])[3:], masks[:, 1])
    with pytest.raises(
        ValueError, match='The order "by name" is unknown; choose one of: image by image, phrase by phrase'
    ):
        flatten(masks, "by name")
