"""Recordings in files: what comes back, and what is refused."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from goca_core.attention.file import load, save
from goca_core.attention.global_map import aggregate
from goca_core.attention.record import AttentionError

from .recordings import DEFAULTS, recording, same, with_scores


@pytest.mark.parametrize("text", ["a red cat on grass", "кот и 🙂", None])
@pytest.mark.parametrize("affinity", [True, False])
def test_a_file_gives_back_the_recording(tmp_path: Path, text: str | None, affinity: bool) -> None:
    record = with_scores(recording(7, text=text, affinity=affinity), 1.0, torch.nan, 3.0)
    path = tmp_path / "folder" / "one.safetensors"
    save(str(path), record)
    assert same(load(str(path)), record)
    assert [file.name for file in path.parent.iterdir()] == ["one.safetensors"]


def test_a_file_holds_each_layer_of_propagation(tmp_path: Path) -> None:
    record, path = recording(7, parts=True), tmp_path / "one.safetensors"
    save(str(path), record)
    found = load(str(path))
    assert same(found, record) and found.affinity is not None and record.affinity is not None
    assert found.affinity.parts.keys() == record.affinity.parts.keys()
    assert all(torch.equal(found.affinity.parts[name], part) for name, part in record.affinity.parts.items())


def test_half_precision_rounds_maps_and_not_scores(tmp_path: Path) -> None:
    record, path, whole = recording(8), tmp_path / "half.safetensors", tmp_path / "whole.safetensors"
    save(str(path), record, half=True)
    save(str(whole), record)
    found = load(str(path))
    assert not same(found, record) and same(found, record, 1e-3)
    assert all(
        torch.equal(a.scores[DEFAULTS.layer], b.scores[DEFAULTS.layer])
        for a, b in zip(found.layers, record.layers, strict=True)
    )
    assert path.stat().st_size < 0.8 * whole.stat().st_size


def test_a_saved_file_may_be_read_by_all_who_may_read_others(tmp_path: Path) -> None:
    path, other = tmp_path / "one.safetensors", tmp_path / "other"
    save(str(path), recording())
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


def test_a_failed_save_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording(1))
    broken = replace(recording(2), note=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        save(str(path), broken)
    assert same(load(str(path)), recording(1))
    assert len(list(tmp_path.iterdir())) == 1


def refused(path: Path) -> str:
    with pytest.raises(AttentionError) as caught:
        load(str(path))
    message = str(caught.value)
    assert path.name in message and "\n" not in message and message.endswith(".")
    return message


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    assert "no file" in refused(path)
    path.write_bytes(b"")
    assert "damaged" in refused(path)
    path.write_bytes(b"not a tensor at all" * 100)
    assert "damaged" in refused(path)
    save_file({"weight": torch.ones(2)}, path)
    assert "not a GoCA recording" in refused(path)
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})
    assert "not a GoCA recording" in refused(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "damaged" in refused(path)


def rewrite(path: Path, change: Any) -> None:
    """Save the file again with another header (JSON) or tensors."""
    with safe_open(str(path), framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    change(metadata, header, tensors)
    metadata.setdefault("header", json.dumps(header))
    save_file(tensors, path, metadata={**metadata, "header": json.dumps(header)})


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    rewrite(path, lambda metadata, _header, _tensors: metadata.update(version="2"))
    assert "newer version" in refused(path)
    rewrite(path, lambda metadata, _header, _tensors: metadata.update(version="two"))
    assert "damaged" in refused(path)


def test_a_tensor_that_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    for name in (
        "layer.0.map.average",
        "layer.1.map.dot-product w/o clamp",
        "layer.2.score.dot-product similarity",
        "affinity",
    ):
        for shape in (None, (1,), (2, 24, 3)):
            path = tmp_path / "one.safetensors"
            save(str(path), recording())
            rewrite(
                path,
                lambda _m, _h, tensors, n=name, s=shape: (
                    tensors.pop(n) if s is None else tensors.update({n: torch.ones(s)})
                ),
            )
            assert "damaged" in refused(path), (name, shape)


def spoil(value: Any, chance: random.Random) -> Any:
    """One value somewhere in a JSON document becomes something else."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(value)
    node, key = chance.choice(places)
    node[key] = chance.choice([None, "x", -3, 1e9, [], {}, [1, "a"], True])
    return value


def put(place: str, value: Any) -> Any:
    """A change of the header: at "words.pieces.0.kind" put a value."""

    def change(_metadata: Any, header: Any, _tensors: Any) -> None:
        *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
        node = header
        for part in way:
            node = node[part]
        node[last] = value

    return change


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((f"words.words.0.{name}", value) for name, value in [
            ("text", 5), ("start", "x"), ("end", 10**6), ("start", -1), ("positions", [99999]), ("positions", ["a"]),
            ("occurrence", None), ("occurrence", 0), ("content", 1),
        ]),
        *((f"words.pieces.0.{name}", value) for name, value in [
            ("position", -1), ("position", 10**9), ("text", None), ("kind", []), ("kind", "noun"), ("word", 10**6),
            ("word", "cat"), ("token_id", "x"),
        ]),
        ("words.text", 7), ("words.plain", ["a"]), ("words.encoder", {}), ("words.length", 10**9), ("words.length", "77"),
        ("words.special", [10**6]), ("words.pad", ["x"]), ("words.words", []), ("words.pieces", None),
        ("words.words", {}), ("words", []), ("words", "cat"),
        ("defaults.order", 10**7), ("defaults.order", True), ("scale", 8192), ("height", 10**9), ("width", 10**5),
        ("scale", 0), ("frames", 10**9), ("stride", 10**9), ("tokens.length", 10**12), ("family", 3),
        ("family", "x" * 10**5), ("note", "x" * 10**6), ("layers.0.name", 4), ("layers.0.height", 2**40),
        ("sigmas", [float("nan")]), ("sigmas", [float("inf")]), ("sigmas", [1]), ("layers", []), ("layers", {}),
        ("defaults.head", []), ("defaults.rescale", {}), ("tokens.positions", []),
    ],
)  # fmt: skip
def test_what_no_recording_holds_is_refused(tmp_path: Path, place: str, value: Any) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    rewrite(path, put(place, value))
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer.0.map.average", torch.ones(2, dtype=torch.int64)), ("layer.9.map.average", torch.ones(2)),
        ("layer.x.map.average", torch.ones(2)), ("layer.0.other.average", torch.ones(2)), ("layer.0.map", torch.ones(2)),
        ("layer.0.map.of my own", torch.ones(2)), ("layer.-1.map.average", torch.ones(2)), ("more", torch.ones(2)),
    ],
)  # fmt: skip
def test_tensors_of_no_recording_are_refused(tmp_path: Path, name: str, value: Tensor) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    rewrite(path, lambda _m, _h, tensors: tensors.update({name: value}))
    assert "damaged" in refused(path)


def test_a_recording_of_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    rewrite(path, lambda _m, _h, tensors: tensors.update({name: value[:0] for name, value in tensors.items()}))
    assert "damaged" in refused(path)


def test_a_header_of_many_megabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    rewrite(path, put("note", "x" * 2**24))
    monkeypatch.setattr("goca_core.attention.file.safe_open", None)  # not even opened
    assert "damaged" in refused(path)


def test_what_could_not_be_read_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(AttentionError, match="too long for a file"):
        save(str(tmp_path / "one.safetensors"), replace(recording(), note="x" * 2**24))
    assert not list(tmp_path.iterdir())


def test_spoiled_headers_are_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever a header says, loading ends with a recording that can be used, or with one sentence."""
    chance = random.Random(4)
    whole = tmp_path / "whole.safetensors"
    save(str(whole), recording())
    refusals = 0
    for _ in range(120):
        path = tmp_path / "one.safetensors"
        path.write_bytes(whole.read_bytes())

        def change(_metadata: Any, header: Any, _tensors: Any) -> None:
            spoiled = spoil(copy.deepcopy(header), chance)
            header.clear()
            header.update(spoiled)

        rewrite(path, change)
        try:
            found = load(str(path))
        except AttentionError as error:
            refusals += 1
            assert "damaged" in str(error)
        else:
            aggregate(found)
    assert refusals > 30
