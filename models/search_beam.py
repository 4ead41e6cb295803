"""Searches that keep a fixed number of paths step by step: beam, diverse verifier trees, REBASE."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from models.search_parts import (
    AGGREGATES,
    Part,
    answered,
    best,
    best_answer,
    drop_all_but,
    finish_one,
    parent_of,
    score,
    steps,
    vote,
)
from models.tree import Command, Cut, Expand, Grown, Node, Score, Search, Tree, Until


def beam(tree: Tree, width: int, expand: int, max_steps: int, aggregate: str = "last") -> Search:
    """Keep the `width` best trajectories, step by step, growing `expand` children of each.

    The first expansion grows `width * expand` children of the prompt. A finished trajectory keeps
    its place among the `width`. Ends when all of those are finished; expansion number `max_steps`
    is the last and runs on to the answer, so that the search always has one.
    """
    return beam_after((), tree, width, expand, max_steps, aggregate)


def beam_after(
    first: Sequence[Command],
    tree: Tree,
    width: int,
    expand: int,
    max_steps: int,
    aggregate: str = "last",
) -> Search:
    """`beam` as the end of another search, whose last commands `first` are sent with its own first."""
    rank = AGGREGATES[aggregate]
    live = [tree.root]
    finished: list[Node] = []
    ends: list[Node] = []  # all that ever finished, for an answer when it is cut
    fresh: tuple[Node, ...] = ()
    drop = list(first)
    grace = None
    n = width * expand
    try:
        for step in range(1, max_steps + 1):
            until: Until = "step" if step < max_steps else "answer"
            fresh = (yield [*drop, Expand(tuple(live), n, until)]).nodes
            yield [Score(fresh)]
            ends += [node for node in fresh if node.done]
            kept = best([*finished, *fresh], width, rank)
            finished = [node for node in kept if node.done]
            growing = [node for node in kept if not node.done]
            drop = drop_all_but(growing, fresh)
            live, fresh, n = growing, (), expand
            if not live:
                break
    except Cut as cut:
        grace = cut.grace
        finished += [node for node in fresh if node.done]
        live = [node for node in fresh if not node.done] or live
    if live and not answered(finished):
        finished = (yield from finish_one(live, grace)) or ends
    return best_answer(finished, rank)


def dvts(tree: Tree, subtrees: int, expand: int, max_steps: int) -> Search:
    """Grow `subtrees` independent paths, each taking the best of `expand` children at every step.

    No subtree waits for another. Answers with the best end of all.
    """
    root = tree.root
    tips = dict.fromkeys(range(subtrees), root)  # how far each unfinished subtree has come
    unjudged: dict[Node, None] = {}
    ends: list[Node] = []
    others: list[Node] = []  # that finished beside a better sibling, for an answer when it is cut
    grace = None
    until: Until = "step" if max_steps > 1 else "answer"
    commands: list[Command] = [Expand((root,), expand, until) for _ in range(subtrees)]
    try:
        while tips:
            outcome = yield commands
            nodes = outcome.nodes
            if isinstance(outcome, Grown):
                unjudged |= dict.fromkeys(nodes)
                commands = [Score(nodes)]
                continue
            number = steps(nodes[0])[0].ordinal // expand
            for node in nodes:
                del unjudged[node]
            tip = max(nodes, key=score)
            if tip.done:
                ends.append(tip)
                del tips[number]
                commands = drop_all_but((), nodes)
                continue
            others += [node for node in nodes if node.done]
            tips[number] = tip
            until = "step" if tip.depth + 1 < max_steps else "answer"
            commands = [*drop_all_but((tip,), nodes), Expand((tip,), expand, until)]
    except Cut as cut:
        grace = cut.grace
        ends += [node for node in unjudged if node.done]
    if tips and not answered(ends):
        partial = [node for node in unjudged if not node.done] or list(tips.values())
        ends = (yield from finish_one(partial, grace)) or others
    ends.sort(key=lambda node: steps(node)[0].ordinal)
    return best_answer(ends, score)


def rebase(tree: Tree, n: int, temperature: float, max_steps: int) -> Search:
    """Grow `n` paths, at every step sharing them out among the nodes by the softmax of their scores.

    A path that ends leaves one less to share out. Answers with the largest sum of scores.

    Source: Wu et al., "Inference Scaling Laws", arXiv 2408.00724, section 3.2 and appendix (REBASE).
    """
    shares = {tree.root: n}
    finished: list[Node] = []
    fresh: list[Node] = []
    drop: list[Command] = []
    grace = None
    try:
        for step in range(1, max_steps + 1):
            until: Until = "step" if step < max_steps else "answer"
            yield from _grow_shares(shares, until, drop, fresh)
            yield [Score(tuple(fresh))]
            finished += [node for node in fresh if node.done]
            growing = [node for node in fresh if not node.done]
            shares = _share_out(growing, n - len(finished), temperature)
            drop = drop_all_but(shares, fresh)
            fresh = []
            if not shares:
                break
    except Cut as cut:
        grace = cut.grace
        finished += [node for node in fresh if node.done]
    if shares and not answered(finished):
        partial = [node for node in fresh if not node.done] or list(shares)
        finished = yield from finish_one(partial, grace)
    return vote(finished, score, n)


def _grow_shares(
    shares: dict[Node, int], until: Until, drop: list[Command], fresh: list[Node]
) -> Part:
    """Grow each node's share of children into `fresh`, at last in the order of their parents."""
    groups: dict[int, list[Node]] = {}
    for node, count in shares.items():
        groups.setdefault(count, []).append(node)
    commands = [*drop, *(Expand(tuple(nodes), count, until) for count, nodes in groups.items())]
    for _ in groups:
        fresh += (yield commands).nodes
        commands = []
    place = {node: i for i, node in enumerate(shares)}
    fresh.sort(key=lambda node: (place[parent_of(node)], node.ordinal))
    return fresh


def _share_out(nodes: Sequence[Node], n: int, temperature: float) -> dict[Node, int]:
    """Share `n` children out in proportion to exp(score / temperature), by largest remainder."""
    if not nodes or n <= 0:
        return {}
    top = max(map(score, nodes))
    weights = [exp((score(node) - top) / temperature) for node in nodes]
    whole = sum(weights)
    quotas = [n * weight / whole for weight in weights]
    counts = [int(quota) for quota in quotas]
    order = sorted(range(len(nodes)), key=lambda i: counts[i] - quotas[i])
    for i in order[: n - sum(counts)]:
        counts[i] += 1
    return {node: count for node, count in zip(nodes, counts, strict=True) if count}
