"""Recording changes nothing: the latent is the same to the last bit, whatever else hangs on the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from goca_core.attention.global_map import aggregate
from goca_core.capture.options import RecordOptions
from goca_core.capture.recorder import Window, record

from . import tiny
from .device import random_states, repeated
from .helpers import Job, blocks_of, job, plain, with_lora, words_of

pytestmark = pytest.mark.usefixtures("host")


AUTO = Window()


@dataclass(frozen=True)
class Case:
    """One combination; what is not named is as in ComfyUI's default graph."""

    model: str
    node: str = "KSampler"
    sampler: str = "euler"
    cfg: float = 7.0
    batch: int = 1
    size: tuple[int, int] = (16, 24)
    extra: str = ""
    window: Window = AUTO
    everything: bool = False

    @property
    def id(self) -> str:
        sides = "x".join(map(str, self.size))
        return f"{self.model}-{self.node}-{self.sampler}-cfg{self.cfg:g}-{self.batch}x{sides}-{self.extra}".rstrip("-")


# Every model, node, sampler, cfg, batch, size and extra meets most of the others once; not the full product.
CASES = [
    Case("sd15"),
    Case("sd15", "KSamplerAdvanced", "heun", 1.0, 3),
    Case("sd15", "SamplerCustomAdvanced", "dpmpp_2m_sde", 7.0, 1, (17, 25), "mask"),
    Case("sd15", "KSampler", "ddim", 7.0, 3, (24, 16), "override"),
    Case("sd15", "SamplerCustomAdvanced", "euler", 1.0, 1, (16, 16), "replaced"),
    Case("sd15", "KSamplerAdvanced", "dpmpp_2m_sde", 7.0, 1, extra="lora"),
    Case("sd15", "KSampler", "euler_ancestral", 7.0, 3, window=Window(False, 0, 1, 3), everything=True),
    Case("sd20", "KSampler", "ddim", 1.0, 3, extra="lora"),
    Case("sd20", "SamplerCustomAdvanced", "heun", 7.0, 1, (24, 16)),
    Case("sd20", "KSamplerAdvanced", "euler", 7.0, 3, (17, 25), "replaced"),
    Case("sd20", "KSampler", "dpmpp_2m_sde", 7.0, 1, extra="override", everything=True),
    Case("sdxl", "KSampler", "dpmpp_2m_sde", 1.0, 1, (24, 16), "lora"),
    Case("sdxl", "KSamplerAdvanced", "ddim", 7.0, 1, extra="mask"),
    Case("sdxl", "SamplerCustomAdvanced", "heun", 7.0, 3, (17, 25), "override"),
    Case("sdxl", "KSampler", "euler", 7.0, 1, extra="replaced", everything=True),
]


def _scaled(func: Any, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An override of another pack: it changes what attention gives."""
    return func(q * 0.9, *args, **kwargs) * 1.01


def _uniform(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """A replacement of another pack: every pixel attends to all tokens alike."""
    return v.mean(1, keepdim=True).expand_as(q).contiguous()


def dress(model: Any, extra: str) -> Any:
    model = with_lora(model) if extra == "lora" else model.clone()
    if extra == "override":
        model.model_options["transformer_options"]["optimized_attention_override"] = _scaled
    if extra == "replaced":
        model.set_model_attn2_replace(_uniform, "output", 3)
    return model


def check_identical(model: Any, work: Job, window: Window = AUTO, everything: bool = False) -> Any:
    """Sample plain, recorded and plain again (see `plain`); returns the recording."""
    methods = "all" if everything else "auto"
    recording, recorder = record(model, window, RecordOptions(methods, methods))
    states = []

    def seeded() -> Tensor:
        torch.manual_seed(11)
        latent: Tensor = work.run(model)["samples"]
        states[:] = random_states()
        return latent

    expected = repeated(seeded)
    torch.manual_seed(11)
    recorded = work.run(recording)["samples"]
    assert torch.isfinite(expected).all() and expected.std() > 0
    assert torch.equal(recorded, expected)
    # A sampler further on in the graph may draw from the common generators.
    assert all(torch.equal(*pair) for pair in zip(random_states(), states, strict=True))
    assert torch.equal(work.run(model)["samples"], expected)
    return recorder.collect(recorded)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_latent_does_not_change_by_a_bit(case: Case) -> None:
    built = tiny.build(case.model)
    model = dress(built.model, case.extra)
    work = job(built, case.batch, case.size, node=case.node, sampler=case.sampler, cfg=case.cfg)
    if case.extra == "mask":
        mask = torch.zeros(1, *case.size)
        mask[:, 2:9, 3:12] = 1
        values = {"mask": mask, "set_area_to_bounds": False, "mask_strength": 0.8}
        work.positive = [[cond, {**extra, **values}] for cond, extra in work.positive]
    attention = check_identical(model, work, case.window, case.everything)
    assert (attention.batch, attention.height, attention.width) == (case.batch, *case.size)
    assert "could not" not in attention.note and len(attention.layers) == len(blocks_of(model).blocks)
    maps = aggregate(attention).maps
    assert maps.shape[:2] == (case.batch, tiny.TOKENS)
    assert torch.allclose(maps.sum(1), torch.ones(()), atol=1e-4)
    # Random models hardly attend to any place in particular, but the pixels are not all alike.
    assert maps.std((2, 3)).max() > 1e-5


def test_words_kept_apart_change_nothing_either() -> None:
    built = tiny.build("sd15")
    words = words_of("a red cat on grass")
    work = job(built, positive=built.conditioning(seed=1, goca_words=words))
    attention = check_identical(built.model, work)
    assert attention.tokens.positions == (0, 1, 2, 3, 4, 5, 6) and attention.tokens.rest
    assert attention.tokens.word_map() == words


def test_two_recording_models_share_one_network() -> None:
    built = tiny.build("sd15")
    work, other = job(built), job(built, positive=built.conditioning(seed=4))
    alone = [plain(built.model, part) for part in (work, other)]
    (first, one), (second, two) = (record(built.model, Window()) for _ in range(2))
    recorded = [work.run(first)["samples"], other.run(second)["samples"]]
    assert all(torch.equal(a, b) for a, b in zip(alone, recorded, strict=True))
    maps = [aggregate(recorder.collect(latent)).maps for recorder, latent in zip((one, two), recorded, strict=True)]
    assert not torch.allclose(*maps, atol=1e-6)


def test_a_replaced_layer_is_recorded_by_its_projections() -> None:
    """The replacement never computes text attention; the recorder still knows where the model would attend."""
    built = tiny.build("sd15")
    model = dress(built.model, "replaced")
    recording, recorder = record(model, Window())
    attention = recorder.collect(job(built).run(recording)["samples"])
    (replaced,) = [layer for layer in attention.layers if layer.name == "output.3.0"]
    assert all(torch.isfinite(part).all() for part in replaced.maps.values())
    assert torch.allclose(replaced.maps["average"].sum(-1), torch.ones(()), atol=1e-4)
    # not the uniform attention of the replacement
    assert replaced.maps["average"].std(-1).min() > 1e-4


def test_the_demo_model_is_recorded_without_a_change(pack: Any, host: Any) -> None:
    demo = host.nodes.NODE_CLASS_MAPPINGS["GOCA_DemoModel"]
    model, clip, _vae = demo.execute().result
    encode = host.nodes.CLIPTextEncode().encode
    prompts = encode(clip, "a red circle and a blue square on grass")[0], encode(clip, "")[0]
    work = Job(*prompts, torch.zeros(1, 12, 32, 32), sampler="dpmpp_2m", steps=4, cfg=4.0)
    attention = check_identical(model, work)
    assert attention.vae_scale == 2
    check_identical(model, replace(work, sampler="heun", node="SamplerCustomAdvanced", steps=3))
