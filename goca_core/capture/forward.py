"""Record one model call: match attention calls to layers and reduce them while their tensors are in memory.

Pass-throughs show the attention calls with their queries, keys and values. Hooks on the projections before and after the
attention tell which layer they belong to. Results are not changed, and all hooks are removed when the call ends, even
after an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.record import Tokens
from ..tensors import Grid
from .comfy_graphs import apart_from_allocations
from .families.base import Block, JointSpans, Plan, Site
from .options import RecordOptions
from .passthrough import Watcher, renew, replaces_attention, show_replacements, watching
from .reduce.call import AttentionCall, bind, sizes, split_heads
from .reduce.cond_recorder import CondRecorder, CondRecording
from .reduce.fused import exact_total, watch_totals
from .reduce.spec import ReductionSpec
from .reduce.transfer import to_cpu

# The recorders of the call that this thread is running; there may be several. Hooks are on modules that other threads may
# run at the same time.
_recording: contextvars.ContextVar[tuple[ForwardRecorder, ...]] = contextvars.ContextVar("goca_recording", default=())


class ForwardRecorder:
    """Recorder of a single model call.

    ``conditionings``: key -> its rows and tokens. ``size``: height and width of this call's latent, with
    the columns of another image ``beside`` it. ``batch``: rows of the
    call, over all conditionings. ``frames``: frames of tokens, in sequence. ``given``: the network's other inputs.
    ``on_site`` is called after each attention site has run.
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
        self.beside, self.guides = plan.beside(given or {}), plan.guides(given or {})
        # The site whose query projection (or the module around it) has started and whose output projection has not.
        self._open: tuple[Block, Site] | None = None
        # Another node may replace the attention of a site, perhaps with several calls of which only one is used.
        self._replaced = False
        self._pending: list[tuple[AttentionCall, Tensor, Mapping[str, Any]]] = []
        self._projected: dict[nn.Module | None, Tensor] = {}
        # The calls of single frames at a site, in their order.
        self._framewise: list[AttentionCall] = []
        self._grids: dict[str, Grid] = {}
        self.failure: str | None = None
        self.unclear = ""
        self._on_site = on_site

    # -- installing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self, transformer_options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Keep the hooks installed while the body runs; yields the transformer_options to pass to the model."""
        # Before each call, because another node may have replaced a function since.
        renew()
        self._replaced = replaces_attention(transformer_options)
        options = show_replacements(transformer_options) if self._replaced else transformer_options
        handles: list[Any] = []
        token = _recording.set((*_recording.get(), self))
        try:
            for block in self.plan.blocks:
                for site in self._sites(block):
                    for module in filter(None, (site.around, site.query)):
                        handles.append(module.register_forward_pre_hook(partial(self._before_query, block, site)))
                    handles.append(site.out.register_forward_pre_hook(partial(self._before_out, block, site)))
                handles += [module.register_forward_hook(self._keep_output) for module in self._modules_to_keep(block)]
                if block.name == self.plan.reference and self.plan.feature == "projected":
                    handles.append(block.cross_attn.out.register_forward_hook(partial(self._keep_reference, block)))
            with watching(Watcher(self._record_call, lambda: self._needs_totals)), eager():
                yield options
            with self._guarded("the reduction of the last layers"):
                for cond in self._conds.values():
                    cond.finish()
        finally:
            _recording.reset(token)
            for handle in handles:
                handle.remove()
            self._open = None
            self._pending.clear()
            self._framewise.clear()
            self._projected.clear()

    def _sites(self, block: Block) -> list[Site]:
        """The attention of a layer that is observed: all of it where each site is reported, or what is recorded."""
        wanted = self._on_site is not None or any(cond.compares(block) for cond in self._conds.values())
        return [site for site in block.sites if wanted or site is not block.self_attn]

    def _modules_to_keep(self, block: Block) -> list[nn.Module]:
        """Projections whose outputs are needed: for the reference feature, and as the inputs of attention that another
        node replaces, because its calls may not be the model's."""
        site, kept = block.cross_attn, []
        if block.name == self.plan.reference and self.plan.feature == "query":
            kept.append(site.query)
        if self._replaced and site.replaceable:
            kept += [
                module for module in (site.query, site.key, site.value) if module is not None and module not in kept
            ]
        return kept

    @property
    def _needs_totals(self) -> bool:
        """Whether the denominators of a call at this moment are needed: in joint attention, and between frames."""
        if self._open is None:
            return False
        block, site = self._open
        return block.self_attn is None or (site is block.self_attn and self.frames > 1)

    @property
    def _active(self) -> bool:
        return self.failure is None and any(forward is self for forward in _recording.get())

    @contextlib.contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """Recording must never stop image generation: errors are kept and reported when the recording is collected."""
        try:
            yield
        except Exception as error:
            self.failure = f"{where}: {type(error).__name__}: {error}"
            self._pending.clear()

    # -- matching attention calls to layers ---------------------------------------------------------------------------

    def _before_query(self, block: Block, site: Site, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        if self._active:
            self._open, self._pending, self._framewise = (block, site), [], []

    def _keep_output(self, module: nn.Module, _args: Any, out: Tensor) -> None:
        if self._active:
            self._projected[module] = out

    def _record_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, seen: watch_totals) -> None:
        """Take an attention call. It belongs to a site if it runs between the site's two projections, in this thread."""
        if not self._active or self._open is None or not isinstance(out, Tensor):
            return
        block, site = self._open
        options = kwargs.get("transformer_options") or {}
        with self._guarded(f"the attention of layer {block.name}"):
            # Decided first: where ComfyUI makes calls that are not wanted, it may have paused its graph itself.
            numbers = sizes(args, kwargs)
            if (self._replaced and site.replaceable) or self._is_wanted(block, *numbers, options):
                with apart_from_allocations():
                    self._take_seen(block, site, seen.complete(bind(args, kwargs)), out, kwargs)
            elif self._is_frame(block, site, *numbers):
                with apart_from_allocations():
                    call = seen.complete(bind(args, kwargs))
                    self._framewise += [exact_total(call)] if call.mask is None else []

    def _take_seen(self, block: Block, site: Site, call: AttentionCall, out: Tensor, kwargs: dict[str, Any]) -> None:
        options = kwargs.get("transformer_options") or {}
        if kwargs.get("skip_output_reshape"):
            out = out.transpose(1, 2).flatten(2)
        if site.gated or (self._replaced and site.replaceable):
            self._pending.append((call, out, options))
        else:
            self._take(block, site, call, out, options)

    def _before_out(self, block: Block, site: Site, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._active or not args:
            return
        self._open = None
        if self._replaced and site.replaceable:
            with self._guarded(f"the attention of layer {block.name}"), apart_from_allocations():
                self._take_replaced(block, site, args[0])
        elif site.gated:
            pending, self._pending = self._pending, []
            with self._guarded(f"the attention of layer {block.name}"), apart_from_allocations():
                for call, _, options in pending[-1:]:
                    self._take(block, site, call, args[0], options)
        elif self._framewise:
            calls, self._framewise = self._framewise, []
            if len(calls) == self.frames:
                with self._guarded(f"the attention of layer {block.name}"), apart_from_allocations():
                    self._take(block, site, _joined(calls), None, {})
        for module in (site.query, site.key, site.value):
            self._projected.pop(module, None)
        if self._on_site is not None:
            self._on_site()

    def _take_replaced(self, block: Block, site: Site, used: Tensor) -> None:
        pending, self._pending = self._pending, []
        # The call whose result is used, recognised by its memory; if there is none, the model's own attention.
        used_calls = (each for each in pending if each[1].data_ptr() == used.data_ptr() and each[1].shape == used.shape)
        call, out, options = next(used_calls, (self._own_attention(site), None, {}))
        if call is not None:
            self._take(block, site, call, out, options)

    def _own_attention(self, site: Site) -> AttentionCall | None:
        """The attention call that the network would have made itself."""
        modules = (site.query, site.key, site.value)
        parts = [split_heads(self._projected[module], site.heads) for module in modules if module in self._projected]
        if len(parts) != 3:
            return None
        q, k, v = parts
        return AttentionCall(q, k, v, None, q.shape[-1] ** -0.5)

    # -- layers -------------------------------------------------------------------------------------------------------

    def _is_wanted(self, block: Block, rows: int, queries: int, keys: int, options: Mapping[str, Any]) -> bool:
        """Whether a call can be the attention of a layer. Allocates nothing."""
        # Tiled self-attention (HyperTile) has more rows than the call; they cannot be matched to conditionings.
        if rows != self.batch:
            return False
        if block.self_attn is None:
            return any(
                self._joint_spans(block, cond, queries, keys, options) is not None for cond in self._conds.values()
            )
        return self._grid(block, queries - sum(self._around), options) is not None

    def _is_frame(self, block: Block, site: Site, rows: int, queries: int, keys: int) -> bool:
        """Whether a call can be that of one frame of several. Allocates nothing."""
        grid = self.plan.grid(block.level, *self.size)
        return (
            site.framewise
            and site is block.self_attn
            and rows == self.batch
            and self.frames > 1
            and queries == grid[0] * grid[1]
            and keys >= self.frames * queries
            and self._around == (0, 0)
        )

    def _take(
        self, block: Block, site: Site, call: AttentionCall, out: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        if not self._is_wanted(block, call.q.shape[0], call.q.shape[2], call.k.shape[2], options):
            return
        if block.self_attn is None:
            if out is not None:
                self._take_joint(block, call, out, options)
            return
        before, after = self._around
        grid = self._grid(block, call.q.shape[2] - before - after, options)
        if grid is None:
            return
        image = slice(before, call.q.shape[2] - after)
        if site is block.self_attn:
            # Merged tokens (ToMe) do not form a map of this image; the layer gets no score.
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
        for cond in self._conds.values():
            spans = self._joint_spans(block, cond, call.q.shape[2], call.k.shape[2], options)
            if spans is None:
                continue
            if block.name == self.plan.reference and self.plan.feature == "attention":
                cond.take_feature(out[:, spans.asking], grid)
            cond.take_joint(block, call, out, grid, spans)

    def _joint_spans(
        self, block: Block, cond: CondRecorder, queries: int, total: int, options: Mapping[str, Any]
    ) -> JointSpans | None:
        """Where text and image are among the ``total`` keys of a joint call; None if it is another kind of call.

        Where the prompt does not depend on the image, its keys are computed once, and then only the image asks.
        """
        grid = self.plan.grid(block.level, *self.size)
        before, after = self._around
        references = sum(options.get("reference_image_num_tokens") or ()) + before + after
        text, image = cond.tokens.length, self.frames * grid[0] * grid[1]
        if total <= image:
            return None  # self-attention of the image besides the joint attention
        spans = self.plan.spans(total, text, image, references)
        if spans is None:
            self.unclear = (
                f"its attention has {total} tokens instead of {text} for the prompt, {image} for the image and {references} for "
                "reference images"
            )
            return None
        own = slice(spans.image.start + before, spans.image.stop + before)
        # After a prefix only the last tokens ask. Elsewhere another node may have put cached keys after those that ask.
        first = total - queries if self.plan.after_prefix else 0
        asking = slice(own.start - first, own.stop - first)
        return JointSpans(spans.text, own, asking) if asking.start >= 0 and asking.stop <= queries else None

    def _keep_reference(self, block: Block, _module: nn.Module, _args: Any, out: Tensor) -> None:
        if self._active:
            grid, before = self.plan.grid(block.level, *self.size), self._around[0]
            with self._guarded(f"the attention of layer {block.name}"), apart_from_allocations():
                # The generated image comes first in the image stream, after any reference images that the family counts.
                self._take_reference(out[:, before : before + self.frames * grid[0] * grid[1]], grid)

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

    def results(self, on_device: bool = False) -> dict[Any, CondRecording]:
        """The recordings, by conditioning, on the CPU or where the model is."""
        found = {key: cond.result() for key, cond in self._conds.items()}
        if on_device:
            return found
        moved = iter(to_cpu([tensor for part in found.values() for tensor in part.tensors()]))
        # On an accelerator some maps are in half precision, in which no mean of several evaluations should be formed.
        moved = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in moved)
        return {key: part.with_tensors(moved) for key, part in found.items()}


def _joined(calls: list[AttentionCall]) -> AttentionCall:
    """The calls of single frames as one, of the keys that they share: of as many as there are queries."""
    q = torch.cat([call.q for call in calls], 2)
    total = torch.cat([call.total for call in calls if call.total is not None], 2)
    k, v = (part[:, :, : q.shape[2]] for part in (calls[0].k, calls[0].v))
    return replace(calls[0], q=q, k=k, v=v, total=total)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run the original code while recording: compiled code calls neither pass-throughs nor hooks.

    Only done when torch's compiler is already loaded, because setting the stance would load it, which takes seconds.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
