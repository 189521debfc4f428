"""Save and load recordings, to try other phrases and methods without sampling again."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..goca_core import attention as core
from ..goca_core.capture.source import recorded
from ..goca_core.files import is_file, quoted, why_not
from . import inputs, types
from .inputs import with_tooltip

_SUFFIX = ".safetensors"
_SUBFOLDER = "goca"
_NO_NAME = re.compile(r"[:\x00-\x1f\ud800-\udfff]")


def _folders() -> dict[str, Path]:
    """Where recordings lie, by the first part of their names."""
    roots = {"output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory()}
    return {place: Path(root) / _SUBFOLDER for place, root in roots.items()}


def _saved() -> list[str]:
    """Recordings in the output and input folders, as Load Attention lists them."""
    found = []
    for place, folder in _folders().items():
        real = _real(folder)
        found += sorted(
            f"{place}/{path.relative_to(folder).as_posix()}"
            for path in folder.rglob(f"*{_SUFFIX}")
            if is_file(path) and _is_inside(_real(path), real)
        )
    return found


def _real(path: str | Path) -> Path:
    """The path without links. Path.resolve does the same, but fails for a link that leads to itself."""
    return Path(os.path.realpath(path))


def _is_inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and path.suffix == _SUFFIX


def _inside(file: Any) -> Path:
    """The path of a recording by its name in the list. Raises AttentionError for what is no such name, or leads out."""
    if not isinstance(file, str):
        raise core.AttentionError(
            f"The file must be the name of a recording, such as output/attention_00001{_SUFFIX}, and it is of type "
            f"{type(file).__name__}; choose one from the list."
        )
    place, _, name = file.partition("/")
    folder = _folders().get(place)
    with suppress(ValueError):  # names that no file can have
        if folder is not None and _is_inside(path := _real(folder / name), _real(folder)):
            return path
    raise core.AttentionError(
        f"{quoted(file, 100)} is not a recording in the folder output/{_SUBFOLDER} or input/{_SUBFOLDER}; choose a {_SUFFIX} file in "
        "it."
    )


def _check_name(name: str) -> None:
    """Refuse what is no name of a file below a folder on every system. Raises AttentionError."""
    if not name.strip() or name.startswith("/") or _NO_NAME.search(name) or ".." in name.split("/"):
        raise _bad_name(name)


def _bad_name(name: str) -> core.AttentionError:
    return core.AttentionError(
        f"The file name {name!r} is empty, has a colon or characters that are no text in it, or leads out of the folder "
        f"output/{_SUBFOLDER}; use a plain name such as attention, or cats/sofa with a subfolder."
    )


def _free_path(root: Path, prefix: str) -> Path:
    """A path that does not exist yet. Raises AttentionError for a name that leads out of the folder, or OSError."""
    # ComfyUI raises an exception without a class of its own for a link that leads out of its folder.
    if not _real((root / prefix).parent).is_relative_to(_real(root)):
        raise _bad_name(prefix)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(f"{_SUBFOLDER}/{prefix}", str(root.parent))
    if not _real(folder).is_relative_to(_real(root)):
        raise _bad_name(prefix)
    path = Path(folder) / f"{name}_{counter:05}{_SUFFIX}"
    while path.exists():  # ComfyUI counts only names that end in an underscore, as its own do
        counter += 1
        path = Path(folder) / f"{name}_{counter:05}{_SUFFIX}"
    return path


class SaveAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_SaveAttention",
            display_name="Save Attention (GoCA)",
            category=types.CATEGORY,
            search_aliases=["save recording"],
            description=(
                "Saves a recording as a safetensors file in output/goca, so that you can load it later without "
                "sampling again."
            ),
            inputs=[
                inputs.source("attention", [], "From Collect Attention or Segment Image."),
                with_tooltip(
                    io.String.Input("filename_prefix", default="attention"),
                    "Name of the file; a number and the extension are added. It may contain subfolders: cats/sofa "
                    "gives output/goca/cats/sofa_00001.safetensors.",
                ),
                with_tooltip(
                    io.Combo.Input("precision", options=["float16", "float32"], default="float16", advanced=True),
                    "float16 halves the size of the file; the masks differ only by rounding. float32 keeps full "
                    "precision.",
                ),
                inputs.latent(),
            ],
            outputs=[
                with_tooltip(
                    io.String.Output(display_name="file"),
                    "The path of the file as Load Attention lists it, such as output/attention_00001.safetensors.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, attention: Any, filename_prefix: str, precision: str = "float16", latent: Any = None
    ) -> io.NodeOutput:
        _check_name(filename_prefix)
        attention = recorded(attention, latent)
        root = Path(folder_paths.get_output_directory()) / _SUBFOLDER
        try:
            path = _free_path(root, filename_prefix)
        except OSError as error:  # ComfyUI makes the folder and counts the files in it
            raise core.AttentionError(f"The recording cannot be saved in {root}: {why_not(error)}.") from error
        core.save(str(path), attention, half=precision == "float16")
        shown = f"output/{_real(path).relative_to(_real(root)).as_posix()}"
        return io.NodeOutput(shown, ui={"text": [shown]})


class LoadAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GOCA_LoadAttention",
            display_name="Load Attention (GoCA)",
            category=types.CATEGORY,
            search_aliases=["load recording"],
            description="Loads a recording made by Save Attention, from output/goca or input/goca.",
            inputs=[
                with_tooltip(
                    io.Combo.Input("file", options=_saved()),
                    "The recording to load, listed with its folder, output or input. Press R in the editor to see "
                    "new files.",
                )
            ],
            outputs=[
                with_tooltip(
                    types.Attention.Output(display_name="attention"),
                    "The recorded attention, as from Collect Attention. Connect it to Aggregate, Mask From Tokens "
                    "or Overlay.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: Any) -> bool | str:
        # A file may be newer than the list in an open editor, so any existing file is accepted.
        if file is None:  # from another node, known when the graph runs
            return True
        try:
            path = _inside(file)
        except core.AttentionError as error:
            return str(error)
        if not is_file(path):
            return f"There is no recording {file!r}; choose one that exists, or save one with Save Attention."
        return True

    @classmethod
    def fingerprint_inputs(cls, file: Any) -> tuple[str, int, int] | str | float:
        if file is None:
            return math.nan  # equal to nothing, so that the file is read again
        path = _inside(file)
        return (file, path.stat().st_mtime_ns, path.stat().st_size) if is_file(path) else file

    @classmethod
    def execute(cls, file: Any) -> io.NodeOutput:
        return io.NodeOutput(core.load(str(_inside(file))))
