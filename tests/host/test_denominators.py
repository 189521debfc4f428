"""torch's own attention shows its softmax denominators, as it does on a GPU; other attention functions do not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from goca_core.capture.recorder import Window, record
from goca_core.capture.reduce import fused
from goca_core.capture.reduce.call import AttentionCall

from . import tiny
from .device import ACCELERATED, half_precision
from .helpers import job, plain


def with_torch_attention(model: Any) -> Any:
    from comfy.ldm.modules.attention import attention_pytorch

    def attention(_function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return attention_pytorch(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = attention
    return patched


# In other models nothing is saved by knowing them.
@pytest.mark.parametrize("name", ["flux", "sd3", "qwen_image", "wan21", "hunyuan_video"])
def test_known_denominators_change_neither_latent_nor_maps(
    host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # The fused kernel of a GPU that shows them is for half precision.
    built = tiny.build(name, dtype=torch.float16 if ACCELERATED else torch.float32)
    work = job(built, 1, cfg=4.0)
    near = {"rtol": half_precision(1e-4), "atol": 1e-4 if ACCELERATED else 1e-6}
    known: list[bool] = []
    complete = fused.watch_totals.complete

    def counted(self: fused.watch_totals, call: AttentionCall) -> AttentionCall:
        done = complete(self, call)
        known.append(done.total is not None)
        return done

    monkeypatch.setattr(fused.watch_totals, "complete", counted)
    expected_latent = plain(with_torch_attention(built.model), work)
    recording, recorder = record(with_torch_attention(built.model), Window())
    latent = work.run(recording)["samples"]
    assert torch.equal(expected_latent, latent)
    # The cross-attention of a video does not need them.
    assert sum(known) >= len(known) // 2 and (all(known) or name == "wan21")
    recorded = recorder.collect(latent)
    # The same recording by blocks of rows, without the denominators.
    monkeypatch.setattr(fused.watch_totals, "complete", lambda self, call: call)
    recording, recorder = record(with_torch_attention(built.model), Window())
    expected = recorder.collect(work.run(recording)["samples"])
    for ours, theirs in zip(recorded.layers, expected.layers, strict=True):
        for method, maps in ours.maps.items():
            torch.testing.assert_close(maps, theirs.maps[method], **near)
        for method, scores in ours.scores.items():
            torch.testing.assert_close(scores, theirs.scores[method], **near)
    assert recorded.affinity is not None and expected.affinity is not None
    torch.testing.assert_close(recorded.affinity.matrix, expected.affinity.matrix, **near)
