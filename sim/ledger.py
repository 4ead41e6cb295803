"""Who runs, who waits, who reads which KV and who pays for it: the books that a batch keeps.

Every branch that starts or stops decoding walks its path once: pins, cached pages, the tokens that the
next tick reads and the query's charge follow from that, and nothing else has to be touched.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from typing import Any

from sim.branch import DECODING, FILLING, GONE, WAITING, Branch, Cost, Fill, Settings, Stretch
from sim.kv import KvNode, PageTree, Query


class Ledger:
    """The branches of one replica, its waiting queue, its page tree and its accounts."""

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


def _below(node: KvNode) -> list[KvNode]:
    """Return `node` and everything below it."""
    nodes = [node]
    for member in nodes:
        nodes.extend(member.children)
    return nodes
