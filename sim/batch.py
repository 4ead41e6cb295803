"""One replica's batch without a clock: admit, run a stretch of ticks in closed form, finish, preempt.

`begin()` plans the next stretch: either a *boundary tick*, scheduled explicitly (admission, last chunk,
overflow), or a *regime* of constant composition. `advance(k)` lets k of its ticks happen. Nothing here
knows the time; the simulator and the real engine both drive this object. docs/engine.md is its law.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Literal, Protocol

from sim.kv import DoesNotFitError, Fork, KvNode, PageTree, Query, Sharing


class Cost(Protocol):
    """What an iteration costs; `models.latency.StepCost` is one."""

    @property
    def kv_s(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def copy_s(self) -> float: ...
    def base_s(self, b: int, c: int) -> float: ...
    def context_s(self, c: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """An engine's limits, in vLLM's words, and how its KV is shared."""

    num_gpu_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_active_searches: int | None = None
    sharing: Sharing = "tree"
    fork: Fork = "copy_tail"
    attention: Literal["shared", "naive"] = "shared"


WAITING, FILLING, DECODING, DONE, GONE = range(5)


class Branch:
    """`ticks` tokens to decode at `node` (0: only bring its path in), and how far that is."""

    __slots__ = (
        "query", "number", "node", "parent", "ticks", "state", "written", "joined", "finish_tick",
        "phase", "read", "fresh", "first_tick", "mark", "mark_tick", "num_preemptions", "owner",
    )  # fmt: skip

    def __init__(self, query: Query, number: int, node: KvNode, ticks: int, owner: Any) -> None:
        self.query = query
        self.number = number
        self.node = node
        self.parent = node.parent
        self.ticks = ticks
        self.state = WAITING
        self.written = 0  # tokens decoded when it joined the batch last
        self.joined = 0  # tick at which it did
        self.finish_tick = -1
        self.phase = 0  # (write position - tick) mod page size, constant while it decodes
        self.read = 0  # naive attention: KV tokens it read at `joined`
        self.fresh = ticks > 0  # nothing decoded yet
        self.first_tick = -1  # tick with which its first token was there
        self.mark = (
            0  # report when this many tokens are decoded (a visible answer begins); 0: never
        )
        self.mark_tick = -1
        self.num_preemptions = 0
        self.owner = owner


class Fill:
    """The partial prefill: which nodes still miss tokens, in order, and how many in all."""

    __slots__ = ("branch", "missing", "left", "context")

    def __init__(self, branch: Branch, missing: list[KvNode], left: int, context: int) -> None:
        self.branch = branch
        self.missing = missing
        self.left = left  # tokens still to compute, the path's last one included
        self.context = context  # path tokens resident


@dataclass(slots=True)
class Stretch:
    """`ticks` ticks; tick j (from 0) takes `first_s + j * slope_s` seconds."""

    ticks: int
    first_s: float
    slope_s: float

    def seconds(self, k: int) -> float:
        """Return how long the first `k` ticks take."""
        return k * self.first_s + self.slope_s * (k * (k - 1) / 2)

    def ticks_until(self, seconds: float) -> int:
        """Return the fewest ticks (at least 1, at most all) whose end is not before `seconds`."""
        if self.slope_s <= 0.0:
            k = ceil(seconds / self.first_s) if self.first_s > 0 else self.ticks
        else:
            a, h = self.first_s, self.slope_s / 2
            k = ceil((h - a + sqrt((a - h) ** 2 + 4 * h * seconds)) / (2 * h))
        k = min(max(k, 1), self.ticks)
        while k > 1 and self.seconds(k - 1) >= seconds:
            k -= 1
        while k < self.ticks and self.seconds(k) < seconds:
            k += 1
        return k


class Batch:
    """The branches of one replica, its waiting queue and its page tree."""

    def __init__(self, settings: Settings, cost: Cost) -> None:
        self.settings = settings
        self.cost = cost
        self.tree = PageTree(
            settings.num_gpu_blocks, settings.block_size, settings.sharing, settings.fork
        )
        self.block_size = settings.block_size
        self.naive = settings.attention == "naive"
        self.saturation = cost.saturation
        self.tick = 0
        self.running: dict[int, Branch] = {}  # decoding branches by number
        self.fill: Fill | None = None
        self.decoders = 0
        self.read = 0  # KV tokens read by the next tick, each weight 1
        self.read_saturated = 0  # tokens times decoders where that is compute-bound
        self.phases = [0] * settings.block_size  # decoders by phase
        self.common = 0.0  # seconds of common cost per decoder so far
        self.active_searches = 0
        self.waiting_branches = 0
        self.ready = False  # somebody who waits might be admitted now
        self.started: list[Branch] = []  # whose first token came with the last tick
        self.marked: list[Branch] = []  # whose marked token came with the last tick
        self.activated: list[Query] = []  # first admitted by the last `begin`
        self.busy_s = 0.0
        self.charged_s = 0.0  # to queries that are gone
        self.num_preemptions = 0
        self.regimes = 0
        self.boundaries = 0
        self.branch_steps = 0  # decoding branches that came to their end
        self.prefills = 0  # prefill-only branches that did
        self.computed_tokens = 0  # by prefill
        self.hit_tokens = 0  # prompt tokens found in the prefix cache
        self._finish: list[tuple[int, int, Branch]] = []
        self._active: list[tuple[int, Query]] = []
        self._new: list[tuple[int, Query]] = []
        self._numbers = 0
        self._queries = 0
        self._stretch: Stretch | None = None
        self._chunk = 0  # of the partial prefill, in each tick of the stretch
        self._boundary = False
        self._late: list[tuple[Branch, bool]] = []  # complete with this tick; (branch, is pinned)
        self._filled: list[tuple[Branch, bool]] = []  # prefill-only ones; (branch, holds its path)
        self._merging: set[KvNode] = (
            set()
        )  # parents whose last token's logits are there in this tick
        self._bills: list[tuple[Query, float]] = []
        self._prefill_s = 0.0
        self._prefill_slope = 0.0
        self._per_decoder = 0.0  # common cost of one tick, for each decoder

    # -- submitting and dropping (only between stretches) -------------------------------------------

    def prompt(
        self, tokens: int, prefix: Sequence[tuple[Hashable, int]] = (), owner: Any = None
    ) -> KvNode:
        """Register a query with a prompt of `tokens` tokens; return its root."""
        query = Query(self._queries, owner)
        self._queries += 1
        query.tick = self.tick
        query.common = self.common
        return self.tree.root(query, tokens, prefix)

    def branch(self, parent: KvNode, ticks: int, owner: Any = None, mark: int = 0) -> Branch:
        """Submit a branch that grows a child of `ticks` tokens below `parent`.

        Its `mark`-th token, if it is neither the first nor the last, is reported in `marked`.
        """
        branch = self._submit(self.tree.child(parent, ticks), ticks, owner)
        if 1 < mark < ticks:
            branch.mark = mark
        return branch

    def branches(self, parent: KvNode, children: Sequence[tuple[int, Any, int]]) -> list[Branch]:
        """Submit one branch for each `(ticks, owner, mark)`, all below `parent`; see `branch`."""
        tree = self.tree
        query = parent.query
        waiting = query.waiting
        submitted = []
        number = self._numbers
        for ticks, owner, mark in children:
            node = tree.child(parent, ticks)
            branch = Branch(query, number, node, ticks, owner)
            node.branch = branch
            heapq.heappush(waiting, (number, branch))
            number += 1
            if 1 < mark < ticks:
                branch.mark = mark
            submitted.append(branch)
        self._numbers = number
        self.waiting_branches += len(submitted)
        self._enqueue(query)
        return submitted

    def given(self, parent: KvNode, tokens: int) -> KvNode:
        """Create a child whose tokens are known (a verifier's copy of a step)."""
        return self.tree.given(parent, tokens)

    def prefill(self, node: KvNode, owner: Any = None) -> Branch:
        """Submit a branch that only brings the path of `node` in."""
        return self._submit(node, 0, owner)

    def _submit(self, node: KvNode, ticks: int, owner: Any) -> Branch:
        query = node.query
        branch = Branch(query, self._numbers, node, ticks, owner)
        self._numbers += 1
        node.branch = branch
        self._wait(branch)
        return branch

    def _wait(self, branch: Branch) -> None:
        query = branch.query
        self.waiting_branches += 1
        heapq.heappush(query.waiting, (branch.number, branch))
        self._enqueue(query)

    def _enqueue(self, query: Query) -> None:
        if not query.queued:
            query.queued = True
            heapq.heappush(self._active if query.active else self._new, (query.number, query))
        self.ready = True

    def _head(self) -> Branch | None:
        """Return the first branch that waits, forgetting those that no longer do."""
        for queue in (self._active, self._new):
            while queue:
                query = queue[0][1]
                waiting = query.waiting
                while waiting and waiting[0][1].state != WAITING:
                    heapq.heappop(waiting)
                if waiting:
                    return waiting[0][1]  # type: ignore[no-any-return]
                query.queued = False
                heapq.heappop(queue)
        return None

    def drop(self, node: KvNode) -> None:
        """Cancel everything at and below `node` and free its pages; a root ends its query."""
        if node.dropped:
            return
        assert self._stretch is None, "drop only between stretches"
        tree = self.tree
        query = node.query
        doomed = query.nodes if node is query.root else _below(node)
        for child in doomed:
            branch = child.branch
            if branch is not None and not child.dropped:
                if branch.state == DECODING:
                    self._leave(branch)
                elif branch.state == FILLING:
                    self._unfill(branch)
                else:
                    self.waiting_branches -= 1
                branch.state = GONE
                child.branch = None
        self.ready = True
        if node is not query.root:
            for child in doomed:
                if not child.dropped:
                    tree.forget(child)
            tree.unlink(node)
            return
        query.gone = True
        if query.active:
            self.active_searches -= 1
        above = node.parent
        tree.unlink(node)
        tree.forget_query(query)
        if above is not None:
            tree.tidy_prefixes(above)
        self.charge(query)
        self.charged_s += query.gpu_s

    # -- charging -----------------------------------------------------------------------------------

    def charge(self, query: Query) -> None:
        """Bring what `query` owes for its decoders up to this tick."""
        ticks = self.tick - query.tick
        if ticks:
            decoders = query.decoders
            if decoders:
                reads = ticks * query.read + decoders * ticks * (ticks - 1) // 2
                query.gpu_s += (
                    decoders * (self.common - query.common)
                    + self.cost.kv_s * reads
                    + self.cost.kv_s * (ticks * query.read_saturated / self.saturation)
                )
                query.read += ticks * decoders
            query.tick = self.tick
        query.common = self.common

    # -- joining and leaving the decoders -------------------------------------------------------------

    def _walk(self, node: KvNode | None, count: int) -> int:
        """Add `count` decoders (-1: take one away) to `node` and all it reads; return tokens read once.

        Keeps pins, cached pages and the tokens read by the batch and by the query up to date.
        """
        if node is None:
            return 0
        tree = self.tree
        query = node.query
        saturation = self.saturation
        naive = self.naive
        context = read = saturated = 0
        while node is not None:
            before = node.decoders
            after = before + count
            node.decoders = after
            resident = node.resident
            if naive:
                context += resident
            elif node.query is not query:  # a shared prefix: common cost
                self._walk_prefix(node, before, after)
            elif after <= saturation and before <= saturation:
                if before == 0:
                    read += resident
                elif after == 0:
                    read -= resident
            else:
                read += resident * ((0 < after <= saturation) - (0 < before <= saturation))
                saturated += resident * (
                    (after if after > saturation else 0) - (before if before > saturation else 0)
                )
            if not node.fills:
                if before == 0:
                    tree.cached -= node.pages
                elif after == 0:
                    tree.unpinned(node)
            node = node.up
        if read or saturated:
            query.read += read
            self.read += read
            query.read_saturated += saturated
            self.read_saturated += saturated
        return context

    def _walk_prefix(self, node: KvNode, before: int, after: int) -> None:
        saturation = self.saturation
        common = self.tree.prefix_query
        read = node.resident * ((0 < after <= saturation) - (0 < before <= saturation))
        saturated = node.resident * (
            (after if after > saturation else 0) - (before if before > saturation else 0)
        )
        common.read += read
        self.read += read
        common.read_saturated += saturated
        self.read_saturated += saturated

    def _join(self, branch: Branch, written: int, tick: int) -> None:
        """Let `branch`, whose path is pinned and charged, decode from `tick` on."""
        node = branch.node
        branch.state = DECODING
        branch.written = written
        branch.joined = tick
        branch.fresh = False
        finish = branch.finish_tick = tick + branch.ticks - written
        heapq.heappush(self._finish, (finish, branch.number, branch))
        if branch.mark > written:
            branch.mark_tick = tick + branch.mark - written
            heapq.heappush(self._finish, (branch.mark_tick, branch.number, branch))
        p = self.block_size
        branch.phase = phase = (node.offset + node.tail + written - tick) % p
        self.phases[phase] += 1
        self.running[branch.number] = branch
        self.decoders += 1
        branch.query.decoders += 1

    def _leave(self, branch: Branch) -> None:
        """Take a decoding branch out of the batch; its node then holds what it has written."""
        query = branch.query
        self.charge(query)
        node = branch.node
        ran = self.tick - branch.joined
        branch.written += ran
        del self.running[branch.number]
        self.decoders -= 1
        query.decoders -= 1
        self.phases[branch.phase] -= 1
        branch.finish_tick = branch.mark_tick = -1
        own = branch.read + ran if self.naive else node.tail + branch.written
        self.read -= own
        query.read -= own
        self._walk(node.up, -1)
        node.decoders = 0
        node.want = node.resident = node.tail + branch.written
        node.pages = self.tree.pages_of(node, node.resident)
        if not node.fills:
            self.tree.unpinned(node)

    def _pin(self, node: KvNode | None) -> None:
        """Pin a path for a prefill."""
        tree = self.tree
        while node is not None:
            if not node.fills and not node.decoders:
                tree.cached -= node.pages
            node.fills += 1
            node = node.up

    def _unpin(self, node: KvNode | None) -> None:
        tree = self.tree
        while node is not None:
            node.fills -= 1
            if not node.fills and not node.decoders:
                tree.unpinned(node)
            node = node.up

    def _unfill(self, branch: Branch) -> None:
        """Stop the partial prefill; what it has brought in stays cached."""
        assert self.fill is not None and self.fill.branch is branch
        self.fill = None
        branch.query.fill = 0
        self._unpin(branch.node)

    # -- planning ---------------------------------------------------------------------------------------

    def begin(self) -> Stretch | None:
        """Plan the next stretch; None if there is nothing to do.

        Raises: DoesNotFitError if the only running branch, or the only waiting one, needs more than the pool.
        """
        assert self._stretch is None, "the last stretch is not over"
        if self.started or self.marked or self.activated:
            self.started, self.marked, self.activated = [], [], []
        if self.ready and self.fill is None:
            if self._head() is None:
                self.ready = False
            else:
                return self._boundary_tick()
        if self.fill is None and not self.decoders:
            return None
        return self._regime() or self._boundary_tick()

    def _regime(self) -> Stretch | None:
        b = self.decoders
        finish = self._finish
        while finish and finish[0][0] not in (finish[0][2].finish_tick, finish[0][2].mark_tick):
            heapq.heappop(finish)
        ticks = finish[0][0] - self.tick if finish else 1 << 60
        chunk = 0
        fill = self.fill
        if fill is not None:
            chunk = max(0, self.settings.max_num_batched_tokens - b)
            if chunk:
                ticks = min(ticks, -(-fill.left // chunk) - 1)
                if ticks <= 0:
                    return None
        ticks = self._fit(ticks, chunk)
        if ticks <= 0:
            return None
        cost = self.cost
        base = cost.base_s(b, chunk)
        first = base + cost.kv_s * (self.read + self.read_saturated / self.saturation)
        slope = cost.kv_s * b
        prefill = 0.0
        if chunk and fill is not None:
            prefill = base - min(base, cost.base_s(b, 0)) if b else base
            per_context = cost.context_s(chunk)
            context_s = per_context * (fill.context + chunk / 2)
            first += context_s
            self._prefill_s = prefill + context_s
            self._prefill_slope = per_context * chunk
            slope += self._prefill_slope
        if b:
            self._per_decoder = (base - prefill + self._prefix_s()) / b
        self._chunk = chunk
        self._boundary = False
        self.regimes += 1
        self._stretch = Stretch(ticks, first, slope)
        return self._stretch

    def _fit(self, ticks: int, chunk: int) -> int:
        """Return how many of `ticks` ticks fit into the pool: exact, by the phases of the decoders."""
        b = self.decoders
        p = self.block_size
        tree = self.tree
        available = tree.free + tree.cached
        fill = self.fill
        bound = b * (ticks // p + 1)
        if fill is not None:
            bound += (chunk * ticks) // p + len(fill.missing) + 1
        if bound <= available:
            return ticks
        upto = [0] * (p + 1)  # pages that the first j ticks of a period need
        phases, tick = self.phases, self.tick
        for j in range(p):
            upto[j + 1] = upto[j] + phases[-(tick + j) % p]
        if fill is None or not chunk:
            if not b:
                return ticks
            periods, rest = divmod(available, b)
            k = periods * p + bisect_right(upto, rest) - 1
            return min(ticks, k)
        low, high = 0, min(ticks, (available // b + 1) * p if b else ticks)
        while low < high:
            k = (low + high + 1) // 2
            need = b * (k // p) + upto[k % p] + self._chunk_pages(fill.missing, k * chunk)
            low, high = (k, high) if need <= available else (low, k - 1)
        return low

    def _chunk_pages(self, missing: list[KvNode], tokens: int) -> int:
        """Return the pages that the next `tokens` tokens of a prefill take."""
        pages = 0
        for node in missing:
            bring = min(tokens, node.want - node.resident)
            if bring > 0:
                pages += self.tree.pages_of(node, node.resident + bring) - node.pages
                tokens -= bring
        return pages

    def _bring(self, missing: list[KvNode], tokens: int) -> int:
        """Make the next `tokens` missing tokens resident; return how many were missing."""
        brought = 0
        for node in missing:
            bring = min(tokens - brought, node.want - node.resident)
            if bring > 0:
                node.resident += bring
                node.pages = self.tree.pages_of(node, node.resident)
                brought += bring
        return brought

    def _first_write_pages(self, branch: Branch) -> int:
        """Return the pages that the next token of `branch` takes once its path is complete.

        Raises nothing; a fork's copied tail counts with the first token.
        """
        node = branch.node
        p = self.block_size
        if not branch.fresh:
            return 0 if (node.offset + node.want) % p else 1
        if not node.tail:
            return 0 if node.offset else 1
        return node.tail // p + 1 - -(-node.want // p)

    def _prefix_s(self) -> float:
        """Return the seconds a tick spends on reading prefixes that queries share."""
        shared = self.tree.prefix_query
        if not shared.read and not shared.read_saturated:
            return 0.0
        return self.cost.kv_s * (shared.read + shared.read_saturated / self.saturation)

    # -- the boundary tick ------------------------------------------------------------------------

    def _boundary_tick(self) -> Stretch | None:
        cost = self.cost
        self.tree.tick = self.tick
        self._bills = []
        chunks: list[tuple[Query, int, int]] = []  # (query, tokens, context) of each prefill chunk
        copied: list[tuple[Query, int]] = []
        preempted, budget = self._run_first(chunks, copied)
        if not preempted and self.fill is None:
            self.ready = self._admit(budget, chunks, copied)
        plain = self.decoders
        if not plain and not chunks:
            return None
        prefill_tokens = 0
        for _, tokens, _ in chunks:
            prefill_tokens += tokens
        base = cost.base_s(plain, prefill_tokens)
        seconds = base + cost.kv_s * (self.read + self.read_saturated / self.saturation)
        prefill = base
        if plain:
            prefill = base - min(base, cost.base_s(plain, 0)) if prefill_tokens else 0.0
            self._per_decoder = (base - prefill + self._prefix_s()) / plain
        for query, tokens, context in chunks:
            context_s = cost.context_s(tokens) * (context + tokens / 2)
            seconds += context_s
            self._bills.append((query, prefill * tokens / prefill_tokens + context_s))
        for query, tokens in copied:
            seconds += cost.copy_s * tokens
            self._bills.append((query, cost.copy_s * tokens))
        self.computed_tokens += prefill_tokens
        self._boundary = True
        self.boundaries += 1
        self._stretch = Stretch(1, seconds, 0.0)
        return self._stretch

    def _run_first(
        self, chunks: list[tuple[Query, int, int]], copied: list[tuple[Query, int]]
    ) -> tuple[bool, int]:
        """Give running branches their pages, preempting from the tail; return (preempted, budget left)."""
        tree = self.tree
        fill = self.fill
        phase = -self.tick % self.block_size
        budget = self.settings.max_num_batched_tokens - self.decoders
        chunk = fill_pages = 0
        if fill is not None:
            chunk = min(fill.left, max(0, budget))
            fill_pages = self._chunk_pages(fill.missing, chunk)
            if chunk == fill.left and fill.branch.ticks:
                fill_pages += self._first_write_pages(fill.branch)
        preempted = False
        while self.phases[phase] + fill_pages > tree.free + tree.cached:
            victim = self._tail()
            if self.decoders + (self.fill is not None) == 1:
                raise DoesNotFitError(_does_not_fit(victim, tree))
            self._preempt(victim)
            preempted = True
            if self.fill is None:
                fill, chunk, fill_pages = None, 0, 0
        tree.take(self.phases[phase] + fill_pages)
        if fill is not None and chunk:
            branch = fill.branch
            chunks.append((branch.query, chunk, fill.context))
            fill.context += self._bring(fill.missing, chunk)
            fill.left -= chunk
            if not fill.left:
                self.fill = None
                branch.query.fill = 0
                self._complete_prefill(branch, copied)
                self.ready = True
        return preempted, budget - chunk

    def _tail(self) -> Branch:
        """Return the running branch of the youngest query that was submitted last."""
        candidates = list(self.running.values())
        if self.fill is not None:
            candidates.append(self.fill.branch)
        return max(candidates, key=_age)

    def _preempt(self, branch: Branch) -> None:
        if branch.state == FILLING:
            self._unfill(branch)
        else:
            self._leave(branch)
        branch.state = WAITING
        branch.num_preemptions += 1
        branch.query.preemptions += 1
        self.num_preemptions += 1
        self._wait(branch)

    def _complete_prefill(self, branch: Branch, copied: list[tuple[Query, int]]) -> None:
        """Note that the path of `branch` is complete with this tick."""
        if branch.ticks:
            self._copy_tail(branch, copied)
            self._late.append((branch, True))
            if branch.fresh and branch.parent is not None:
                self._merging.add(branch.parent)
        else:
            self._filled.append((branch, True))

    def _admit(
        self, budget: int, chunks: list[tuple[Query, int, int]], copied: list[tuple[Query, int]]
    ) -> bool:
        """Admit from the head of waiting; return whether the next tick should try again."""
        tree = self.tree
        settings = self.settings
        places = settings.max_num_seqs - self.decoders - len(self._late) - len(self._filled)
        while True:
            branch = self._head()
            if branch is None or places <= 0:
                return False
            query = branch.query
            if not query.active and settings.max_active_searches is not None:
                if self.active_searches >= settings.max_active_searches:
                    return False
            node = branch.node
            missing: list[KvNode] = []
            lacking = context = unpinned = 0
            step: KvNode | None = node
            while step is not None:
                if step.resident < step.want:
                    missing.append(step)
                    lacking += step.want - step.resident
                context += step.resident
                if not step.decoders and not step.fills:
                    unpinned += step.pages
                step = step.up
            merges = branch.fresh and not lacking and branch.parent in self._merging
            compute = 0 if merges else lacking + 1
            if compute and budget <= 0:
                return True
            chunk = min(compute, budget)
            missing.reverse()
            need = self._chunk_pages(missing, chunk) if missing else 0
            if chunk == compute and branch.ticks:
                need += self._first_write_pages(branch)
            if need > tree.free + tree.cached - unpinned:
                if places == settings.max_num_seqs:
                    raise DoesNotFitError(_does_not_fit(branch, tree))
                # those that decode from the next tick on leave it a smaller chunk, which may fit
                return chunk < compute and bool(self._late)
            self._activate(branch, context)
            places -= 1
            budget -= chunk
            if compute == 1 and branch.ticks:
                self._admit_decoder(branch, need, copied)
                room = min(places, budget)
                if room > 0:
                    more = self._admit_siblings(branch, room, copied)
                    places -= more
                    budget -= more
                continue
            if compute:
                self._pin(node)
                tree.take(need)
                brought = self._bring(missing, chunk)
                chunks.append((query, chunk, context))
                branch.state = FILLING
                if chunk < compute:
                    query.fill = 1
                    self.fill = Fill(branch, missing, compute - chunk, context + brought)
                    return False
                self._complete_prefill(branch, copied)
                if not branch.ticks and places > 0 and budget > 1:
                    more, spent = self._admit_given(branch, places, budget, chunks)
                    places -= more
                    budget -= spent
            else:
                tree.take(need)
                self._copy_tail(branch, copied)
                self._late.append((branch, False))

    def _activate(self, branch: Branch, context: int) -> None:
        """Take `branch`, the head of waiting, out of the queue; its query is active from now on."""
        query = branch.query
        heapq.heappop(query.waiting)
        self.waiting_branches -= 1
        if not query.active:
            query.active = True
            self.activated.append(query)
            self.active_searches += 1
            self.hit_tokens += context
            heapq.heappop(self._new)
            query.queued = bool(query.waiting)
            if query.queued:
                heapq.heappush(self._active, (query.number, query))

    def _copy_tail(self, branch: Branch, copied: list[tuple[Query, int]]) -> None:
        """Copy the tail of a fork's path into its own first pages."""
        node = branch.node
        if branch.fresh and node.tail and not node.want:
            copied.append((branch.query, node.tail))
            node.resident = node.tail

    def _admit_decoder(self, branch: Branch, need: int, copied: list[tuple[Query, int]]) -> None:
        """Admit a branch whose path is resident: it decodes from this tick on."""
        self.charge(branch.query)
        context = self._walk(branch.node.up, 1)
        self._admit_leaf(branch, need, context, copied)

    def _admit_leaf(
        self, branch: Branch, need: int, context: int, copied: list[tuple[Query, int]]
    ) -> None:
        node = branch.node
        self.tree.cached -= node.pages
        node.decoders = 1
        self.tree.take(need)
        self._copy_tail(branch, copied)
        self._start_reading(branch, context)
        if branch.first_tick < 0:
            branch.first_tick = self.tick + 1
            self.started.append(branch)
        self._join(branch, branch.written, self.tick)

    def _start_reading(self, branch: Branch, context: int) -> None:
        own = branch.node.resident
        if self.naive:
            branch.read = own = own + context
        self.read += own
        branch.query.read += own

    def _admit_siblings(self, first: Branch, room: int, copied: list[tuple[Query, int]]) -> int:
        """Admit up to `room` fresh siblings of `first`, which was just admitted; return how many."""
        tree = self.tree
        query = first.query
        waiting = query.waiting
        up = first.node.up
        context = -1
        admitted = 0
        while waiting and admitted < room:
            branch = waiting[0][1]
            if branch.state != WAITING:
                heapq.heappop(waiting)
                continue
            node = branch.node
            if branch.parent is not first.parent or not branch.fresh or not branch.ticks:
                break
            if node.up is not up or node.want > node.resident or node.pages:
                break
            need = self._first_write_pages(branch)
            if need > tree.free + tree.cached:
                break
            if context < 0:
                context = _context(up) if self.naive else 0
            heapq.heappop(waiting)
            self.waiting_branches -= 1
            self._admit_leaf(branch, need, context, copied)
            admitted += 1
        if admitted:
            self._walk(up, admitted)
        return admitted

    def _admit_given(
        self, first: Branch, places: int, budget: int, chunks: list[tuple[Query, int, int]]
    ) -> tuple[int, int]:
        """Admit siblings of `first`, to be scored whole in this tick; return how many, and tokens.

        The path that they share is pinned by `first` until the tick is over.
        """
        tree = self.tree
        query = first.query
        waiting = query.waiting
        up = first.node.up
        if up is None:
            return 0, 0
        context = _context(up)
        admitted = spent = 0
        while waiting and admitted < places:
            branch = waiting[0][1]
            node = branch.node
            if branch.state != WAITING or branch.ticks or node.up is not up:
                break
            if node.resident or node.fills or node.decoders or not node.want:
                break
            compute = node.want + 1
            if compute > budget - spent:
                break
            need = tree.pages_of(node, node.want)
            if need > tree.free + tree.cached:
                break
            heapq.heappop(waiting)
            self.waiting_branches -= 1
            tree.take(need)
            node.resident = node.want
            node.pages = need
            node.fills = 1
            chunks.append((query, compute, context))
            branch.state = FILLING
            self._filled.append((branch, False))
            admitted += 1
            spent += compute
        return admitted, spent

    # -- letting time pass --------------------------------------------------------------------------

    def advance(self, ticks: int) -> list[Branch]:
        """Let the first `ticks` ticks of the stretch happen; return the branches that finished.

        They come in order of their numbers. `started` then holds the branches whose first token came
        with the last of these ticks. A boundary tick is advanced by 1.
        """
        stretch = self._stretch
        assert stretch is not None and 0 < ticks <= stretch.ticks
        self._stretch = None
        self.busy_s += stretch.seconds(ticks)
        decoders = self.decoders
        if decoders:
            self.common += ticks * self._per_decoder
            self.read += ticks * decoders
        if self._boundary:
            self.tick += 1
            for query, seconds in self._bills:
                query.gpu_s += seconds
            if self._late or self._filled:
                return self._finish_boundary()
        else:
            self._advance_regime(ticks)
        return self._finished()

    def _advance_regime(self, ticks: int) -> None:
        p = self.block_size
        periods, rest = divmod(ticks, p)
        need = self.decoders * periods
        tick = self.tick
        phases = self.phases
        for j in range(rest):
            need += phases[-(tick + j) % p]
        fill = self.fill
        self.tree.tick = tick
        if fill is not None and self._chunk:
            tokens = ticks * self._chunk
            need += self._chunk_pages(fill.missing, tokens)
            fill.context += self._bring(fill.missing, tokens)
            fill.left -= tokens
            fill.branch.query.gpu_s += ticks * self._prefill_s + self._prefill_slope * (
                ticks * (ticks - 1) / 2
            )
            self.computed_tokens += tokens
        if need:
            self.tree.take(need)
        self.tick = tick + ticks

    def _finish_boundary(self) -> list[Branch]:
        """Let branches whose path became complete with this tick decode, or finish."""
        self._join_late()
        finished = self._finished()
        if self._filled:
            tree = self.tree
            for branch, pinned in self._filled:
                node = branch.node
                if pinned:
                    self._unpin(node)
                else:
                    node.fills -= 1
                    if not node.fills and not node.decoders:
                        tree.unpinned(node)
                branch.state = DONE
                node.branch = None
                finished.append(branch)
            finished.sort(key=_by_number)
            self.prefills += len(self._filled)
            self._filled.clear()
            self.ready = True
        return finished

    def _join_late(self) -> None:
        late = self._late
        tick = self.tick
        i = 0
        while i < len(late):
            query = late[i][0].query
            up = late[i][0].node.up
            j = i + 1
            while j < len(late) and late[j][0].node.up is up and late[j][0].query is query:
                j += 1
            self.charge(query)
            context = self._walk(up, j - i)
            for branch, pinned in late[i:j]:
                node = branch.node
                if not pinned:
                    self.tree.cached -= node.pages
                written = branch.written + 1
                node.resident = node.tail + written
                node.decoders = 1
                if pinned:
                    self._unpin(node)
                self._start_reading(branch, context)
                if branch.first_tick < 0:
                    branch.first_tick = tick
                    self.started.append(branch)
                self._join(branch, written, tick)
            i = j
        late.clear()
        self._merging.clear()

    def _finished(self) -> list[Branch]:
        tick = self.tick
        heap = self._finish
        finished: list[Branch] = []
        while heap and heap[0][0] <= tick:
            branch = heapq.heappop(heap)[2]
            if branch.finish_tick != tick:
                if branch.mark_tick == tick:
                    self.marked.append(branch)
                continue
            self._leave(branch)
            branch.state = DONE
            node = branch.node
            node.branch = None
            node.complete = True
            query = branch.query
            query.pages += node.pages
            if query.pages > query.peak_pages:
                query.peak_pages = query.pages
            finished.append(branch)
        if finished:
            self.branch_steps += len(finished)
            self.ready = True
        return finished

    @property
    def iterations(self) -> int:
        """Ticks so far."""
        return self.tick

    def waiting_queries(self) -> int:
        """Return how many queries wait for their first admission."""
        return sum(not query.gone for _, query in self._new)

    def remaining(self, branch: Branch) -> int:
        """Return the tokens that `branch` still has to decode."""
        ran = self.tick - branch.joined if branch.state == DECODING else 0
        return branch.ticks - branch.written - ran


def _below(node: KvNode) -> list[KvNode]:
    """Return `node` and everything below it."""
    nodes = [node]
    for member in nodes:
        nodes.extend(member.children)
    return nodes


def _context(node: KvNode | None) -> int:
    """Return the KV tokens on the path that ends at `node`."""
    tokens = 0
    while node is not None:
        tokens += node.resident
        node = node.up
    return tokens


def _age(branch: Branch) -> tuple[int, int]:
    return branch.query.number, branch.number


def _by_number(branch: Branch) -> int:
    return branch.number


def _does_not_fit(branch: Branch, tree: PageTree) -> str:
    tokens = branch.node.path
    pages = -(-tokens // tree.block_size)
    return (
        f"one branch of query {branch.query.number} needs {pages} KV pages ({tokens} tokens of "
        f"{tree.block_size} a page) and the replica has {tree.total}; shorten the prompt or the answer "
        "(max_tokens), raise gpu_memory_utilization or tensor_parallel, or take a larger device"
    )
