"""One checkout of the pack in a ComfyUI of this process: its nodes, models to sample with, and what they give.

Nothing here knows what the pack's modules, classes and attributes are called: only node ids, the names of their inputs,
and what they put out or save. `checkout_runs.py` runs it.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
TEXT = "a red cat on grass under a sky of blue"
LARGE = 1 << 19  # arrays of more numbers are kept as their digest and every so many-th number
SEED = 5


class Pack:
    """ComfyUI in this process, with one checkout in it."""

    def __init__(self, checkout: Path, base: Path) -> None:
        for name in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "pack").symlink_to(checkout, target_is_directory=True)
        self.host = _start_comfyui(base)
        self.output = base / "output"
        self.temp = base / "temp"
        loading = self.host.load_custom_node(str(base / "custom_nodes" / "pack"), module_parent="custom_nodes")
        assert asyncio.run(loading), "the pack did not load"
        self.model, self.clip, self.vae = self("DemoModel")
        self._saved = 0

    def run(self, name: str, **inputs: Any) -> Any:
        with torch.inference_mode():
            return self.host.NODE_CLASS_MAPPINGS[f"GOCA_{name}"].execute(**inputs)

    def __call__(self, name: str, **inputs: Any) -> Any:
        """Run a node; its outputs, or the one that it has."""
        result = self.run(name, **inputs).result
        return result[0] if len(result) == 1 else result

    def choices(self, node: str, name: str) -> list[str]:
        info = self.host.NODE_CLASS_MAPPINGS[f"GOCA_{node}"].GET_NODE_INFO_V1()["input"]
        kind, *rest = {**info.get("required", {}), **info.get("optional", {})}[name]
        return list(kind if isinstance(kind, list) else rest[0]["options"])

    def save(self, attention: Any, precision: str = "float32") -> Path:
        self._saved += 1
        self("SaveAttention", attention=attention, filename_prefix=f"run{self._saved}/it", precision=precision)
        (file,) = (self.output / "goca" / f"run{self._saved}").iterdir()
        return Path(file)


def _start_comfyui(base: Path) -> Any:
    """The `nodes` module of ComfyUI, which runs in `base`."""
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() not in (ROOT, ROOT / "scripts")]
    sys.path.append(str(ROOT))
    home = str(importlib.import_module("scripts.host").locate().dir)
    sys.path.insert(0, home)
    sys.dont_write_bytecode = True
    sys.argv = [f"{home}/main.py", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
    sys.argv += ["--database-url", "sqlite:///:memory:"]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.cli_args")
    importlib.import_module("utils")
    nodes = importlib.import_module("nodes")
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    importlib.import_module("comfy.utils").set_progress_bar_enabled(False)
    return nodes


class Clip:
    """A CLIP that reads words as the demo model's does, and gives a tiny model's random text for them."""

    def __init__(self, real: Any, conditioning: Callable[..., Any]) -> None:
        self._real, self._conditioning = real, conditioning

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def tokenize(self, text: str, **options: Any) -> Any:
        return self._real.tokenize(text, **options)

    def encode_from_tokens_scheduled(self, tokens: Any, *_args: Any, **_options: Any) -> Any:
        ids = str([entry[0] for chunk in tokens["l"] for entry in chunk])
        seed = int(hashlib.sha256(ids.encode()).hexdigest()[:6], 16)
        return self._conditioning(seed=seed, tokens=77)


class Results:
    """The arrays and facts of one run."""

    def __init__(self) -> None:
        self.arrays: dict[str, torch.Tensor] = {}
        self.facts: dict[str, Any] = {}

    def put(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().cpu().contiguous()
        if value.numel() > LARGE:
            self.facts[f"{name} sha256"] = hashlib.sha256(value.flatten().view(torch.uint8).numpy().data).hexdigest()
            value = value.flatten()[:: value.numel() // 65536 + 1]
        self.arrays[name] = value.clone()

    def recording(self, name: str, file: Path) -> None:
        with safe_open(file, framework="pt", device="cpu") as stored:
            for key in stored.keys():  # noqa: SIM118
                self.put(f"{name}.{key}", stored.get_tensor(key))
            metadata = dict(stored.metadata())
        header = json.loads(metadata.pop("header"))
        header.pop("note", None)  # prose
        self.facts[f"{name} header"] = header
        self.facts[f"{name} format"] = metadata

    def masks(self, name: str, outputs: Any) -> None:
        masks, background, labels = outputs
        self.put(f"{name}.masks", masks)
        self.put(f"{name}.background", background)
        self.facts[f"{name} labels"] = labels


class Model:
    """A model to sample with: a tiny one, or the demo model."""

    def __init__(self, pack: Pack, tiny: Any = None, name: str = "", dtype: Any = torch.float32) -> None:
        self.pack = pack
        if tiny is None:
            self.model, self.clip, self.size, self.channels, self.frames = pack.model, pack.clip, (32, 32), 12, 0
            return
        built = tiny.build(name, dtype=dtype)
        self.model, self.channels, self.size, self.frames = built.model, built.channels, built.size, built.frames
        self.clip, self.conditioning = Clip(pack.clip, built.conditioning), built.conditioning

    def prompt(self, text: str = TEXT) -> Any:
        return self.pack("EncodePrompt", clip=self.clip, text=text)

    def start(self, batch: int, size: tuple[int, int] | None) -> torch.Tensor:
        return torch.zeros(batch, self.channels, *([self.frames] if self.frames else []), *(size or self.size))

    def latent(self, batch: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
        """As a VAE encodes images: a model for video takes one of a single frame."""
        start = self.start(batch, size)
        start = start[:, :, :1] if self.frames else start
        return torch.randn(start.shape, generator=torch.Generator().manual_seed(3)) * 2

    def sample(self, model: Any, positive: Any, negative: Any, batch: int = 1, size: Any = None, **more: Any) -> Any:
        options = {"steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "seed": SEED, **more}
        with torch.inference_mode():
            return self.pack.host.KSampler().sample(
                model=model,
                positive=positive,
                negative=negative,
                latent_image={"samples": self.start(batch, size)},
                **options,
            )[0]
