"""A tick of a batch becomes rows, prompt pieces and pages of a real engine, and its tokens become the path's.

The batch decides as it does in the simulator; this file only spells out what it decided. A tick here is
`begin`, `advance(1)`, then the engine's work: the batch has no clock and does not mind the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hw.engine_step import Piece, Tick, ints
from hw.kvtree import Ints
from sim.batch import Batch, Settings, Stretch
from sim.kv import KvNode
from sim.pages import Held, NamedPages


class RealEngine(Protocol):
    """What runs a tick: `hw.engine.Engine`, or anything that returns its tokens and scores."""

    def run(self, tick: Tick) -> Any:
        """Let one tick happen and return what has `.tokens` and `.scores`."""

    def reset(self) -> None:
        """Forget all pages, as for a new batch."""

    def free_stack(self) -> Ints:
        """The pages that are free by the engine's own books, the next one last."""


@dataclass(frozen=True, slots=True)
class Played:
    """A tick that the batch has behind it and the engine before it."""

    stretch: Stretch
    finished: list[KvNode]
    tick: Tick
    sampled: list[tuple[Held, int]]  # whose token each sampled row is, and its place on the path
    decoders: int
    prefill: int  # tokens of prompts and of scored steps
    read: float  # KV tokens that the decoders read, as the cost model counts them
    context: float  # the sum over those of the tokens each attends to
    copied: int  # KV tokens copied by forks


class Executor:
    """Plays the ticks of one batch, which must be new, on a real engine.

    Raises ValueError for settings that are not played here.
    """

    def __init__(self, batch: Batch, vocab: int) -> None:
        if batch.tree.per_branch:
            raise ValueError(
                "kv.sharing: per_branch copies KV whose source may have been reclaimed, which a real "
                "engine cannot do; replay with sharing: tree"
            )
        own = Settings(1)
        for name in ("reclaim", "enable_prefix_caching", "async_scheduling"):
            if getattr(batch.settings, name) != getattr(own, name):
                raise ValueError(
                    f"engine.{name}: {getattr(batch.settings, name)} belongs to vLLM's engine, whose pages have no "
                    f"names here; replay with {name}: {getattr(own, name)}"
                )
        self.batch = batch
        self.vocab = vocab
        self.pages = batch.tree = NamedPages(batch.tree)

    def play(self) -> Played | None:
        """Let the batch decide and book one tick; None if there is nothing to do. Raises DoesNotFitError."""
        batch = self.batch
        before = batch.computed_tokens
        stretch = batch.begin()
        if stretch is None:
            return None
        now = batch.tick
        decoding = batch.running()
        completing = batch.completing()
        filling = [batch.fill.branch] if batch.fill is not None else []
        read = batch.read + batch.read_saturated / batch.saturation
        finished = batch.advance(1)
        freed = self.pages.settle()
        rows = _Rows(self, now)
        for branch in completing:
            rows.bring(branch, complete=True)
        for branch in filling:
            rows.bring(branch, complete=False)
        for branch, done in decoding:
            rows.decode(branch, done)
        assert len(self.pages.stack) == self.pages.free, "named pages and counted pages differ"
        prefill = batch.computed_tokens - before
        assert rows.computed() == prefill, "the engine computes other tokens than the batch counts"
        tick = rows.tick(freed, self.pages.taken)
        context = sum(len(p.tokens) * (p.start + len(p.tokens) / 2) for p in tick.pieces)
        return Played(
            stretch,
            finished,
            tick,
            rows.samples + rows.late_samples,
            len(decoding),
            prefill,
            read,
            context,
            rows.copied,
        )

    @staticmethod
    def learn(played: Played, tokens: Ints) -> None:
        """Book the sampled tokens: they are the branches' own from now on."""
        for (held, at), token in zip(played.sampled, tokens.tolist(), strict=True):
            held.ids[at] = token

    def held(self, node: KvNode) -> Held:
        """What the engine holds of `node`; its token ids start as its parent's path."""
        found = self.pages.held.get(node)
        if found is None:
            ids = np.empty(node.path, np.int32)
            known = 0
            if node.parent is not None:
                known = node.parent.path
                ids[:known] = self.held(node.parent).ids
            if not node.ticks:  # a prompt or a scored step, known from the start
                seed = (node.query.number * 7_919 + known) & 0xFFFFFFFF
                count = node.path - known
                ids[known:] = (np.arange(count) * 2_654_435_761 + seed * 40_503) % self.vocab
            found = self.pages.held[node] = Held(ids)
        return found


class _Rows:
    """The rows of one tick as they come together."""

    def __init__(self, executor: Executor, now: int) -> None:
        self.executor = executor
        self.pages = executor.pages
        self.page = executor.pages.block_size
        self.now = now
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.tables: list[Ints] = []
        self.pieces: list[Piece] = []
        self.again: list[tuple[int, int, int]] = []
        self.copies: list[tuple[int, int, int]] = []
        self.samples: list[tuple[Held, int]] = []  # of decoders
        self.late_samples: list[tuple[Held, int]] = []  # of what completes its path
        self.prompt_samples: list[int] = []  # rows, from the first piece on
        self.scored: list[int] = []
        self.rows = 0  # of all pieces
        self.last_row: dict[KvNode, int] = {}  # of a parent whose last token this tick computes
        # own tokens of a node that this tick computes: the first, and its row
        self.new: dict[KvNode, tuple[int, int]] = {}
        self.copied = 0

    def decode(self, branch: KvNode, done: int) -> None:
        """A branch that has decoded `done` tokens writes its last one's KV and samples the next."""
        pages, node = self.pages, branch
        held = self.executor.held(node)
        at = node.path - branch.ticks - 1 + done
        joins = held.seen != self.now - 1
        held.seen = self.now
        copies = joins and not done and held.tokens < node.tail
        before = len(held.pages)
        pages.grow(node, held, node.tail + done + 1)
        if copies:
            self._copy(node, held)
        if joins:
            table = pages.table_of(node)
            held.table = np.full(-(-node.path // self.page), -1, np.int32)
            held.table[: len(table)] = table
            held.length = len(table)
        else:
            for page in held.pages[before:]:
                held.table[held.length] = page
                held.length += 1
        held.tokens = node.tail + done + 1
        self.tokens.append(int(held.ids[at]))
        self.positions.append(at)
        self.tables.append(held.table[: held.length])
        self.samples.append((held, at + 1))

    def _copy(self, node: KvNode, held: Held) -> None:
        """The partial page of the parent's path, of which a fork needs its own, token for token.

        What is resident is copied before the tick; what this same tick computes is written twice.
        """
        parent = node.parent
        assert parent is not None
        start = parent.path - 1 - node.tail
        target = held.pages[0]
        resident = node.tail
        step: KvNode | None = parent
        while step is not None:
            first = self.pages.first(step)
            if step in self.new:
                low, row = self.new[step]
                for own in range(max(low, start - first), self.pages.held[step].tokens):
                    self.again.append((row + own - low, target, first + own - start))
                    resident = min(resident, first + own - start)
            step = step.up if first > start else None
        if resident:
            source = self.pages.table_of(parent)[start // self.page]
            self.copies.append((source, target, resident))
        held.tokens = node.tail
        self.copied += node.tail

    def bring(self, branch: KvNode, complete: bool) -> None:
        """What is new on the path of `branch` was computed in this tick; `complete`: its last token too."""
        pages, node = self.pages, branch
        path: list[KvNode] = []
        step: KvNode | None = node
        while step is not None:
            path.append(step)
            step = step.up
        grows = complete and branch.ticks > 0
        runs: list[_Run] = []
        for step in reversed(path):
            held = self.executor.held(step)
            present = step.resident
            if step is node and grows:
                present -= 1  # its first write comes below
                fresh = present == node.tail and held.tokens < node.tail
                if fresh and node.tail and not pages.recompute_tail:
                    pages.grow(step, held, present + 1)
                    self._copy(step, held)
            if present > held.tokens:
                pages.grow(step, held, present)
                self._extend(runs, step, held, held.tokens, present)
                held.tokens = present
        if complete:
            self._finish(branch, runs, grows)
        for run in runs:
            self._add(run)

    def _extend(self, runs: list[_Run], node: KvNode, held: Held, low: int, high: int) -> None:
        """Own tokens low .. high of `node`: part of the last run where they follow it, else a new one."""
        first = self.pages.first(node)
        at = np.arange(node.offset + low, node.offset + high) // self.page
        if node.offset:
            assert node.parent is not None
            shared = self.pages.table_of(node.parent)[first // self.page]
            own = np.asarray([shared, *held.pages], np.int32)[at]
        else:
            own = np.asarray(held.pages, np.int32)[at]
        start = first + low
        self.new[node] = (low, self._row_after(runs) + 1)
        if not runs or runs[-1].end != start:
            table = self.pages.table_of(node)
            runs.append(_Run(start, start, np.asarray(table[: -(-start // self.page)], np.int32)))
        run = runs[-1]
        run.tokens.append(held.ids[start : first + high])
        run.pages.append(own)
        run.end = first + high

    def _finish(self, branch: KvNode, runs: list[_Run], grows: bool) -> None:
        """The last token of the path: sampled from, or scored; its KV is kept where a branch goes on."""
        pages, node = self.pages, branch
        held = self.executor.held(node)
        if not grows:
            self._last(node, runs, node.path - 1, held, -1)
            self.scored.append(self._row_after(runs))
            return
        own = node.resident - 1
        at = pages.first(node) + own
        pages.grow(node, held, node.resident)
        held.tokens = node.resident
        target = pages.table_of(node)[at // self.page]
        parent = node.parent
        assert parent is not None
        fresh = at == parent.path - 1
        if fresh and not runs and parent in self.last_row:
            row = self.last_row[parent]
            self.again.append((row, target, at % self.page))
        else:
            self._last(parent if fresh else node, runs, at, held, target)
            row = self._row_after(runs)
            if fresh:
                self.last_row[parent] = row
        self.late_samples.append((held, at + 1))
        self.prompt_samples.append(row)

    def _last(self, above: KvNode, runs: list[_Run], at: int, held: Held, page: int) -> None:
        """The token at `at`, after what lies on the path of `above`; its KV goes to `page`, or nowhere (-1)."""
        if not runs or runs[-1].end != at:
            table = self.pages.table_of(above)
            runs.append(_Run(at, at, np.asarray(table[: -(-at // self.page)], np.int32)))
        run = runs[-1]
        run.tokens.append(held.ids[at : at + 1])
        run.pages.append(np.asarray([page], np.int32))
        run.end = at + 1

    def _row_after(self, runs: list[_Run]) -> int:
        return self.rows + sum(run.end - run.start for run in runs) - 1

    def _add(self, run: _Run) -> None:
        tokens, pages = np.concatenate(run.tokens), np.concatenate(run.pages)
        self.pieces.append(Piece(tokens, run.start, run.context, pages))
        self.rows += len(tokens)

    def computed(self) -> int:
        """Tokens of all pieces."""
        return self.rows

    def tick(self, freed: Ints, taken: list[int]) -> Tick:
        """All of it, as the engine takes it."""
        b = len(self.tokens)
        again = _triples(self.again)
        again[:, 0] += b
        return Tick(
            tokens=ints(self.tokens),
            positions=ints(self.positions),
            tables=self.tables,
            pieces=self.pieces,
            again=again,
            sampled=ints([*range(b), *(b + row for row in self.prompt_samples)]),
            scored=ints([b + row for row in self.scored]),
            copies=_triples(self.copies),
            freed=freed,
            taken=ints(taken),
        )


class _Run:
    """A piece that still grows: positions start .. end, what is attended to before, tokens and their pages."""

    __slots__ = ("start", "end", "context", "tokens", "pages")

    def __init__(self, start: int, end: int, context: Ints) -> None:
        self.start = start
        self.end = end
        self.context = context
        self.tokens: list[Ints] = []
        self.pages: list[Ints] = []


def _triples(rows: list[tuple[int, int, int]]) -> Ints:
    return np.asarray(rows, np.int32).reshape(-1, 3)
