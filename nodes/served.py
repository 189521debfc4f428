"""What ComfyUI's server gives the editor about the pack: help pages where the editor asks first, example graphs in order."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from server import PromptServer

ROOT = Path(__file__).parent.parent


async def _page(request: web.Request) -> web.StreamResponse:
    page = ROOT / "web" / "docs" / f"{request.match_info['node']}.md"
    if not page.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(page, headers={"Content-Type": "text/markdown; charset=utf-8"})


@web.middleware
async def _in_order(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    response = await handler(request)
    if not request.path.endswith("/workflow_templates") or not isinstance(response, web.Response):
        return response
    listed = json.loads(response.text or "{}")
    if ROOT.name not in listed:
        return response
    listed[ROOT.name].sort()
    return web.json_response(listed)


def serve() -> None:
    """Give each help page under the name of every language, and sort the pack's example graphs by name.

    There is one language: without the other names, the editor reports a missing file first. ComfyUI lists the graphs as the
    disk has them, and their names begin with numbers.
    """
    server = getattr(PromptServer, "instance", None)  # scripts load the nodes without a server
    if server is None:
        return
    server.routes.get(rf"/extensions/{ROOT.name}/docs/{{node:GOCA_\w+}}/{{language:[\w-]+}}.md")(_page)
    server.app.middlewares.append(_in_order)
