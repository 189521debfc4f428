"""Regional prompts in ComfyUI's samplers: each mask follows its own prompt, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.sample
import pytest
import torch
from torch import Tensor

from goca_core.capture.recorder import Window, record
from goca_core.regional import RegionalError, compose, delayed, region_weights

from . import tiny
from .device import repeated

pytestmark = pytest.mark.usefixtures("host")

SIZE = (16, 24)
# Latents of a random model after one step reach several hundreds, and a batch of another size rounds differently.
ROUNDING = 2e-3


def noise(batch: int = 1, seed: int = 3, channels: int = 4) -> Tensor:
    return torch.randn(batch, channels, *SIZE, generator=torch.Generator().manual_seed(seed))


def sampled(model: Any, positive: Any, start: Tensor, negative: Any = (), steps: int = 1, cfg: float = 1.0) -> Tensor:
    """With one Euler step at cfg 1 what comes out is the model's prediction itself."""
    with torch.inference_mode():
        return comfy.sample.sample(
            model, start, steps, cfg, "euler", "normal", positive, list(negative), torch.zeros_like(start),
            denoise=1.0, disable_pbar=True, seed=1,
        )  # fmt: skip


def halves(*edges: int) -> Tensor:
    """Upright strips of the latent, one mask each, up to the given columns; what is right of the last is background."""
    masks = torch.zeros(len(edges), *SIZE)
    for number, (left, right) in enumerate(zip((0, *edges), edges, strict=False)):
        masks[number, :, left:right] = 1
    return masks


@pytest.fixture(scope="module")
def built(host: SimpleNamespace) -> tiny.Tiny:
    return tiny.build("sd15")


@pytest.fixture(scope="module")
def texts(built: tiny.Tiny) -> list[Any]:
    return [built.conditioning(seed=seed) for seed in (1, 2, 3)]


# -- what the sampler makes of it -------------------------------------------------------------------------------------


def test_a_full_mask_is_the_plain_prompt(built: tiny.Tiny, texts: list[Any]) -> None:
    base, own, negative = texts
    positive = compose(base, [own], region_weights(torch.ones(1, *SIZE), 1))
    plain = repeated(lambda: sampled(built.model, own, noise(), negative, 3, 6.0))
    assert torch.equal(plain, sampled(built.model, positive, noise(), negative, 3, 6.0))


def test_full_masks_are_the_plain_combination(built: tiny.Tiny, texts: list[Any]) -> None:
    base, *own = texts
    positive = compose(base, own, region_weights(torch.ones(2, *SIZE), 2))
    plain = repeated(lambda: sampled(built.model, own[0] + own[1], noise(), base, 3, 6.0))
    assert torch.equal(plain, sampled(built.model, positive, noise(), base, 3, 6.0))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_each_pixel_follows_the_prompt_of_its_mask(built: tiny.Tiny, texts: list[Any], strength: float) -> None:
    base, *own = texts
    masks = halves(7, 15)
    alone = [sampled(built.model, text, noise()) for text in texts]
    mixed = sampled(built.model, compose(base, own, region_weights(masks, 2), strength), noise())
    inside = [strength * mask * image for mask, image in zip(masks, alone[1:], strict=True)]
    expected = sum(inside) + (1 - strength * masks.sum(0)) * alone[0]
    torch.testing.assert_close(mixed, expected, atol=ROUNDING, rtol=1e-4)
    assert (alone[1] - alone[0]).abs().mean() > 1, "the prompts give the same, so the test shows nothing"


def test_masks_of_another_size_keep_every_pixel_covered(built: tiny.Tiny, texts: list[Any]) -> None:
    """ComfyUI resizes each mask by itself; what sums to one still does."""
    base, *own = texts
    masks = torch.nn.functional.interpolate(halves(7, 15)[None], scale_factor=8, mode="nearest")[0]
    positive = compose(base, own, region_weights(masks, 2, feather=20.0))
    alone = torch.stack([sampled(built.model, text, noise()) for text in texts])
    mixed = sampled(built.model, positive, noise())
    low, high = alone.amin(0) - ROUNDING, alone.amax(0) + ROUNDING
    assert bool(((mixed >= low) & (mixed <= high)).all()), "weights that do not sum to one leave the range"


def test_each_image_of_a_batch_has_its_own_masks(built: tiny.Tiny, texts: list[Any]) -> None:
    base, *own = texts
    masks = [halves(7, 15), halves(3, 20)]
    start = torch.cat((noise(seed=3), noise(seed=4)))
    together = sampled(built.model, compose(base, own, region_weights(torch.cat(masks), 2)), start)
    for number in range(2):
        alone = sampled(built.model, compose(base, own, region_weights(masks[number], 2)), start[[number]])
        torch.testing.assert_close(together[[number]], alone, atol=ROUNDING, rtol=1e-4)
    # Masks of one image serve a whole batch.
    both = sampled(built.model, compose(base, own, region_weights(masks[0], 2)), start)
    torch.testing.assert_close(both[[0]], together[[0]], atol=ROUNDING, rtol=1e-4)


def test_masks_for_another_number_of_images(built: tiny.Tiny, texts: list[Any]) -> None:
    """Of more masks than images the first are used; fewer are taken again from the start."""
    base, *own = texts
    masks = [halves(7, 15), halves(3, 20)]
    start = torch.cat([noise(seed=seed) for seed in (3, 4, 5, 6)])
    positive = compose(base, own, region_weights(torch.cat(masks), 2))
    four, one = sampled(built.model, positive, start), sampled(built.model, positive, start[:1])
    for number in range(4):
        alone = sampled(built.model, compose(base, own, region_weights(masks[number % 2], 2)), start[[number]])
        torch.testing.assert_close(four[[number]], alone, atol=ROUNDING, rtol=1e-4)
    torch.testing.assert_close(one, four[:1], atol=ROUNDING, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8])
def test_masks_of_another_kind(built: tiny.Tiny, texts: list[Any], dtype: torch.dtype) -> None:
    base, *own = texts
    plain, other = (compose(base, own, region_weights(halves(7, 15).to(kind), 2)) for kind in (torch.float32, dtype))
    assert torch.equal(repeated(lambda: sampled(built.model, plain, noise())), sampled(built.model, other, noise()))


def test_before_the_start_the_base_samples_alone(built: tiny.Tiny, texts: list[Any]) -> None:
    base, own, _ = texts
    regional = compose(base, [own], region_weights(halves(8), 1))

    def steps(positive: Any) -> Tensor:
        kept: list[Tensor] = []
        with torch.inference_mode():
            comfy.sample.sample(
                built.model, noise(), 4, 1.0, "euler", "normal", positive, [], torch.zeros(1, 4, *SIZE), denoise=1.0,
                disable_pbar=True, seed=1, callback=lambda _step, denoised, *_rest: kept.append(denoised),
            )  # fmt: skip
        return torch.stack(kept)

    plain = repeated(lambda: steps(base))
    alike = [torch.equal(a, b) for a, b in zip(plain, steps(delayed(base, regional, 0.5)), strict=True)]
    assert alike == [True, True, False, False]
    assert not torch.equal(plain[0], steps(regional)[0])


def test_bounds_sample_only_the_rectangle(built: tiny.Tiny, texts: list[Any]) -> None:
    base, own, _ = texts
    widths = []

    def watch(_module: Any, args: tuple[Tensor, ...]) -> None:
        widths.append(tuple(args[0].shape))

    positive = compose(base, [own], region_weights(halves(8), 1), to_bounds=True)
    handle = built.model.model.diffusion_model.register_forward_pre_hook(watch)
    try:
        result = sampled(built.model, positive, noise())
    finally:
        handle.remove()
    assert {shape[-1] for shape in widths} == {8, 24}
    assert torch.isfinite(result).all()


def test_the_own_pooled_text_and_the_sizes_of_the_base_are_used() -> None:
    built = tiny.build("sdxl")
    base = built.conditioning(seed=1)
    base[0][1].update(width=1024, height=512, crop_w=7)
    own = built.conditioning(seed=2)
    positive = compose(base, [own], region_weights(torch.ones(1, *SIZE), 1))
    plain = [[own[0][0], {**base[0][1], "pooled_output": own[0][1]["pooled_output"]}]]
    assert torch.equal(sampled(built.model, positive, noise()), repeated(lambda: sampled(built.model, plain, noise())))
    assert not torch.equal(sampled(built.model, positive, noise()), sampled(built.model, own, noise()))


def test_a_regional_run_can_be_recorded(built: tiny.Tiny, texts: list[Any]) -> None:
    base, own, _ = texts
    recording, recorder = record(built.model, Window())
    latent = sampled(recording, compose(base, [own], region_weights(halves(8), 1)), noise(), steps=2)
    attention = recorder.collect(latent)
    assert (attention.height, attention.width) == SIZE and attention.layers


# -- the node ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(pack: ModuleType) -> SimpleNamespace:
    model, clip, vae = sys.modules[f"{pack.__name__}.goca_core.capture.demo_model"].load()
    return SimpleNamespace(model=model, clip=clip, vae=vae)


@pytest.fixture(scope="module")
def regional(host: SimpleNamespace, pack: ModuleType, demo: SimpleNamespace) -> Callable[..., Any]:
    """Runs GOCA_RegionalPrompt with the demo model's text encoder; gives its conditioning and what it shows."""

    def run(masks: Tensor, labels: str, prompts: str, base: str = "a red circle on grass", **options: Any) -> Any:
        encode = host.nodes.NODE_CLASS_MAPPINGS["GOCA_EncodePrompt"].execute(demo.clip, base).result[0]
        node = host.nodes.NODE_CLASS_MAPPINGS["GOCA_RegionalPrompt"]
        with torch.inference_mode():
            done = node.execute(encode, demo.clip, masks, labels, prompts, **options)
        return done.result[0], done.ui.as_dict()["text"][0]

    return run


def test_the_node_encodes_prompts_with_their_words(regional: Callable[..., Any]) -> None:
    result, shown = regional(halves(8, 16), "circle\ngrass", "grass: snow\ncircle: a blue star")
    assert [entry[1]["goca_words"].text for entry in result] == ["a red circle on grass", "a blue star", "snow"]
    assert torch.equal(sum(entry[1]["mask"] for entry in result), torch.ones(1, *SIZE))
    assert shown.splitlines() == [
        "circle (33.3%): a blue star",
        "grass (33.3%): snow",
        "everything else (33.3%): the base prompt",
    ]


def test_bare_prompts_and_no_labels(regional: Callable[..., Any]) -> None:
    result, shown = regional(halves(8, 16), "", "a blue star")
    assert len(result) == 2 and shown.startswith("1 (33.3%): a blue star\n2 (33.3%): the base prompt")


@pytest.mark.parametrize(
    ("labels", "prompts", "message"),
    [
        ("circle\ngrass", "dog: a cat", '"dog" is none of the masks, which are: circle, grass'),
        ("circle\ngrass", "a\nb\nc", "3 prompts for 2 masks"),
        ("a\nb\nc", "a: x", "2 masks cannot be divided among 3 labels"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    regional: Callable[..., Any], labels: str, prompts: str, message: str
) -> None:
    # ComfyUI loads a goca_core of its own, whose errors are other classes.
    with pytest.raises(ValueError, match=message) as caught:
        regional(halves(8, 16), labels, prompts)
    assert type(caught.value).__name__ == RegionalError.__name__


def test_nothing_found_is_the_base_alone(regional: Callable[..., Any]) -> None:
    result, shown = regional(torch.zeros(2, *SIZE), "circle\ngrass", "circle: a blue star")
    assert len(result) == 1 and "mask" not in result[0][1]
    assert "circle (0.0%)" in shown


def test_a_missing_clip_is_said(host: SimpleNamespace, pack: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="clip input is invalid"):
        host.nodes.NODE_CLASS_MAPPINGS["GOCA_RegionalPrompt"].execute([], None, halves(3), "a", "a: b")
