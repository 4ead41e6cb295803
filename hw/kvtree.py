"""One decode step over a tree of KV pages as lists of work: shared segments, private suffixes, where parts are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

KEY_TILE = 64
PREFIX_FIELDS = ("first", "branches", "row0", "pages_at", "begin", "end", "slot", "unused")
SUFFIX_FIELDS = ("branch", "pages_at", "begin", "end", "slot", "unused0", "unused1", "unused2")


@dataclass(frozen=True, slots=True)
class Step:
    """The attention of one decode step, as the kernels read it; all arrays int32.

    `order` [branches]: branches in depth-first order. `pages`: page lists of all segments, one after the other.
    `prefix` [items, 8]: PREFIX_FIELDS, the keys [begin, end) of a page list for packed rows from row0 (row r is head
    r % group of branch order[first + r // group]). `suffix` [items, 8]: SUFFIX_FIELDS, the same for one branch.
    `parts` [branches + 1]: the partial results of branch b are parts[b] .. parts[b + 1]; an item writes parts[b] + slot.
    """

    order: Ints
    pages: Ints
    prefix: Ints
    suffix: Ints
    parts: Ints


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages [depth, stop) of the table of order[first], read by `branches` branches, their parts from `slot`."""

    first: int
    branches: int
    depth: int
    tokens: int
    parent: int


def plan(
    tables: Sequence[Sequence[int] | Ints] | Ints,
    lengths: Sequence[int] | Ints,
    *,
    page: int,
    group: int,
    kv_heads: int,
    row_tile: int = 64,
    ctas: int = 264,
    min_branches: int = 2,
    min_keys: int = 256,
) -> Step:
    """Work lists of a step: branch b attends to lengths[b] tokens on the pages tables[b].

    A full page that `min_branches` (at least 2) or more branches hold at the same depth is read once for all of
    them. Long segments are cut so that about `ctas` blocks share the work, at least `min_keys` keys each.
    Raises ValueError for a table shorter than its length.
    """
    if min_branches < 2:
        raise ValueError(
            f"min_branches must be >= 2 (one branch shares with nobody), got {min_branches}"
        )
    count = len(lengths)
    rows = [tuple(np.asarray(tables[b], np.int32).tolist()) for b in range(count)]
    held = [int(n) for n in lengths]
    for b in range(count):
        if held[b] > len(rows[b]) * page:
            raise ValueError(
                f"branch {b} has {held[b]} tokens, but its {len(rows[b])} pages hold {len(rows[b]) * page}"
            )
    full = [rows[b][: held[b] // page] for b in range(count)]
    order = sorted(range(count), key=lambda b: (full[b], b))
    shared, private = _runs(order, full, held, page, min_branches)

    tiles = [-(-run.branches * group // row_tile) for run in shared]
    work = sum(n * run.tokens for n, run in zip(tiles, shared, strict=True)) * kv_heads
    prefix_keys = _keys(work, ctas, min_keys)
    suffix_keys = _keys(sum(run.tokens for run in private) * kv_heads, ctas, min_keys)

    pages: list[int] = []
    prefix: list[tuple[int, ...]] = []
    suffix: list[tuple[int, ...]] = []
    ends: list[int] = []
    for run, n_tiles in zip(shared, tiles, strict=True):
        slot = ends[run.parent] if run.parent >= 0 else 0
        for begin in range(0, run.tokens, prefix_keys):
            end = min(begin + prefix_keys, run.tokens)
            for tile in range(n_tiles):
                prefix.append(
                    (run.first, run.branches, tile * row_tile, len(pages), begin, end, slot, 0)
                )
            slot += 1
        ends.append(slot)
        pages += rows[order[run.first]][run.depth : run.depth + run.tokens // page]
    parts = np.zeros(count + 1, np.int32)
    for run in private:
        branch = order[run.first]
        slot = ends[run.parent] if run.parent >= 0 else 0
        for begin in range(0, run.tokens, suffix_keys):
            end = min(begin + suffix_keys, run.tokens)
            suffix.append((branch, len(pages), begin, end, slot, 0, 0, 0))
            slot += 1
        parts[branch + 1] = slot
        pages += rows[branch][run.depth : run.depth - (-run.tokens // page)]
    # The longest first: the last blocks to start are then the shortest, and the tail of the grid is short.
    prefix.sort(key=lambda item: item[4] - item[5])
    suffix.sort(key=lambda item: item[2] - item[3])
    return Step(
        np.array(order, np.int32),
        np.array(pages, np.int32),
        np.array(prefix, np.int32).reshape(-1, 8),
        np.array(suffix, np.int32).reshape(-1, 8),
        np.cumsum(parts, dtype=np.int32),
    )


def _runs(
    order: list[int], full: list[tuple[int, ...]], held: list[int], page: int, min_branches: int
) -> tuple[list[_Run], list[_Run]]:
    """Shared runs (parents before children) and one private run a branch (0 tokens where nothing is left)."""
    shared: list[_Run] = []
    private: list[_Run] = []
    todo = [(0, len(order), 0, -1)] if order else []
    while todo:
        low, high, depth, parent = todo.pop()
        if high - low < min_branches:
            for at in range(low, high):
                private.append(_Run(at, 1, depth, held[order[at]] - depth * page, parent))
            continue
        # Sorted tables: what the first and the last of the group have in common, all have.
        one, other = full[order[low]], full[order[high - 1]]
        stop = depth
        while stop < min(len(one), len(other)) and one[stop] == other[stop]:
            stop += 1
        if stop > depth:
            shared.append(_Run(low, high - low, depth, (stop - depth) * page, parent))
            parent = len(shared) - 1
        at = low
        while at < high:
            row = full[order[at]]
            end = at + 1
            if len(row) > stop:
                while end < high and full[order[end]][stop] == row[stop]:
                    end += 1
            todo.append((at, end, stop, parent))
            at = end
    return shared, private


def _keys(work: int, ctas: int, min_keys: int) -> int:
    """Keys of one item: an equal share of `work` (keys over all row tiles and heads), in whole key tiles."""
    return max(-(-max(min_keys, -(-work // ctas)) // KEY_TILE) * KEY_TILE, KEY_TILE)
