"""Files are complete or do not appear, and what killed processes left is removed."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from goca_core.attention import AttentionError
from goca_core.attention.file import load, save
from goca_core.files import complete, why_not

from .full_disk import no_file_larger_than
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


# -- what the system refuses ------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(AttentionError) as caught:
        save(str(path), recording())
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and message.startswith("The recording cannot be saved as")
    return message


def test_a_full_disk_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    before = path.read_bytes()
    assert len(before) > 4096
    with no_file_larger_than(4096):
        assert "the disk is full" in refused(path) and str(tmp_path) in refused(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "not permitted"),
        (errno.EACCES, "not permitted"), (errno.EIO, os.strerror(errno.EIO)),
    ],
)  # fmt: skip
def test_errors_of_the_system_in_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    """As they come from safetensors: the number is in the text."""

    def fails(_tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr("goca_core.attention.file.save_file", fails)
    assert said in refused(tmp_path / "one.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *_args: object, **_more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", forbidden)  # root may write anywhere
    assert "writing is not permitted there" in refused(tmp_path / "one.safetensors")


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "a\0b.safetensors", "a\ud800.safetensors"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path / name)
    assert "the name is too long or has characters that no file name can have" in message and len(message) < 400
    with pytest.raises(AttentionError, match="There is no file"):
        load(str(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_the_longest_names_are_saved(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 243 + ".safetensors")
    save(str(path), recording())
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_or_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("kept")
    assert "is in the way" in refused(tmp_path / "folder.safetensors")
    assert "is in the way" in refused(tmp_path / "file" / "one.safetensors")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.safetensors"]


def test_any_other_error_has_its_own_words() -> None:
    assert why_not(OSError(errno.EIO, "Input/output error")).startswith("Input/output error;")
    assert why_not(OSError("no number")) == "OSError; check the disk, or choose another folder"


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_args: object, **_more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = tmp_path / "one.safetensors"
    save(str(path), recording())
    monkeypatch.setattr(Path, "open", forbidden)  # root may read anything
    with pytest.raises(AttentionError, match=r"'one\.safetensors' cannot be read \(Permission denied\); check its"):
        load(str(path))
