"""A Chromium: looked for by its usual names, or taken from GOCA_BROWSER. playwright drives it and brings none of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.comfy_server import ComfyServer

from .editor import PATIENCE, Editor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def find_browser() -> str | None:
    given = os.environ.get("GOCA_BROWSER", "").strip()
    if given:
        return given
    found = (shutil.which(name) for name in NAMES)
    return next((path for path in [*found, *PLACES] if path and Path(path).is_file()), None)


def launch(playwright: Playwright) -> Browser:
    """Start the browser, without a window."""
    return playwright.chromium.launch(executable_path=find_browser(), args=FLAGS, timeout=PATIENCE)


@contextlib.contextmanager
def open_editor(*, vue: bool = False, width: int = 1280, height: int = 900) -> Iterator[Editor]:
    """A ComfyUI server and its editor in a browser tab, for scripts."""
    from playwright.sync_api import sync_playwright

    with ComfyServer() as server, sync_playwright() as playwright:
        shutil.copy(server.host.dir / "input" / "example.png", server.base / "input")
        context = launch(playwright).new_context(viewport={"width": width, "height": height})
        yield Editor(context.new_page(), server, vue=vue).open()
