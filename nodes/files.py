"""Save and load recordings, to try other phrases and methods without sampling again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..goca_core import attention as core
from ..goca_core.capture.source import recorded
from ..goca_core.files import why_not
from . import inputs, types
from .inputs import with_tooltip

_SUFFIX = ".safetensors"
_SUBFOLDER = "goca"
_NO_NAME = re.compile(r"[:\x00-\x1f\ud800-\udfff]")


def _saved() -> list[str]:
    """Recordings in the output and input folders, as Load Attention lists them."""
    found = []
    for place, root in (("output", folder_paths.get_output_directory()), ("input", folder_paths.get_input_directory())):
        folder = Path(root) / _SUBFOLDER
        found += sorted(
            f"{place}/{path.relative_to(folder).as_posix()}" for path in folder.rglob(f"*{_SUFFIX}") if path.is_file()
        )
    return found


def _real(path: str | Path) -> Path:
    """The path without links. Path.resolve does the same, but fails for a link that leads to itself."""
    return Path(os.path.realpath(path))


def _inside(place: str, name: str) -> Path:
    """The path of a recording. Raises AttentionError for a name that leads out of the folder."""
    root = (
        Path(folder_paths.get_output_directory() if place == "output" else folder_paths.get_input_directory())
        / _SUBFOLDER
    )
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()) or path.suffix != _SUFFIX:
        raise core.AttentionError(
            f"{name!r} is not a recording in the folder {place}/{_SUBFOLDER}; choose a {_SUFFIX} file in it."
        )
    return path


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
    def validate_inputs(cls, file: str) -> bool | str:
        # A file may be newer than the list in an open editor, so any existing file is accepted.
        try:
            place, _, name = file.partition("/")
            return (
                True
                if _inside(place, name).is_file()
                else f"There is no recording {file!r}; choose one that exists, or save one with Save Attention."
            )
        except core.AttentionError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> tuple[str, int, int] | str:
        place, _, name = file.partition("/")
        path = _inside(place, name)
        return (file, path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else file

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        place, _, name = file.partition("/")
        return io.NodeOutput(core.load(str(_inside(place, name))))
