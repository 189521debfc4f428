"""The graph editor in one browser tab, driven as a user drives it."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.comfy_server import PACK, ComfyServer
from scripts.comfy_server import PATIENCE as TIMES
from tests.shapes import saved_with_shapes, shortened

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, ElementHandle, Page, Route

# Milliseconds: a page of the editor is six megabytes of script.
PATIENCE = 60_000 * TIMES
DEMO = shortened(saved_with_shapes("Every step"), 8)
# No tour for a new user, and nothing drawn that no test reads.
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
# The editor opens what was open before, at last; a graph that is loaded earlier would be replaced.
READY = """() => window.LiteGraph?.registered_node_types['GOCA_Overlay']
  && window.app?.extensionManager?.workflow?.activeWorkflow?.activeState"""
# In the template browser: a graph's thumbnail has loaded. And then: the editor shows that graph.
THUMBNAIL = "(name) => document.querySelector(`[data-testid='template-workflow-${name}'] img`)?.naturalWidth > 0"
ACTIVE = """(name) => window.app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)
  && window.app.graph.nodes.some((node) => node.type.startsWith('GOCA_'))"""
# The node of a type, and of a title if there are several; of those alike the first that is not muted. In a subgraph if
# that is open.
NODE = """([type, title]) => {
  const found = window.app.canvas.graph.nodes.filter((n) => n.type === type && (!title || n.title === title));
  return found.find((n) => n.mode === 0) ?? found[0];
}"""
# As by a user's hand: a widget tells what follows from its new value.
SET = """(node, [name, value]) => {
  const widget = node.widgets.find((one) => one.name === name);
  widget.value = value;
  widget.callback?.(value);
}"""
CENTRE = """(node) => {
  const { canvas } = window.app;
  canvas.ds.scale = 1;
  canvas.centerOnNode(node);
  canvas.setDirty(true, true);
}"""
PANEL = "(node) => node.widgets.find((w) => w.element?.classList.contains('goca-panel')).element"
# Follows the next prompt to its end.
FOLLOW = """() => {
  const { api } = window.comfyAPI.api;
  window.gocaRun = new Promise((done) => {
    const kinds = ["execution_success", "execution_error", "execution_interrupted"];
    const heard = (event) => {
      kinds.forEach((kind) => api.removeEventListener(kind, heard));
      done({ kind: event.type, ...event.detail });
    };
    kinds.forEach((kind) => api.addEventListener(kind, heard));
  });
}"""


class Editor:
    """`errors` holds what the page complained about.

    The editor itself misses a few files when it starts with a new user; until it is ready only the pack's errors count.
    What lies outside of the server cannot be reached from here, and is no error either.
    """

    def __init__(self, page: Page, server: ComfyServer, *, vue: bool = False) -> None:
        self.page, self.server, self.vue = page, server, vue
        self.errors: list[str] = []
        self.ready = False
        page.set_default_timeout(PATIENCE)
        page.set_default_navigation_timeout(PATIENCE)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._complain(f"{error}\n{error.stack}"))
        page.route(lambda url: not url.startswith((server.url, "data:", "blob:")), self._outside)

    def close(self) -> None:
        self.page.close()

    # -- the page ------------------------------------------------------------------------------------------------------

    def _set(self, name: str, value: Any) -> None:
        body = json.dumps({name: value}).encode()
        request = urllib.request.Request(f"{self.server.url}/api/settings", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._complain(f"{message.text} ({message.location.get('url', '')})")

    def _complain(self, text: str) -> None:
        places = re.findall(r"https?://[^/\s'\"]+", text)
        outside = bool(places) and places[0] != self.server.url
        if not outside and (self.ready or f"/{PACK}/" in text):
            self.errors.append(text)

    @staticmethod
    def _outside(route: Route) -> None:
        route.abort()

    def open(self) -> Editor:
        self.ready = False
        # Settings are the server's, and another tab may have changed them since.
        for name, value in {**QUIET, "Comfy.VueNodes.Enabled": self.vue}.items():
            self._set(name, value)
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY)
        self.page.wait_for_load_state("networkidle")
        self.ready = True
        return self

    def template(self, name: str) -> Editor:
        """Open an example graph by hand: Templates, Extensions, this pack, a click on its thumbnail."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_role("dialog").get_by_text(PACK, exact=True).first.click()
        card = self.page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        self.page.wait_for_function(THUMBNAIL, arg=name)
        card.click()
        card.wait_for(state="detached")
        self.page.wait_for_function(ACTIVE, arg=name)
        self.settle()
        return self

    def demo(self) -> Editor:
        """The example graph with every step from attention to masks, with the fast model of shapes."""
        return self.load(DEMO)

    def load(self, graph: Path | dict[str, Any]) -> Editor:
        saved = json.loads(graph.read_text(encoding="utf-8")) if isinstance(graph, Path) else graph
        self.page.evaluate("(graph) => window.app.loadGraphData(graph)", saved)
        self.settle()
        return self

    def saved(self) -> dict[str, Any]:
        """The graph as the editor would save it."""
        graph: dict[str, Any] = self.page.evaluate("() => window.app.graph.serialize()")
        return graph

    def prompt(self) -> dict[str, Any]:
        """The graph in API format, as the editor exports and queues it."""
        prompt: dict[str, Any] = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        return prompt

    def settle(self) -> None:
        """Let the editor draw what it has."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 200)))")

    def queue(self) -> str:
        """Queue the graph by its key and follow it to its end; the number of its prompt."""
        self.page.evaluate(FOLLOW)
        self.page.keyboard.press("Control+Enter")
        end = self.page.evaluate("() => window.gocaRun")
        assert end["kind"] == "execution_success", end
        self.settle()
        return str(end["prompt_id"])

    def run(self) -> dict[str, dict[str, Any]]:
        """Queue the graph, and return what its nodes showed."""
        prompt_id = self.queue()
        # The entry is written just after the last event is sent.
        while prompt_id not in (history := self.server.get_json(f"/history/{prompt_id}")):
            self.page.wait_for_timeout(50)
        outputs: dict[str, dict[str, Any]] = history[prompt_id]["outputs"]
        return outputs

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def node(self, kind: str, title: str = "") -> Any:
        """A handle of a node."""
        return self.page.evaluate_handle(NODE, [kind, title])

    def value(self, kind: str, widget: str, title: str = "") -> Any:
        return self.node(kind, title).evaluate(
            "(node, name) => node.widgets.find((w) => w.name === name).value", widget
        )

    def set_value(self, kind: str, widget: str, value: Any, title: str = "") -> None:
        self.node(kind, title).evaluate(SET, [widget, value])
        self.settle()

    def sizes(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = self.page.evaluate(
            "() => Object.fromEntries(window.app.graph.nodes.map((node) => [node.id, [...node.size].map(Math.round)]))"
        )
        return found

    def centre(self, kind: str, title: str = "") -> Any:
        """Bring a node to the middle of the page, at its full size."""
        node = self.node(kind, title)
        self.page.mouse.move(5, 400)  # or it would point at what comes
        node.evaluate(CENTRE)
        self.settle()
        return node

    def look_at(self, kind: str, title: str = "") -> ElementHandle:
        """Bring a node to the middle of the page; its panel."""
        panel = self.centre(kind, title).evaluate_handle(PANEL)
        found: ElementHandle = panel.as_element()
        found.wait_for_element_state("visible")
        return found
