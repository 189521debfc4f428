"""The pass-through under a name of a module: always the same call and result, seen only by the thread that records."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from goca_core.capture import passthrough
from goca_core.capture.passthrough import OVERRIDE, PassThrough, Watcher, install, renew, show_replacements
from goca_core.capture.passthrough import watching as watching_with


def watching(show: Any) -> Any:
    return watching_with(Watcher(show))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A network's module that imported ComfyUI's attention function by name."""

    def optimized_attention(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fails"):
            raise RuntimeError("inside attention")
        made = ModuleType("result"), args, kwargs
        calls.append(made)
        return made

    calls: list[Any] = []
    for name in ("comfy.ldm.modules.attention", "comfy.ldm.goca_test.model"):
        found = ModuleType(name)
        found.optimized_attention, found.calls = optimized_attention, calls  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, found)
    yield found


def test_it_is_put_in_place_once_and_keeps_the_name(module: Any) -> None:
    before = module.optimized_attention
    install()
    first = module.optimized_attention
    install()
    assert module.optimized_attention is first and first.function is before
    assert (first.__name__, first.__wrapped__) == (before.__name__, before)
    # Another pack may wrap it in turn; then there is one more, and each does its part.
    module.optimized_attention = lambda *args, **kwargs: first(*args, **kwargs)
    install()
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        module.optimized_attention(1)
    assert len(module.calls) == 1 and seen[0][2] is module.calls[0]


def test_the_same_call_and_the_same_result(module: Any) -> None:
    install()
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


def test_a_call_within_a_call_is_part_of_it(module: Any) -> None:
    """An override of another node may ask the function again; a function of another pack may call ComfyUI's."""
    install()
    inner = module.optimized_attention
    module.optimized_attention = lambda *args, **kwargs: inner(*args, "more", **kwargs)
    install()
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        module.optimized_attention(1)
    assert [call[0] for call in seen] == [(1,)] and module.calls[0][1] == (1, "more")


class Box:
    """A tensor that a kernel takes out of its box."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor: torch.Tensor | None = tensor

    def peek(self) -> torch.Tensor:
        assert self.tensor is not None
        return self.tensor


def test_boxes_go_on_unopened_and_are_shown_as_what_is_in_them(module: Any) -> None:
    def emptied(*boxes: Box) -> str:
        for box in boxes:
            box.tensor = None
        return "result"

    module.optimized_attention = emptied
    install()
    tensors = torch.rand(2, 3), torch.rand(2, 5), torch.rand(2, 5)
    boxes = [Box(tensor) for tensor in tensors]
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        assert module.optimized_attention(*boxes) == "result"
    assert all(box.tensor is None for box in boxes)
    assert all(one is other for one, other in zip(seen[0][0], tensors, strict=True))


def test_other_modules_only_where_the_function_is_comfyuis(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = ModuleType("goca_test_pack"), ModuleType("goca_test_other_pack")
    vars(ours)["optimized_attention"], vars(theirs)["optimized_attention"] = module.optimized_attention, print
    for pack in (ours, theirs):
        monkeypatch.setitem(sys.modules, pack.__name__, pack)
    install()
    install()
    found = vars(ours)["optimized_attention"]
    assert isinstance(found, PassThrough) and not isinstance(found.function, PassThrough)
    assert vars(theirs)["optimized_attention"] is print


def test_replacements_of_attention_show_what_they_call_by_other_names(module: Any) -> None:
    def own_name(q: int, *_args: Any, transformer_options: dict[str, Any]) -> Any:
        """A kernel as ComfyUI's wrapper calls it; an override of a third node is there already."""
        return transformer_options[OVERRIDE](lambda q, **_: q + 1, q, transformer_options=transformer_options)

    def replacement(q: int, k: int, v: int, extra_options: dict[str, Any]) -> Any:
        return own_name(q, k, v, transformer_options=extra_options)

    def third(func: Any, q: int, **kwargs: Any) -> Any:
        return 10 * func(q, **kwargs)

    options = {"patches_replace": {"attn2": {"block": replacement}, "dit": {}}, "block": 3}
    shown = show_replacements(options)
    assert OVERRIDE not in shown and options["patches_replace"]["attn2"]["block"] is replacement
    given = {"block": 3, OVERRIDE: third}
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        assert shown["patches_replace"]["attn2"]["block"](1, 2, 3, given) == 20
    assert [(call[0], call[2]) for call in seen] == [((1,), 20)]
    assert given == {"block": 3, OVERRIDE: third}


def test_only_the_thread_that_records(module: Any) -> None:
    install()
    seen: list[Any] = []
    with watching(lambda *call: seen.append(call)):
        thread = threading.Thread(target=module.optimized_attention, args=("other",))
        thread.start()
        thread.join()
        module.optimized_attention("mine")
    assert len(module.calls) == 2 and [call[0] for call in seen] == [("mine",)]


def test_several_watch_one_call_each_for_itself(module: Any) -> None:
    install()
    first: list[Any] = []
    second: list[Any] = []
    with watching(lambda *call: first.append(call)):
        with watching(lambda *call: second.append(call)):
            module.optimized_attention(1)
        module.optimized_attention(2)
    assert [call[0] for call in first] == [(1,), (2,)] and [call[0] for call in second] == [(1,)]


def test_it_ends_however_the_body_ends(module: Any) -> None:
    install()
    seen: list[Any] = []
    with pytest.raises(RuntimeError, match="inside attention"), watching(lambda *call: seen.append(call)):
        module.optimized_attention(fails=True)
    module.optimized_attention(1)
    assert seen == [] and passthrough._watchers.get() == ()


def test_one_that_was_taken_away_during_a_run_is_put_back(module: Any) -> None:
    install()
    module.optimized_attention = taken = module.optimized_attention.function
    renew()
    assert isinstance(module.optimized_attention, PassThrough) and module.optimized_attention.function is taken


def test_a_module_without_the_name_is_left_alone(module: Any) -> None:
    install()
    assert not any(isinstance(value, PassThrough) for value in vars(sys.modules["json"]).values())


def test_a_compiler_goes_through_it_in_one_piece() -> None:
    """`fullgraph` refuses anything that it would have to leave the graph for."""
    function = PassThrough(lambda x, *, factor: x * factor)
    compiled = torch.compile(lambda x: function(x, factor=3) + 1, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 4.0))
