"""Who runs, who waits, who reads which KV and who pays for it: the books that a batch keeps.

Siblings that start together are one cohort, and a cohort's members cost nothing while they decode. What a
query owes is kept as sums that change only when a branch starts or stops: a decoder adds the batch's
common cost at its end and subtracts it at its start, and so do the KV tokens that it reads.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import Any

from models.attention_grid import Lines
from sim.branch import Cohort, Cost, Fill, Settings, Stretch
from sim.kv import DECODING, DONE, FILLING, WAITING, KvNode, PageTree, Query


class Ledger:
    """The branches of one replica, its waiting queue, its page tree and its accounts."""

    def __init__(self, settings: Settings, cost: Cost) -> None:
        self.settings = settings
        self.cost = cost
        self.tree = PageTree(
            settings.num_gpu_blocks,
            settings.block_size,
            settings.sharing,
            settings.fork,
            settings.reclaim,
            settings.enable_prefix_caching,
        )
        self.block_size = settings.block_size
        self.naive = settings.attention == "naive"
        self.saturation = cost.saturation
        self._kv_s = cost.kv_s
        self._decode_s: dict[int, float] = {}  # base_s(b, 0) by b
        self._context_s: dict[int, float] = {}  # of a context token, by the chunk's tokens
        self._lines: dict[int, Lines] = {}  # of reading KV, by decoders alone
        self.tick = 0
        self.fill: Fill | None = None
        self.decoders = 0
        self.read = 0  # KV tokens read by the next tick, each weight 1
        self.read_saturated = 0  # tokens times decoders where that is compute-bound
        self.phases = [0] * (2 * settings.block_size)  # decoders by phase, twice over
        self.common = 0.0  # seconds of common cost per decoder so far
        self.active_searches = 0
        self.waiting_branches = 0
        self.ready = False  # somebody who waits might be admitted now
        self.roomy = True  # the stretch under way will not reclaim a page
        self.started: list[KvNode] = []  # branches with which a query's first token came just now
        self.marked: list[KvNode] = []  # branches whose marked token came with the last tick
        self.activated: list[Query] = []  # first admitted by the last `begin`
        self.held = 0  # pages pinned at the end of the last stretch, before anybody left
        self.busy_s = 0.0
        self.charged_s = 0.0  # to queries that are gone
        self.num_preemptions = 0
        self.regimes = 0
        self.boundaries = 0
        self.branch_steps = 0  # decoding branches that came to their end
        self.prefills = 0  # prefill-only branches that did
        self.computed_tokens = 0  # by prefill
        self.hit_tokens = 0  # prompt tokens found in the prefix cache
        self._finish: list[tuple[int, int, Cohort]] = []  # heap of (next end, number, cohort)
        self._marks: list[tuple[int, int, KvNode]] = []  # heap of (tick, number, branch)
        self._decoding: list[tuple[int, Query]] = []  # queries with decoders, by number
        self._active: list[tuple[int, Query]] = []
        self._new: list[tuple[int, Query]] = []
        self._numbers = 0
        self._queries = 0
        self._cohorts = 0
        self._stretch: Stretch | None = None
        self._chunk = 0  # of the partial prefill, in each tick of the stretch
        self._taken = 0  # pages that the first tick of a regime has taken already
        self._boundary = False
        self._late: list[tuple[KvNode, bool]] = []  # complete with this tick; (branch, is pinned)
        self._filled: list[
            tuple[list[KvNode], KvNode]
        ] = []  # prefill-only ones, and whose path is pinned for them
        self._merging: set[KvNode] = (
            set()
        )  # parents whose last token's logits are there in this tick
        self._bills: list[tuple[Query, float]] = []
        self._prefill_s = 0.0
        self._prefill_slope = 0.0
        self._stale = False  # a branch left its cohort before its end: `_finish` may be early
        self._prefix_s = 0.0  # seconds a tick spends on reading prefixes that queries share
        self._per_decoder = 0.0  # common cost of one tick, for each decoder
        self._drift = 0.0  # what each further tick of the stretch adds to that
        self._timed = cost.timed

    # -- submitting and dropping (only between stretches) -------------------------------------------

    def prompt(
        self, tokens: int, prefix: Sequence[tuple[Hashable, int]] = (), owner: Any = None
    ) -> KvNode:
        """Register a query with a prompt of `tokens` tokens; return its root."""
        query = Query(self._queries, owner)
        self._queries += 1
        return self.tree.root(query, tokens, prefix)

    def branch(self, parent: KvNode, ticks: int, owner: Any = None, mark: int = 0) -> KvNode:
        """Submit a branch that grows a child of `ticks` >= 1 tokens below `parent`; return the child.

        Its `mark`-th token, if it is neither the first nor the last, is reported in `marked`.
        """
        (node,) = self.branches(parent, ((ticks, owner),))
        if 1 < mark < ticks:
            query = parent.query
            if query.marks is None:
                query.marks = {}
            query.marks[node] = mark
        return node

    def branches(self, parent: KvNode, specs: Sequence[tuple[int, Any]]) -> list[KvNode]:
        """Submit a branch for each `(ticks, owner)`, all below `parent`; see `branch`."""
        nodes = self.tree.children(parent, self._numbers, specs, given=False)
        self._submit(parent.query, nodes)
        return nodes

    def judge(self, parent: KvNode, specs: Sequence[tuple[int, Any]]) -> list[KvNode]:
        """Submit the prefill of a known child (a verifier's copy of a step) for each `(tokens, owner)`."""
        nodes = self.tree.children(parent, self._numbers, specs, given=True)
        self._submit(parent.query, nodes)
        return nodes

    def given(self, parent: KvNode, tokens: int) -> KvNode:
        """Create a child whose tokens are known, without a branch yet."""
        (node,) = self.tree.children(parent, -1, ((tokens, None),), given=True)
        node.state = DONE
        return node

    def prefill(self, node: KvNode, owner: Any = None) -> KvNode:
        """Submit a branch that only brings the path of `node` in; nothing else may work on it."""
        assert node.state == DONE, "a branch works on this node already"
        node.number = self._numbers
        node.ticks = node.written = 0
        node.state = WAITING
        node.owner = owner
        self._submit(node.query, [node])
        return node

    def _submit(self, query: Query, nodes: list[KvNode]) -> None:
        count = len(nodes)
        self._numbers += count
        query.flight += count
        query.waiting += nodes
        self.waiting_branches += count
        if not query.queued:
            self._enqueue(query)
        self.ready = True

    def _enqueue(self, query: Query) -> None:
        query.queued = True
        heapq.heappush(self._active if query.active else self._new, (query.number, query))

    def _head(self) -> KvNode | None:
        """Return the first branch that waits, forgetting those that no longer do."""
        for queue in (self._active, self._new):
            while queue:
                query = queue[0][1]
                waiting = query.waiting
                while waiting and waiting[0].state != WAITING:
                    waiting.popleft()
                if waiting:
                    return waiting[0]
                query.queued = False
                heapq.heappop(queue)
        return None

    def idle(self, node: KvNode) -> bool:
        """Say whether no branch is in flight at or below `node`."""
        if not node.query.flight:
            return True
        if node.children is None:
            return node.state == DONE
        return all(child.state == DONE for child in _below(node))

    def droppable(self, node: KvNode) -> bool:
        """Say whether `drop` would change nothing of the stretch under way, so that it may be now."""
        if not self.roomy or not self.idle(node):
            return False
        return node is not node.query.root or self.settings.max_active_searches is None

    def drop(self, node: KvNode) -> None:
        """Cancel everything at and below `node` and free its pages; a root ends its query.

        Only between stretches, or if `droppable`.
        """
        if node.dropped:
            return
        tree = self.tree
        query = node.query
        if node is query.root:
            self._drop_query(query)
            return
        parent = node.parent
        if parent is not None and parent.in_place_child is node:
            parent.in_place_child = None  # another child may append in its place
        if node.children is None:
            if node.state:
                self._abandon(node)
            tree.forget(node)
        else:
            doomed = _below(node)
            if query.flight:
                for child in sorted([n for n in doomed if n.state], key=_number):
                    self._abandon(child)
            for child in doomed:
                tree.forget(child)

    def _drop_query(self, query: Query) -> None:
        root = query.root
        assert root is not None
        if query.flight:
            for node in sorted([n for n in query.nodes if n.state], key=_number):
                self._abandon(node)
        query.gone = True
        query.waiting.clear()
        if query.active:
            self.active_searches -= 1
            if self.settings.max_active_searches:
                self.ready = True
        above = root.parent
        self.tree.unlink(root)
        self.tree.forget_query(query)
        if above is not None:
            self.tree.tidy_prefixes(above)
        self.charge(query)
        self.charged_s += query.gpu_s

    def _abandon(self, node: KvNode) -> None:
        """Take the branch at `node` out of the batch or the queue for good."""
        assert self._stretch is None, "what is in flight is dropped between stretches"
        if node.state == DECODING:
            self._leave(node)
        elif node.state == FILLING:
            self._unfill(node)
        else:
            self.waiting_branches -= 1
        if (
            node.ticks
        ):  # what it has written counts among its query's complete nodes until it is gone
            node.query.pages += self.tree.pages_of(node, node.want)
        node.state = DONE
        node.query.flight -= 1
        self.ready = True

    # -- charging -----------------------------------------------------------------------------------

    def charge(self, query: Query) -> None:
        """Set `query.gpu_s` to the seconds that it owes up to this tick."""
        tick = self.tick
        reads = query.reads + query.path_read * tick
        saturated = query.reads_saturated + query.path_saturated * tick
        for cohort in query.cohorts:
            ran = tick - cohort.joined
            for node in cohort.nodes:
                if node.cohort is cohort:
                    own = node.tail + cohort.written + cohort.context
                    reads += ran * own + ran * (ran - 1) // 2
        query.gpu_s = (
            query.bills
            + (query.common + query.decoders * self.common)
            + self.cost.kv_s * (reads + saturated / self.saturation)
        )

    # -- joining and leaving the decoders -------------------------------------------------------------

    def _walk(self, query: Query, node: KvNode | None, count: int) -> None:
        """Add `count` decoders to `node` and all it reads; a negative count takes them away.

        Keeps pins, cached pages and the tokens read by the batch and by the query up to date.
        """
        read = saturated = 0
        saturation = self.saturation
        while node is not None:
            before = node.decoders
            after = node.decoders = before + count
            if before <= saturation and after <= saturation:
                if before and after:
                    node = node.up
                    continue
                once = node.resident if after else -node.resident
                times = 0
            elif before > saturation:
                if after > saturation:
                    once, times = 0, node.resident * count
                else:
                    once, times = node.resident if after else 0, -node.resident * before
            else:
                once, times = -node.resident if before else 0, node.resident * after
            if self.naive:
                pass
            elif node.query is query:
                read += once
                saturated += times
            else:
                self._read_prefix(once, times)
            if not node.fills:
                if before == 0:
                    self.tree.pinned(node)
                elif after == 0:
                    self.tree.unpinned(node)
            node = node.up
        if read or saturated:
            tick = self.tick
            query.path_read += read
            query.reads -= read * tick
            query.path_saturated += saturated
            query.reads_saturated -= saturated * tick
            self.read += read
            self.read_saturated += saturated

    def _read_prefix(self, once: int, times: int) -> None:
        """Book that so many tokens more of a shared prefix are read: a common cost."""
        shared = self.tree.prefix_query
        shared.path_read += once
        shared.path_saturated += times
        self.read += once
        self.read_saturated += times
        self._prefix_s = self.cost.kv_s * (
            shared.path_read + shared.path_saturated / self.saturation
        )

    def _join(self, nodes: list[KvNode], written: int) -> None:
        """Let siblings, whose path is pinned, decode from this tick on; each has `written` tokens."""
        tick = self.tick
        count = len(nodes)
        first = nodes[0]
        query = first.query
        p = self.block_size
        phase = (tick - first.offset - first.tail - written) % p
        context = _context(first.up) if self.naive else 0
        cohort = Cohort(query, nodes, tick, written, phase, context)
        read = count * (written + context)
        for node in nodes:
            node.state = DECODING
            node.cohort = cohort
            read += node.tail
        if query.marks:
            self._mark(query.marks, nodes, written)
        self.read += read
        self.phases[phase] += count
        self.phases[phase + p] += count
        self.decoders += count
        if not query.decoders:
            insort(self._decoding, (query.number, query))
        query.decoders += count
        query.common -= count * self.common
        query.cohorts.append(cohort)
        stack = query.stack
        ordered = not stack or stack[-1].number < first.number
        stack += nodes
        if not ordered:
            stack.sort(key=_number)
        self._cohorts += 1
        end = cohort.offset + cohort.order[-1].ticks
        heapq.heappush(self._finish, (end, self._cohorts, cohort))

    def _mark(self, marks: dict[KvNode, int], nodes: list[KvNode], written: int) -> None:
        for node in nodes:
            mark = marks.get(node, 0)
            if mark > written:
                node.mark_tick = self.tick + mark - written
                heapq.heappush(self._marks, (node.mark_tick, node.number, node))

    def _leave(self, node: KvNode) -> None:
        """Take one decoding branch out of the batch; its node then holds what it has written."""
        cohort = node.cohort
        assert cohort is not None
        node.cohort = None
        ran = self.tick - cohort.joined
        node.written = cohort.written + ran
        own = node.tail + cohort.written
        node.want = node.resident = own + ran
        node.pages = self.tree.pages_of(node, node.resident)
        own += cohort.context
        cohort.query.reads += ran * own + ran * (ran - 1) // 2
        self.read -= own + ran
        self.tree.unpinned(node)
        self._thin(cohort, 1)
        if cohort.query.stack[-1] is node:
            cohort.query.stack.pop()
        self._stale = True

    def _thin(self, cohort: Cohort, count: int) -> None:
        """Book that `count` members of `cohort` have left."""
        query = cohort.query
        phase = cohort.phase
        self.phases[phase] -= count
        self.phases[phase + self.block_size] -= count
        self.decoders -= count
        query.common += count * self.common
        query.decoders -= count
        if not query.decoders:
            del self._decoding[bisect_left(self._decoding, (query.number,))]
        cohort.count -= count
        if not cohort.count:
            query.cohorts.remove(cohort)
        node = cohort.up
        saturation = self.saturation
        while node is not None:  # what `_walk` does where others still read the same
            before = node.decoders
            if before <= count or before > saturation:
                self._walk(query, node, -count)
                return
            node.decoders = before - count
            node = node.up

    def _pin(self, node: KvNode | None) -> None:
        """Pin a path for a prefill."""
        tree = self.tree
        while node is not None:
            if not node.fills and not node.decoders:
                tree.pinned(node)
            node.fills += 1
            node = node.up

    def _unpin(self, node: KvNode | None) -> None:
        tree = self.tree
        while node is not None:
            node.fills -= 1
            if not node.fills and not node.decoders:
                tree.unpinned(node)
            node = node.up

    def _unfill(self, branch: KvNode) -> None:
        """Stop the partial prefill; what it has brought in stays cached."""
        assert self.fill is not None and self.fill.branch is branch
        self.fill = None
        branch.query.fill = 0
        self._unpin(branch)

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

    def _first_write_pages(self, branch: KvNode) -> int:
        """Return the pages that the next token of `branch` takes once its path is complete.

        A fork's copied tail counts with the first token.
        """
        p = self.block_size
        if branch.written:
            return 0 if (branch.offset + branch.want) % p else 1
        if not branch.tail:
            return 0 if branch.offset else 1
        return branch.tail // p + 1 - -(-branch.want // p)


_number = attrgetter("number")


def _below(node: KvNode) -> list[KvNode]:
    """Return `node` and everything below it that was not dropped before."""
    nodes = [node]
    for member in nodes:
        if member.children is not None:
            nodes.extend([child for child in member.children if not child.dropped])
    return nodes


def _context(node: KvNode | None) -> int:
    """Return the KV tokens on the path that ends at `node`."""
    tokens = 0
    while node is not None:
        tokens += node.resident
        node = node.up
    return tokens
