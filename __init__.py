"""GoCA for ComfyUI: masks named by the words of the prompt."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    # Imported here, so that the pack's folder can be imported without a running ComfyUI.
    from .nodes import GocaExtension
    from .nodes.served import serve

    serve()
    return GocaExtension()
