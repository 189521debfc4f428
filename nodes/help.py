"""Help pages at the address where the editor asks first: with the language, of which there is one."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web
from server import PromptServer

ROOT = Path(__file__).parent.parent


async def _page(request: web.Request) -> web.StreamResponse:
    page = ROOT / "web" / "docs" / f"{request.match_info['node']}.md"
    if not page.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(page, headers={"Content-Type": "text/markdown; charset=utf-8"})


def serve_pages() -> None:
    """Give each page under the name of every language too, so that the editor does not report a file that is missing."""
    server = getattr(PromptServer, "instance", None)  # scripts load the nodes without a server
    if server is not None:
        server.routes.get(rf"/extensions/{ROOT.name}/docs/{{node:GOCA_\w+}}/{{language:[\w-]+}}.md")(_page)
