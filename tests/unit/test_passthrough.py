"""The pass-through behind a name of a module: always the same call and result, seen only by the thread that records."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from goca_core.capture import passthrough
from goca_core.capture.passthrough import OVERRIDE, PassThrough, install, watching


@pytest.fixture
def module() -> Iterator[Any]:
    """A module that imported an attention function by name, as networks do."""

    def optimized_attention(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fails"):
            raise RuntimeError("inside attention")
        made = ModuleType("result"), args, kwargs
        calls.append(made)
        return made

    calls: list[Any] = []
    found = ModuleType("goca_test_network")
    found.optimized_attention, found.calls = optimized_attention, calls  # type: ignore[attr-defined]
    sys.modules[found.__name__] = found
    yield found
    del sys.modules[found.__name__]


def test_it_is_put_in_place_once_and_keeps_the_name(module: Any) -> None:
    before = module.optimized_attention
    install([module.__name__])
    first = module.optimized_attention
    install([module.__name__])
    assert module.optimized_attention is first and first.function is before
    assert (first.__name__, first.__wrapped__) == (before.__name__, before)
    # Another pack may wrap it in turn; then there is one more, and each does its part.
    module.optimized_attention = lambda *args, **kwargs: first(*args, **kwargs)
    install([module.__name__])
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        module.optimized_attention(1)
    assert len(module.calls) == 1 and seen[0][2] is module.calls[0]


def test_the_same_call_and_the_same_result(module: Any) -> None:
    install([module.__name__])
    mask = object()
    plain = module.optimized_attention(1, 2, mask=mask)
    assert plain is module.calls[0] and plain[1:] == ((1, 2), {"mask": mask})
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        watched = module.optimized_attention(1, 2, mask=mask)
    assert watched is module.calls[1] and watched[1:] == plain[1:]
    assert [call[:3] for call in seen] == [((1, 2), {"mask": mask}, watched)]
    module.optimized_attention(3)
    assert len(seen) == 1


def test_what_an_override_has_seen_is_not_shown_again(module: Any) -> None:
    install([module.__name__])
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        module.optimized_attention(1, transformer_options={OVERRIDE: print})
        module.optimized_attention(2, transformer_options={"block": 1})
        module.optimized_attention(3, transformer_options=None)
    assert [call[0] for call in seen] == [(2,), (3,)]


def test_only_the_thread_that_records(module: Any) -> None:
    install([module.__name__])
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        thread = threading.Thread(target=module.optimized_attention, args=("other",))
        thread.start()
        thread.join()
        module.optimized_attention("mine")
    assert len(module.calls) == 2 and [call[0] for call in seen] == [("mine",)]


def test_several_watch_one_call_each_for_itself(module: Any) -> None:
    install([module.__name__])
    first: list[Any] = []
    second: list[Any] = []
    with watching(lambda *call: first.append(call)):
        with watching(lambda *call: second.append(call)):
            module.optimized_attention(1)
        module.optimized_attention(2)
    assert [call[0] for call in first] == [(1,), (2,)] and [call[0] for call in second] == [(1,)]


def test_it_ends_however_the_body_ends(module: Any) -> None:
    install([module.__name__])
    seen: list[Any] = []
    with pytest.raises(RuntimeError, match="inside attention"), watching(lambda *call: seen.append(call)):
        module.optimized_attention(fails=True)
    module.optimized_attention(1)
    assert seen == [] and passthrough._watchers.get() == ()


def test_a_module_without_the_name_is_left_alone() -> None:
    install(["json"])
    assert not any(isinstance(value, PassThrough) for value in vars(sys.modules["json"]).values())


def test_a_compiler_goes_through_it_in_one_piece() -> None:
    """`fullgraph` refuses anything that it would have to leave the graph for."""
    function = PassThrough(lambda x, *, factor: x * factor)
    compiled = torch.compile(lambda x: function(x, factor=3) + 1, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 4.0))
