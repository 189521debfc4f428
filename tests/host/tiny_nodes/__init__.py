"""Nodes for graphs of tests: a custom node pack, which the server of the tests loads beside the pack itself.

They load tiny models of any family, and write what they are given to files. Everything else in those graphs is ComfyUI's own.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import folder_paths

HERE = Path(__file__).resolve().parent
FOLDER = "kept"


def _tests(module: str) -> Any:
    """A module of tests/host, under a name that nothing else has: ComfyUI has a folder `tests` as well."""
    if "goca_tests" not in sys.modules:
        sys.path.append(str(HERE.parents[2]))
        package = types.ModuleType("goca_tests")
        package.__path__ = [str(HERE.parent)]
        sys.modules["goca_tests"] = package
    return importlib.import_module(f"goca_tests.{module}")


class TinyModel:
    """Loads a tiny model with its text encoder, and an empty latent.

    ``run``: a number that is new in each run, so that nothing comes from ComfyUI's cache.
    """

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "LATENT"), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {}), "run": ("INT", {"default": 0})}}

    def load(self, name: str, run: int) -> tuple[Any, ...]:
        tiny = _tests("tiny")
        built = tiny.build(name)
        latent = tiny.latent(built.channels, 1, *built.size, built.frames, built.sound)
        return built.model, _tests("tiny_encoders").clip(name), {"samples": latent}


class TinyVAE:
    """Loads a small VAE of the kind that a tiny model needs."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}}

    def load(self, name: str) -> tuple[Any]:
        return (_tests("tiny").vae(name),)


class Keep:
    """Writes the tensors of a LATENT, a MASK, an IMAGE or the first of a CONDITIONING to a file, and hands on its name."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "tests", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {}), "name": ("STRING", {}), "run": ("INT", {"default": 0})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, str]) -> bool:
        return True  # of any type

    def keep(self, value: Any, name: str, run: int) -> dict[str, Any]:
        import safetensors.torch

        if isinstance(value, dict):
            tensors = _tests("tiny").streams_of(value["samples"])
        else:
            tensors = [value[0][0] if isinstance(value, list) else value]
        path = Path(folder_paths.get_output_directory()) / FOLDER / f"{run}-{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        kept = {str(place): tensor.detach().cpu().contiguous() for place, tensor in enumerate(tensors)}
        safetensors.torch.save_file(kept, path)
        return {"ui": {"text": [f"{FOLDER}/{path.name}"]}}


NODE_CLASS_MAPPINGS = {f"Test{node.__name__}": node for node in (TinyModel, TinyVAE, Keep)}
