"""The dispatch of a newer ComfyUI, which the pinned ones do not have (see `newer`): recording goes along with it."""

from __future__ import annotations

import threading
from typing import Any

import comfy.model_prefetch
import comfy.samplers
import comfy.sd
import pytest
import torch
from torch import Tensor

from goca_core.capture.conditioning import word_map
from goca_core.capture.encoded.note import PromptNote
from goca_core.capture.encoded.read import read
from goca_core.capture.encoded.texts import Part, Source, ids_of
from goca_core.capture.guidance.patch import guide
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Window, record
from goca_core.guidance.semantic import REGION_RULES, Settings

from . import prefix_network, tiny
from .dense import assert_near, check, probe_and_record
from .families import FAMILIES
from .guided import TEXT, Notes, rate_of, work
from .helpers import IDENTICAL_RUNS, blocks_of, identical, job, words_of
from .newer import AllocationGraph, CapturedGraphs, Dispatch, fuse, fuse_projections, switch_on

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Dispatch:
    return switch_on(monkeypatch)


@pytest.mark.parametrize(
    "name", ["pixart_sigma", "hunyuan_dit", "ernie", "flux", "sd3", "z_image", "wan21_i2v", "ltxv"]
)
def test_what_is_recorded(name: str, newer: Dispatch) -> None:
    built = tiny.build(name)
    run = job(built, 2, cfg=4.0, steps=1)
    probe, attention = probe_and_record(built.model, run, layout=FAMILIES[name].layout)
    check(attention, probe)
    newer.taken.clear()
    identical(built.model, run)
    assert set(newer.taken) == {"boxed"} and newer.taken["boxed"] % IDENTICAL_RUNS == 0


@pytest.mark.parametrize("name", ["sd15", "pixart_sigma", "z_image", "ltxv"])
def test_the_kernel_that_a_checkpoint_asks_for(name: str, newer: Dispatch) -> None:
    """It computes something else than ComfyUI's own, and is asked as often as without recording."""
    built = tiny.build(name)
    run = job(built, cfg=4.0, steps=2)
    expected = run.run(built.model)["samples"]
    newer.give_kernel(built.model, newer.rough_kernel())
    newer.taken.clear()
    attention = identical(built.model, run)
    assert set(newer.taken) == {"preferred", "boxed"}
    assert newer.taken["preferred"] == newer.taken["boxed"] and newer.taken["boxed"] % IDENTICAL_RUNS == 0
    assert not torch.allclose(run.run(built.model)["samples"], expected, atol=1e-2)
    assert len(attention.layers) == len(blocks_of(built.model).blocks)


def test_semantic_guidance_is_not_plain(newer: Dispatch) -> None:
    built = tiny.build("pixart_sigma")
    notes = Notes()
    text = words_of(TEXT, built.conditioning()[0][0].shape[1])
    work(built, size=built.size, positive=built.conditioning(seed=1, goca_words=text)).run(
        notes.on(guide(built.model, Settings("GoCA")))
    )
    assert newer.taken["boxed"] and all(rate_of(args).std() > 0.01 for args in notes.args)


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_a_projection_that_is_fused_with_what_comes_before(
    name: str, newer: Dispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes and goes between evaluations: only with weights on the device, for example."""
    built = tiny.build(name)
    run = job(built, 2, cfg=4.0)
    window = Window(False, 0, 1, 3)
    expected = identical(built.model, run, window=window)
    fuse_projections(monkeypatch)
    called: list[int] = []
    handle = blocks_of(built.model).blocks[0].cross_attn.query.register_forward_pre_hook(lambda *_: called.append(1))
    recording, recorder = record(built.model, window)
    attention = recorder.collect(run.run(recording)["samples"])
    handle.remove()
    assert not called and len(attention.sigmas) == 3
    for one, other in zip(attention.layers, expected.layers, strict=True):
        torch.testing.assert_close(one.maps["average"], other.maps["average"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)
    identical(built.model, run)


BLOCKS = {
    "z_image": lambda network: network.layers,
    "qwen_image": lambda network: network.transformer_blocks,
    "flux": lambda network: [*network.double_blocks, *network.single_blocks],
    "wan21": lambda network: network.blocks,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_nothing_of_ours_is_in_the_graph_of_allocations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build(name)
    blocks = BLOCKS[name](built.model.model.diffusion_model)
    run = job(built, 1, cfg=1.0, steps=3)
    graph = AllocationGraph()
    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", graph.pause, raising=False)
    with graph.over(blocks):
        expected = run.run(built.model)["samples"]
    assert (graph.rogues, graph.frames) == (0, 3 * len(blocks)), "the stand-in is wrong"
    recording, recorder = record(built.model, Window(False, 0, 1, 2), RecordOptions("all", "all", affinity_parts=True))
    with graph.over(blocks):
        latent = run.run(recording)["samples"]
    assert graph.rogues == 0 and graph.frames == 6 * len(blocks)
    assert torch.equal(latent, expected)
    attention = recorder.collect(latent)
    assert len(attention.layers) == len(blocks_of(built.model).blocks)
    # A pause is no counter, so there is one for each call and one for the reference.
    assert 0 < graph.pauses <= 2 * (sum(len([*block.sites]) for block in blocks_of(built.model).blocks) + 1)


def test_captured_graphs_are_dropped_where_something_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("flux")
    graphs = CapturedGraphs(monkeypatch, BLOCKS["flux"](built.model.model.diffusion_model), droppable=True)
    run = job(built, 1, cfg=1.0, steps=6)
    latent = run.run(built.model)["samples"]
    assert graphs.replayed
    for window, count in ((Window(), 1), (Window(False, 0, 1, 6), 6)):
        recording, recorder = record(built.model, window)
        assert torch.equal(run.run(recording)["samples"], latent)
        attention = recorder.collect(latent)
        assert len(attention.sigmas) == count and not attention.note
        assert len(attention.layers) == len(blocks_of(built.model).blocks)


@pytest.mark.parametrize("part", [False, True], ids=["every block", "some blocks"])
def test_evaluations_that_could_not_be_seen_are_told(part: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a newer version has no way to drop its graphs, the recording of the first evaluations is not all there is."""
    built = tiny.build("flux")
    blocks = BLOCKS["flux"](built.model.model.diffusion_model)
    CapturedGraphs(monkeypatch, blocks[1:3] if part else blocks, droppable=False)
    recording, recorder = record(built.model, Window(False, 0, 1, 6))
    attention = recorder.collect(job(built, 1, cfg=1.0, steps=6).run(recording)["samples"])
    assert len(attention.sigmas) == 2 and "4 of 6 evaluations" in attention.note
    assert len(attention.layers) == len(blocks_of(built.model).blocks)
    assert "4 of 6 evaluations" in attention.describe()


def test_self_attention_that_could_not_be_seen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.build("wan21")
    blocks = blocks_of(built.model).blocks
    # A newer version may fuse this projection too.
    fuse(monkeypatch, built.model.model.diffusion_model.blocks[0].self_attn, "q")
    recording, recorder = record(built.model, Window())
    attention = recorder.collect(job(built, 1, cfg=1.0, steps=1).run(recording)["samples"])
    assert f"self-attention of 1 of {len(blocks)} layers" in attention.note


# -- several GPUs ---------------------------------------------------------------------------------------------------------


def _on_copies(name: str) -> tuple[Any, Any]:
    """A MODEL whose positive prompts run on a copy of the network at every other evaluation, in a thread, as with several
    GPUs; and the copy."""
    model, copied = tiny.build(name).model, tiny.build(name).model.model
    original, networks = comfy.samplers.calc_cond_batch, [model.model, copied]

    def in_threads(args: dict[str, Any]) -> list[Tensor]:
        options = {**args["model_options"]}
        options.pop("sampler_calc_cond_batch_function")
        found: list[Any] = [None] * len(args["conds"])
        copied.current_patcher = args["model"].current_patcher

        def one(number: int, network: Any) -> None:
            with torch.inference_mode():
                cond = [args["conds"][number]]
                (found[number],) = original(network, cond, args["input"], args["sigma"], options)

        networks.reverse()
        networks[:] = [copied if network is copied else args["model"] for network in networks]
        threads = [threading.Thread(target=one, args=each) for each in enumerate(networks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    spread = model.clone()
    spread.set_model_sampler_calc_cond_batch_function(in_threads)
    return spread, copied


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_copy_of_the_network_on_another_gpu(name: str) -> None:
    built = tiny.build(name)
    spread, copied = _on_copies(name)
    run = job(built, 1, cfg=4.0, steps=2)
    expected = run.run(spread)["samples"]
    recording, recorder = record(spread, Window(False, 0, 1, 2))
    latent = run.run(recording)["samples"]
    assert torch.equal(latent, expected) and not any(module._forward_pre_hooks for module in copied.modules())
    attention = recorder.collect(latent)
    assert len(attention.sigmas) == 2 and not attention.note
    recording, recorder = record(built.model, Window(False, 0, 1, 2))
    alone = recorder.collect(run.run(recording)["samples"])
    for one, other in zip(attention.layers, alone.layers, strict=True):
        torch.testing.assert_close(one.maps["average"], other.maps["average"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rule", REGION_RULES)
def test_semantic_guidance_over_several_gpus(rule: str) -> None:
    built = tiny.build("sd15")
    rates = []
    for model in (_on_copies("sd15")[0], built.model):
        notes = Notes()
        work(built).run(notes.on(guide(model, Settings(rule))))
        rates.append(rate_of(notes.args[0]))
    # A pixel at which two words are equal up to rounding may go either way.
    assert ((rates[0] - rates[1]).abs() < 1e-3).float().mean() > 0.97 and rates[0].std() > 0.01


# -- a prompt whose keys are computed once --------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_only_the_image_asks(cached: bool, batch: int) -> None:
    """The keys of the prompt come first in each call, and the prefix's own calls, at the same sites, are not recorded."""
    built = prefix_network.build(cached)
    text = built.conditioning()[0][0].shape[1]
    run = job(built, batch, (5, 7), cfg=1.0, steps=3)
    assert text != 5 * 7
    attention = identical(built.model, run)
    assert (attention.family, len(attention.layers), attention.note) == ("qwen-image-2.1", 4, "")
    network = built.model.model.diffusion_model
    network.seen.clear()
    recording, recorder = record(built.model, Window())
    recorder.collect(run.run(recording)["samples"])
    # Three evaluations of four blocks; the default window takes the last but one or so.
    calls = [network.seen[4 * step : 4 * step + 4] for step in range(3)]
    maps = [[_probabilities(q, k) for q, k in step] for step in calls]
    levels = [float(layer[0][..., :text].mean()) for layer in maps]
    found = [layer.maps["average"] for layer in attention.layers]
    nearest = min(range(3), key=lambda step: abs(levels[step] - float(found[0].mean())))
    for layer, dense in zip(found, maps[nearest], strict=True):
        assert_near(layer, dense[..., :text].mean(1))
    propagated = blocks_of(built.model).affinity
    own = torch.stack([maps[nearest][int(name.split(".")[1])][..., text:].mean(1) for name in propagated]).mean(0)
    assert attention.affinity is not None
    assert_near(attention.affinity.matrix, own)
    assert all(layer.scores["dot-product similarity"].isfinite().all() for layer in attention.layers)


def test_reference_images_in_the_prompt() -> None:
    """The words that follow them are where the prompt ends, just before the image."""
    built = prefix_network.build()
    text = built.conditioning()[0][0].shape[1]
    references = [torch.randn(1, 16, 6, 8), torch.randn(1, 16, 4, 2)]
    positive = built.conditioning(seed=1, reference_latents=references)
    run = job(built, 2, (5, 7), cfg=1.0, steps=1, positive=positive)
    attention = identical(built.model, run)
    seen = built.model.model.diffusion_model.seen[-4:]
    for layer, (q, k) in zip(attention.layers, seen, strict=True):
        dense = _probabilities(q, k).mean(1)
        assert dense.shape[-1] == text + 6 * 8 + 4 * 2 + 5 * 7
        words = slice(dense.shape[-1] - 5 * 7 - text + prefix_network.SLOT, dense.shape[-1] - 5 * 7)
        assert_near(layer.maps["average"][..., prefix_network.SLOT :], dense[..., words])


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    q, k = (x.double().unflatten(-1, (prefix_network.HEADS, -1)).transpose(1, 2) for x in (q, k))
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)


@pytest.mark.parametrize("images", [1, 2])
def test_the_words_of_qwen_image_21_after_images(images: int) -> None:
    """Its text encoder leaves the images out, because the network gets them otherwise."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = prefix_network.tokenizer(), {}
    options = {"images": [torch.zeros(1, 8, 8, 3)] * images}
    (chunk,) = clip.tokenize("the image1 of a red cat", **options)["qwen3vl_8b"]
    entries = [entry[0] for entry in chunk]
    starts = [place for place, token in enumerate(entries) if token == 151644]
    kept = [entry for entry in entries[starts[1] :] if isinstance(entry, int)]
    assert len(kept) == len(entries) - starts[1] - images
    source = Source("the image1 of a red cat", {"images": images})
    ids = {"qwen3vl_8b": (ids_of(chunk),)}
    note = PromptNote(clip.tokenizer, None, {"qwen3vl_8b": (Part(source, 1),)}, ids, read)
    note.length = len(kept)
    words = read(note)
    vocabulary = getattr(clip.tokenizer, clip.tokenizer.clip_name).tokenizer
    assert words.length == len(kept)
    assert [word.text for word in words.words] == source.text.split()
    for word in words.words:
        assert vocabulary.decode([kept[place] for place in word.positions]).strip() == word.text
    assert [piece.token_id for piece in words.pieces] == kept


@pytest.mark.parametrize("text", ["user image of a red cat", ""])
def test_the_words_of_qwen_image_21(text: str) -> None:
    """Its text encoder drops the system's turn, and keeps the user's with its header."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = prefix_network.tokenizer(), {}
    ids = [entry[0] for entry in clip.tokenize(text)[clip.tokenizer.clip_name][0]]
    starts = [place for place, token in enumerate(ids) if token == 151644]
    kept = ids[starts[1] :] if len(starts) > 1 else ids
    words = word_map(clip, text)
    assert words.length == len(kept)
    vocabulary = getattr(clip.tokenizer, clip.tokenizer.clip_name).tokenizer
    found = [vocabulary.decode([kept[place]]).strip() for word in words.words for place in word.positions]
    assert found == text.split()
    # Not those of the template.
    assert not words.words or min(words.find("user")) == 3
