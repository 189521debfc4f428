"""What an older ComfyUI lacks: a test of it is left out, for a reason that is found out from ComfyUI itself.

Only there. Where ComfyUI is the newest, or newer, nothing may be lacking: then the test fails.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from scripts.host import NEWEST


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def version() -> str:
    found: str = importlib.import_module("comfyui_version").__version__
    return found


def is_before(release: str) -> bool:
    """Whether ComfyUI is older than this version."""
    return _numbers(version()) < _numbers(release)


def need(there: bool, what: str) -> None:
    """Go on if it is there; if ComfyUI is too old to have it, leave the test out."""
    if there:
        return
    reason = f"ComfyUI {version()} has no {what}"
    if is_before(NEWEST.version):
        pytest.skip(reason)
    pytest.fail(reason, pytrace=False)


def part(name: str) -> Any:
    """A class or function of ComfyUI's text encoders, `module.name`."""
    module, _, attribute = name.partition(".")
    try:
        found = importlib.import_module(f"comfy.text_encoders.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"comfy.text_encoders.{module}":
            raise
        found = None
    need(hasattr(found, attribute), f"text encoder {name}")
    return getattr(found, attribute)
