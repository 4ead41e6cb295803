"""A page tree whose pages have names: which physical page holds which tokens of which node, for a real engine.

The tree that a batch keeps only counts pages. This one also hands them out, from the top of a stack as the
engine's own books do, and takes them back when the tree reclaims or forgets them.
"""

from __future__ import annotations

import numpy as np

from hw.kvtree import Ints
from sim.kv import KvNode, PageTree, Query


class Held:
    """What a real engine holds of one node: its own pages, the tokens of its whole path.

    `tokens` own KV tokens are present, a copied tail included. `ids` [path] are the path's token ids as far as
    they are known. `table` lists the pages of the whole path while the node decodes; `seen` is the last tick.
    """

    __slots__ = ("pages", "tokens", "ids", "table", "length", "seen")

    def __init__(self, ids: Ints) -> None:
        self.pages: list[int] = []
        self.tokens = 0
        self.ids = ids
        self.table: Ints = ids[:0]
        self.length = 0  # entries of the table in use
        self.seen = -2


class NamedPages(PageTree):
    """The page tree of one replica, with a name for every page that it counts."""

    def __init__(self, like: PageTree) -> None:
        assert like.free == like.total, "pages are named from the start"
        super().__init__(
            like.total,
            like.block_size,
            "per_branch" if like.per_branch else "tree",
            "recompute_tail" if like.recompute_tail else "copy_tail",
        )
        self.held: dict[KvNode, Held] = {}
        self.stack = list(range(like.total - 1, -1, -1))  # free pages, the next one last
        self.given_back: list[int] = []  # since the last tick
        self.taken: list[int] = []  # by this tick

    # -- what the batch gives back -------------------------------------------------------------------

    def _shrink(self, node: KvNode, pages: int) -> int:
        given = super()._shrink(node, pages)
        held = self.held.get(node)
        if held is not None:
            self._cut(held, len(held.pages) - given, node.resident)
            child = node.in_place_child
            while child is not None and child in self.held:
                self.held[child].tokens = child.resident
                child = child.in_place_child
        return given

    def forget(self, node: KvNode) -> None:
        """Free the pages of one node, in name too."""
        super().forget(node)
        self._let_go(node)

    def forget_query(self, query: Query) -> None:
        """Free the pages of a whole query, in name too."""
        nodes = query.nodes
        super().forget_query(query)
        for node in nodes:
            self._let_go(node)

    def _let_go(self, node: KvNode) -> None:
        held = self.held.pop(node, None)
        if held is not None:
            self._cut(held, 0, 0)

    def _cut(self, held: Held, pages: int, tokens: int) -> None:
        self.given_back += held.pages[pages:]
        del held.pages[pages:]
        held.tokens = min(held.tokens, tokens)

    # -- what a tick takes ----------------------------------------------------------------------------

    def settle(self) -> Ints:
        """Put what came back since the last tick on the stack and return it, as a real engine is told."""
        freed = sorted(self.given_back)
        self.stack += freed
        self.given_back = []
        self.taken = []
        return np.asarray(freed, np.int32)

    def grow(self, node: KvNode, held: Held, tokens: int) -> None:
        """Give `node` the pages for `tokens` own tokens, which it is about to hold."""
        lacking = self.pages_of(node, tokens) - len(held.pages)
        for _ in range(lacking):
            page = self.stack.pop()
            held.pages.append(page)
            self.taken.append(page)

    # -- where tokens lie --------------------------------------------------------------------------------

    def first(self, node: KvNode) -> int:
        """The position in its path of the first token that `node` owns, a copied tail included."""
        parent = node.parent
        if parent is None:
            return 0
        if parent.query is self.prefix_query:
            return parent.path  # a prefix holds all of its tokens
        return parent.path - 1 - node.tail

    def table_of(self, node: KvNode) -> list[int]:
        """The pages of everything that is present on the path of `node`, by position."""
        path: list[KvNode] = []
        step: KvNode | None = node
        while step is not None:
            path.append(step)
            step = step.up
        table: list[int] = []
        for step in reversed(path):
            held = self.held.get(step)
            if held is not None and held.pages:
                at = self.first(step) // self.block_size + (1 if step.offset else 0)
                assert at <= len(table), "a node is present whose parent is not"
                table[at:] = held.pages
        return table

    def check(self) -> None:
        """Every page has exactly one holder or lies on the stack, and the counts are the tree's."""
        names = [*self.stack, *self.given_back]
        for held in self.held.values():
            names += held.pages
        assert sorted(names) == list(range(self.total)), "a page is lost, or held twice"
        assert len(self.stack) + len(self.given_back) == self.free
