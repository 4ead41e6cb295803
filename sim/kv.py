"""The page tree: which KV tokens of which search node lie in memory, exactly counted, and what goes first.

A node owns the pages of its own tokens; a fork shares all full pages, one child appends in place and
the others copy the partial tail. A node is pinned while a running branch reads it; otherwise its pages
are cached until somebody needs them. docs/engine.md defines every number here.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal


class DoesNotFitError(RuntimeError):
    """A single branch needs more pages than the pool has."""


class Query:
    """One query on one replica: its tree, what of it waits, and what it has been charged.

    `gpu_s` are the seconds of iterations attributed to it so far (without its share since `tick`,
    see `Batch.charge`); `pages` counts what its complete nodes hold when everything is resident.
    """

    __slots__ = (
        "number", "active", "gone", "root", "nodes", "waiting", "queued", "decoders", "fill",
        "read", "read_saturated", "tick", "common", "gpu_s", "pages", "peak_pages", "preemptions",
        "reclaimable", "owner",
    )  # fmt: skip

    def __init__(self, number: int, owner: Any = None) -> None:
        self.number = number
        self.active = False  # has had a branch admitted
        self.gone = False
        self.root: KvNode | None = None
        self.nodes: list[KvNode] = []  # in order of creation, dropped ones included
        self.waiting: list[tuple[int, Any]] = []  # heap of (branch number, branch)
        self.queued = False  # stands in one of the batch's queues of queries
        self.decoders = 0
        self.fill = 0
        self.read = 0  # own KV tokens its decoders read in one tick, each once
        self.read_saturated = 0  # tokens times decoders where reading is compute-bound
        self.tick = 0  # up to here its reads are charged
        self.common = 0.0  # the batch's common cost per decoder, up to the same tick
        self.gpu_s = 0.0
        self.pages = 0
        self.peak_pages = 0
        self.preemptions = 0
        self.reclaimable = False  # stands in the tree's heap of queries with cached pages
        self.owner = owner


class KvNode:
    """The KV of one search node on one replica (or of one block of a shared prefix)."""

    __slots__ = (
        "query", "number", "parent", "up", "in_place", "offset", "tail", "want", "resident", "pages",
        "path", "children", "in_place_child", "decoders", "fills", "complete", "dropped", "branch",
        "key", "unpinned_at",
    )  # fmt: skip

    def __init__(self, query: Query, number: int, parent: KvNode | None, path: int) -> None:
        self.query = query
        self.number = number
        self.parent = parent
        self.up = parent  # the next node a branch here reads, None where reading ends
        self.in_place = False
        self.offset = (
            0  # where its first token lies on the parent's last page; 0 for pages of its own
        )
        self.tail = 0  # tokens of the path it holds a second time, at its start
        self.want = 0  # own tokens it holds when everything is resident (grows while it decodes)
        self.resident = 0  # own tokens present, always a prefix (frozen while it decodes)
        self.pages = 0  # own pages present (frozen while it decodes)
        self.path = path  # tokens from the start of the prompt to its end
        self.children: list[KvNode] = []
        self.in_place_child: KvNode | None = None
        self.decoders = 0  # decoding branches that read it
        self.fills = 0  # prefills that need it
        self.complete = False  # all its tokens are known
        self.dropped = False
        self.branch: Any = None  # the branch that grows it or brings it in, until that is finished
        self.key: tuple[int, Hashable] = (
            -1,
            None,
        )  # of a prefix node: (number of the one above, key)
        self.unpinned_at = -1  # tick of the last unpinning, of a prefix node


Sharing = Literal["tree", "per_branch"]
Fork = Literal["copy_tail", "recompute_tail"]


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
    ) -> None:
        self.total = num_gpu_blocks
        self.block_size = block_size
        self.per_branch = sharing == "per_branch"
        self.recompute_tail = fork == "recompute_tail" and not self.per_branch
        self.free = num_gpu_blocks
        self.cached = 0
        self.prefix_query = Query(-1)
        self.prefixes: dict[tuple[int, Hashable], KvNode] = {}
        self._numbers = 0
        self.tick = 0  # set by the batch
        self._with_cached: list[Query] = []  # queries that may hold cached pages
        self._old_prefixes: list[
            tuple[int, int, KvNode]
        ] = []  # heap of (unpinned at, -number, node)
        self.reclaimed = 0  # pages taken back from cached nodes

    # -- growing the tree ----------------------------------------------------------------------

    def root(
        self, query: Query, tokens: int, prefix: Sequence[tuple[Hashable, int]] = ()
    ) -> KvNode:
        """Create the node of a prompt of `tokens` tokens below a chain of shared prefix nodes."""
        parent: KvNode | None = None
        if prefix and not self.per_branch:
            parent = self._prefix_chain(prefix)
        node = self._node(query, parent, tokens)
        node.want = tokens - 1 - (parent.path if parent is not None else 0)
        node.complete = True
        query.root = node
        query.pages += self.pages_of(node, node.want)
        return node

    def _prefix_chain(self, prefix: Sequence[tuple[Hashable, int]]) -> KvNode | None:
        parent: KvNode | None = None
        for key, tokens in prefix:
            name = (parent.number if parent is not None else -1, key)
            node = self.prefixes.get(name)
            if node is None:
                above = parent.path if parent is not None else 0
                node = self._node(self.prefix_query, parent, above + tokens)
                node.want = tokens
                node.complete = True
                node.key = name
                self.prefixes[name] = node
            parent = node
        return parent

    def _node(self, query: Query, parent: KvNode | None, path: int) -> KvNode:
        node = KvNode(query, self._numbers, parent, path)
        self._numbers += 1
        query.nodes.append(node)
        if parent is not None:
            parent.children.append(node)
        return node

    def child(self, parent: KvNode, tokens: int) -> KvNode:
        """Create a child of `tokens` tokens that is yet to be decoded."""
        query = parent.query
        held = parent.path - 1
        node = KvNode(query, self._numbers, parent, parent.path + tokens)
        self._numbers += 1
        query.nodes.append(node)
        parent.children.append(node)
        rest = held % self.block_size
        if parent.in_place_child is None:
            parent.in_place_child = node
            node.in_place = True
            node.offset = rest
        elif self.per_branch:
            node.up = None
            node.tail = held
        else:
            node.tail = rest
            if self.recompute_tail:
                node.want = rest
        return node

    def given(self, parent: KvNode, tokens: int) -> KvNode:
        """Create a child whose `tokens` tokens are known and have to be prefilled."""
        node = self.child(parent, tokens)
        node.want = node.tail + tokens
        node.complete = True
        node.query.pages += self.pages_of(node, node.want)
        return node

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
        if node.pages:
            self.cached += node.pages
            if query.number < 0:
                node.unpinned_at = self.tick
                heapq.heappush(self._old_prefixes, (self.tick, -node.number, node))
            elif not query.reclaimable:
                query.reclaimable = True
                self._with_cached.append(query)

    def take(self, pages: int) -> None:
        """Take `pages` pages out of the pool, reclaiming cached ones where none is free."""
        if pages > self.free:
            self.reclaim(pages - self.free)
        self.free -= pages

    def reclaim(self, pages: int) -> None:
        """Free `pages` cached pages: unused prefixes first, then the youngest query's last nodes."""
        assert pages <= self.cached, "more pages are needed than can be reclaimed"
        self.cached -= pages
        self.free += pages
        self.reclaimed += pages
        for node in self._in_order_of_reclaim():
            pages -= self._shrink(node, pages)
            if pages == 0:
                return
        raise AssertionError("cached pages are not where they are counted")

    def _in_order_of_reclaim(self) -> Iterator[KvNode]:
        old = self._old_prefixes
        while old:
            tick, _, node = old[0]
            if tick == node.unpinned_at and node.pages and not node.decoders and not node.fills:
                yield node
                if node.pages:
                    continue
            heapq.heappop(old)
            if not node.dropped:
                self.tidy_prefixes(node)
        while self._with_cached:
            query = max(self._with_cached, key=_number)
            if not query.gone:
                for node in reversed(query.nodes):
                    if node.pages and not node.decoders and not node.fills:
                        yield node
            query.reclaimable = False
            self._with_cached.remove(query)

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
        """Free the pages of one node that no running branch reads and take it out of the tree."""
        pages = node.pages
        if pages:
            self.cached -= pages
            self.free += pages
            node.pages = 0
        query = node.query
        if node.complete:
            query.pages -= self.pages_of(node, node.want)
        node.resident = 0
        node.dropped = True

    def forget_query(self, query: Query) -> None:
        """Free all pages of a query that has nothing running, and take its tree apart.

        Without cycles its nodes are freed at once, not by the cycle collector.
        """
        pages = 0
        for node in query.nodes:
            pages += node.pages
            node.pages = 0
            node.dropped = True
            node.parent = node.up = node.in_place_child = node.branch = None
            node.children = []
        self.cached -= pages
        self.free += pages
        query.pages = 0
        query.nodes = []

    def unlink(self, node: KvNode) -> None:
        """Take `node` off its parent, so that another child may append in the parent's place."""
        parent = node.parent
        if parent is not None:
            parent.children.remove(node)
            if parent.in_place_child is node:
                parent.in_place_child = None

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


def _number(query: Query) -> int:
    return query.number
