"""Random trees of KV pages for the tests of twins and kernels, grown by appends and forks as an engine would."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hw import reference
from hw.reference import HEAD_DIM


@dataclass
class Grown:
    """A one-layer cache, and beside it each branch's tokens as plain lists of (key, value)."""

    page: int
    kv_heads: int
    rng: np.random.Generator
    pages: int = 400
    rows: int = 40
    tokens: list[list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = reference.empty_pool(self.pages, self.kv_heads, self.page)
        self.tables = np.full((self.rows, self.pages), -1, np.int32)
        self.lengths = np.zeros(self.rows, np.int32)
        self.refs = np.zeros(self.pages, np.int32)
        self.free = self.rng.permutation(self.pages).astype(np.int32)
        self.free_count = np.array([self.pages], np.int32)

    def take(self) -> int:
        self.free_count[0] -= 1
        page = int(self.free[self.free_count[0]])
        assert self.refs[page] == 0
        self.refs[page] = 1
        return page

    def root(self) -> int:
        self.tokens.append([])
        return len(self.tokens) - 1

    def write(self, row: int, count: int) -> None:
        for _ in range(count):
            at = int(self.lengths[row])
            if at % self.page == 0:
                self.tables[row, at // self.page] = self.take()
            k, v = (
                reference.bf16_values(
                    reference.bf16_bits(self.rng.standard_normal((self.kv_heads, HEAD_DIM)))
                ).astype(float)
                for _ in range(2)
            )
            one = slice(row, row + 1)
            reference.append(self.pool, k[None], v[None], self.tables[one], self.lengths[one], True)
            self.tokens[row].append((k, v))

    def fork(self, parent: int, count: int) -> list[int]:
        children = list(range(len(self.tokens), len(self.tokens) + count))
        rest = int(self.lengths[parent]) % self.page
        fresh = [self.take() if rest else -1 for _ in children]
        reference.fork(
            self.pool[None],
            self.tables,
            self.lengths,
            self.refs,
            np.full(count, parent, np.int32),
            np.array(children, np.int32),
            np.array(fresh, np.int32),
        )
        self.tokens += [list(self.tokens[parent]) for _ in children]
        return children

    def prune(self, rows: list[int]) -> None:
        reference.prune(
            self.tables,
            self.lengths,
            self.refs,
            np.array(rows, np.int32),
            self.free,
            self.free_count,
            self.page,
        )
        for row in rows:
            self.tokens[row] = []

    @property
    def live(self) -> int:
        return len(self.tokens)


def grow(
    seed: int, page: int = 16, kv_heads: int = 2, *, branches: int = 12, most: int = 70
) -> Grown:
    """A tree of up to `branches` branches: ragged lengths, forks at any depth, some pruned, some empty."""
    rng = np.random.default_rng(seed)
    tree = Grown(page, kv_heads, rng)
    tree.root()
    if rng.random() < 0.9:
        tree.write(0, int(rng.integers(0, most)))
    if rng.random() < 0.3:
        tree.root()
    while tree.live < branches:
        parent = int(rng.integers(tree.live))
        for child in tree.fork(parent, int(rng.integers(1, 4))):
            if rng.random() < 0.7:
                tree.write(child, int(rng.integers(0, most)))
        if rng.random() < 0.25:
            tree.prune([int(rng.integers(tree.live))])
    return tree


def dense(tree: Grown, queries: np.ndarray) -> np.ndarray:
    """Softmax attention from the plain token lists, by its definition: no pages, no parts, no log-sum-exp."""
    out = np.zeros(queries.shape)
    group = queries.shape[1] // tree.kv_heads
    for b in range(tree.live):
        for head in range(queries.shape[1]):
            if tree.tokens[b]:
                k = np.stack([one[0][head // group] for one in tree.tokens[b]])
                v = np.stack([one[1][head // group] for one in tree.tokens[b]])
                weights = np.exp(k @ queries[b, head] / np.sqrt(HEAD_DIM))
                out[b, head] = weights @ v / weights.sum()
    return out
