"""One recorded model call: which attention belongs to which layer, and its reduction while the tensors are alive.

The override sees queries, keys and values; a hook on each output projection says which layer they belong to and what
was made of them. Results pass through untouched, and everything is undone when the call ends, however it ends.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Layer, Tokens
from ..heads import head_weights
from ..layers import LAYER_METHODS, reference_affinity
from ..resize import Grid, resize_bilinear
from .family import Block, Plan
from .reduce import Call, Columns, Reference, bind, cross_maps, self_map, split_heads
from .weights import effective_weight

# Who records the call that this thread is in: several may, each for itself. Hooks sit on modules that other threads may
# be running too.
_recording: contextvars.ContextVar[tuple[Forward, ...]] = contextvars.ContextVar("goca_recording", default=())
_OVERRIDE = "optimized_attention_override"
# A self map held until the reference is known is kept in half precision from this many tokens on.
_HOLD_EXACT = 1024


@dataclass(frozen=True)
class Options:
    """What to reduce to, chosen in the node."""

    head_methods: tuple[str, ...]
    layer_methods: tuple[str, ...]
    reference_channel0: bool = False
    full_affinity: bool = False


@dataclass
class EntryResult:
    """What one call recorded for one conditioning."""

    layers: dict[str, Layer] = field(default_factory=dict)
    affinity: Tensor | None = None
    affinity_grid: Grid = (0, 0)


class Entry:
    """The rows of one conditioning within a call, and its layers so far."""

    def __init__(self, rows: slice, tokens: Tokens) -> None:
        self.rows, self.tokens = rows, tokens
        self.result = EntryResult()
        self.reference: Reference | None = None
        self.held: list[tuple[str, Tensor, Grid]] = []
        self.scores: dict[str, dict[str, Tensor]] = {}
        self.affinity_count = 0


class Forward:
    """Recorder of a single model call.

    ``entries``: conditioning key -> its rows and tokens. ``size``: height and width of the latent of this call.
    ``chunks``: how many conditionings were batched together.
    """

    def __init__(self, plan: Plan, options: Options, entries: Mapping[Any, Entry], size: Grid, batch: int) -> None:
        self.plan, self.options, self.entries, self.batch = plan, options, entries, batch
        self.size = size
        levels = {block.name: block.level for block in plan.blocks}
        self.reference_grid = plan.grid(levels[plan.reference], *size)
        finest = min((levels[name] for name in plan.affinity), default=0)
        self.affinity_grid = self._affinity_grid(plan.grid(finest, *size))
        self._pending: list[tuple[Call, Tensor, Mapping[str, Any]]] = []
        self._projected: dict[nn.Module, Tensor] = {}
        self._columns: dict[tuple, Columns] = {}
        self._grids: dict[str, Grid] = {}
        self.failure: str | None = None

    def _affinity_grid(self, finest: Grid) -> Grid:
        """The paper propagates on the finest grid; unless asked to, no grid finer than the reference's is held when
        it has more than 1,024 tokens: full self-attention there would cost more than all the rest of recording."""
        limit = max(_HOLD_EXACT, self.reference_grid[0] * self.reference_grid[1])
        return finest if self.options.full_affinity or finest[0] * finest[1] <= limit else self.reference_grid

    # -- installing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self, transformer_options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hooks on while the body runs; yields the options to pass to the model instead of the given ones."""
        options = transformer_options.copy()
        options[_OVERRIDE] = self._override(transformer_options.get(_OVERRIDE))
        handles: list[Any] = []
        token = _recording.set((*_recording.get(), self))
        try:
            replaced = transformer_options.get("patches_replace", {}).get("attn2", {})
            for block in self.plan.blocks:
                handles.append(block.self_out.register_forward_pre_hook(self._on_self(block)))
                handles.append(block.cross_out.register_forward_pre_hook(self._on_cross(block)))
                # A replaced attention is computed by another node, where no override is asked; its inputs still come
                # from these projections.
                kept = (block.cross_query, block.cross_key, block.cross_value) if replaced else ()
                handles += [module.register_forward_hook(self._keep_projection) for module in kept]
            with _eager():
                yield options
        finally:
            _recording.reset(token)
            for handle in handles:
                handle.remove()
            self._pending.clear()
            self._projected.clear()

    def _override(self, previous: Any) -> Any:
        def override(func: Any, *args: Any, **kwargs: Any) -> Any:
            out = previous(func, *args, **kwargs) if previous is not None else func(*args, **kwargs)
            if self._active and isinstance(out, Tensor):
                with self._guarded("an attention call"):
                    # The output finds its projection within one or two calls; older ones belong to nothing we know.
                    call = bind(args, kwargs), out, kwargs.get("transformer_options") or {}
                    self._pending = [*self._pending[-1:], call]
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

    def _keep_projection(self, module: nn.Module, _args: Any, out: Tensor) -> None:
        if self._active:
            self._projected[module] = out

    def _claim(self, value: Tensor) -> tuple[Call, Mapping[str, Any]] | None:
        """The pending call whose output is ``value`` (the same memory)."""
        for number, (call, out, options) in enumerate(self._pending):
            if out.data_ptr() == value.data_ptr() and out.shape == value.shape:
                del self._pending[number]
                return call, options
        return None

    # -- layers -----------------------------------------------------------------------------------------------------

    def _grid(self, block: Block, tokens: int, options: Mapping[str, Any]) -> Grid | None:
        shape = options.get("activations_shape")
        candidates = [tuple(shape[-2:])] if shape is not None else []
        candidates += [self._grids[block.name]] if block.name in self._grids else []
        candidates.append(self.plan.grid(block.level, *self.size))
        for grid in candidates:
            if grid[0] * grid[1] == tokens:
                self._grids[block.name] = grid
                return grid
        return None

    def _on_self(self, block: Block) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            claimed = self._claim(args[0]) if self._active and args else None
            if claimed is None:
                return
            call, options = claimed
            grid = self._grid(block, call.q.shape[2], options)
            # Tiled (HyperTile) or merged (ToMe) self-attention is not a map of this picture; the layer goes unscored.
            if grid is None or call.k.shape[2] != call.q.shape[2] or call.q.shape[0] != self.batch:
                return
            with self._guarded(f"the self-attention of layer {block.name}"):
                for entry in self.entries.values():
                    self._take_self(block, entry, call.rows(entry.rows), grid)

        return hook

    def _take_self(self, block: Block, entry: Entry, call: Call, grid: Grid) -> None:
        serves = block.name in self.plan.affinity
        scored = any(method != "vanilla" for method in self.options.layer_methods)
        shared = serves and self.affinity_grid == self.reference_grid
        if scored or shared:
            layer, layer_grid = self_map(call, grid, self.reference_grid)
            if entry.reference is not None:
                self._score(block.name, entry, layer, layer_grid)
            elif scored:
                held = layer if layer.shape[-1] <= _HOLD_EXACT else layer.half()
                entry.held.append((block.name, held, layer_grid))
        if serves:
            if not shared:
                layer, layer_grid = self_map(call, grid, self.affinity_grid)
            self._add_affinity(entry, layer, layer_grid)

    def _add_affinity(self, entry: Entry, layer: Tensor, grid: Grid) -> None:
        from ..layers import resize_self_map

        layer = resize_self_map(layer, grid, self.affinity_grid)
        entry.affinity_count += 1
        if entry.result.affinity is None:
            entry.result.affinity, entry.result.affinity_grid = layer.clone(), self.affinity_grid
        else:
            entry.result.affinity.lerp_(layer, 1 / entry.affinity_count)

    def _score(self, name: str, entry: Entry, layer: Tensor, grid: Grid) -> None:
        assert entry.reference is not None
        entry.scores[name] = {
            method: entry.reference.score(layer, grid, method).cpu()
            for method in self.options.layer_methods
            if method != "vanilla"
        }

    def _on_cross(self, block: Block) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._active or not args:
                return
            claimed = self._claim(args[0])
            replaced = self._replaced_call(block)
            call, options = claimed if claimed is not None else (replaced, {})
            if call is None:
                return
            grid = self._grid(block, call.q.shape[2], options)
            if grid is None or call.q.shape[0] != self.batch:
                return
            # A replacement mixes other things into its output; head weights then come from the text attention alone.
            post = args[0] if claimed is not None else None
            with self._guarded(f"the cross-attention of layer {block.name}"):
                for entry in self.entries.values():
                    self._take_cross(block, entry, call.rows(entry.rows), post, module, grid)

        return hook

    def _replaced_call(self, block: Block) -> Call | None:
        modules = (block.cross_query, block.cross_key, block.cross_value)
        kept = [self._projected.pop(module, None) for module in modules]
        if any(part is None for part in kept):
            return None
        q, k, v = (split_heads(part, block.heads) for part in kept if part is not None)
        return Call(q, k, v, None, q.shape[-1] ** -0.5)

    def _take_cross(
        self, block: Block, entry: Entry, call: Call, post: Tensor | None, module: nn.Module, grid: Grid
    ) -> None:
        if block.name == self.plan.reference:
            self._take_reference(entry, call, grid)
        tokens = entry.tokens
        keys = call.k.shape[2]
        if keys % tokens.length:
            return  # other conditionings were appended to the keys; which columns are ours cannot be told
        key = (keys, tokens.length, tokens.positions, tokens.rest)
        if key not in self._columns:
            self._columns[key] = Columns.make(keys, tokens.length, tokens.positions, tokens.rest, call.q.device)
        if post is None:
            value = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
            value = value.transpose(1, 2).flatten(2)
        else:
            value = post[entry.rows]
        weights = self._head_weights(module, value, call, block.heads)
        maps = cross_maps(call, weights, self._columns[key])
        entry.result.layers[block.name] = Layer(
            block.name, *grid, {name: part.cpu() for name, part in maps.items()}, {}
        )

    def _head_weights(self, module: nn.Module, post: Tensor, call: Call, heads: int) -> dict[str, Tensor]:
        methods = self.options.head_methods
        # The average does not look at the projection, so a model whose projection cannot be read still records it.
        weight = (
            effective_weight(module, post.device) if set(methods) != {"average"} else post.new_zeros(1, post.shape[-1])
        )
        return {
            method: head_weights(post.float(), weight, heads, method, call.v if "VW" in method else None)
            for method in methods
        }

    def _take_reference(self, entry: Entry, call: Call, grid: Grid) -> None:
        """The reference feature is the query projection of this layer's cross-attention, all heads side by side."""
        feature = call.q.transpose(-1, -2).flatten(1, 2).unflatten(-1, grid).float()
        feature = resize_bilinear(feature, self.reference_grid)
        entry.reference = Reference(reference_affinity(feature, self.options.reference_channel0), self.reference_grid)
        for name, layer, layer_grid in entry.held:
            self._score(name, entry, layer.float(), layer_grid)
        entry.held.clear()

    def results(self) -> dict[Any, EntryResult]:
        """What was recorded, by conditioning; the layers in the order of the plan."""
        unknown = {
            method: torch.full((1,), torch.nan) for method in LAYER_METHODS if method in self.options.layer_methods
        }
        for entry in self.entries.values():
            layers = {}
            for block in self.plan.blocks:
                layer = entry.result.layers.get(block.name)
                if layer is not None:
                    batch = next(iter(layer.maps.values())).shape[0]
                    scores = entry.scores.get(block.name) or {
                        method: value.expand(batch).clone() for method, value in unknown.items() if method != "vanilla"
                    }
                    layers[block.name] = Layer(layer.name, layer.height, layer.width, layer.maps, scores)
            entry.result.layers = layers
            if entry.result.affinity is not None:
                entry.result.affinity = entry.result.affinity.cpu()
        return {key: entry.result for key, entry in self.entries.items()}


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
