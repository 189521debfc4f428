"""Record several conditionings of one call as one, which starts only half or a third as many kernels.

For a recorder the conditionings of a call are samples like any others, as long as the same tokens are kept of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...attention.record import Tokens
from ..reduce.cond_recorder import CondRecording

Rows = Mapping[Any, tuple[slice, Tokens]]
Groups = dict[tuple[Any, ...], tuple[slice, Tokens]]


def grouped(rows: Rows) -> Groups:
    """The conditionings of a call, by groups whose rows follow each other and whose texts are equally long.

    Of a group the tokens are kept that are wanted of any of them.
    """
    groups: list[tuple[tuple[Any, ...], slice, Tokens]] = []
    for key, (place, tokens) in sorted(rows.items(), key=lambda item: item[1][0].start):
        if groups and groups[-1][1].stop == place.start and groups[-1][2].length == tokens.length:
            keys, before, kept = groups.pop()
            groups.append(((*keys, key), slice(before.start, place.stop), _union(kept, tokens)))
        else:
            groups.append(((key,), place, tokens))
    return {keys: (place, tokens) for keys, place, tokens in groups}


def alone(rows: Rows) -> Groups:
    """Each conditioning in a group of its own."""
    return {(key,): found for key, found in rows.items()}


def parts(results: Mapping[Any, CondRecording], groups: Groups, rows: Rows) -> dict[Any, tuple[CondRecording, Tokens]]:
    """The recording of each conditioning, and its tokens: those of its group, with its own words."""
    found = {}
    for keys, (place, tokens) in groups.items():
        for key in keys:
            own, wanted = rows[key]
            part = slice(own.start - place.start, own.stop - place.start)
            whole = results[keys]
            tensors = (tensor[part] for tensor in whole.tensors())
            found[key] = whole if len(keys) == 1 else whole.with_tensors(tensors), replace(tokens, words=wanted.words)
    return found


def _union(one: Tokens, other: Tokens) -> Tokens:
    kept = tuple(sorted({*one.positions, *other.positions}))
    return Tokens(kept, len(kept) < one.length, one.length)
