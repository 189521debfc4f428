"""Cross-attention after head-wise aggregation, collected while the softmax of a call is computed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def token_columns(keys: int, length: int, positions: tuple[int, ...], rest: bool, device: torch.device) -> Tensor:
    """The text columns to keep, as a matrix [keys, columns] that sums repeats of the prompt, and the tokens not kept.

    ``length``: tokens of the conditioning. ComfyUI repeats a short conditioning to batch it with a longer one; the
    attention to the copies is summed again.
    """
    own = torch.arange(keys, device=device) % length
    place = torch.full((length,), len(positions) if rest else -1, device=device)
    place[torch.tensor(positions, device=device, dtype=torch.long)] = torch.arange(len(positions), device=device)
    columns = torch.arange(len(positions) + rest, device=device)
    return (place[own][:, None] == columns).float()


class TextMaps:
    """Cross-attention after head-wise aggregation, collected by block: a map [B, N, columns] for each head method.

    ``weights``: head method -> [B, N, H]. ``columns``: see `token_columns`.
    """

    def __init__(self, weights: Mapping[str, Tensor], columns: Tensor) -> None:
        self._weights, self._columns = weights, columns
        self._blocks: dict[str, list[Tensor]] = {name: [] for name in weights}

    def add(self, numbers: Tensor, probs: Tensor) -> None:
        """Take the probabilities [B, H, rows, text keys] of the next query rows; ``numbers`` are consecutive."""
        rows = slice(int(numbers[0]), int(numbers[-1]) + 1)
        matrix = self._columns.to(probs.dtype)
        for name, weight in self._weights.items():
            mixed = torch.einsum("bhnt,bnh->bnt", probs, weight[:, rows].to(probs.dtype))
            self._blocks[name].append(mixed @ matrix)

    def result(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts, 1) for name, parts in self._blocks.items()}
