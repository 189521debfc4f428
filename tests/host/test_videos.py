"""Videos: what the order of frames, reference images and texts of several lengths do to a recording."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from goca_core.attention.file import load, save
from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError
from goca_core.capture.families import UnknownFamily
from goca_core.capture.recorder import Window, record
from goca_core.pipeline import MaskRequest, make_masks

from . import tiny
from .dense import assert_near, check, check_maps, dense_map, probe_and_record
from .device import HALF, half_precision
from .families import FAMILIES
from .helpers import blocks_of, identical, job, names, plain, words_of
from .older import need
from .tiny_video import FRAMES

pytestmark = pytest.mark.usefixtures("host")


def test_from_a_video_to_masks(tmp_path: Any) -> None:
    built = tiny.build("wan21")
    positive = built.conditioning(seed=1, goca_words=words_of("a red cat on grass", 30))
    recording, recorder = record(built.model, Window())
    attention = recorder.collect(job(built, 2, positive=positive).run(recording)["samples"])
    assert (attention.batch, attention.frames, attention.temporal_compression, attention.images) == (
        2 * FRAMES,
        FRAMES,
        4,
        9,
    )
    assert attention.describe().startswith("2 x 9 frames (3 latent frames) x 192 x 128 pixels, 3 layers\n")
    masks = make_masks(attention, MaskRequest("red cat\ngrass")).masks
    assert masks.shape == (2 * 9, 2, 128, 192)
    save(str(tmp_path / "video.safetensors"), attention)
    assert torch.equal(
        make_masks(load(str(tmp_path / "video.safetensors")), MaskRequest("red cat\ngrass")).masks, masks
    )
    latent = make_masks(attention, MaskRequest("red cat", mode="soft", latent_size=True)).masks
    assert latent.shape == (2 * FRAMES, 1, 16, 24)


@pytest.mark.parametrize("name", ["wan21", "hunyuan_video", "kandinsky5", "cogvideox15"])
def test_a_video_of_one_frame_is_an_image(name: str) -> None:
    built = tiny.build(name)._replace(frames=1)
    probe, attention = probe_and_record(built.model, job(built, 2, cfg=4.0))
    check(attention, probe)
    assert (attention.batch, attention.frames, attention.images) == (2, 1, 1)
    assert make_masks(attention, MaskRequest("x", "", size=(8, 8)), words_of("x y", 30)).masks.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("references", [False, True])
def test_the_layers_of_an_image(references: bool) -> None:
    """Qwen-Image-Layered makes them as frames, and each is decoded by itself."""
    built = tiny.build("qwen_image")._replace(frames=3)
    extra = {"reference_latents": [_latent(16, 1, 8, 12)]} if references else {}
    work = job(built, 2, (15, 22), cfg=4.0, positive=built.conditioning(seed=1, **extra))
    probe, attention = probe_and_record(built.model, work)
    check(attention, probe)
    assert (attention.batch, attention.frames, attention.images) == (2 * 3, 3, 3)
    masks = make_masks(attention, MaskRequest("x", "", size=(8, 8)), words_of("x y", 30)).masks
    assert masks.shape == (2 * 3, 1, 8, 8)
    identical(built.model, work)


def test_an_image_model_does_not_make_videos() -> None:
    built = tiny.build("joyimage")._replace(frames=2)
    recording, recorder = record(built.model, Window())
    work = job(built, steps=1, cfg=1.0)
    expected = plain(built.model, work)
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected)
    with pytest.raises(AttentionError, match="Nothing was recorded"):
        recorder.collect(latent)


# -- reference images -------------------------------------------------------------------------------------------------


def _latent(channels: int, frames: int, *size: int) -> torch.Tensor:
    return torch.randn(1, channels, frames, *size, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("name", "extra", "layout", "more"),
    [
        # Fun Control: an image of the video's size in front. ComfyUI takes even ones only.
        ("wan21_fun_control", {"reference_latents": [_latent(16, 1, 16, 22)]}, {"before": 8 * 11}, 8 * 11),
        # Phantom: more frames at the end. Bernini: images of any size.
        ("wan21", {"time_dim_concat": _latent(16, 2, 15, 22)}, {}, 2 * 8 * 11),
        ("wan21", {"context_latents": [_latent(16, 1, 8, 12), _latent(16, 2, 9, 6)]}, {}, 4 * 6 + 2 * 5 * 3),
        # A network that has no place for it.
        ("wan21", {"reference_latents": [_latent(16, 1, 15, 22)]}, {}, 0),
    ],
    ids=["fun control", "phantom", "bernini", "ignored"],
)
def test_reference_images_of_wan(name: str, extra: dict[str, Any], layout: dict[str, int], more: int) -> None:
    need("context_latents" not in extra or find_spec("comfy_extras.nodes_bernini") is not None, "model Bernini")
    built = tiny.build(name)
    size = (16 if "control" in name else 15, 22)
    work = job(built, 1, size, cfg=4.0, steps=2, positive=built.conditioning(seed=1, **extra))
    probe, attention = probe_and_record(built.model, work, layout=layout)
    call = probe.positive(attention.sigmas[0])
    assert {seen.q.shape[1] for seen in call.own.values()} == {FRAMES * 8 * 11 + more}
    check(attention, probe)
    identical(built.model, work)


def test_a_reference_image_of_hunyuan_video() -> None:
    built = tiny.build("hunyuan_video")
    work = job(built, 1, cfg=1.0, steps=2, positive=built.conditioning(seed=1, ref_latent=_latent(16, 1, 16, 24)))
    probe, attention = probe_and_record(built.model, work, layout={"before": 8 * 12})
    assert {seen.q.shape[1] for seen in probe.calls[0].cross.values()} == {30 + (1 + FRAMES) * 8 * 12}
    check(attention, probe)
    identical(built.model, work)


def test_what_a_video_starts_from_does_not_change_where_the_words_are() -> None:
    """HunyuanVideo 1.5 without an image and without letters to be rendered."""
    built = tiny.build("hunyuan_video15")
    positive = built.conditioning(seed=1, clip_vision_output=None, conditioning_byt5small=None)
    probe, attention = probe_and_record(built.model, job(built, 1, cfg=1.0, steps=2, positive=positive))
    check(attention, probe)
    assert attention.tokens.length == 30


# -- texts ------------------------------------------------------------------------------------------------------------


def test_a_short_prompt_is_repeated_for_a_longer_one() -> None:
    """So CogVideoX gets both into one call; the copies share the attention."""
    built = tiny.build("cogvideox")
    work = job(built, 2, cfg=4.0, steps=2, positive=built.conditioning(seed=1, tokens=10))
    probe, attention = probe_and_record(built.model, work)
    assert all(call.chunks == [1, 0] for call in probe.calls)
    assert attention.tokens.length == 10 and probe.calls[0].cross["block.0"].text == slice(0, 30)
    check(attention, probe)


def test_padding_that_mochi_cuts_off() -> None:
    built = tiny.build("mochi")
    probe, attention = probe_and_record(
        built.model, job(built, 1, cfg=1.0, steps=1), layout={"image_first": True, "more": -4}
    )
    check(attention, probe)
    for layer in attention.layers:
        assert layer.maps["average"].shape[-1] == 30
        assert (layer.maps["average"][..., 26:] == 0).all() and (layer.maps["average"][..., :26] > 0).any()


def test_anima_sees_the_tokens_of_t5() -> None:
    built = tiny.build("anima")
    words = words_of("a red cat on grass", 512)
    work = job(built, 2, (15, 22), steps=2, cfg=4.0, positive=built.conditioning(seed=1, goca_words=words))
    probe, attention = probe_and_record(built.model, work)
    assert attention.tokens.length == 512 and attention.tokens.count == 7 + 1 and attention.frames == 1
    call = probe.positive(attention.sigmas[0])
    for layer in attention.layers:
        dense = dense_map(call.cross[layer.name], attention.defaults.head, 512)
        expected = torch.cat((dense[..., :7], dense[..., 7:].sum(-1, keepdim=True)), -1)
        assert_near(layer.maps[attention.defaults.head], expected)
    identical(built.model, work)


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_context_windows_are_named() -> None:
    import comfy.context_windows as windows

    built = tiny.build("wan21")
    model = built.model.clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule("standard_static"),
        windows.get_matching_fuse_method("pyramid"),
        context_length=2,
        context_overlap=1,
        dim=2,
    )
    work = job(built, steps=1, cfg=1.0)
    recording, recorder = record(model, Window())
    expected = plain(model, work)
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected)
    with pytest.raises(AttentionError, match="a few frames at a time"):
        recorder.collect(latent)


@pytest.mark.parametrize("name", ["wan21_vace", "wan21_camera"])
def test_a_control_video_or_a_camera_changes_the_video_and_not_its_sequence(name: str) -> None:
    """Given as ComfyUI's nodes give them. Blocks of Vace's own attend too, and are not recorded."""
    built = tiny.build(name)
    generator = torch.Generator().manual_seed(6)
    height, width = built.size
    given: dict[str, Any] = {"camera_conditions": torch.randn(1, 24, 3, 8 * height, 8 * width, generator=generator)}
    if name == "wan21_vace":
        frames = torch.randn(1, 32, 3, height, width, generator=generator)
        given = {"vace_frames": [frames], "vace_mask": [torch.ones(1, 64, 3, height, width)], "vace_strength": [0.7]}
    work = job(built, 1, cfg=1.0, steps=2, positive=built.conditioning(seed=1, **given))
    assert not torch.equal(
        work.run(built.model)["samples"], job(built, 1, cfg=1.0, steps=2).run(built.model)["samples"]
    )
    probe, attention = probe_and_record(built.model, work, layout=FAMILIES[name].layout)
    check(attention, probe)
    assert identical(built.model, work).frames == 3


def test_relatives_with_tokens_of_their_own_are_refused() -> None:
    """S2V, Animate and others are subclasses of Wan's network."""
    import comfy.ldm.wan.model

    class Relative(comfy.ldm.wan.model.WanModel):
        pass

    built = tiny.build("wan21")
    built.model.model.diffusion_model.__class__ = Relative
    with pytest.raises(UnknownFamily, match="Attention of Relative"):
        record(built.model, Window())


# -- choices ----------------------------------------------------------------------------------------------------------


def test_layers_by_depth() -> None:
    """Three layers: the second is the reference, and serves propagation."""
    for name in ("wan21", "ltxv", "cosmos1", "mochi", "cogvideox", "kandinsky5", "cosmos_predict2"):
        plan = blocks_of(tiny.build(name).model)
        assert names(plan.blocks) == ["block.0", "block.1", "block.2"]
        assert plan.reference == "block.1" and plan.affinity == ("block.1",)
        assert plan.feature == {"mochi": "projected", "cogvideox": "attention"}.get(name, "query")
    # Those of Flux, which has the same blocks.
    plan = blocks_of(tiny.build("hunyuan_video").model)
    assert (plan.reference, plan.feature, plan.affinity) == ("single.0", "attention", ("double.1",))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("wan21", 0.255),
        ("ltxv", 0.255),
        ("hunyuan_video", 0.407),
        ("mochi", 0.407),
        ("cosmos_predict2", 0.255),
        ("cogvideox", 0.407),
    ],
)
def test_the_noise_level_is_one_of_the_models_own(name: str, share: float) -> None:
    """As a share of noise it is the same for all of a kind, in whatever units the model counts."""
    built = tiny.build(name)
    level = blocks_of(built.model).noise_level
    sampling = built.model.get_model_object("model_sampling")
    one = torch.ones(1, 1, 1, 1, 1)
    mixed = sampling.noise_scaling(torch.tensor([level]), one, torch.zeros_like(one))
    signal = sampling.noise_scaling(torch.tensor([level]), torch.zeros_like(one), one)
    noise, kept = float(mixed), float(signal)
    assert noise / (noise + kept) == pytest.approx(share, abs=2e-3)


def test_a_video_in_half_precision() -> None:
    half = tiny.build("wan21", dtype=torch.bfloat16)
    probe, attention = probe_and_record(half.model, job(half, 1, steps=1, cfg=1.0))
    check_maps(attention, probe.positive(attention.sigmas[0]), tolerance=half_precision(HALF))
    assert torch.isfinite(aggregate(attention).maps).all()
    assert replace(attention, frames=1).batch == FRAMES
