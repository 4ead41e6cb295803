"""Searches that grow a tree where the verifier says it pays: progressive widening, Monte-Carlo tree search."""

from __future__ import annotations

from math import sqrt

from models.search_parts import (
    answered,
    best_answer,
    drop_all_but,
    finish_one,
    parent_of,
    score,
    vote,
)
from models.tree import Command, Cut, Drop, Expand, Node, Score, Search, Tree, Until


def tree_search(
    tree: Tree,
    width: int,
    expand: int,
    max_children: int,
    confidence: float,
    margin: float,
    stop: float,
    max_steps: int,
) -> Search:
    """Follow up to `width` paths, widening a node only while none of its children convinces.

    Each node on a path gets `expand` children; as long as the best of them scores below `confidence`
    it gets as many again, up to `max_children`. A path is pruned when it scores more than `margin`
    below the best. One that scores `stop` or more ends the search: it alone is finished.
    """
    root = tree.root
    live = [root]
    finished: list[Node] = []
    fresh: list[Node] = []  # children of this step, the last of them unscored
    ends: list[Node] = []  # all that ever finished, for an answer when it is cut
    drop: list[Command] = []
    grace = None
    try:
        for step in range(1, max_steps + 1):
            until: Until = "step" if step < max_steps else "answer"
            widen = live
            while widen:
                grown = (yield [*drop, Expand(tuple(widen), expand, until)]).nodes
                fresh += grown
                drop = []
                yield [Score(grown)]
                widen = _unconvinced(widen, fresh, max_children, confidence)
            ends += [node for node in fresh if node.done]
            pool = sorted((*finished, *fresh), key=score, reverse=True)[:width]
            floor = score(pool[0]) - margin
            kept = [node for node in pool if score(node) >= floor]
            finished = [node for node in kept if node.done]
            live = [node for node in kept if not node.done]
            sure = bool(live) and score(live[0]) >= stop
            live = live[:1] if sure else live
            drop = drop_all_but(live, fresh)
            fresh = []
            if not live or any(score(node) >= stop for node in answered(finished)):
                break
            if sure:
                fresh += (yield [*drop, Expand(tuple(live), 1, "answer")]).nodes
                yield [Score(tuple(fresh))]
                finished += [node for node in fresh if node.done]
                live = [node for node in fresh if not node.done]
                break
    except Cut as cut:
        grace = cut.grace
        finished += [node for node in fresh if node.done]
        live = [node for node in fresh if not node.done] or live
    if live and not answered(finished):
        finished = (yield from finish_one(live, grace)) or ends
    return best_answer(finished, score)


def _unconvinced(
    parents: list[Node], fresh: list[Node], max_children: int, confidence: float
) -> list[Node]:
    """Those of `parents` that may have more children and have none with a score of `confidence`."""
    convinced = {parent_of(node) for node in fresh if score(node) >= confidence}
    return [p for p in parents if p not in convinced and p.requested < max_children]


class _Visited:
    """The statistics of one node: visits, the sum of their values, and the node's own children."""

    __slots__ = ("children", "node", "parent", "value", "visits")

    def __init__(self, node: Node, parent: _Visited | None) -> None:
        self.node = node
        self.parent = parent
        self.children: list[_Visited] = []
        self.visits = 0
        self.value = 0.0


def mcts(tree: Tree, simulations: int, expand: int, exploration: float, parallel: int) -> Search:
    """Expand the most promising leaf, `simulations` times; a leaf is worth its verifier score.

    A leaf is found from the prompt down by PUCT with equal priors P: Q + exploration * P * sqrt(N) /
    (1 + n), and gets `expand` children; where it is done already, its parent gets as many more. Up to `parallel` leaves are expanded at a time; each that is on
    its way counts as a visit of value 0 (virtual loss). Answers with the largest sum of scores.
    """
    top = _Visited(tree.root, None)
    seen = {tree.root: top}
    finished: list[Node] = []
    fresh: tuple[Node, ...] = ()
    drop: list[Command] = []
    grace = None
    left = simulations
    try:
        while left:
            leaves = _leaves_to_expand(top, exploration, min(parallel, left))
            left -= len(leaves)
            parents = tuple([leaf.node for leaf in leaves])
            fresh = (yield [*drop, Expand(parents, expand)]).nodes
            yield [Score(fresh)]
            ends = [node for node in fresh if node.done]
            finished += ends
            drop = [Drop(tuple(ends))] if ends else []
            for leaf in leaves:
                _add(leaf, -1, 0.0)
            for node in fresh:
                parent = seen[parent_of(node)]
                seen[node] = child = _Visited(node, parent)
                parent.children.append(child)
                _add(child, 1, score(node))
            fresh = ()
    except Cut as cut:
        grace = cut.grace
        finished += [node for node in fresh if node.done]
    if not answered(finished):
        open_leaves = [at.node for at in seen.values() if not at.children and not at.node.done]
        partial = [node for node in fresh if not node.done] or open_leaves or [tree.root]
        finished = yield from finish_one(partial, grace)
    return vote(finished, score, max(1, len(finished)))


def _leaves_to_expand(top: _Visited, exploration: float, most: int) -> list[_Visited]:
    """Up to `most` different nodes to expand: each a leaf, or the parent of one that is done.

    Every one carries one visit of value 0, up to the top.
    """
    chosen: list[_Visited] = []
    while len(chosen) < most:
        leaf = _select(top, exploration)
        if leaf.node.done:
            assert leaf.parent is not None
            leaf = leaf.parent
        if leaf in chosen:
            break
        _add(leaf, 1, 0.0)
        chosen.append(leaf)
    return chosen


def _select(top: _Visited, exploration: float) -> _Visited:
    """Descend to the leaf of the highest PUCT value; among equals to the earliest."""
    at = top
    while at.children:
        bonus = exploration / len(at.children) * sqrt(at.visits)
        at = max(at.children, key=lambda c: c.value / c.visits + bonus / (1 + c.visits))
    return at


def _add(at: _Visited | None, visits: int, value: float) -> None:
    """Add visits and value to a node and everything above it."""
    while at is not None:
        at.visits += visits
        at.value += value
        at = at.parent
