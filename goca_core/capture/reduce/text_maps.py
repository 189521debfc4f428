"""Cross-attention after head-wise aggregation, collected while the softmax of a call is computed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from .call import AttentionCall
from .fused import Columns, attention_to_columns


@lru_cache(maxsize=64)
def token_columns(keys: int, length: int, positions: tuple[int, ...], rest: bool, device: torch.device) -> Columns:
    """The text columns to keep; they sum repeats of the prompt, and the tokens not kept.

    ``length``: tokens of the conditioning. ComfyUI repeats a short conditioning to batch it with a longer one; the
    attention to the copies is summed again. Made on the CPU and kept, because each copy to a device makes the CPU wait.
    """
    own = torch.arange(keys) % length
    place = torch.full((length,), len(positions) if rest else -1)
    place[torch.tensor(positions, dtype=torch.long)] = torch.arange(len(positions))
    return Columns((place[own][:, None] == torch.arange(len(positions) + rest)).float().to(device))


class TextMaps:
    """Cross-attention after head-wise aggregation, collected by block: a map [B, N, columns] for each head method.

    ``weights``: head method -> [B, N, H], or None for the plain average. ``columns``: see `token_columns`.
    """

    def __init__(self, weights: Mapping[str, Tensor | None], columns: Columns) -> None:
        self._weights, self._columns = weights, columns
        self._blocks: dict[str, list[Tensor]] = {name: [] for name in weights}

    def add(self, numbers: Tensor, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, text keys] of the next query rows; ``numbers`` are consecutive."""
        rows, matrix = slice(int(numbers[0]), int(numbers[-1]) + 1), self._columns.matrix.to(probs.dtype)
        if all(weight is None for weight in self._weights.values()):
            probs = probs.mean(1, keepdim=True)
        self._mix(probs @ matrix, rows, None)

    def add_call(self, call: AttentionCall) -> bool:
        """Take all rows of a call with the text keys at once; False if the device has no kernel for that."""
        found = attention_to_columns(call, self._columns)
        if found is None:
            return False
        kept, factors = found
        self._mix(kept, slice(None), None if factors is None else factors.mT)
        return True

    def _mix(self, kept: Tensor, rows: slice, factors: Tensor | None) -> None:
        """Mix the heads of ``kept`` [B, H, rows, columns]; ``factors``: of each pixel and head, [B, rows, H]."""
        for name, weight in self._weights.items():
            if weight is None and factors is None:
                self._blocks[name].append(kept.mean(1, dtype=torch.promote_types(kept.dtype, torch.float32)))
                continue
            if weight is None:
                assert factors is not None
                mixer, scale = factors, 1 / factors.shape[-1]
            else:
                mixer, scale = (weight[:, rows] if factors is None else weight[:, rows] * factors), 1.0
            # One small product for each pixel: [1, H] @ [H, columns].
            heads, pixels = mixer.to(kept.dtype).flatten(0, 1)[:, None], kept.transpose(1, 2).flatten(0, 1)
            mixed = torch.baddbmm(heads.new_empty(1, 1, 1), heads, pixels, beta=0, alpha=scale)
            self._blocks[name].append(mixed.view(kept.shape[0], -1, mixed.shape[-1]))

    def result(self) -> dict[str, Tensor]:
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts, 1) for name, parts in self._blocks.items()}
