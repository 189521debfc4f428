"""A real Chromium in front of a real ComfyUI server.

A browser is looked for by its usual names, or taken from GOCA_BROWSER; playwright drives it and brings none of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts import host as provider
from scripts.comfy_server import ComfyServer

from .editor import Editor

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


BROWSER = find_browser()
HOST = provider.locate()
LACKING = [
    text
    for text, there in (
        (
            "no ComfyUI (see `make host`)",
            provider.is_ready(HOST) and os.path.normpath(sys.executable) == str(HOST.python),
        ),
        ("no Chromium (install one, or say where it is in GOCA_BROWSER)", BROWSER is not None),
        ("no playwright (see requirements-test.txt)", importlib.util.find_spec("playwright") is not None),
    )
    if not there
]
if LACKING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str:
    return f"browser: tests/browser is left out: {', '.join(LACKING)}" if LACKING else f"browser: {BROWSER}"


# One for each file: playwright keeps an event loop running in this thread, and other tests want to start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def open_editor(browser: Browser, server: ComfyServer) -> Iterator[Callable[..., Editor]]:
    """Opens tabs; all of them share a cache, so that only the first one takes long."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, accept_downloads=True)

    def opened(**options: Any) -> Editor:
        return Editor(context.new_page(), server, **options)

    yield opened
    context.close()


@pytest.fixture
def editor(request: pytest.FixtureRequest, open_editor: Callable[..., Editor]) -> Iterator[Editor]:
    """One tab; its test fails when the page reported an error. Parametrized by `vue` for the newer renderer of nodes."""
    opened = open_editor(vue=getattr(request, "param", False))
    yield opened
    opened.close()
    assert not opened.errors
