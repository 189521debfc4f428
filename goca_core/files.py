"""Files that are complete or do not appear at all, and why one could not be written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Folders of files that are being written; earlier versions wrote files named after the recording.
_UNFINISHED = re.compile(r"\.(?:goca|.+\.safetensors)\.[0-9a-f]{32}\.part")
_STALE = 24 * 60 * 60
"""Seconds after which no process is still writing: it was killed."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_NAME = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}


def why_not(error: OSError) -> str:
    """Why a file could not be written and what to do, as the rest of a sentence: "... cannot be written: <this>."."""
    if error.errno in _FULL:
        return "the disk is full or takes no file of this size; free some space and try again"
    if error.errno in _FORBIDDEN:
        return "writing is not permitted there; change the permissions of the folder, or choose another one"
    if error.errno in _NO_NAME:
        return "the name is too long or has characters that no file name can have; choose a short, plain name"
    if error.errno in _IN_THE_WAY:
        return "a file or folder of that name is in the way; choose another name"
    return f"{error.strerror or type(error).__name__}; check the disk, or choose another folder"


def quoted(name: str, letters: int = 60) -> str:
    """A file name as messages show it, shortened if it has more letters."""
    return repr(name if len(name) <= letters else f"{name[:letters]}...")


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is such a file. Path.is_file fails for some names that no file can have."""
    with suppress(OSError, ValueError):
        return Path(path).is_file()
    return False


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the place of `path` when the block ends without an error.

    Makes the folder of `path`, and removes what killed processes left in it long ago. Raises OSError as the system does.
    """
    _check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():  # before the work
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_stale(path.parent)
    # A folder, because libraries write temporary files of their own beside the file. Its name does not grow with the
    # file's, which may be as long as names can be.
    folder = path.with_name(f".goca.{uuid.uuid4().hex}.part")
    folder.mkdir()
    try:
        new = folder / "new"
        yield new
        new.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_name(path: Path) -> None:
    """Raise OSError for what is no name to any system; Python has other exceptions for these."""
    with suppress(UnicodeEncodeError):
        if b"\0" not in os.fsencode(path):
            return
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), repr(path))


def _remove_stale(folder: Path) -> None:
    """Remove the unfinished files of killed processes. One that cannot be removed does no harm."""
    with suppress(OSError):
        for found in folder.iterdir():
            with suppress(OSError):
                if _UNFINISHED.fullmatch(found.name) and time.time() - found.lstat().st_mtime > _STALE:
                    if found.is_dir() and not found.is_symlink():
                        shutil.rmtree(found, ignore_errors=True)
                    else:
                        found.unlink()
