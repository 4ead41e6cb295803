"""Searches over whole trajectories: one, the best of many, votes, votes that stop early, the first to finish."""

from __future__ import annotations

from math import comb

from models.search_parts import (
    AGGREGATES,
    NO_ANSWER,
    UNOBSERVED,
    Rank,
    answered,
    best_answer,
    finish_one,
    grow_each,
    one,
    ordinal,
    score,
    stepwise,
    tally,
    trajectories,
    unscored,
    vote,
)
from models.tree import Answer, Command, Cut, Drop, Expand, Node, Search, Tree


def direct(tree: Tree) -> Search:
    """Grow one trajectory and answer with it."""
    finished = yield from trajectories(tree.root, 1, verify=False)
    return best_answer(finished, unscored)


def best_of_n(tree: Tree, n: int, aggregate: str = "last") -> Search:
    """Grow `n` trajectories, score each, answer with the best.

    Unless `aggregate` is "last", every step is scored and a trajectory is as good as they say together.
    """
    if aggregate == "last":
        finished = yield from trajectories(tree.root, n, verify=True)
    else:
        finished = yield from stepwise(tree.root, n)
    return best_answer(finished, AGGREGATES[aggregate])


def self_consistency(tree: Tree, n: int) -> Search:
    """Grow `n` trajectories and answer with the most frequent answer; asks no verifier."""
    finished = yield from trajectories(tree.root, n, verify=False)
    return vote(finished, one, n)


def weighted_vote(tree: Tree, n: int, aggregate: str = "last") -> Search:
    """Grow `n` trajectories, score each, answer with the largest sum of scores; see `best_of_n`."""
    if aggregate == "last":
        finished = yield from trajectories(tree.root, n, verify=True)
    else:
        finished = yield from stepwise(tree.root, n)
    return vote(finished, AGGREGATES[aggregate], n)


def first_finish(tree: Tree, n: int) -> Search:
    """Grow `n` trajectories at once and answer with the first that ends; the others are cancelled."""
    partial: list[Node] = []
    commands: list[Command] = [Expand((tree.root,), n, "answer", each=True)]
    grace = None
    try:
        for _ in range(n):
            (node,) = (yield commands).nodes
            if node.answer is not None:
                return Answer(node, node.answer, UNOBSERVED, 1)
            commands = [Drop((node,))] if node.done else []
            if not node.done:
                partial.append(node)
    except Cut as cut:
        grace = cut.grace
        partial = partial or [tree.root]
    if not partial:
        return NO_ANSWER
    return best_answer((yield from finish_one(partial, grace)), unscored)


def adaptive_consistency(tree: Tree, n: int, window: int, certainty: float) -> Search:
    """Grow trajectories `window` at a time until the majority is certain, at most `n`."""
    return (yield from _adaptive(tree.root, n, window, certainty, verify=False))


def adaptive_vote(tree: Tree, n: int, window: int, certainty: float) -> Search:
    """Grow and score trajectories `window` at a time until the leader of the vote is certain."""
    return (yield from _adaptive(tree.root, n, window, certainty, verify=True))


def _adaptive(root: Node, n: int, window: int, certainty: float, verify: bool) -> Search:
    weight = score if verify else one
    finished: list[Node] = []
    partial: list[Node] = []
    rest: list[Command] = []
    grace = None
    missing = n
    try:
        while missing > 0 and not _is_certain(finished, weight, certainty):
            size = min(window, missing)
            missing -= size
            rest = yield from grow_each(root, size, verify, finished, partial, rest)
            finished.sort(key=ordinal)
    except Cut as cut:
        grace = cut.grace
        if not finished and not partial:
            partial = [root]
    if partial and not answered(finished):
        finished = yield from finish_one(partial, grace)
    finished.sort(key=ordinal)
    chosen = vote(finished, weight, max(1, len(finished)))
    if chosen.node is None or weight(chosen.node) <= 0:
        return chosen
    lead, others = _leader(finished, weight)
    return Answer(chosen.node, chosen.answer, (lead + 1) / (lead + others + 2), len(finished))


def _leader(finished: list[Node], weight: Rank) -> tuple[float, float]:
    """The weight of the leading answer, and that of all others."""
    sums = tally((node for node in finished if weight(node) > 0), weight)
    lead = max((v for label, v in sums.items() if label is not None), default=0.0)
    return lead, sum(sums.values()) - lead


def _is_certain(finished: list[Node], weight: Rank, certainty: float) -> bool:
    """Whether the leader beats the runner-up with a posterior probability of `certainty`.

    The two answers' shares have a uniform prior: the leader's is Beta(lead + 1, second + 1).
    Source: Aggarwal et al., "Let's Sample Step by Step", arXiv 2305.11860, section 3 (Beta criterion).
    """
    sums = sorted(tally(answered(finished), weight).values(), reverse=True)
    if not sums:
        return False
    lead, second = sums[0], sums[1] if len(sums) > 1 else 0.0
    return _beats(lead, second) >= certainty


def _beats(lead: float, second: float) -> float:
    """P(X > 1/2) for X ~ Beta(lead + 1, second + 1)."""
    if lead == int(lead) and second == int(second):
        trials = int(lead + second) + 1
        return float(sum(comb(trials, k) for k in range(int(lead) + 1)) / 2**trials)
    from scipy.special import betainc

    return 1.0 - float(betainc(lead + 1.0, second + 1.0, 0.5))
