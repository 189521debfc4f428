"""Videos with sound (LTX-2): the attention of the video is recorded, whichever part of the LATENT asks for it."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import Any

import comfy.sd
import comfy.text_encoders.lt
import pytest
import torch

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError
from goca_core.capture.conditioning import attach, length_of, word_map
from goca_core.capture.guidance.patch import guide
from goca_core.capture.recorder import Window, record
from goca_core.guidance.semantic import Settings
from goca_core.pipeline import MaskRequest, make_masks
from goca_core.words.word_map import WordMap

from . import tiny
from .dense import assert_near, check, probe_and_record
from .families import FAMILIES
from .helpers import identical, job, packed
from .older import need
from .passes import Asked
from .test_stages import first_stage
from .vocabularies import gemma, gemma4
from .word_checks import check as check_words

pytestmark = pytest.mark.usefixtures("host")

TEXT = "a red cat sits on the wooden table"


@pytest.fixture(scope="module")
def clip() -> Any:
    made = comfy.sd.CLIP(no_init=True)
    made.tokenizer = comfy.text_encoders.lt.LTXAVGemmaTokenizer(tokenizer_data={"spiece_model": gemma()})
    made.tokenizer_options = {}
    return made


def prompt(clip: Any, built: tiny.Tiny, width: int, seed: int = 1) -> tuple[list[Any], WordMap]:
    """A conditioning as LTX-2's text encoder gives it: the prompt's tokens without padding, processed when sampling begins."""
    words = word_map(clip, TEXT)
    (chunk,) = clip.tokenize(TEXT)["gemma3_12b"]
    tokens = sum(entry[0] != 0 for entry in chunk)
    positive = built.conditioning(seed=seed, tokens=tokens, unprocessed_ltxav_embeds=True)
    positive[0][0] = positive[0][0][..., :width]
    return attach(positive, words), words


@pytest.mark.parametrize(("name", "width"), [("ltx2", 40), ("ltx23", 96)])
def test_the_words_of_a_prompt(name: str, width: int, clip: Any) -> None:
    """Learned tokens follow the prompt's; what they get goes into the column of the rest."""
    built = tiny.build(name)
    positive, words = prompt(clip, built, width)
    assert length_of(*positive[0]) == words.length == 1024
    work = job(built, 2, (5, 7), positive=positive, steps=2, cfg=1.0)
    probe, attention = probe_and_record(built.model, work, layout=FAMILIES[name].layout)
    call = probe.positive(attention.sigmas[0])
    place = attention.tokens.positions.index(words.find("cat")[0])
    for layer in attention.layers:
        dense = call.cross[layer.name]
        assert dense.k.shape[1] == 1024
        average = dense.to_text().mean(1)[..., words.find("cat")[0]]
        maps = layer.maps["average"]
        assert maps.shape[-1] == len(attention.tokens.positions) + 1
        assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-4)
        assert_near(maps[..., place], average)
    masks = make_masks(attention, MaskRequest("red cat\nwooden table")).masks
    assert masks.shape == (2 * 17, 2, 160, 224) and set(masks.unique().tolist()) <= {0.0, 1.0}


@pytest.fixture(scope="module")
def gemma4_clip() -> Any:
    """That of LTX-2.5. Of ComfyUI's tokenizer for Gemma 4, the video model's is a class of its own, with longer padding."""
    need(hasattr(comfy.text_encoders, "gemma4"), "text encoder Gemma 4")
    module = importlib.import_module("comfy.text_encoders.gemma4")

    class LTXAVGemma4Tokenizer(module.Gemma4_12B.tokenizer):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__(tokenizer_data={"tokenizer_json": gemma4()})
            self.gemma4.min_length = 1024

    made = comfy.sd.CLIP(no_init=True)
    made.tokenizer, made.tokenizer_options = LTXAVGemma4Tokenizer(), {}
    return made


@pytest.mark.parametrize("kind", ["gemma3_12b", "gemma4"])
@pytest.mark.parametrize("text", [TEXT, "", "(a red:1.2) cat,  grass\n\nred", "猫 on the naïve table 🙂"])
def test_the_tokens_of_the_text_encoder(text: str, kind: str, request: pytest.FixtureRequest) -> None:
    """Its padding comes first and is dropped."""
    clip = request.getfixturevalue("clip" if kind == "gemma3_12b" else "gemma4_clip")
    (chunk,) = clip.tokenize(text)[kind]
    kept = [entry[0] for entry in chunk if entry[0] != 0]
    assert len(chunk) == 1024 and chunk[0][0] == 0
    words = word_map(clip, text)
    check_words([(getattr(clip.tokenizer, kind), kept + [0] * (1024 - len(kept)))], text, words)
    assert [word.text for word in words.words if word.content] or not text


def test_a_long_prompt(clip: Any) -> None:
    words = word_map(clip, "cat " * 1500)
    (chunk,) = clip.tokenize("cat " * 1500)["gemma3_12b"]
    assert words.length == -(-len(chunk) // 128) * 128 > 1024
    assert words.find("cat#1500")[-1] < len(chunk)


@pytest.mark.parametrize("node", ["KSampler", "SamplerCustomAdvanced"])
def test_the_video_and_both_together_are_recognised(node: str) -> None:
    built = tiny.build("ltx2")
    recording, recorder = record(built.model, Window())
    work = job(built, 2, node=node)
    latent = work.run(recording)["samples"]
    video, sound = latent.unbind()
    assert video.shape == (2, 128, 3, 6, 10) and sound.shape == (2, 8, 5, 16)
    found = recorder.find(latent)
    assert recorder.find(video) is found and recorder.find(video.half()) is found
    attention = found.attention(0)
    assert (attention.height, attention.width, attention.frames, attention.vae_scale) == (6, 10, 3, 32)
    assert aggregate(attention).maps.shape[-2:] == (6, 10)
    with pytest.raises(AttentionError, match="not made by a sampler"):
        recorder.find(sound)


def test_a_first_stage_and_its_denoised_output() -> None:
    built = tiny.build("ltx2")
    work = first_stage(built, node="SamplerCustomAdvanced")
    attention = identical(built.model, work)
    assert "far from the best level" in attention.note
    recording, recorder = record(built.model, Window())
    with torch.inference_mode():
        output, denoised = (latent["samples"] for latent in work.outputs(recording))
    assert not torch.equal(packed(output), packed(denoised))
    assert recorder.find(denoised.unbind()[0]) is recorder.find(denoised) is recorder.find(output)


def test_a_video_without_its_sound() -> None:
    built = tiny.build("ltx23")
    work = replace(job(built, 2, (5, 7), cfg=4.0), latent=tiny.latent(128, 2, 5, 7, 3))
    assert identical(built.model, work).frames == 3
    probe, attention = probe_and_record(built.model, work, layout=FAMILIES["ltx23"].layout)
    check(attention, probe)


def test_what_cannot_be_done_with_sound() -> None:
    built = tiny.build("ltx2")
    model, _ = Asked(built).install()
    with pytest.raises(AttentionError, match="a video and its sound"):
        job(built).run(model)
    # Guidance works on images.
    assert torch.equal(
        packed(job(built).run(guide(built.model, Settings("S-CFG")))["samples"]),
        packed(job(built).run(built.model)["samples"]),
    )


@pytest.mark.parametrize("name", ["ltxv", "ltx2"])
def test_guides_of_a_lower_resolution(name: str) -> None:
    """They have tokens for every other cell of their frames, and are no part of the video; so its masks are those of the video."""
    nodes = pytest.importorskip("comfy_extras.nodes_lt")
    need(
        "latent_downscale_factor" in inspect.signature(nodes.LTXVAddGuide.add_keyframe_index).parameters,
        "IC-LoRA guides",
    )
    built = tiny.build(name)
    guide = torch.randn(1, 128, 2, 3, 5, generator=torch.Generator().manual_seed(4))
    whole, mask = nodes.LTXVAddGuide.dilate_latent(guide, 2)
    positive, negative = (
        nodes.LTXVAddGuide.add_keyframe_index(built.conditioning(seed=seed), 0, whole, (8, 32, 32), 2)
        for seed in (1, 2)
    )
    video = torch.cat((tiny.latent(128, 1, 6, 10, 3), whole), 2)
    masks = [torch.cat((torch.ones(1, 1, 3, 6, 10), mask), 2)]
    latent = video
    if built.sound:
        latent, masks = tiny.nested(video, torch.zeros(1, *built.sound)), [*masks, torch.ones(1, 1, *built.sound[1:])]
    own = tiny.nested(*masks) if len(masks) > 1 else masks[0]
    work = replace(job(built, positive=positive, negative=negative, cfg=1.0, steps=2), latent=latent, mask=own)
    attention = identical(built.model, work)
    assert (attention.frames, attention.height, attention.width) == (3, 6, 10)
    assert "could not" not in attention.note and all(layer.scores for layer in attention.layers)


@pytest.mark.parametrize("shown", ["keyframes", "references"])
def test_what_minimax_h3_is_shown_is_no_part_of_the_video(shown: str) -> None:
    """It stands between the prompt and the sound."""
    built = tiny.build("minimax_h3")
    generator = torch.Generator().manual_seed(4)
    if shown == "keyframes":
        latents = [torch.randn(1, 24, 1, 10, 14, generator=generator) for _ in range(2)]
        frames = [{"resolved_frame_index": number * 8, "latent": latent} for number, latent in enumerate(latents)]
        extra, rows = {"minimax_keyframes": frames, "minimax_frame_count": 9}, 2 * 5 * 7
    else:
        image = {"kind": "image", "latent_h": 6, "latent_w": 4, "latent": torch.randn(1, 24, 1, 6, 4)}
        sound = {"kind": "audio", "ref_audio_t": 3, "audio_latent": torch.randn(1, 32, 2, 3)}
        extra, rows = {"minimax_refs": [image, sound]}, 3 * 2 + 2 * 3
    work = job(built, 1, (10, 14), cfg=1.0, positive=built.conditioning(seed=1, **extra))
    attention = identical(built.model, work)
    assert (attention.frames, attention.images, attention.vae_scale) == (3, 9, 16)
    probe, attention = probe_and_record(built.model, work, layout={"before": rows + 2 * 5})
    (joint,) = {seen.q.shape[1] for seen in probe.positive(attention.sigmas[0]).cross.values()}
    assert joint == 30 + rows + 2 * 5 + 3 * 5 * 7
    check(attention, probe)
