"""One recorded model call: which attention belongs to which layer, handed on to be reduced while the tensors are alive.

The override (or, where the host hides attention, a pass-through) sees queries, keys and values; hooks on the projections
before and after say which layer they belong to. Results pass through untouched, and everything is undone when the call
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.record import Tokens
from ..tensors import Grid
from .families.base import Block, JointSpans, Plan, Site
from .options import RecordOptions
from .passthrough import OVERRIDE, watching
from .reduce.call import AttentionCall, bind, split_heads
from .reduce.cond_recorder import CondRecorder, CondRecording
from .reduce.spec import ReductionSpec

# Who records the call that this thread is in: several may, each for itself. Hooks sit on modules that other threads may
# be running too.
_recording: contextvars.ContextVar[tuple[ForwardRecorder, ...]] = contextvars.ContextVar("goca_recording", default=())
_Hook = Callable[[nn.Module, tuple[Any, ...]], None]


class ForwardRecorder:
    """Recorder of a single model call.

    ``conditionings``: key -> its rows and tokens. ``size``: height and width of the latent of this call. ``batch``: rows of
    the call, of all conditionings together. ``frames``: of tokens, one after the other. ``given``: what else the network
    is given. ``on_site`` is called for each attention site that has run.
    """

    def __init__(
        self,
        plan: Plan,
        options: RecordOptions,
        conditionings: Mapping[Any, tuple[slice, Tokens]],
        size: Grid,
        batch: int,
        frames: int = 1,
        given: Mapping[str, Any] | None = None,
        on_site: Callable[[], None] | None = None,
    ) -> None:
        self.plan, self.size, self.batch, self.frames = plan, size, batch, frames
        spec = ReductionSpec(plan, options, size, frames)
        self.conditionings = conditionings
        self._conds = {key: CondRecorder(spec, rows, tokens) for key, (rows, tokens) in conditionings.items()}
        self._around = plan.references(given or {})
        # The site whose query projection has run and whose output projection has not.
        self._open: tuple[Block, Site] | None = None
        # Another node may compute attention in a site's place, perhaps by several calls of which only one counts.
        self._replaced = False
        self._pending: list[tuple[AttentionCall, Tensor, Mapping[str, Any]]] = []
        self._projected: dict[nn.Module | None, Tensor] = {}
        self._grids: dict[str, Grid] = {}
        self.failure: str | None = None
        self.unclear = ""
        self._on_site = on_site

    # -- installing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self, transformer_options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hooks on while the body runs; yields the options to pass to the model instead of the given ones."""
        options = transformer_options.copy()
        options[OVERRIDE] = self._override(transformer_options.get(OVERRIDE))
        replaced = transformer_options.get("patches_replace", {})
        self._replaced = bool(replaced.get("attn1") or replaced.get("attn2"))
        handles: list[Any] = []
        token = _recording.set((*_recording.get(), self))
        try:
            for block in self.plan.blocks:
                for site in block.sites:
                    handles.append(site.query.register_forward_pre_hook(self._opener(block, site)))
                    handles.append(site.out.register_forward_pre_hook(self._closer(block, site)))
                handles += [module.register_forward_hook(self._keep) for module in self._kept(block)]
                if block.name == self.plan.reference and self.plan.feature == "projected":
                    handles.append(block.cross_attn.out.register_forward_hook(self._reference_hook(block)))
            with watching(self._saw), _eager():
                yield options
        finally:
            _recording.reset(token)
            for handle in handles:
                handle.remove()
            self._open = None
            self._pending.clear()
            self._projected.clear()

    def _kept(self, block: Block) -> list[nn.Module]:
        """Projections whose outputs are needed: the reference feature, and where another node replaces attention its
        inputs, because no override is asked there."""
        site, kept = block.cross_attn, []
        if block.name == self.plan.reference and self.plan.feature == "query":
            kept.append(site.query)
        if self._replaced and site.replaceable:
            kept += [
                module for module in (site.query, site.key, site.value) if module is not None and module not in kept
            ]
        return kept

    def _override(self, previous: Any) -> Any:
        def override(func: Any, *args: Any, **kwargs: Any) -> Any:
            out = previous(func, *args, **kwargs) if previous is not None else func(*args, **kwargs)
            self._saw(args, kwargs, out)
            return out

        return override

    @property
    def _active(self) -> bool:
        return self.failure is None and any(forward is self for forward in _recording.get())

    @contextlib.contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """Recording must never cost the user a picture: what goes wrong here is told when the recording is collected."""
        try:
            yield
        except Exception as error:
            self.failure = f"{where}: {type(error).__name__}: {error}"
            self._pending.clear()

    # -- whose attention it is ----------------------------------------------------------------------------------------

    def _opener(self, block: Block, site: Site) -> _Hook:
        def hook(_module: nn.Module, _args: tuple[Any, ...]) -> None:
            if self._active:
                self._open, self._pending = (block, site), []

        return hook

    def _keep(self, module: nn.Module, _args: Any, out: Tensor) -> None:
        if self._active:
            self._projected[module] = out

    def _saw(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An attention call; of this network if it comes between two projections of a site, and in this thread."""
        if not self._active or self._open is None or not isinstance(out, Tensor):
            return
        block, site = self._open
        with self._guarded(f"the attention of layer {block.name}"):
            call, options = bind(args, kwargs), kwargs.get("transformer_options") or {}
            if kwargs.get("skip_output_reshape"):
                out = out.transpose(1, 2).flatten(2)
            if self._replaced and site.replaceable:
                self._pending.append((call, out, options))
            else:
                self._take(block, site, call, out, options)

    def _closer(self, block: Block, site: Site) -> _Hook:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._active or not args:
                return
            pending, self._pending, self._open = self._pending, [], None
            if self._replaced and site.replaceable:
                self._take_replaced(block, site, pending, args[0])
            for module in (site.query, site.key, site.value):
                self._projected.pop(module, None)
            if self._on_site is not None:
                self._on_site()

        return hook

    def _take_replaced(self, block: Block, site: Site, pending: list[Any], used: Tensor) -> None:
        # The call whose result is used, told by its memory; if there is none, the model's own view.
        mine = (seen for seen in pending if seen[1].data_ptr() == used.data_ptr() and seen[1].shape == used.shape)
        call, out, options = next(mine, (self._own_view(site), None, {}))
        if call is not None:
            with self._guarded(f"the attention of layer {block.name}"):
                self._take(block, site, call, out, options)

    def _own_view(self, site: Site) -> AttentionCall | None:
        """The attention that the network would have computed itself."""
        modules = (site.query, site.key, site.value)
        parts = [split_heads(self._projected[module], site.heads) for module in modules if module in self._projected]
        if len(parts) != 3:
            return None
        q, k, v = parts
        return AttentionCall(q, k, v, None, q.shape[-1] ** -0.5)

    # -- layers -------------------------------------------------------------------------------------------------------

    def _take(
        self, block: Block, site: Site, call: AttentionCall, out: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        # Tiled self-attention (HyperTile) has more rows than the call; whose they are cannot be told.
        if call.q.shape[0] != self.batch:
            return
        if block.self_attn is None:
            if out is not None:
                self._take_joint(block, call, out, options)
            return
        before, behind = self._around
        grid = self._grid(block, call.q.shape[2] - before - behind, options)
        if grid is None:
            return
        image = slice(before, call.q.shape[2] - behind)
        if site is block.self_attn:
            # Merged tokens (ToMe) are no map of this picture; the layer goes unscored.
            if call.k.shape[2] == call.q.shape[2]:
                for cond in self._conds.values():
                    cond.take_self(block, call, grid, image)
            return
        if block.name == self.plan.reference:
            feature = self._projected.get(site.query) if self.plan.feature == "query" else out
            if feature is not None and feature is not out and site.sequence_first:
                feature = feature.transpose(0, 1)
            self._take_reference(feature if feature is None else feature[:, image], grid)
        for cond in self._conds.values():
            cond.take_text(block, call, out, grid, image)

    def _take_joint(self, block: Block, call: AttentionCall, out: Tensor, options: Mapping[str, Any]) -> None:
        grid = self.plan.grid(block.level, *self.size)
        before, behind = self._around
        references = sum(options.get("reference_image_num_tokens") or ()) + before + behind
        for cond in self._conds.values():
            total, text, image = call.k.shape[2], cond.tokens.length, self.frames * grid[0] * grid[1]
            if total <= image:
                continue  # the picture's own attention beside the joint one
            spans = self.plan.spans(total, text, image, references)
            if spans is None:
                self.unclear = (
                    f"its attention is over {total} tokens, which are not the {text} of the prompt, the {image} of the picture "
                    f"and {references} of reference pictures"
                )
                continue
            spans = JointSpans(spans.text, slice(spans.image.start + before, spans.image.stop + before))
            if block.name == self.plan.reference and self.plan.feature == "attention":
                cond.take_feature(out[:, spans.image], grid)
            cond.take_joint(block, call, out, grid, spans)

    def _reference_hook(self, block: Block) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
            if self._active:
                grid, before = self.plan.grid(block.level, *self.size), self._around[0]
                with self._guarded(f"the attention of layer {block.name}"):
                    # Of a stream of pictures the one that is painted comes first, but for those that the family counts.
                    self._take_reference(out[:, before : before + self.frames * grid[0] * grid[1]], grid)

        return hook

    def _take_reference(self, feature: Tensor | None, grid: Grid) -> None:
        if feature is not None:
            for cond in self._conds.values():
                cond.take_feature(feature, grid)

    def _grid(self, block: Block, tokens: int, options: Mapping[str, Any]) -> Grid | None:
        shape = options.get("activations_shape")
        candidates = [tuple(shape[-2:])] if shape is not None else []
        candidates += [self._grids[block.name]] if block.name in self._grids else []
        candidates.append(self.plan.grid(block.level, *self.size))
        for grid in candidates:
            if self.frames * grid[0] * grid[1] == tokens:
                self._grids[block.name] = grid
                return grid
        return None

    def results(self) -> dict[Any, CondRecording]:
        """What was recorded, by conditioning."""
        return {key: cond.result() for key, cond in self._conds.items()}


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Compiled code calls neither overrides nor hooks; run the original while recording.

    Asked for only when a compiler is loaded, because asking loads it, which takes seconds.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
