"""What nodes that work on a recording may be given instead of it: the recorder, with the LATENT that was sampled."""

from __future__ import annotations

from typing import Any

from ..attention.record import AttentionError


def recorded(source: Any, latent: dict[str, Any] | None, entry: int = 0) -> Any:
    """The recording of a recorder for a LATENT; any other source as it is.

    ``entry``: which positive conditioning (see ``Recorder.collect``). Raises AttentionError when nothing was recorded.
    """
    if not hasattr(source, "collect"):
        return source
    if latent is None:
        raise AttentionError(
            "A recorder alone does not say which image to use: connect the LATENT output of the sampler to latent too."
        )
    return source.collect(latent["samples"], entry)
