"""Files are complete or do not appear, and what killed processes left is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from goca_core.attention.file import load, save
from goca_core.files import complete

from .recordings import recording

DAY = 24 * 60 * 60


def aged(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def aged_file(path: Path, seconds: float) -> Path:
    path.write_bytes(b"half")
    return aged(path, seconds)


def leave(folder: Path, name: str, seconds: float) -> Path:
    """A folder with half a file in it, as a killed process leaves it."""
    left = folder / name
    left.mkdir()
    (left / ".tmpa1b2c3").write_bytes(b"half")
    return aged(left, seconds)


@pytest.mark.parametrize("fails", [False, True])
def test_all_that_is_written_lies_in_one_folder_until_it_is_complete(tmp_path: Path, fails: bool) -> None:
    path = tmp_path / "sub" / "one.txt"
    path.parent.mkdir()
    path.write_text("older")
    try:
        with complete(path) as new:
            new.write_text("newer")
            (new.parent / ".tmp").write_text("a library's own")
            assert path.read_text() == "older" and len(list(path.parent.iterdir())) == 2
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert path.read_text() == ("older" if fails else "newer")
    assert list(path.parent.iterdir()) == [path]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    ours, hexadecimal = tmp_path / "one.safetensors", "0123456789abcdef" * 2
    gone = [
        leave(tmp_path, f".goca.{hexadecimal}.part", 2 * DAY),
        aged_file(tmp_path / f".cat_00001.safetensors.{hexadecimal}.part", 2 * DAY),  # of an earlier version
    ]
    kept = [
        leave(tmp_path, f".goca.{hexadecimal[::-1]}.part", DAY / 2),  # may still be written
        leave(tmp_path, f"goca.{hexadecimal}.part", 2 * DAY),
        leave(tmp_path, ".goca.0123.part", 2 * DAY),
        aged_file(tmp_path / "other.part", 2 * DAY),
        aged_file(tmp_path / f".{hexadecimal}.part", 2 * DAY),
    ]
    save(str(ours), recording())
    assert not [path for path in gone if path.exists()]
    assert set(tmp_path.iterdir()) == {ours, *kept} and load(str(ours))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Only the link goes, and not the folder that it leads to."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("kept")
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / f".goca.{'0' * 32}.part"
    try:
        link.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    os.utime(link, (0, 0), follow_symlinks=False)
    with complete(tmp_path / "out" / "one.txt") as new:
        new.write_text("x")
    assert not link.is_symlink() and (tmp_path / "elsewhere" / "kept.txt").read_text() == "kept"
