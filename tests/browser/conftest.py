"""A real Chromium in front of a real ComfyUI server."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from scripts import host as provider
from scripts.comfy_server import ComfyServer

from .browser import find_browser, launch
from .editor import Editor

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


class Tabs:
    """A browser and its tabs. Opening the editor takes long, so there is one tab for each renderer of nodes, for all tests.

    playwright keeps an event loop running in this thread and other tests start their own, so it ends with the last test
    of this folder.
    """

    def __init__(self, server: ComfyServer) -> None:
        from playwright.sync_api import sync_playwright

        self.server = server
        # A graph shows the example image of every ComfyUI, which is not in this server's own folder.
        Image.new("RGB", (96, 64), (90, 140, 60)).save(server.base / "input" / "example.png")
        self.playwright = sync_playwright().start()
        self.browser = launch(self.playwright)
        # One context, so that only the first tab fetches the editor.
        self.context = self.browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        self.kept: dict[bool, Editor] = {}

    def open(self, *, vue: bool) -> Editor:
        return Editor(self.context.new_page(), self.server, vue=vue).open()

    def get(self, *, vue: bool = False) -> Editor:
        """The tab with this renderer, as it was left by the test before."""
        if vue not in self.kept:
            self.kept[vue] = self.open(vue=vue)
        self.kept[vue].page.bring_to_front()
        return self.kept[vue]

    def close(self) -> None:
        self.browser.close()
        self.playwright.stop()


_open: list[Tabs] = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if _open and (nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent)):
        _open.pop().close()


@pytest.fixture
def tabs(server: ComfyServer) -> Iterator[Tabs]:
    """Fails its test when one of the pages reported an error."""
    if not _open:
        _open.append(Tabs(server))
    (running,) = _open
    for editor in running.kept.values():
        editor.errors.clear()
    yield running
    assert not [error for editor in running.kept.values() for error in editor.errors]


@pytest.fixture
def editor(request: pytest.FixtureRequest, tabs: Tabs) -> Editor:
    """A tab of the editor. Parametrized by `vue` for the newer renderer of nodes."""
    return tabs.get(vue=getattr(request, "param", False))
