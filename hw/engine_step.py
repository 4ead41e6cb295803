"""One tick of a real engine as plain arrays: which rows decode, which prompt pieces run, which pages move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hw.kvtree import Ints


def ints(values: Sequence[int] | Ints = ()) -> Ints:
    """An int32 array of whole numbers."""
    return np.asarray(values, dtype=np.int32)


def _no_rows() -> Ints:
    return np.empty((0, 3), np.int32)


@dataclass(frozen=True, slots=True)
class Piece:
    """Known tokens of one path, computed together: a chunk of a prompt, or of a step that is scored.

    `tokens` [n] stand at positions start .. start + n - 1; the KV of what comes before lies on the pages
    `context`, resident or brought in by this same tick. `pages` [n]: where each token's KV goes, at slot
    position % page; -1 where it is not kept (the last token of a scored path: only this piece attends to it).
    """

    tokens: Ints
    start: int
    context: Ints
    pages: Ints


@dataclass(frozen=True, slots=True)
class Tick:
    """What one iteration does. Its rows are the decoders, then the tokens of each piece in order.

    `tokens`, `positions` [b]: each decoder's last token, whose KV is written at that position of `tables[b]`.
    `again` [n, 3]: (row, page, slot) where the KV of a row is written once more, for a sibling that has its own
    copy of it. `sampled`, `scored`: rows whose next token is drawn, or that the reward head judges.
    `copies` [n, 3]: (page, to page, tokens) that forks copy before anything is computed. `freed`, then `taken`:
    pages given back since the last tick, and pages that this one takes from the top of the stack of free ones.
    """

    tokens: Ints = field(default_factory=ints)
    positions: Ints = field(default_factory=ints)
    tables: Sequence[Ints] = ()
    pieces: Sequence[Piece] = ()
    again: Ints = field(default_factory=_no_rows)
    sampled: Ints = field(default_factory=ints)
    scored: Ints = field(default_factory=ints)
    copies: Ints = field(default_factory=_no_rows)
    freed: Ints = field(default_factory=ints)
    taken: Ints = field(default_factory=ints)

    @property
    def rows(self) -> int:
        """Tokens computed: decoders and pieces."""
        return len(self.tokens) + sum(len(piece.tokens) for piece in self.pieces)


def written(tick: Tick, page: int) -> tuple[Ints, Ints]:
    """Page and slot of the KV of every row and of every repeat [rows + again]; page -1: it is not kept."""
    b = len(tick.tokens)
    pages = np.full(tick.rows + len(tick.again), -1, np.int32)
    slots = np.zeros(len(pages), np.int32)
    slots[:b] = tick.positions % page
    pages[:b] = [
        table[at // page] for table, at in zip(tick.tables, tick.positions.tolist(), strict=True)
    ]
    row = b
    for piece in tick.pieces:
        rows = slice(row, row + len(piece.tokens))
        pages[rows] = piece.pages
        slots[rows] = np.arange(piece.start, piece.start + len(piece.tokens)) % page
        row = rows.stop
    pages[row:] = tick.again[:, 1]
    slots[row:] = tick.again[:, 2]
    return pages, slots


def groups(pieces: Sequence[Piece]) -> list[list[int]]:
    """Pieces that attend to the very same context, by index: siblings that are scored together."""
    found: dict[tuple[int, bytes], list[int]] = {}
    for i, piece in enumerate(pieces):
        found.setdefault((piece.start, piece.context.tobytes()), []).append(i)
    return list(found.values())
