"""One replica's batch without a clock: admit, run a stretch of ticks in closed form, finish, preempt.

`begin()` plans the next stretch: a *regime* of constant composition, or a *boundary tick* that is scheduled
explicitly (last chunk, overflow, admission that computes). `advance(k)` lets k of its ticks happen. Nothing
here knows the time; the simulator and the real engine both drive this object. docs/engine.md is its law.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from itertools import accumulate
from operator import attrgetter

from sim.admission import admit
from sim.branch import Cohort, Cost, Fill, Settings, Stretch
from sim.kv import DECODING, DONE, FILLING, WAITING, DoesNotFitError, KvNode, Query, does_not_fit
from sim.ledger import Ledger
from sim.reading import timed_reads

__all__ = ["Batch", "Cost", "Settings", "Stretch"]


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
        if self.fill is None:
            if self.ready:
                if self._head() is not None:
                    return self._boundary_tick()
                self.ready = False
            if not self.decoders:
                return None
        return self._regime() or self._boundary_tick()

    def _regime(self, copy_s: float = 0.0, taken: int = 0) -> Stretch | None:
        """Plan a regime whose first tick takes `copy_s` more and has `taken` of its pages already."""
        b = self.decoders
        end = self._finish[0][0] if b else 1 << 60
        if self._stale or (self._marks and self._marks[0][0] < end):
            end = self._next_end()
        ticks = end - self.tick
        if self.fill is not None:
            return self._filling_regime(self.fill, ticks, copy_s, taken)
        tree = self.tree
        bound = b * (ticks // self.block_size + 1)
        self.roomy = bound <= tree.free
        if not self.roomy and bound > tree.free + tree.cached:
            ticks = self._fit(ticks, taken)
            if ticks <= 0:
                return None
        base = self._decode_s.get(b)
        if base is None:
            base = self._decode_s[b] = self.cost.base_s(b, 0)
        self._per_decoder = (base + self._prefix_s) / b
        kv_s = self._kv_s
        self._chunk = 0
        self._taken = taken
        self._boundary = False
        self.regimes += 1
        read = self.read + self.read_saturated / self.saturation
        first, slope = base + kv_s * read, kv_s * b
        if self._timed:
            more, drift, ticks = timed_reads(self, b, 0, ticks)
            first += more
            slope += drift
        stretch = self._stretch = Stretch(ticks, first, slope, copy_s)
        return stretch

    def _filling_regime(self, fill: Fill, ticks: int, copy_s: float, taken: int) -> Stretch | None:
        """Plan a regime of full chunks of the partial prefill beside the decoders, if there are any."""
        cost = self.cost
        b = self.decoders
        chunk = max(0, self.settings.max_num_batched_tokens - b)
        if chunk:
            ticks = min(ticks, -(-fill.left // chunk) - 1)
            if ticks <= 0:
                return None
        tree = self.tree
        bound = b * (ticks // self.block_size + 1) + len(fill.missing) + 1
        bound += (chunk * ticks) // self.block_size
        self.roomy = bound <= tree.free
        if not self.roomy and bound > tree.free + tree.cached:
            ticks = self._fit_filling(fill, ticks, chunk, taken)
            if ticks <= 0:
                return None
        base = cost.base_s(b, chunk)
        first = base + cost.kv_s * (self.read + self.read_saturated / self.saturation)
        slope = cost.kv_s * b
        prefill = 0.0
        if chunk:
            prefill = base - min(base, cost.base_s(b, 0)) if b else base
            per_context = cost.context_s(chunk)
            context_s = per_context * (fill.context + chunk / 2)
            first += context_s
            self._prefill_s = prefill + context_s
            self._prefill_slope = per_context * chunk
            slope += self._prefill_slope
        if b:
            self._per_decoder = (base - prefill + self._prefix_s) / b
            if self._timed:
                more, drift, ticks = timed_reads(self, b, chunk, ticks)
                first += more
                slope += drift
        self._chunk = chunk
        self._taken = taken
        self._boundary = False
        self.regimes += 1
        stretch = self._stretch = Stretch(ticks, first, slope, copy_s)
        return stretch

    def _next_end(self) -> int:
        """Return the tick with which the next decoder ends or reaches its mark."""
        self._stale = False
        finish = self._finish
        end = 1 << 60
        while finish:
            end, number, cohort = finish[0]
            order = cohort.order
            while order and order[-1].cohort is not cohort:
                order.pop()
            if not order:
                heapq.heappop(finish)
                end = 1 << 60
                continue
            due = cohort.offset + order[-1].ticks
            if due == end:
                break
            heapq.heapreplace(finish, (due, number, cohort))
        marks = self._marks
        while marks:
            tick, _, node = marks[0]
            if node.state == DECODING and node.mark_tick == tick:
                return min(tick, end)
            heapq.heappop(marks)
        return end

    def _fit(self, ticks: int, taken: int) -> int:
        """Return how many of `ticks` ticks of the decoders alone fit into the pool: exact, by phases."""
        periods, rest = divmod(self.tree.free + self.tree.cached + taken, self.decoders)
        return min(ticks, periods * self.block_size + bisect_right(self._upto(), rest) - 1)

    def _upto(self) -> list[int]:
        """Return the pages that decoders need in the first 0, 1, ..., p ticks from now."""
        start = self.tick % self.block_size
        return [0, *accumulate(self.phases[start : start + self.block_size])]

    def _fit_filling(self, fill: Fill, ticks: int, chunk: int, taken: int) -> int:
        """Return how many of `ticks` ticks fit into the pool with a chunk of the partial prefill in each."""
        b = self.decoders
        p = self.block_size
        available = self.tree.free + self.tree.cached + taken
        upto = self._upto()
        low, high = 0, min(ticks, (available // b + 1) * p if b else ticks)
        while low < high:
            k = (low + high + 1) // 2
            need = b * (k // p) + upto[k % p] + self._chunk_pages(fill.missing, k * chunk)
            low, high = (k, high) if need <= available else (low, k - 1)
        return low

    # -- the boundary tick ------------------------------------------------------------------------

    def _boundary_tick(self) -> Stretch | None:
        """Schedule the next tick; where it only decodes, the regime that follows starts with it."""
        cost = self.cost
        self.tree.tick = self.tick
        chunks: list[tuple[Query, int, float]] = []  # (query, tokens, seconds of attention)
        copied: list[tuple[Query, int]] = []
        preempted, budget = self._run_first(chunks, copied)
        if not preempted and self.fill is None:
            self.ready = admit(self, budget, chunks, copied)
        plain = self.decoders
        if not plain and not chunks:
            return None
        bills = self._bills
        extra = 0.0
        for query, tokens in copied:
            extra += cost.copy_s * tokens
            bills.append((query, cost.copy_s * tokens))
        if not (chunks or preempted or self.ready or self.started):
            return self._regime(extra, self.phases[self.tick % self.block_size])
        prefill_tokens = 0
        for _, tokens, _ in chunks:
            prefill_tokens += tokens
        base = cost.base_s(plain, prefill_tokens)
        seconds = base + cost.kv_s * (self.read + self.read_saturated / self.saturation) + extra
        prefill = base
        if plain:
            prefill = base - min(base, cost.base_s(plain, 0)) if prefill_tokens else 0.0
            self._per_decoder = (base - prefill + self._prefix_s) / plain
            if self._timed:
                seconds += timed_reads(self, plain, prefill_tokens, 1)[0]
        if prefill_tokens:
            prefill /= prefill_tokens
            for query, tokens, context_s in chunks:
                seconds += context_s
                bills.append((query, prefill * tokens + context_s))
            self.computed_tokens += prefill_tokens
        self._boundary = self.roomy = True
        self.boundaries += 1
        stretch = self._stretch = Stretch(1, seconds, 0.0)
        return stretch

    def _run_first(
        self, chunks: list[tuple[Query, int, float]], copied: list[tuple[Query, int]]
    ) -> tuple[bool, int]:
        """Give running branches their pages, preempting from the tail; return (preempted, budget left)."""
        tree = self.tree
        fill = self.fill
        phases = self.phases
        phase = self.tick % self.block_size
        budget = self.settings.max_num_batched_tokens - self.decoders
        chunk = fill_pages = 0
        if fill is not None:
            chunk = min(fill.left, max(0, budget))
            fill_pages = self._chunk_pages(fill.missing, chunk)
            if chunk == fill.left and fill.branch.ticks:
                fill_pages += self._first_write_pages(fill.branch)
        preempted = False
        while phases[phase] + fill_pages > tree.free + tree.cached:
            victim = self._tail()
            if self.decoders + (self.fill is not None) == 1:
                raise DoesNotFitError(does_not_fit(victim, tree))
            self._preempt(victim)
            preempted = True
            if self.fill is None:
                fill, chunk, fill_pages = None, 0, 0
        tree.take(phases[phase] + fill_pages)
        if fill is not None and chunk:
            branch = fill.branch
            chunks.append((branch.query, chunk, self.context_s(chunk, fill.context)))
            fill.context += self._bring(fill.missing, chunk)
            fill.left -= chunk
            if not fill.left:
                self.fill = None
                branch.query.fill = 0
                self._complete_prefill(branch, copied)
                self.ready = True
        return preempted, budget - chunk

    def _tail(self) -> KvNode:
        """Return the running branch of the youngest query that was submitted last."""
        best = self.fill.branch if self.fill is not None else None
        if self._decoding:
            number, query = self._decoding[-1]
            if best is not None and best.query.number != number:
                if best.query.number > number:
                    return best
                best = None
            stack = query.stack
            while stack[-1].cohort is None:
                stack.pop()
            if best is None or stack[-1].number > best.number:
                best = stack[-1]
        assert best is not None, "nothing runs"
        return best

    def _preempt(self, branch: KvNode) -> None:
        if branch.state == FILLING:
            self._unfill(branch)
        else:
            self._leave(branch)
        branch.state = WAITING
        query = branch.query
        query.preemptions += 1
        self.num_preemptions += 1
        query.waiting.appendleft(branch)  # whoever waits of its query was submitted later
        self.waiting_branches += 1
        if not query.queued:
            self._enqueue(query)
        self.ready = True

    def _complete_prefill(self, branch: KvNode, copied: list[tuple[Query, int]]) -> None:
        """Note that the path of `branch` is complete with this tick."""
        if branch.ticks:
            self._copy_tail(branch, copied)
            self._late.append((branch, True))
            if not branch.written and branch.parent is not None:
                self._merging.add(branch.parent)
        else:
            self._filled.append(([branch], branch))

    def _copy_tail(self, branch: KvNode, copied: list[tuple[Query, int]]) -> None:
        """Copy the tail of a fork's path into its own first pages."""
        if branch.tail and not branch.want and not branch.written:
            copied.append((branch.query, branch.tail))
            branch.resident = branch.tail

    # -- letting time pass --------------------------------------------------------------------------

    def advance(self, ticks: int, seconds: float | None = None) -> list[KvNode]:
        """Let the first `ticks` ticks of the stretch happen; return the branches that finished.

        They come in order of submission. `started` and `marked` then hold the branches whose query's first
        token, or whose marked token, came with the last of these ticks; `held` is the number of pages that
        were pinned until then. A boundary tick is advanced by 1. `seconds`, if the caller knows it, is what
        the stretch says of so many ticks.
        """
        stretch = self._stretch
        assert stretch is not None and 0 < ticks <= stretch.ticks
        self._stretch = None
        self.busy_s += stretch.seconds(ticks) if seconds is None else seconds
        if self._bills:
            for query, bill in self._bills:
                query.bills += bill
            self._bills.clear()
        decoders = self.decoders
        if decoders:
            self.common += ticks * self._per_decoder + self._drift * (ticks * (ticks - 1) / 2)
            self.read += ticks * decoders
        tree = self.tree
        if self._boundary:
            self.tick += 1
            self.held = tree.total - tree.free - tree.cached
            if self._late or self._filled:
                return self._finish_boundary()
        else:
            p = self.block_size
            start = self.tick % p
            if ticks < p:
                need = sum(self.phases[start : start + ticks]) - self._taken
            else:
                need = sum(self.phases[start : start + ticks % p]) - self._taken
                need += ticks // p * decoders
            if self._chunk:
                need += self._advance_fill(ticks)
            if need:
                tree.take(need)
            self.tick = tick = self.tick + ticks
            tree.tick = tick - 1
            self.held = tree.total - tree.free - tree.cached
        tick = self.tick
        if self._finish and self._finish[0][0] <= tick:
            return self._finished()
        if self._marks and self._marks[0][0] <= tick:
            self._reach_marks()
        return []

    def _advance_fill(self, ticks: int) -> int:
        """Advance the partial prefill by `ticks` full chunks; return the pages that these take."""
        fill = self.fill
        assert fill is not None
        tokens = ticks * self._chunk
        need = self._chunk_pages(fill.missing, tokens)
        fill.context += self._bring(fill.missing, tokens)
        fill.left -= tokens
        fill.branch.query.bills += ticks * self._prefill_s + self._prefill_slope * (
            ticks * (ticks - 1) / 2
        )
        self.computed_tokens += tokens
        return need

    def _finish_boundary(self) -> list[KvNode]:
        """Let branches whose path became complete with this tick decode, or finish."""
        if self._late:
            self._join_late()
        finished = self._finished()
        if self._filled:
            for nodes, pinned in self._filled:
                self._release(nodes, pinned)
                finished += nodes
            finished.sort(key=_number)
            self._filled.clear()
            self.ready = True
        return finished

    def _release(self, nodes: list[KvNode], pinned: KvNode) -> None:
        """Unpin what was scored together: each branch's own node, then the path pinned for all of them."""
        tree = self.tree
        query = nodes[0].query
        query.flight -= len(nodes)
        self.prefills += len(nodes)
        pages = 0
        for node in nodes:
            node.state = DONE
            if node is pinned:
                break
            node.fills = 0
            if tree.plain:
                pages += node.pages
            else:
                tree.unpinned(node)
        if pages:
            tree.cached += pages
            query.scan = max(query.scan, max(map(_place, nodes)) + 1)
            if not query.reclaimable:
                tree.reclaimable(query)
        self._unpin(pinned)

    def _join_late(self) -> None:
        late = self._late
        i = 0
        while i < len(late):
            first, _ = late[i]
            query, up, written = first.query, first.up, first.written
            siblings = [first]
            j = i + 1
            while j < len(late):
                other = late[j][0]
                if other.parent is not first.parent or other.up is not up:
                    break
                if other.written != written:
                    break
                siblings.append(other)
                j += 1
            self._walk(query, up, j - i)
            for branch, pinned in late[i:j]:
                if pinned:
                    branch.fills -= 1  # it stays pinned
                    self._unpin(branch.up)
                elif branch.pages:
                    self.tree.pinned(branch)
                branch.pages = 0
                branch.resident = branch.tail + written + 1
            if not query.started:
                query.started = True
                self.started.append(first)
            self._join(siblings, written + 1)
            i = j
        late.clear()
        self._merging.clear()

    def _finished(self) -> list[KvNode]:
        """Take out whoever has decoded its last token with this tick."""
        tick = self.tick
        heap = self._finish
        finished: list[KvNode] = []
        left: list[tuple[KvNode, Cohort]] = []  # where the order in which they leave counts
        while heap and heap[0][0] <= tick:
            _, number, cohort = heap[0]
            order = cohort.order
            ticks = tick - cohort.offset  # of a member that ends now
            node = order.pop()
            if node.cohort is cohort and node.ticks == ticks and order and order[-1].ticks > ticks:
                ended = [node]
            else:  # several end, or somebody has left
                order.append(node)
                ended = self._ended(cohort, ticks)
            if order:
                heapq.heapreplace(heap, (cohort.offset + order[-1].ticks, number, cohort))
            else:
                heapq.heappop(heap)
            if ended:
                pages = self._complete(cohort, ended, ticks)
                finished += ended
                if self.tree.plain:
                    if pages:
                        query = cohort.query
                        self.tree.cached += pages
                        last = max(map(_place, ended))
                        if last >= query.scan:
                            query.scan = last + 1
                        if not query.reclaimable:
                            self.tree.reclaimable(query)
                    self._thin(cohort, len(ended))
                else:
                    left += [(node, cohort) for node in ended]
        if finished:
            if len(finished) > 1:
                finished.sort(key=_number)
                left.sort(key=_number_of_first)
            for node, cohort in left:
                self.tree.unpinned(node)
                self._thin(cohort, 1)
            self.branch_steps += len(finished)
            self.ready = True
        if self._marks and self._marks[0][0] <= tick:
            self._reach_marks()
        return finished

    @staticmethod
    def _ended(cohort: Cohort, ticks: int) -> list[KvNode]:
        """Take the members of `ticks` ticks, and those who have left, off the end of the order."""
        order = cohort.order
        ended: list[KvNode] = []
        while order:
            node = order[-1]
            if node.cohort is cohort:
                if node.ticks > ticks:
                    break
                ended.append(node)
            order.pop()
        return ended

    def _complete(self, cohort: Cohort, ended: list[KvNode], ticks: int) -> int:
        """Book the nodes of members that have decoded `ticks` tokens, all of theirs; return their pages."""
        p = self.block_size
        tails = pages = 0
        for node in ended:
            node.cohort = None
            node.state = DONE
            tail = node.tail
            own = node.want = node.resident = tail + ticks
            offset = node.offset
            node.pages = held = (offset + own - 1) // p if offset else (own + p - 1) // p
            tails += tail
            pages += held
        query = cohort.query
        count = len(ended)
        ran = self.tick - cohort.joined
        read = tails + count * (cohort.written + cohort.context)
        query.reads += ran * read + count * (ran * (ran - 1) // 2)
        self.read -= read + count * ran
        query.flight -= count
        query.pages += pages
        if query.pages > query.peak_pages:
            query.peak_pages = query.pages
        return pages

    def _reach_marks(self) -> None:
        """Note whose marked token came with this tick."""
        tick = self.tick
        marks = self._marks
        while marks and marks[0][0] <= tick:
            node = heapq.heappop(marks)[2]
            if node.state == DECODING and node.mark_tick == tick:
                self.marked.append(node)

    # -- what can be seen ---------------------------------------------------------------------------

    @property
    def iterations(self) -> int:
        """Ticks so far."""
        return self.tick

    def running(self) -> list[tuple[KvNode, int]]:
        """Return the decoding branches, each with the tokens that it has decoded."""
        return [
            (node, cohort.written + self.tick - cohort.joined)
            for _, query in self._decoding
            for cohort in query.cohorts
            for node in cohort.nodes
            if node.cohort is cohort
        ]

    def completing(self) -> list[KvNode]:
        """Return the branches whose path becomes complete with the tick under way, in order of admission."""
        late = [branch for branch, _ in self._late]
        return late + [branch for nodes, _ in self._filled for branch in nodes]

    def context_s(self, tokens: int, context: int) -> float:
        """Return the seconds in which a prefill chunk of `tokens` tokens attends to those before it."""
        each = self._context_s.get(tokens)
        if each is None:
            each = self._context_s[tokens] = self.cost.context_s(tokens)
        return each * (context + tokens / 2)

    def waiting_queries(self) -> int:
        """Return how many queries wait for their first admission."""
        return sum(not query.gone for _, query in self._new)

    def pages_naive(self) -> int:
        """Return the pages that what runs now would hold if branches shared nothing.

        As in the tree, a decoder's page of the tick under way counts once it is taken.
        """
        pages = 0
        p = self.block_size
        begun = self._stretch is not None and (self._boundary or self._taken > 0)
        now = self.tick + begun
        for _, query in self._decoding:
            for cohort in query.cohorts:
                first = cohort.nodes[0]
                tokens = first.path - first.ticks - 1 + cohort.written + now - cohort.joined
                pages += cohort.count * -(-tokens // p)
        for branch in self.completing():
            tokens = branch.path - 1 - max(0, branch.ticks - branch.written - 1)
            pages += -(-tokens // p)
        if self.fill is not None:
            pages += -(-self.fill.context // p)
        return pages


_number = attrgetter("number")
_place = attrgetter("place")


def _number_of_first(pair: tuple[KvNode, Cohort]) -> int:
    return pair[0].number
