"""Files that are complete or do not appear at all."""

from __future__ import annotations

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


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the place of `path` when the block ends without an error.

    Makes the folder of `path`, and removes what killed processes left in it long ago. Raises OSError as the system does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
