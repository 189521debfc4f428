"""An image is segmented by one forward pass over it with noise: the record is that of the model's own, and no more."""

from __future__ import annotations

import importlib
from typing import Any

import comfy.hooks
import comfy.sample
import comfy.samplers
import pytest
import torch
from torch import Tensor

import nodes as host_nodes
from goca_core.attention.global_map import aggregate
from goca_core.attention.merge import flip_recording, merge
from goca_core.attention.record import Attention
from goca_core.capture.families import network_of
from goca_core.capture.flip import flip_conditioning
from goca_core.capture.segment import sigmas_at, spread
from goca_core.demo.scenes import draw

from . import tiny
from .device import half_precision, to_device
from .helpers import blocks_of, with_lora, words_of
from .probe import Probe
from .segmenting import PAPER, counted, difference, latents, recording_of, repeated_recording
from .test_dense import check

pytestmark = pytest.mark.usefixtures("host")

SCALE = 0.18215  # of SD's latents


def row(attention: Attention, number: int) -> Tensor:
    return aggregate(attention).maps[number : number + 1]


# -- it is the model's own forward pass over the noised image ---------------------------------------------------------


def sampled(probe: Probe, samples: Tensor, positive: Any, sigma: float, seed: int) -> None:
    """The same with ComfyUI's nodes for custom sampling."""
    noise = comfy.sample.prepare_noise(samples, seed)
    euler, sigmas = comfy.samplers.ksampler("euler"), torch.tensor([sigma, 0.0])
    with probe.watching(), torch.inference_mode():
        comfy.sample.sample_custom(probe.model, noise, 1.0, euler, sigmas, positive, positive, samples, seed=seed)


@pytest.mark.parametrize(
    ("name", "batch", "size"),
    [("sd15", 2, (16, 24)), ("sd15", 1, (17, 25)), ("sd20", 3, (24, 16)), ("sdxl", 2, (16, 24)), ("sdxl", 1, (15, 22))],
)
def test_the_record_is_that_of_one_step_of_a_sampler(name: str, batch: int, size: tuple[int, int]) -> None:
    built = tiny.build(name)
    samples, positive = latents(batch, size), built.conditioning(seed=1)
    attention = recording_of(built.model, samples, positive, seed=8)
    assert attention.sigmas == pytest.approx((blocks_of(built.model).noise_level,))
    assert (attention.batch, attention.height, attention.width) == (batch, *size)
    assert not attention.note
    probe = Probe(built.model)
    sampled(probe, samples, positive, attention.sigmas[0], 8)
    assert len(probe.calls) == 1
    check(attention, probe)


def by_hand(probe: Probe, samples: Tensor, context: Tensor, sigma: float, seed: int, flow: bool) -> None:
    """The same without any of ComfyUI's sampling: noise added by the textbook, the network called directly."""
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    if flow:
        noised, time = (1 - sigma) * samples * SCALE + sigma * noise, sigma * 1000
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, 0)
        levels = ((1 - kept) / kept).sqrt()
        noised = (samples * SCALE + sigma * noise) / (1 + sigma**2) ** 0.5
        time = float((levels.log() - torch.tensor(sigma).log()).abs().argmin())
    options = {
        **probe.model.model_options["transformer_options"],
        "sigmas": torch.tensor([sigma]),
        "cond_or_uncond": [0],
    }
    network = network_of(probe.model.model)
    inputs = noised, torch.full((len(samples),), time), context.expand(len(samples), -1, -1)
    with probe.watching(), torch.inference_mode():
        noised, times, context = to_device(inputs)
        network(noised, times, context=context, transformer_options=options)


@pytest.mark.parametrize(("kind", "sigma"), [("eps", PAPER), ("v_prediction", 2.0), ("flow", 0.4)])
def test_the_noise_is_that_of_the_models_own_schedule(kind: str, sigma: float) -> None:
    built = tiny.build("sd15")
    sampling = importlib.import_module("comfy_extras.nodes_model_advanced")
    model = (
        sampling.ModelSamplingSD3().patch(built.model, 1.0)[0]
        if kind == "flow"
        else sampling.ModelSamplingDiscrete().patch(built.model, kind, False)[0]
    )
    samples, positive = latents(2), built.conditioning(seed=1)
    attention = recording_of(model, samples, positive, seed=5, sigmas=[sigma])
    probe = Probe(model)
    by_hand(probe, samples, positive[0][0], attention.sigmas[0], 5, kind == "flow")
    assert attention.sigmas == pytest.approx((sigma,))
    check(attention, probe)


def test_the_demo_model_segments_a_drawn_scene(pack: Any) -> None:
    model, clip, vae = host_nodes.NODE_CLASS_MAPPINGS["GOCA_DemoModel"].execute().result
    scene = draw(4, 48, 80, plain=True)
    with torch.inference_mode():
        samples = vae.encode(torch.from_numpy(scene.image)[None].float() / 255)
    positive = host_nodes.NODE_CLASS_MAPPINGS["GOCA_EncodePrompt"].execute(clip, scene.caption).result[0]
    attention = recording_of(model, samples, positive, seed=2)
    assert (attention.height, attention.width, attention.vae_scale) == (24, 40, 2)
    assert attention.tokens.words is not None and attention.tokens.rest
    bare = [
        [context, {key: value for key, value in extra.items() if key != "goca_words"}] for context, extra in positive
    ]
    probe = Probe(model)
    sampled(probe, samples, bare, attention.sigmas[0], 2)
    # On an accelerator ComfyUI computes it in half precision.
    check(recording_of(model, samples, bare, seed=2), probe, tolerance=half_precision(1e-3))


def test_one_forward_pass_for_each_draw_level_and_side() -> None:
    built = tiny.build("sd15")
    samples, positive = latents(2, (8, 16)), built.conditioning(seed=1)
    guided = built.model.clone()
    guided.set_model_sampler_post_cfg_function(lambda _args: pytest.fail("guidance was asked"), True)
    guided.set_model_sampler_cfg_function(lambda _args: pytest.fail("guidance was asked"))
    with counted(guided) as rows:
        attention = recording_of(guided, samples, positive, draws=2, sigmas=[0.2, 0.9, 3.0], flip=True)
    assert rows == [2] * 12
    assert len(attention.sigmas) == 12 and set(attention.sigmas) == {attention.sigmas[i] for i in (0, 2, 4)}
    assert attention.describe().splitlines()[1] == "recorded at noise level 0.2 (4 times), 0.9 (4 times), 3 (4 times)"
    with counted(guided) as rows:
        recording_of(guided, samples, positive)
    assert rows == [2]


# -- seeds, draws, levels, sides --------------------------------------------------------------------------------------


def test_a_seed_says_it_all() -> None:
    built = tiny.build("sd15")
    samples, positive = latents(), built.conditioning(seed=1)
    first = repeated_recording(built.model, samples, positive, seed=11)
    torch.rand(7)
    assert difference(recording_of(built.model, samples, positive, seed=11), first) == 0
    assert difference(recording_of(built.model, samples, positive, seed=12), first) > 1e-2
    last = 2**64 - 1
    assert len(recording_of(built.model, samples, positive, seed=last, draws=2).sigmas) == 2


def test_draws_levels_and_sides_are_averaged() -> None:
    built = tiny.build("sd15")
    samples, positive = latents(2), built.conditioning(seed=1)

    def one(number: int, sigma: float, flipped: bool) -> Attention:
        shown = samples.flip(-1) if flipped else samples
        seen = recording_of(built.model, shown, positive, seed=20 + number, sigmas=[sigma])
        return flip_recording(seen) if flipped else seen

    draws = recording_of(built.model, samples, positive, seed=20, draws=2)
    level = draws.sigmas[0]
    assert difference(draws, merge(one(number, level, False) for number in (0, 1))) < 1e-6
    levels = recording_of(built.model, samples, positive, seed=20, sigmas=[0.2, 1.5])
    assert difference(levels, merge(one(0, sigma, False) for sigma in (0.2, 1.5))) < 1e-6
    sides = recording_of(built.model, samples, positive, seed=20, flip=True)
    assert difference(sides, merge(one(0, level, side) for side in (False, True))) < 1e-6
    # They differ from one another, so a mean that forgot a part would show.
    assert difference(one(0, level, True), one(0, level, False)) > 1e-2
    everything = recording_of(built.model, samples, positive, seed=20, draws=2, sigmas=[0.2, 1.5], flip=True)
    parts = [one(number, sigma, side) for number in (0, 1) for sigma in (0.2, 1.5) for side in (False, True)]
    assert difference(everything, merge(parts)) < 1e-5


def test_images_of_a_batch_are_seen_as_if_alone() -> None:
    built = tiny.build("sdxl")
    samples, positive = latents(3, (16, 24)), built.conditioning(seed=1)
    batch = recording_of(built.model, samples, positive, seed=4, batch_index=[0, 1, 2])
    for number in range(3):
        alone = recording_of(built.model, samples[number : number + 1], positive, seed=4, batch_index=[number])
        assert torch.allclose(row(batch, number), row(alone, 0), atol=1e-5)
    # As in ComfyUI's samplers, each image has noise of its own.
    twice = recording_of(built.model, samples[:1].repeat(2, 1, 1, 1), positive, seed=4)
    assert (row(twice, 0) - row(twice, 1)).abs().max() > 1e-4
    picked = recording_of(built.model, samples[:1].repeat(2, 1, 1, 1), positive, seed=4, batch_index=[5, 5])
    assert torch.allclose(row(picked, 0), row(picked, 1), atol=1e-6)


def test_shares_of_sampling() -> None:
    model = tiny.build("sd15").model
    paper, last, first = sigmas_at(model, [0.9, 1.0, 0.0])
    assert paper == pytest.approx(PAPER, rel=0.01)
    assert last == pytest.approx(0.0292, rel=0.01) and first == pytest.approx(14.61, rel=0.01)
    shift = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingSD3().patch(model, 1.0)[0]
    assert sigmas_at(shift, [0.0, 0.6]) == pytest.approx([1.0, 0.4])
    assert spread(0.5, 0.9, 3) == pytest.approx([0.5, 0.7, 0.9]) and spread(0.5, 0.9, 1) == pytest.approx([0.7])


def test_all_methods_can_be_kept() -> None:
    built = tiny.build("sd15")
    seen = recording_of(
        built.model, latents(), built.conditioning(seed=1), head_methods="all", layer_methods="all", full_affinity=True
    )
    assert len(seen.head_methods) == 7 and len(seen.layer_methods) == 4


# -- what hangs on the model and on the conditioning ------------------------------------------------------------------


def test_a_lora_counts() -> None:
    built = tiny.build("sd15")
    samples, positive = latents(), built.conditioning(seed=1)
    patched = with_lora(built.model)
    attention = recording_of(patched, samples, positive, seed=6)
    probe = Probe(patched)
    sampled(probe, samples, positive, attention.sigmas[0], 6)
    check(attention, probe)
    assert difference(attention, recording_of(built.model, samples, positive, seed=6)) > 1e-2


def test_weights_hung_on_the_conditioning_count() -> None:
    """Hooks patch the model for one conditioning only, while ComfyUI samples."""
    built = tiny.build("sd15")
    samples, plain = latents(), built.conditioning(seed=1)
    patched = with_lora(built.model)
    weights = {
        f"{name.removesuffix('.weight')}.diff": patch[1][0] for name, ((_, patch, *_),) in patched.patches.items()
    }
    hooks = comfy.hooks.create_hook_lora(weights, 0.8, 0.0)
    attention = recording_of(built.model, samples, comfy.hooks.set_hooks_for_conditioning(plain, hooks))
    assert difference(attention, recording_of(patched, samples, plain)) < 1e-5
    assert difference(recording_of(built.model, samples, plain), attention) > 1e-2


def controlled(positive: Any, hint: Tensor, first: Tensor | None = None) -> Any:
    """A conditioning with a ControlNet, or with a chain of two."""
    apply = host_nodes.ControlNetApplyAdvanced().apply_controlnet
    for number, image in enumerate((hint,) if first is None else (first, hint)):
        positive = apply(positive, [], tiny.control("sd15", number), image, 1.0, 0.0, 1.0)[0]
    return positive


def test_a_controlnet_counts_and_is_flipped_with_the_image() -> None:
    built = tiny.build("sd15")
    samples, plain = latents(), built.conditioning(seed=1)
    hints = torch.rand(2, 1, 128, 192, 3, generator=torch.Generator().manual_seed(1))
    positive = controlled(plain, *hints)
    straight = repeated_recording(built.model, samples, positive)
    assert difference(straight, recording_of(built.model, samples, plain)) > 1e-2
    assert difference(straight, recording_of(built.model, samples, controlled(plain, hints[0]))) > 1e-2
    turned = recording_of(built.model, samples.flip(-1), controlled(plain, *hints.flip(3)))
    sides = recording_of(built.model, samples, positive, flip=True)
    assert difference(sides, merge([straight, flip_recording(turned)])) < 1e-6
    # The user's own is as it was.
    assert torch.equal(positive[0][1]["control"].cond_hint_original, hints[0].movedim(-1, 1))
    assert difference(recording_of(built.model, samples, positive), straight) == 0


def test_a_masked_conditioning_is_flipped_with_the_image() -> None:
    """A mask weighs what an evaluation gives, which a single forward pass does not show; so the copy itself is checked."""
    mask, other = torch.rand(1, 16, 24), torch.rand(1, 1, 16, 24)
    extra = {"mask": mask, "concat_mask": other, "strength": 0.5, "pooled_output": torch.rand(1, 24)}
    context = torch.rand(1, 77, 48)
    ((kept, parts),) = flip_conditioning([[context, extra]])
    assert kept is context and parts["pooled_output"] is extra["pooled_output"] and parts["strength"] == 0.5
    assert torch.equal(parts["mask"], mask.flip(2)) and torch.equal(parts["concat_mask"], other.flip(3))
    assert extra["mask"] is mask


@pytest.mark.parametrize("name", ["sd15_inpaint", "ip2p", "sdxl_refiner"])
def test_models_that_take_an_image_besides(name: str) -> None:
    built = tiny.build(name)
    extra = {"concat_latent_image": latents(seed=9), "concat_mask": torch.rand(1, 1, 16, 24).round()}
    samples, positive = latents(2), built.conditioning(seed=1, **(extra if name != "sdxl_refiner" else {}))
    attention = recording_of(built.model, samples, positive, seed=7)
    probe = Probe(built.model)
    sampled(probe, samples, positive, attention.sigmas[0], 7)
    check(attention, probe)
    turned = {key: value.flip(-1) for key, value in extra.items()} if name != "sdxl_refiner" else {}
    other = recording_of(built.model, samples.flip(-1), built.conditioning(seed=1, **turned), seed=7)
    sides = recording_of(built.model, samples, positive, seed=7, flip=True)
    assert difference(sides, merge([attention, flip_recording(other)])) < 1e-5


def test_a_noise_mask_tells_an_inpaint_model_what_is_given() -> None:
    mask = torch.zeros(1, 128, 192)
    mask[:, 20:80, 30:90] = 1
    for name, counts in (("sd15_inpaint", True), ("sd15", False)):
        built = tiny.build(name)
        samples, positive = latents(), built.conditioning(seed=1)
        plain, masked = (recording_of(built.model, samples, positive, noise_mask=m) for m in (None, mask))
        assert (difference(masked, plain) > 1e-3) == counts
        turned = recording_of(built.model, samples.flip(-1), positive, noise_mask=mask.flip(-1))
        sides = recording_of(built.model, samples, positive, noise_mask=mask, flip=True)
        assert difference(sides, merge([masked, flip_recording(turned)])) < 1e-5


def test_words_travel_with_the_conditioning() -> None:
    built = tiny.build("sd15")
    positive = built.conditioning(seed=1, goca_words=words_of("a red cat on grass"))
    attention = recording_of(built.model, latents(), positive, draws=2, flip=True)
    assert attention.tokens.word_map().find("cat") == (3,)
    assert torch.allclose(aggregate(attention).maps.sum(1), torch.ones(()), atol=1e-4)
