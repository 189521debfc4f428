"""The server of the tests is the server of the demo; it lives in scripts/comfy_server.py."""

from scripts.comfy_server import ComfyServer, NodeError, Run, ServerError

__all__ = ["ComfyServer", "NodeError", "Run", "ServerError"]
