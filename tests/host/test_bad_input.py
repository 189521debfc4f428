"""What cannot work is refused with one clear sentence, and the sampler is never the one to suffer."""

from __future__ import annotations

import importlib
from typing import Any

import comfy.supported_models
import pytest
import torch

from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError
from goca_core.capture.families import UnknownFamily
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Window, record
from goca_core.capture.reduce import cond_recorder
from goca_core.capture.run import RecordingRun
from goca_core.pipeline import MaskRequest, make_masks
from goca_core.words.match import PhraseError
from goca_core.words.word_map import WordMapError

from . import tiny
from .helpers import Job, count_hooks, job, plain, stub_guider, words_of

pytestmark = pytest.mark.usefixtures("host")

SIZE = (8, 16)


def collected(work: Job, model: Any, window: Window | None = None, entry: int = 0, **options: Any) -> Any:
    """Sample with a recorder, check that the image is the plain one, collect."""
    recording, recorder = record(model, window or Window(), RecordOptions(**options))
    expected = plain(model, work)
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected) or torch.isnan(latent).any()
    assert count_hooks(model) == 0
    return recorder.collect(latent, entry)


def short(built: tiny.Tiny, **options: Any) -> Job:
    return job(built, size=SIZE, **{"steps": 2, **options})


@pytest.fixture
def built() -> tiny.Tiny:
    return tiny.build("sd15")


def sentence(caught: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(caught.value)
    assert "\n" not in message and message.lstrip('"')[0].isalnum() and message.endswith(".")
    return message


# -- the model --------------------------------------------------------------------------------------------------------


def cascade() -> Any:
    """Stage B, which sees no words."""
    config = comfy.supported_models.Stable_Cascade_B(
        {
            "stable_cascade_stage": "b",
            "c_cond": 64,
            "c_hidden": [32, 64],
            "nhead": [-1, 4],
            "blocks": [[1, 1], [1, 1]],
            "block_repeat": [[1, 1], [1, 1]],
            "level_config": ["CT", "CTA"],
            "dropout": [0, 0],
            "c_clip": 64,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    return importlib.import_module("comfy.model_patcher").ModelPatcher(config.get_model({}, ""), tiny.CPU, tiny.CPU)


def test_a_model_of_another_family_is_named() -> None:
    with pytest.raises(UnknownFamily, match=r"StageB \(StableCascade_B\) cannot be recorded.*UNet.*Flux") as caught:
        record(cascade(), Window())
    sentence(caught)


def test_a_model_that_computes_nonsense(built: tiny.Tiny) -> None:
    with torch.no_grad():
        built.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2.to_k.weight[0, 0] = torch.nan
    attention = collected(short(built), built.model)
    with pytest.raises(AttentionError, match=r"not a number .* from layer input\.1\.0 on.*precision") as caught:
        aggregate(attention)
    sentence(caught)


def test_a_prompt_and_a_latent_that_are_not_numbers(built: tiny.Tiny) -> None:
    """Each is told by its own sentence, because each has its own remedy."""
    for spoil, said in (
        (lambda cond: cond[0, 2].fill_(torch.nan), "positive conditioning is not a number"),
        (lambda cond: cond.zero_(), "zeroed out"),
    ):
        positive = built.conditioning(seed=1)
        spoil(positive[0][0])
        with pytest.raises(AttentionError, match=said) as caught:
            collected(short(built, positive=positive), built.model)
        sentence(caught)
    work = short(built)
    work.latent[0, 0, 3, 3] = torch.nan
    with pytest.raises(AttentionError, match="latent that was sampled is not a number") as caught:
        collected(work, built.model)
    sentence(caught)


# -- the run ----------------------------------------------------------------------------------------------------------


def test_a_window_without_a_step(built: tiny.Tiny) -> None:
    with pytest.raises(
        AttentionError, match=r"no step of this run \(2 steps\) falls into the step window from 0\.4 to 0\.41"
    ) as caught:
        collected(short(built), built.model, Window(False, 0.4, 0.41, 4))
    assert "widen the window" in sentence(caught)


def test_a_latent_from_elsewhere(built: tiny.Tiny) -> None:
    _, recorder = record(built.model, Window())
    for latent in (torch.randn(1, 4, 8, 8), short(built, seed=99).run(built.model)["samples"]):
        with pytest.raises(AttentionError, match="not made by a sampler that records with this recorder") as caught:
            recorder.collect(latent)
        assert "Record Attention" in sentence(caught)


def test_a_latent_that_was_changed_on_the_way(built: tiny.Tiny) -> None:
    recording, recorder = record(built.model, Window())
    latent = short(built).run(recording)["samples"]
    with pytest.raises(AttentionError, match="unchanged"):
        recorder.collect(latent[:, :, :4])


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 4, 0, 8)])
def test_an_empty_latent(built: tiny.Tiny, shape: tuple[int, ...]) -> None:
    with pytest.raises(AttentionError, match=r"latent is empty .*at least one latent pixel") as caught:
        record(built.model, Window())[1].collect(torch.zeros(shape))
    sentence(caught)


def test_a_method_that_was_not_recorded(built: tiny.Tiny) -> None:
    attention = collected(short(built), built.model)
    for arguments in (("l2-norm", "auto"), ("auto", "mse")):
        with pytest.raises(AttentionError, match=r"was not recorded .*to 'all'") as caught:
            aggregate(attention, *arguments)
        sentence(caught)


# -- the conditioning -------------------------------------------------------------------------------------------------


def test_a_conditioning_number_that_is_not_there(built: tiny.Tiny) -> None:
    with pytest.raises(AttentionError, match=r"no conditioning number 1; this run had 1") as caught:
        collected(short(built), built.model, entry=1)
    sentence(caught)


def test_no_positive_text() -> None:
    for conds in ({"positive": []}, {"positive": [{"uuid": 1, "cross_attn": None}]}, {}):
        run = RecordingRun(stub_guider(**conds), (1, 4, 8, 8), torch.tensor([1.0, 0.0]), Window(), RecordOptions())
        with pytest.raises(AttentionError, match="no positive text conditioning") as caught:
            run.attention(0)
        sentence(caught)


def test_a_conditioning_that_is_not_active_in_the_recorded_step(built: tiny.Tiny) -> None:
    early, late = built.conditioning(seed=1, end_percent=0.3), built.conditioning(seed=3, start_percent=0.3)
    with pytest.raises(AttentionError, match="not active in the recorded step") as caught:
        collected(short(built, positive=early, steps=4), built.model)
    sentence(caught)
    both = short(built, positive=early + late, steps=4)
    with pytest.raises(AttentionError, match="not active"):
        # 1 is the early one: ComfyUI and the recorder count alike
        collected(short(built, positive=late + early, steps=4), built.model, entry=1)
    # Without a choice, one that was active is better than none.
    assert collected(both, built.model).sigmas


@pytest.mark.parametrize("kind", ["area", "percentage", "bounds"])
def test_a_conditioning_for_a_part_of_the_image(built: tiny.Tiny, kind: str) -> None:
    mask = torch.zeros(1, *SIZE)
    mask[:, :, 2:10] = 1
    extra = {
        "area": {"area": (8, 8, 0, 4)},
        "percentage": {"area": ("percentage", 1.0, 0.5, 0.0, 0.5)},
        "bounds": {"mask": mask, "set_area_to_bounds": True, "mask_strength": 1.0},
    }[kind]
    # ComfyUI wants something for the rest of the image too; it is the part that is asked for.
    positive = built.conditioning(seed=1, **extra)
    with pytest.raises(AttentionError, match=r"limited to an area.*with a mask") as caught:
        collected(short(built, positive=positive), built.model)
    sentence(caught)
    both = collected(short(built, positive=positive + built.conditioning(seed=4)), built.model)
    assert (both.height, both.width) == SIZE


def words_error(built: tiny.Tiny, words: Any, phrases: str, **options: Any) -> pytest.ExceptionInfo[BaseException]:
    extra = {} if words is None else {"goca_words": words}
    attention = collected(short(built, positive=built.conditioning(seed=1, **extra, **options)), built.model)
    with pytest.raises((PhraseError, WordMapError, AttentionError)) as caught:
        make_masks(attention, MaskRequest(phrases))
    sentence(caught)
    return caught


def test_a_conditioning_without_its_words(built: tiny.Tiny) -> None:
    caught = words_error(built, None, "cat")
    assert caught.type is WordMapError and "Prompt Words (GoCA)" in str(caught.value)


def test_a_conditioning_joined_with_another(built: tiny.Tiny) -> None:
    """The words of the first part stay where they are; of a part that nobody knows there are none."""
    caught = words_error(built, words_of("a red cat"), "dog", tokens=154)
    assert caught.type is PhraseError and "whose words are: red, cat" in str(caught.value)
    caught = words_error(built, words_of("a red cat", length=154), "cat", tokens=77)
    assert caught.type is WordMapError and "not combined with another one" in str(caught.value)


def test_phrases_that_cannot_be_found(built: tiny.Tiny) -> None:
    caught = words_error(built, words_of("a red cat on grass"), "dog")
    assert caught.type is PhraseError
    assert all(word in str(caught.value) for word in ("dog", "red", "cat", "grass"))
    assert "twice" in str(words_error(built, words_of("a red cat on grass"), "cat\ncat").value)
    assert "There is no phrase" in str(words_error(built, words_of("a red cat on grass"), "").value)


def test_an_empty_prompt(built: tiny.Tiny) -> None:
    caught = words_error(built, words_of(""), "cat")
    assert caught.type is PhraseError and "cat" in str(caught.value)


def test_a_failure_of_recording_does_not_cost_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory while reducing a layer, say: the image is made as without, and the reason is told later."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("not enough memory for this map")

    built = tiny.build("sd15")
    work = job(built)
    expected = plain(built.model, work)
    monkeypatch.setattr(cond_recorder, "text_pass", fail)
    recording, recorder = record(built.model, Window())
    latent = work.run(recording)["samples"]
    assert torch.equal(latent, expected)
    assert count_hooks(built.model) == 0
    with pytest.raises(
        AttentionError, match=r"the image was generated, but .*input\.1\.0.*not enough memory for this map"
    ):
        recorder.collect(latent)
