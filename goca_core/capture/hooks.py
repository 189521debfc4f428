"""Hang wrappers of ours on a copy of a MODEL, and read the host's model call the same way in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .families import find_family

# Runs the model with these transformer_options.
ModelCall = Callable[[dict[str, Any]], Tensor]


def wrapped(model: Any, key: str, wrappers: Mapping[str, Callable[..., Any]]) -> Any:
    """A copy of a MODEL (ModelPatcher) with wrappers by their kind; those that are there under the same key make way.

    Raises UnknownFamily for a kind of model whose attention cannot be recorded.
    """
    find_family(model.model)
    patched = model.clone()
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, key)
        patched.add_wrapper_with_key(kind, key, wrapper)
    return patched


def model_call(
    handle: Callable[[ModelCall, Any, Tensor, dict[str, Any], dict[str, Any]], Tensor],
) -> Callable[..., Tensor]:
    """A wrapper of the host's kind APPLY_MODEL that leaves a call to ``handle(call, model, x, options, given)``.

    ``x``: the latent; ``options``: the transformer_options; ``given``: what else the network is given by name.
    """

    def wrapper(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **given: Any,
    ) -> Tensor:
        def call(options: dict[str, Any]) -> Tensor:
            out: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **given)
            return out

        return handle(call, executor.class_obj, x, {} if transformer_options is None else transformer_options, given)

    return wrapper
