"""The benchmark of two LoRAs: half of it on each core, counted together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.lora_judge import NAMES


def line(method: str, first: dict[str, float], second: dict[str, float], **more: Any) -> dict[str, Any]:
    objects = [{"shares": shares, "inside": 1.0, "missing": False} for shares in (first, second)]
    return {"method": method, "objects": objects, "elsewhere": [2.0], "other": [], **more}


def test_logs_of_several_runs_are_counted_together(
    host: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import lora

    striped, dotted = ({name: 0.3 * (name == own) for name in NAMES} for own in NAMES)
    plain = dict.fromkeys(NAMES, 0.0)
    right, bled = line(lora.MASKED, striped, dotted, other=[4.0]), line(lora.MASKED, striped, {**dotted, NAMES[0]: 0.2})
    none, missing = line(lora.NONE, plain, plain), {"method": lora.NONE, "objects": None}
    logs = [tmp_path / "first.json", tmp_path / "second.json"]
    for file, lines in zip(logs, ([none, right, missing], [none, bled, none, right]), strict=True):
        file.write_text(json.dumps(lines), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["lora.py", "--count", *map(str, logs)])
    lora.main()
    told = capsys.readouterr().out
    assert told.startswith("4 images; both objects there without LoRAs: 75.0% of 4")
    (row,) = (row.split(" | ") for row in told.splitlines() if row.startswith(f"| {lora.MASKED} | 1"))
    assert [cell.split(" of ")[0] for cell in row[1:4]] == ["100.0%", "66.7%", "66.7%"]
    assert row[4:] == ["4.0 (2 images)", "2.0 |"]
    assert f"| {lora.MASKED} | 0 | 0 | 0 | 1 |" in told
