"""Every family beside the UNet: what is recorded equals the method written out densely, in double precision."""

from __future__ import annotations

from typing import Any

import comfy.supported_models
import pytest
import torch

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError
from goca_core.capture.families import FAMILIES as KNOWN
from goca_core.capture.families import find_family
from goca_core.capture.recorder import Window, record
from goca_core.heads import HEAD_METHODS
from goca_core.layers import LAYER_METHODS

from . import tiny
from .dense import (
    assert_near,
    by_token,
    check,
    check_maps,
    check_scores,
    dense_affinity,
    dense_map,
    dense_scores,
    probe_and_record,
)
from .device import HALF, half_precision
from .families import FAMILIES, ODD
from .helpers import blocks_of, identical, job, names, plain, words_of
from .older import is_before, need
from .tiny_models import MT5

pytestmark = pytest.mark.usefixtures("host")


# -- what is recorded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_one_call_for_positive_and_negative(name: str) -> None:
    built, kind = tiny.build(name), FAMILIES[name]
    probe, attention = probe_and_record(built.model, job(built, 1 if kind.alone else 2, cfg=4.0), layout=kind.layout)
    assert kind.alone or all(call.chunks == [1, 0] for call in probe.calls)
    check(attention, probe)
    affinity = by_token(attention, probe.plan.frame_patch).affinity
    assert affinity is not None
    grid = affinity.height, affinity.width
    assert_near(affinity.matrix, dense_affinity(probe, probe.positive(attention.sigmas[0]), grid))


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_of_their_own(name: str) -> None:
    """Prompts of different lengths are not put together by these models; nor is anything when memory is short."""
    built = tiny.build(name)
    if FAMILIES[name].together:
        built.model.model.memory_required = lambda *_args, **_kwargs: 1e30
        negative = built.conditioning(seed=2)
    else:
        negative = built.conditioning(seed=2, tokens=13)
    probe, attention = probe_and_record(
        built.model, job(built, 1, cfg=4.0, negative=negative), layout=FAMILIES[name].layout
    )
    assert {tuple(call.chunks) for call in probe.calls} == {(1,), (0,)}
    check(attention, probe)


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes(name: str) -> None:
    built = tiny.build(name)
    size = FAMILIES[name].odd
    assert size is not None
    probe, attention = probe_and_record(built.model, job(built, 1, size, cfg=1.0), layout=FAMILIES[name].layout)
    check(attention, probe)
    assert (attention.height, attention.width) == size
    assert {(layer.height, layer.width) for layer in attention.layers} == {FAMILIES[name].grid}


@pytest.mark.parametrize("name", ["pixart_sigma", "hunyuan_dit", "flux", "sd3", "wan21", "cosmos1"])
def test_every_method(name: str) -> None:
    built = tiny.build(name)
    probe, attention = probe_and_record(built.model, job(built, 1), head_methods="all", layer_methods="all")
    call = probe.positive(attention.sigmas[0])
    assert attention.head_methods == HEAD_METHODS and set(attention.layer_methods) == set(LAYER_METHODS)
    for method in HEAD_METHODS:
        check_maps(attention, call, method)
    for method in ("dot-product similarity", "mse", "iou-like"):
        check_scores(attention, dense_scores(call, probe.plan.reference, method), method)


@pytest.mark.parametrize(
    "name",
    ["pixart_alpha", "hunyuan_dit", "flux", "auraflow", "z_image", "wan21", "mochi", "flux2", "cascade_c"],
)
def test_words_and_the_sum_of_the_others(name: str) -> None:
    built = tiny.build(name)
    plain = built.conditioning(seed=1)
    length = plain[0][0].shape[1] + (MT5 if name == "hunyuan_dit" else 0)
    words = words_of("a red cat on grass", length)
    probe, attention = probe_and_record(
        built.model, job(built, 2, positive=built.conditioning(seed=1, goca_words=words)), layout=FAMILIES[name].layout
    )
    kept = list(range(7))
    assert attention.tokens.positions == tuple(kept) and attention.tokens.length == length
    call = probe.positive(attention.sigmas[0])
    for layer in attention.layers:
        dense = dense_map(call.cross[layer.name], attention.defaults.head, length)
        expected = torch.cat((dense[..., kept], dense[..., 7:].sum(-1, keepdim=True)), -1)
        assert_near(layer.maps[attention.defaults.head], expected)
        if FAMILIES[name].joint:
            # The image attends to itself as well, so the text has less than all of its attention.
            assert layer.maps["average"].sum(-1).max() < 0.95
    assert torch.allclose(aggregate(attention).maps.sum(1), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("name", ["hunyuan_dit", "flux"])
@pytest.mark.parametrize("full", [False, True])
def test_a_bounded_grid(name: str, full: bool) -> None:
    """Layers are compared on fewer tokens; the maps of the words stay as fine as they are."""
    built = tiny.build(name)
    work = job(built, 1, (16, 24), cfg=1.0, steps=2)
    probe, attention = probe_and_record(built.model, work, grid_limit=30, full_affinity=full)
    call = probe.positive(attention.sigmas[0])
    check_maps(attention, call)
    assert attention.affinity is not None
    # A small image's propagation is always on its own grid.
    assert (attention.affinity.height, attention.affinity.width) == (8, 12)
    assert_near(attention.affinity.matrix, dense_affinity(probe, call, (8, 12)))
    exact = dense_scores(call, probe.plan.reference, "dot-product similarity")
    assert any(
        (layer.scores["dot-product similarity"] / exact[layer.name] - 1).abs().max() > 1e-3
        for layer in attention.layers
    )
    assert torch.isfinite(aggregate(attention).maps).all()


@pytest.mark.parametrize("name", ["pixart_sigma", "hunyuan_dit", "flux"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    half = tiny.build(name, dtype=dtype)
    probe, attention = probe_and_record(half.model, job(half, 1, steps=1, cfg=1.0))
    check_maps(attention, probe.positive(attention.sigmas[0]), tolerance=half_precision(HALF))
    assert torch.isfinite(aggregate(attention).maps).all()


# -- reference images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["offset", "index", "uxo"])
def test_reference_images_are_no_part_of_the_image(method: str) -> None:
    """Kontext appends their tokens to the image's."""
    built = tiny.build("flux")
    generator = torch.Generator().manual_seed(4)
    references = [torch.randn(1, 16, *size, generator=generator) for size in ((8, 12), (10, 6))]
    extra = {"reference_latents": references, "reference_latents_method": method}
    positive = built.conditioning(seed=1, **extra)
    work = job(built, 2, (15, 22), cfg=4.0, positive=positive)
    probe, attention = probe_and_record(built.model, work)
    call = probe.positive(attention.sigmas[0])
    (joint,) = {seen.q.shape[1] for seen in call.cross.values()}
    assert joint == 30 + 8 * 11 + 4 * 6 + 5 * 3
    check(attention, probe)
    identical(built.model, work)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("flux2", {}),
        ("qwen_image", {}),
        ("mage_flow", {}),
        ("krea2", {}),
        ("joyimage", {}),
        ("omnigen2", {"references_first": True}),
        ("boogu", {"references_first": True}),
    ],
)
def test_reference_images(name: str, layout: dict[str, bool]) -> None:
    built, kind = tiny.build(name), FAMILIES[name]
    generator, patch = torch.Generator().manual_seed(4), blocks_of(built.model).patch
    frames = [1] * built.frames
    references = [torch.randn(1, built.channels, *frames, *size, generator=generator) for size in ((8, 12), (9, 6))]
    extra = {"reference_latents": references, "reference_latents_method": "index"}
    work = job(built, 1, kind.odd, cfg=1.0, positive=built.conditioning(seed=1, **extra))
    probe, attention = probe_and_record(built.model, work, layout={**kind.layout, **layout})
    (joint,) = {seen.k.shape[1] for seen in probe.positive(attention.sigmas[0]).cross.values()}
    text = 512 if name == "flux2" else 30
    assert joint == text + sum(-(-h // patch) * -(-w // patch) for h, w in (kind.odd, (8, 12), (9, 6)))
    check(attention, probe)
    identical(built.model, work)


def with_calls(model: Any) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A copy of a MODEL, and the queries and keys of all attention calls that it will make."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(func: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        heads = args[1] if len(args) > 1 else kwargs["heads"]
        seen = [x if x.ndim == 4 else x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q.double(), k.double())]
        calls.append((seen[0], seen[1].repeat_interleave(seen[0].shape[1] // seen[1].shape[1], 1)))
        result: torch.Tensor = func(q, k, *args, **kwargs)
        return result

    copy = model.clone()
    copy.model_options["transformer_options"]["optimized_attention_override"] = keep
    return copy, calls


def test_cached_keys_of_reference_images() -> None:
    """ComfyUI's Flux KV Cache computes them once; after that text and image ask, and their keys follow those of the image."""
    flux = pytest.importorskip("comfy_extras.nodes_flux")
    need(hasattr(flux, "FluxKVCache"), "node Flux KV Cache")
    built = tiny.build("flux2")
    model, calls = with_calls(flux.FluxKVCache.execute(built.model).result[0])
    references = [torch.randn(1, built.channels, 8, 12)]
    positive = built.conditioning(seed=1, reference_latents=references)
    work = job(built, 1, (7, 11), cfg=1.0, steps=3, positive=positive)
    attention = identical(model, work, window=Window(False, 0, 1, 3))
    assert len(attention.sigmas) == 3 and not attention.note
    recording, recorder = record(model, Window())
    attention = recorder.collect(work.run(recording)["samples"])
    text, image = 512, 7 * 11
    depth = len(attention.layers)
    evaluations = [calls[start : start + depth] for start in range(len(calls) - 3 * depth, len(calls), depth)]
    assert [call[0].shape[2] for call in evaluations[-1]] == [text + image] * depth
    assert {call[1].shape[2] for call in evaluations[-1]} == {text + image + 8 * 12}
    found = [layer.maps["average"] for layer in attention.layers]
    dense = [
        [
            torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)[:, text : text + image, text - 30 : text]
            for q, k in each
        ]
        for each in evaluations
    ]
    # The evaluation that the default window takes.
    nearest = min(dense, key=lambda each: float((each[0] - found[0]).abs().max()))
    for layer, expected in zip(found, nearest, strict=True):
        assert_near(layer, expected)


def test_the_image_that_hidream_edits_is_beside_the_new_one() -> None:
    built = tiny.build("hidream")
    model, calls = with_calls(built.model)
    edited = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(4))
    positive = built.conditioning(seed=1, concat_latent_image=edited)
    attention = identical(model, job(built, 2, (12, 16), cfg=1.0, steps=1, positive=positive))
    assert (attention.height, attention.width) == (12, 16)
    own = [call for call in calls if call[0].shape[2] == 6 * 16 + attention.tokens.length][-len(attention.layers) :]
    left = (torch.arange(6 * 16) % 16) < 8
    for layer, (q, k) in zip(attention.layers, own, strict=True):
        assert (layer.height, layer.width) == (6, 8)
        dense = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)[:, : 6 * 16]
        assert_near(layer.maps["average"], dense[:, left, 6 * 16 :])
    assert attention.affinity is not None and (attention.affinity.height, attention.affinity.width) == (6, 8)
    own = [own[[layer.name for layer in attention.layers].index(name)] for name in blocks_of(built.model).affinity]
    seen = [torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)[:, : 6 * 16, : 6 * 16] for q, k in own]
    assert_near(attention.affinity.matrix, torch.stack(seen).mean(0)[:, left][:, :, left])


def test_reference_images_of_hidream_o1() -> None:
    """They come after the image's patches, and what they show is in the prompt, before its words."""
    built = tiny.build("hidream_o1")
    model, calls = with_calls(built.model)
    positive = built.conditioning(seed=1, reference_latents=[torch.rand(1, 64, 96, 3)])
    attention = identical(model, job(built, 1, (64, 160), cfg=1.0, steps=1, positive=positive))
    image, own = 2 * 5, [call for call in calls if call[0].shape[2] < call[1].shape[2]][-3:]
    for layer, (q, k) in zip(attention.layers, own, strict=True):
        dense = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)[:, 1 : 1 + image]
        patches = q.shape[2] - 1 - image
        assert patches > 0 and k.shape[2] > 30 + image + patches
        # The first three tokens are the template's, before the reference image.
        words = dense[..., : k.shape[2] - image - patches][..., -27:]
        assert_near(layer.maps["average"][..., 3:], words)


def test_reference_images_that_a_network_ignores() -> None:
    """Krea 2 has them in its sequence only when it is told how."""
    built = tiny.build("krea2")
    references = [torch.randn(1, 16, 1, 8, 12)]
    work = job(built, 1, cfg=1.0, positive=built.conditioning(seed=1, reference_latents=references))
    recording, recorder = record(built.model, Window())
    assert recorder.collect(work.run(recording)["samples"]).layers


def test_a_prompt_that_comfyui_repeats() -> None:
    """Stable Cascade's prompts go into one call even if one is twice as long."""
    built = tiny.build("cascade_c")
    work = job(built, 1, (7, 11), negative=built.conditioning(seed=2, tokens=154))
    probe, attention = probe_and_record(built.model, work, layout=FAMILIES["cascade_c"].layout)
    assert all(call.chunks == [1, 0] for call in probe.calls) and attention.tokens.length == 77
    check(attention, probe)


def test_a_sequence_with_tokens_of_another_node() -> None:
    """Where the words are cannot be known then, and that is said instead of guessed."""
    built = tiny.build("flux")

    def more(args: dict[str, Any]) -> dict[str, Any]:
        txt, ids = args["txt"], args["txt_ids"]
        return {**args, "txt": torch.cat((txt, txt[:, :4]), 1), "txt_ids": torch.cat((ids, ids[:, :4]), 1)}

    model = built.model.clone()
    model.set_model_patch(more, "post_input")
    work = job(built)
    recording, recorder = record(model, Window())
    expected = plain(model, work)
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected)
    with pytest.raises(
        AttentionError, match=r"positions of the words are unknown.*130 tokens.*30 for the prompt.*adds tokens"
    ):
        recorder.collect(latent)


# -- the paper's choices ----------------------------------------------------------------------------------------------


def plan_of(name: str, **real: int) -> Any:
    """The plan of a tiny model with the depth of the real one."""
    kind = tiny.MODELS[name]
    tiny.MODELS["deep"] = kind._replace(config={**kind.config, **real})
    try:
        return blocks_of(tiny.build("deep").model)
    finally:
        del tiny.MODELS["deep"]


def test_the_layers_of_the_paper() -> None:
    pixart = plan_of("pixart_sigma", depth=28)
    assert names(pixart.blocks) == [f"block.{number}" for number in range(28)]
    assert (pixart.reference, pixart.feature) == ("block.13", "query")
    assert pixart.affinity == tuple(f"block.{number}" for number in range(10, 18))
    assert (pixart.defaults.head, pixart.defaults.propagation_steps) == ("dot-product w/o clamp", 5)

    hunyuan = plan_of("hunyuan_dit", depth=40)
    assert names(hunyuan.blocks) == [f"block.{number}" for number in range(20, 30)]
    assert (hunyuan.reference, hunyuan.feature) == ("block.25", "query")
    assert hunyuan.affinity == tuple(names(hunyuan.blocks))
    assert (hunyuan.defaults.head, hunyuan.defaults.propagation_steps) == ("average", 4)

    flux = plan_of("flux", depth=19, depth_single_blocks=38)
    assert len(flux.blocks) == 57
    assert (flux.reference, flux.feature) == ("single.8", "attention")
    assert flux.affinity == ("double.12", "double.18")
    assert (flux.defaults.head, flux.defaults.propagation_steps) == ("average", 2)
    assert (flux.noise_level, pixart.noise_level, hunyuan.noise_level) == (0.407, 0.342, 0.327)


def test_the_layers_by_analogy() -> None:
    """Flux's blocks at Flux's places; of the others the layer at half of the depth and those around it."""
    flux2 = plan_of("flux2", depth=8, depth_single_blocks=48)
    assert (flux2.reference, flux2.feature, flux2.affinity) == ("single.10", "attention", ("double.5", "double.7"))
    omnigen2 = plan_of("omnigen2", num_layers=32)
    assert (omnigen2.reference, omnigen2.feature) == ("layer.16", "attention")
    assert omnigen2.affinity == tuple(f"layer.{number}" for number in range(12, 20))
    hidream = plan_of("hidream", num_layers=4, num_single_layers=8)
    assert (hidream.reference, hidream.feature) == ("single.2", "attention")
    joyimage = plan_of("joyimage", num_layers=16)
    assert (joyimage.reference, joyimage.feature) == ("block.8", "projected")
    assert {plan.noise_level for plan in (flux2, omnigen2, hidream, joyimage)} == {0.407}
    assert {plan.defaults for plan in (flux2, omnigen2, hidream, joyimage)} == {plan_of("flux").defaults}


# -- older versions of ComfyUI ----------------------------------------------------------------------------------------


def test_what_an_older_host_lacks_is_what_the_readme_says() -> None:
    newer = {name: kind.since for name, kind in FAMILIES.items() if kind.since}
    lacking = {name for name in FAMILIES if not hasattr(comfy.supported_models, tiny.MODELS[name].model)}
    # A version between the two may have some of them already.
    assert lacking <= {name for name, since in newer.items() if is_before(since)}
    found = {
        find_family(tiny.build(name).model.model).name: since for name, since in newer.items() if name not in lacking
    }
    tested = [family for family in KNOWN if not family.support.described]
    stated = {family.name: family.support.since for family in tested if family.support.since}
    assert len(stated) == len(newer) and found.items() <= stated.items()
