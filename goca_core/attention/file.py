"""Recordings on disk: one safetensors file, with everything but tensors as JSON in its header. Never uses pickle."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import complete, is_file, quoted, why_not
from ..heads import HEAD_METHODS
from ..layers import INFORMATION, LAYER_METHODS, MASS_PRESERVING
from ..masks import MASK_RULES
from ..rescale import RESCALE_METHODS
from ..words.word import is_within
from ..words.word_map import WordMap
from .record import Affinity, Attention, AttentionError, Defaults, Layer, Tokens

FORMAT = "goca-attention"
VERSION = 1
_PART = "affinity.part."
# What no recording of a model exceeds. A file that does was tampered with, and would take hours or all memory later.
_HEADER_LIMIT = 2**24
_MOST_LAYERS = 2**12
_MOST_TOKENS = 2**16
_MOST_STEPS = 100
_LONGEST_TEXT = 2**12
_LONGEST_SIDE, _LARGEST_AREA = 2**16, 2**28  # in pixels of the decoded image
_MOST_FRAMES_PER_LATENT = 64
# Files keep the names of the first version of the format: "scale", "stride", and this one.
_IN_FILE = {"propagation_steps": "order"}
_FROM_FILE = {stored: name for name, stored in _IN_FILE.items()}


def save(path: str | os.PathLike, attention: Attention, half: bool = False) -> None:
    """Write a recording. The file is complete or does not appear at all. ``half``: store maps as float16, at half the size.

    Raises AttentionError when the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    layers = []
    for number, layer in enumerate(attention.layers):
        layers.append({"name": layer.name, "height": layer.height, "width": layer.width})
        tensors |= {f"layer.{number}.map.{method}": value for method, value in layer.maps.items()}
        tensors |= {f"layer.{number}.score.{method}": value for method, value in layer.scores.items()}
    header: dict[str, Any] = {
        "family": attention.family,
        "height": attention.height,
        "width": attention.width,
        "scale": attention.vae_scale,
        "layers": layers,
        "sigmas": list(attention.sigmas),
        "note": attention.note,
        "frames": attention.frames,
        "stride": attention.temporal_compression,
        "group": attention.frame_group,
        "defaults": {_IN_FILE.get(name, name): value for name, value in vars(attention.defaults).items()},
        "tokens": {
            "positions": list(attention.tokens.positions),
            "rest": attention.tokens.rest,
            "length": attention.tokens.length,
        },
        "words": attention.tokens.words.to_json() if attention.tokens.words is not None else None,
    }
    if attention.affinity is not None:
        header["affinity"] = {"height": attention.affinity.height, "width": attention.affinity.width}
        tensors["affinity"] = attention.affinity.matrix
        tensors |= {f"{_PART}{name}": part for name, part in attention.affinity.parts.items()}
    kept = torch.float16 if half else torch.float32
    tensors = {
        name: value.detach().to("cpu", torch.float32 if ".score." in name else kept).contiguous().clone()
        for name, value in tensors.items()
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    if len(metadata["header"]) > _HEADER_LIMIT // 2:  # the file quotes it once more
        raise AttentionError("The prompt is too long for a file; record a shorter prompt.")
    path = Path(path)
    try:
        with complete(path) as new:
            # safetensors makes files that only their owner can read; this one has the usual permissions.
            new.touch()
            mode = new.stat().st_mode
            _write(tensors, new, metadata)
            new.chmod(stat.S_IMODE(mode))
    except OSError as error:
        raise AttentionError(
            f"The recording cannot be saved as {quoted(path.name)} in {path.parent}: {why_not(error)}."
        ) from error


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file. Raises OSError, which safetensors wraps so that only its text has the number."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(path), number) from error  # the last one is for Windows


def load(path: str | os.PathLike) -> Attention:
    """Read a recording. Raises AttentionError for a file that is missing, damaged, too new, or not a recording."""
    name = Path(path).name
    if not is_file(path):
        raise AttentionError(
            f"There is no file {quoted(name)}; save a recording with Save Attention first, or choose another file."
        )
    try:
        _expect(_header_size(path) <= _HEADER_LIMIT, "header")
        with safe_open(os.fspath(path), framework="pt", device="cpu") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise AttentionError(
                    f"{name!r} is a safetensors file but not a GoCA recording; choose a file made by Save Attention."
                )
            _expect(int(metadata["version"]) > 0, "version")
            if int(metadata["version"]) > VERSION:
                raise AttentionError(
                    f"{name!r} was written by a newer version of this pack (format {metadata['version']}, this one "
                    f"reads up to {VERSION}); update GoCA."
                )
            header = json.loads(metadata["header"])
            keys = list(stored.keys())
            _expect(all(key.startswith(("layer.", "affinity")) for key in keys), "tensors")
            # Other types would become larger when they are read, or hold no maps.
            _expect(all(stored.get_slice(key).get_dtype() in ("F32", "F16") for key in keys), "types")
            tensors = {key: stored.get_tensor(key).float() for key in keys}
        return _rebuild(header, tensors)
    except AttentionError:
        raise
    except OSError as error:
        raise AttentionError(
            f"{name!r} cannot be read ({error.strerror or type(error).__name__}); check its permissions, or choose another "
            "file."
        ) from error
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise AttentionError(
            f"{name!r} is damaged or incomplete ({type(error).__name__}); save the recording again."
        ) from error


def _header_size(path: str | os.PathLike) -> int:
    """Length of the header of a safetensors file, in bytes."""
    with Path(path).open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor]) -> Attention:
    _expect(type(header["layers"]) is list and 0 < len(header["layers"]) <= _MOST_LAYERS, "layers")
    # By layer: "map" or "score", then the method.
    found: list[dict[str, dict[str, Tensor]]] = [{"map": {}, "score": {}} for _ in header["layers"]]
    for name, value in _under("layer.", tensors).items():
        number, kind, method = name.split(".", 2)
        _expect(number.isdecimal(), name)
        found[int(number)][kind][method] = value
    layers = [
        Layer(item["name"], item["height"], item["width"], kinds["map"], kinds["score"])
        for item, kinds in zip(header["layers"], found, strict=True)
    ]
    tokens = header["tokens"]
    words = WordMap.from_json(header["words"]) if header["words"] is not None else None
    affinity = None
    if "affinity" in header:
        size = header["affinity"]["height"], header["affinity"]["width"]
        affinity = Affinity(*size, tensors["affinity"], _under(_PART, tensors))
    attention = Attention(
        header["family"],
        header["height"],
        header["width"],
        header["scale"],
        tuple(layers),
        Tokens(tuple(tokens["positions"]), tokens["rest"], tokens["length"], words),
        Defaults(**{_FROM_FILE.get(name, name): value for name, value in header["defaults"].items()}),
        affinity,
        tuple(header["sigmas"]),
        header["note"],
        header.get("frames", 1),  # older files lack it
        header.get("stride", 1),
        header.get("group", 0),
    )
    _check(attention)
    return attention


def _check(attention: Attention) -> None:
    """Raise KeyError if the header does not match the tensors, or holds invalid values: the file is damaged then."""
    tokens, defaults, first = attention.tokens, attention.defaults, attention.layers[0]
    sides = [
        attention.height,
        attention.width,
        attention.vae_scale,
        *(side for layer in attention.layers for side in (layer.height, layer.width)),
    ]
    _expect(all(is_within(side, 1, _LONGEST_SIDE) for side in sides), "sizes")
    pixels = attention.height * attention.vae_scale, attention.width * attention.vae_scale
    _expect(max(pixels) <= _LONGEST_SIDE and math.prod(pixels) <= _LARGEST_AREA, "sizes")
    texts = [attention.family, attention.note, *(layer.name for layer in attention.layers)]
    _expect(all(type(text) is str and len(text) <= _LONGEST_TEXT for text in texts), "texts")
    _expect(len(first.maps) > 0 and first.maps.keys() <= set(HEAD_METHODS), "methods")
    _expect(first.scores.keys() <= set(LAYER_METHODS), "methods")
    _expect(is_within(attention.frames, 1, attention.batch) and attention.batch % attention.frames == 0, "frames")
    _expect(is_within(attention.temporal_compression, 1, _MOST_FRAMES_PER_LATENT), "frames")
    _expect(is_within(attention.frame_group, 0, _MOST_FRAMES_PER_LATENT), "frames")
    _expect(is_within(tokens.length, 1, _MOST_TOKENS) and tokens.count > 0, "positions")
    _expect(all(is_within(position, 0, tokens.length - 1) for position in tokens.positions), "positions")
    _expect(len(set(tokens.positions)) == len(tokens.positions) and type(tokens.rest) is bool, "positions")
    layers = *attention.layer_methods, MASS_PRESERVING, INFORMATION
    _expect(defaults.head in attention.head_methods and defaults.layer in layers, "methods")
    _expect(defaults.rescale in RESCALE_METHODS and is_within(defaults.propagation_steps, 0, _MOST_STEPS), "methods")
    _expect(defaults.rule in MASK_RULES, "methods")
    _expect(all(type(sigma) is float and math.isfinite(sigma) for sigma in attention.sigmas), "sigmas")
    for layer in attention.layers:
        shape = (attention.batch, layer.height * layer.width, tokens.count)
        _expect(layer.maps.keys() == first.maps.keys() and layer.scores.keys() == first.scores.keys(), layer.name)
        _expect(all(tuple(value.shape) == shape for value in layer.maps.values()), layer.name)
        _expect(all(tuple(value.shape) == shape[:1] for value in layer.scores.values()), layer.name)
    if attention.affinity is not None:
        height, width = attention.affinity.height, attention.affinity.width
        _expect(type(height) is int and type(width) is int and min(height, width) > 0, "affinity")
        matrices = attention.affinity.matrix, *attention.affinity.parts.values()
        shape = (attention.batch, height * width, height * width)
        _expect(all(tuple(matrix.shape) == shape for matrix in matrices), "affinity")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise KeyError(what)
