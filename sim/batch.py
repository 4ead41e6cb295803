"""One replica's batch without a clock: admit, run a stretch of ticks in closed form, finish, preempt.

`begin()` plans the next stretch: either a *boundary tick*, scheduled explicitly (admission, last chunk,
overflow), or a *regime* of constant composition. `advance(k)` lets k of its ticks happen. Nothing here
knows the time; the simulator and the real engine both drive this object. docs/engine.md is its law.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right

from sim.branch import DECODING, DONE, FILLING, WAITING, Branch, Cost, Fill, Settings, Stretch
from sim.kv import DoesNotFitError, KvNode, PageTree, Query
from sim.ledger import Ledger

__all__ = ["Batch", "Branch", "Cost", "Settings", "Stretch"]


class Batch(Ledger):
    """The branches of one replica and when each of them runs."""

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
        limit = settings.max_active_searches or 1 << 62
        places = settings.max_num_seqs - self.decoders - len(self._late) - len(self._filled)
        while True:
            branch = self._head()
            if branch is None or places <= 0:
                return False
            query = branch.query
            if not query.active and self.active_searches >= limit:
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

    def pages_naive(self) -> int:
        """Return the pages that what runs now would hold if branches shared nothing."""
        pages = 0
        for branch in self.running.values():
            written = branch.ticks - self.remaining(branch)
            pages += -(-(branch.node.path - branch.ticks - 1 + written) // self.block_size)
        for branch, _ in (*self._late, *self._filled):
            tokens = branch.node.path - 1 - max(0, branch.ticks - branch.written - 1)
            pages += -(-tokens // self.block_size)
        if self.fill is not None:
            pages += -(-self.fill.context // self.block_size)
        return pages

    def remaining(self, branch: Branch) -> int:
        """Return the tokens that `branch` still has to decode."""
        ran = self.tick - branch.joined if branch.state == DECODING else 0
        return branch.ticks - branch.written - ran


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
