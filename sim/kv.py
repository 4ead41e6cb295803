"""The page tree: which KV tokens of which search node lie in memory, exactly counted, and what goes first.

A node owns the pages of its own tokens; a fork shares all full pages, one child appends in place and
the others copy the partial tail. A node is pinned while a running branch reads it; otherwise its pages
are cached until somebody needs them. docs/engine.md defines every number here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sim.freequeue import FreeQueue

if TYPE_CHECKING:
    from sim.branch import Cohort

# What a branch does: nothing (any more), wait, have its path brought in, decode.
DONE: Final = 0
WAITING: Final = 1
FILLING: Final = 2
DECODING: Final = 3


class DoesNotFitError(Exception):
    """A single branch needs more pages than the pool has."""


class Query:
    """One query on one replica: its tree, what of it is in flight, and what it owes.

    `gpu_s` is what `Batch.charge` found last; the fields above it are what that is made of. `pages`
    counts what its complete nodes hold when everything is resident.
    """

    __slots__ = (
        "number", "active", "gone", "started", "root", "nodes", "waiting", "queued", "flight",
        "decoders", "fill", "cohorts", "common", "bills", "reads", "reads_saturated", "path_read",
        "path_saturated", "marks", "stack", "scan", "gpu_s", "pages", "peak_pages", "preemptions", "reclaimable", "owner",
    )  # fmt: skip

    def __init__(self, number: int, owner: Any = None) -> None:
        self.number = number
        self.active = False  # has had a branch admitted
        self.gone = False
        self.started = False  # has its first token
        self.root: KvNode | None = None
        self.nodes: list[KvNode] = []  # in order of creation, dropped ones included
        self.waiting: deque[KvNode] = deque()  # in order of submission
        self.queued = False  # stands in one of the batch's queues of queries
        self.flight = 0  # branches submitted and neither finished nor dropped
        self.decoders = 0
        self.fill = 0
        self.cohorts: list[Cohort] = []  # of its decoding branches
        self.common = (
            0.0  # common cost of its decoders; of one that decodes, less the batch's at its start
        )
        self.bills = 0.0  # seconds of prefills and copies
        self.reads = 0  # token-ticks read; of what is read now, less tokens times first tick
        self.reads_saturated = 0  # the same of tokens times decoders, where that is compute-bound
        self.path_read = 0  # tokens of its inner nodes that its decoders read now, each once
        self.path_saturated = 0  # the same times decoders, where that is compute-bound
        self.marks: dict[KvNode, int] | None = None  # report when so many tokens are decoded
        self.stack: list[KvNode] = []  # decoding branches by number, with some that have left
        self.scan = 0  # nodes from here on hold no cached pages
        self.gpu_s = 0.0
        self.pages = 0
        self.peak_pages = 0
        self.preemptions = 0
        self.reclaimable = False  # stands in the tree's heap of queries with cached pages
        self.owner = owner


class KvNode:
    """The KV of one search node on one replica (or of a shared prefix), and the branch that works on it.

    A branch decodes `ticks` tokens (0: it only brings the node's path in). `state` is DONE where no branch
    is in flight; `cohort` is set while one decodes.
    """

    __slots__ = (
        "query", "parent", "up", "path", "offset", "tail", "want", "resident", "pages", "children",
        "in_place_child", "decoders", "fills", "dropped", "number", "ticks", "written", "state", "owner",
        "place", "cohort", "mark_tick", "serial", "key", "unpinned_at",
    )  # fmt: skip
    cohort: Cohort | None  # in which it decodes
    mark_tick: int
    # of a prefix node
    serial: int  # order of creation
    key: tuple[int, Hashable]  # (serial of the one above, key)
    unpinned_at: int  # tick of the last unpinning

    def __init__(
        self,
        query: Query,
        parent: KvNode | None,
        path: int,
        offset: int,
        tail: int,
        want: int,
        number: int = -1,
        ticks: int = 0,
        state: int = DONE,
        owner: Any = None,
        place: int = 0,
    ) -> None:
        self.query = query
        self.parent = parent
        self.up = parent  # the next node a branch here reads, None where reading ends
        self.path = path  # tokens from the start of the prompt to its end
        self.offset = offset  # where its first token lies on the parent's last page; 0: on its own
        self.tail = tail  # tokens of the path it holds a second time, at its start
        self.want = want  # own tokens it holds when everything is resident (grows while it decodes)
        self.resident = 0  # own tokens present, always a prefix (frozen while it decodes)
        self.pages = 0  # own pages present (0 while it decodes)
        self.children: list[KvNode] | None = None  # dropped ones included, but of a prefix node
        self.in_place_child: KvNode | None = None
        self.decoders = 0  # decoding branches below that read it
        self.fills = 0  # prefills that need it
        self.dropped = False
        self.number = number  # of the branch, in order of submission
        self.ticks = ticks
        self.written = 0  # tokens decoded when it joined or left the batch last
        self.state = state
        self.owner = owner
        self.place = place  # among the nodes of its query, in order of creation


Sharing = Literal["tree", "per_branch"]
Fork = Literal["copy_tail", "recompute_tail"]
Reclaim = Literal["youngest", "lru"]


@dataclass(frozen=True, slots=True)
class PoolCount:
    """Pages of a pool: `pinned + cached + free == total`."""

    total: int
    pinned: int
    cached: int
    free: int


class PageTree:
    """The page pool of one replica and the trees in it."""

    def __init__(
        self,
        num_gpu_blocks: int,
        block_size: int,
        sharing: Sharing = "tree",
        fork: Fork = "copy_tail",
        reclaim: Reclaim = "youngest",
        prefix_caching: bool = True,
    ) -> None:
        self.total = num_gpu_blocks
        self.block_size = block_size
        self.per_branch = sharing == "per_branch"
        self.recompute_tail = fork == "recompute_tail" and not self.per_branch
        self.free = num_gpu_blocks
        self.cached = 0
        self.prefix_query = Query(-1)
        self.prefixes: dict[tuple[int, Hashable], KvNode] = {}
        self._serials = 0
        self.tick = 0  # set by the batch
        self._with_cached: list[
            tuple[int, Query]
        ] = []  # heap of (-number, query with cached pages)
        self._old_prefixes: list[
            tuple[int, int, KvNode]
        ] = []  # heap of (unpinned at, -serial, node)
        self.reclaimed = 0  # pages taken back from cached nodes
        self.prefix_caching = prefix_caching
        self.queue = FreeQueue(num_gpu_blocks) if reclaim == "lru" else None
        self.plain = self.queue is None and prefix_caching

    # -- growing the tree ----------------------------------------------------------------------

    def root(
        self, query: Query, tokens: int, prefix: Sequence[tuple[Hashable, int]] = ()
    ) -> KvNode:
        """Create the node of a prompt of `tokens` tokens below a chain of shared prefix nodes."""
        parent: KvNode | None = None
        if prefix and not self.per_branch:
            parent = self._prefix_chain(prefix)
        above = 0
        if parent is not None:
            above = parent.path
            assert parent.children is not None
        node = KvNode(query, parent, tokens, 0, 0, tokens - 1 - above)
        if parent is not None:
            parent.children.append(node)  # type: ignore[union-attr]
        query.nodes.append(node)
        query.root = node
        query.pages += self.pages_of(node, node.want)
        return node

    def _prefix_chain(self, prefix: Sequence[tuple[Hashable, int]]) -> KvNode | None:
        parent: KvNode | None = None
        for key, tokens in prefix:
            name = (parent.serial if parent is not None else -1, key)
            node = self.prefixes.get(name)
            if node is None:
                above = parent.path if parent is not None else 0
                node = KvNode(self.prefix_query, parent, above + tokens, 0, 0, tokens)
                node.serial = self._serials
                self._serials += 1
                node.key = name
                node.unpinned_at = -1
                node.children = []
                if parent is not None:
                    assert parent.children is not None
                    parent.children.append(node)
                self.prefixes[name] = node
            parent = node
        return parent

    def children(
        self, parent: KvNode, number: int, specs: Sequence[tuple[int, Any]], given: bool
    ) -> list[KvNode]:
        """Create a child for each `(tokens, owner)`, with branches numbered from `number` that wait.

        They are yet to be decoded or, if `given`, known and yet to be prefilled.
        """
        query = parent.query
        path = parent.path
        rest = (path - 1) % self.block_size
        place = len(query.nodes)
        made: list[KvNode] = []
        for tokens, owner in specs:
            ticks = 0 if given else tokens
            if parent.in_place_child is None:
                node = parent.in_place_child = KvNode(
                    query, parent, path + tokens, rest, 0, 0, number, ticks, WAITING, owner, place
                )
            elif self.per_branch:
                node = KvNode(
                    query,
                    parent,
                    path + tokens,
                    0,
                    path - 1,
                    0,
                    number,
                    ticks,
                    WAITING,
                    owner,
                    place,
                )
                node.up = None
            else:
                want = rest if self.recompute_tail else 0
                node = KvNode(
                    query,
                    parent,
                    path + tokens,
                    0,
                    rest,
                    want,
                    number,
                    ticks,
                    WAITING,
                    owner,
                    place,
                )
            if given:
                node.want = node.tail + tokens
                query.pages += self.pages_of(node, node.want)
            made.append(node)
            number += 1
            place += 1
        query.nodes += made
        if parent.children is None:
            parent.children = made[:]
        else:
            parent.children += made
        return made

    def pages_of(self, node: KvNode, own: int) -> int:
        """Return how many own pages `node` has with `own` tokens on them."""
        if own == 0:
            return 0
        offset = node.offset
        return -(-(offset + own) // self.block_size) - (1 if offset else 0)

    # -- pinned, cached, free --------------------------------------------------------------------

    def unpinned(self, node: KvNode) -> None:
        """Note that no running branch reads `node` any more: its pages are cached from here on."""
        query = node.query
        if not self.plain:
            self._unpinned(node)
        elif node.pages:
            self.cached += node.pages
            if query.number < 0:
                node.unpinned_at = self.tick
                heapq.heappush(self._old_prefixes, (self.tick, -node.serial, node))
            else:
                if node.place >= query.scan:
                    query.scan = node.place + 1
                if not query.reclaimable:
                    self.reclaimable(query)

    def _unpinned(self, node: KvNode) -> None:
        pages = node.pages
        if self.prefix_caching:
            if pages:
                self.cached += pages
                assert self.queue is not None
                self.queue.append(node)
            return
        node.resident = node.pages = 0
        self.free += pages
        if self.queue is not None:
            self.queue.append_free(pages)

    def pinned(self, node: KvNode) -> None:
        """Note that a running branch reads `node`, which nobody did: its pages are not cached now."""
        self.cached -= node.pages
        if self.queue is not None:
            self.queue.remove(node)

    def reclaimable(self, query: Query) -> None:
        """Note that `query` holds cached pages, perhaps in its last node."""
        query.reclaimable = True
        heapq.heappush(self._with_cached, (-query.number, query))

    def take(self, pages: int) -> None:
        """Take `pages` pages out of the pool, reclaiming cached ones where none is free.

        Under `lru` the next ones of the queue, free or cached.
        """
        if self.queue is not None:
            self._take_next(self.queue, pages)
            return
        if pages > self.free:
            self.reclaim(pages - self.free)
        self.free -= pages

    def _take_next(self, queue: FreeQueue, pages: int) -> None:
        while pages:
            place = queue.first()
            node = place.node
            if node is None:
                given = min(pages, place.free)
                place.free -= given
                self.free -= given
            else:
                given = self._shrink(node, pages)
                self.cached -= given
                self.reclaimed += given
                if not node.pages and node.query.number < 0:
                    self.tidy_prefixes(node)
            pages -= given

    def reclaim(self, pages: int) -> None:
        """Free `pages` cached pages: unused prefixes first, then the youngest query's last nodes."""
        assert pages <= self.cached, "more pages are needed than can be reclaimed"
        self.cached -= pages
        self.free += pages
        self.reclaimed += pages
        if self._old_prefixes:
            pages = self._reclaim_prefixes(pages)
        young = self._with_cached
        while pages:
            assert young, "cached pages are not where they are counted"
            query = young[0][1]
            if not query.gone:
                nodes = query.nodes
                at = query.scan
                while at:
                    node = nodes[at - 1]
                    if node.pages and not node.decoders and not node.fills:
                        pages -= self._shrink(node, pages)
                        if not pages:
                            query.scan = at
                            return
                    at -= 1
                query.scan = 0
            query.reclaimable = False
            heapq.heappop(young)

    def _reclaim_prefixes(self, pages: int) -> int:
        """Take up to `pages` pages of prefixes that nobody reads; return how many are lacking."""
        old = self._old_prefixes
        while old:
            tick, _, node = old[0]
            if tick == node.unpinned_at and node.pages and not node.decoders and not node.fills:
                pages -= self._shrink(node, pages)
                if not pages:
                    break
            heapq.heappop(old)
            if not node.dropped:
                self.tidy_prefixes(node)
        return pages

    def _shrink(self, node: KvNode, pages: int) -> int:
        """Take up to `pages` pages from the tail of `node`; return how many it gave."""
        given = min(pages, node.pages)
        node.pages -= given
        shift = 1 if node.offset else 0
        node.resident = min(
            node.resident, max(0, (node.pages + shift) * self.block_size - node.offset)
        )
        child = node.in_place_child
        while child is not None:  # short steps in a row may all lie on the page that went
            child.resident = 0
            child = child.in_place_child
        return given

    # -- dropping --------------------------------------------------------------------------------

    def forget(self, node: KvNode) -> None:
        """Free the pages of one node that no running branch reads."""
        pages = node.pages
        self.cached -= pages
        self.free += pages
        if self.queue is not None:
            self.queue.forget(node)
        node.pages = 0
        node.query.pages -= pages if node.resident == node.want else self.pages_of(node, node.want)
        node.resident = 0
        node.dropped = True

    def forget_query(self, query: Query) -> None:
        """Free all pages of a query that has nothing running, and take its tree apart.

        Without cycles its nodes are freed at once, not by the cycle collector.
        """
        pages = 0
        queue = self.queue
        for node in query.nodes:
            pages += node.pages
            if queue is not None:
                queue.forget(node)
            node.pages = 0
            node.dropped = True
            node.in_place_child = node.children = node.owner = None
        self.cached -= pages
        self.free += pages
        query.pages = 0
        query.nodes = []
        query.stack = []

    def unlink(self, node: KvNode) -> None:
        """Take a root or a prefix node off the prefix node above it."""
        parent = node.parent
        if parent is not None:
            assert parent.children is not None
            parent.children.remove(node)

    def tidy_prefixes(self, node: KvNode | None) -> None:
        """Forget prefix nodes from `node` upwards that hold nothing and lead nowhere."""
        while node is not None and not node.children and not node.resident:
            if node.decoders or node.fills:
                return
            del self.prefixes[node.key]
            node.dropped = True
            self.unlink(node)
            node = node.parent

    # -- checks ------------------------------------------------------------------------------------

    def count(self) -> PoolCount:
        """Return the pool's pages by state."""
        return PoolCount(self.total, self.total - self.free - self.cached, self.cached, self.free)


def does_not_fit(branch: KvNode, tree: PageTree) -> str:
    """Say that a branch needs more pages than the pool has, and what to do about it."""
    tokens = branch.path
    pages = -(-tokens // tree.block_size)
    return (
        f"one branch of query {branch.query.number} needs {pages} KV pages ({tokens} tokens of "
        f"{tree.block_size} a page) and the replica has {tree.total}; shorten the prompt or the answer "
        "(max_tokens), raise gpu_memory_utilization or tensor_parallel, or take a larger device"
    )
