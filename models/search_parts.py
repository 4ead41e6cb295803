"""The pieces that searches share: growing whole trajectories, finishing one in time, dropping losers, choosing.

Ties go to the earlier node, in order of request, so that an answer does not depend on what finished
first. What can win no more is dropped at once; a finished trajectory too, because only its answer is
still needed, not its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Final

from models.tree import Answer, Command, Cut, Drop, Expand, Grown, Node, Outcome, Score

UNOBSERVED: Final = 0.5
"""The signal of an answer of which nothing is known."""
NO_ANSWER: Final = Answer(None, None, 0.0, 0)

Part = Generator[list[Command], Outcome, list[Node]]
"""A piece of a search, for `yield from`: returns nodes."""
Rank = Callable[[Node], float]


def trajectories(root: Node, n: int, verify: bool) -> Part:
    """Grow `n` whole answers and return the finished ones in node order, scored if `verify`."""
    finished: list[Node] = []
    partial: list[Node] = []
    grace = None
    try:
        yield from grow_each(root, n, verify, finished, partial, [])
    except Cut as cut:
        grace = cut.grace
        if not finished and not partial:
            partial = [root]
    if partial and not answered(finished):
        return (yield from finish_one(partial, grace))
    finished.sort(key=ordinal)
    return finished


def grow_each(
    root: Node,
    n: int,
    verify: bool,
    finished: list[Node],
    partial: list[Node],
    first: list[Command],
) -> Generator[list[Command], Outcome, list[Command]]:
    """Grow `n` whole answers into `finished`, as they end, or where truncated into `partial`.

    A Cut passes through and leaves in the lists what there was. Sends the commands `first` before its
    own, and returns those that are left to send.
    """
    commands = [*first, Expand((root,), n, "answer", each=True)]
    missing = n
    while missing:
        outcome = yield commands
        node = outcome.nodes[0]
        grown = isinstance(outcome, Grown)
        if grown:
            (finished if node.done else partial).append(node)
        if grown and verify and node.done:
            commands = [Score((node,), each=True)]
            continue
        missing -= 1
        commands = [Drop((node,))] if node.done else []
    return commands


def stepwise(root: Node, n: int) -> Part:
    """Grow `n` answers step by step and score every step at the end; return the finished in order.

    The same trajectories as `trajectories`: a whole answer is its first steps, each the only child.
    """
    finished: list[Node] = []
    partial: list[Node] = []
    tips: dict[Node, Node] = {}  # first step -> last step, of trajectories that are not finished
    commands: list[Command] = [Expand((root,), n, "step", each=True)]
    grace = None
    missing = n
    try:
        while missing:
            outcome = yield commands
            node = outcome.nodes[-1]
            path = steps(node)
            if not isinstance(outcome, Grown):
                missing -= 1
                commands = [Drop((path[0],))]
            elif node.done:
                tips.pop(path[0], None)
                finished.append(node)
                commands = [Score(path)]
            else:
                tips[path[0]] = node
                commands = [Expand((node,), 1, "step", each=True)]
    except Cut as cut:
        grace = cut.grace
        partial = [*tips.values()] or ([] if finished else [root])
    if partial and not answered(finished):
        return (yield from finish_one(partial, grace))
    finished.sort(key=lambda node: steps(node)[0].ordinal)
    return finished


def finish_one(partial: Sequence[Node], cap: int | None) -> Part:
    """Grow the most promising of `partial` to its answer within `cap` tokens; return it if it ends.

    That is the one with the highest last score, and among equals the longest.
    """
    if cap is not None and cap <= 0:
        return []
    best = max(partial, key=lambda node: (last_score(node), node.path_tokens))
    drop = drop_all_but([best], partial)
    try:
        outcome = yield [*drop, Expand((best,), 1, "answer", cap)]
    except Cut as cut:
        return [] if cap is not None else (yield from finish_one([best], cut.grace))
    return [node for node in outcome.nodes if node.done]


def drop_all_but(live: Iterable[Node], nodes: Iterable[Node]) -> list[Command]:
    """Drop the largest subtrees around `nodes` that hold none of `live`, the root's excepted."""
    needed: set[Node] = set()
    for node in live:
        at: Node | None = node
        while at is not None and at not in needed:
            needed.add(at)
            at = at.parent
    lost: dict[Node, None] = {}  # in order, once each
    for node in nodes:
        if node in needed:
            continue
        while (parent := node.parent) is not None and parent.parent is not None:
            if parent in needed:
                break
            node = parent
        if node.parent is not None:
            lost[node] = None
    return [Drop(tuple(lost))] if lost else []


def best_answer(finished: Sequence[Node], rank: Rank) -> Answer:
    """Answer with the first node of the highest rank, which is also the signal."""
    known = answered(finished)
    if not known:
        return NO_ANSWER
    best = max(known, key=rank)
    return Answer(best, best.answer, signal(rank(best)), len(finished))


def vote(finished: Sequence[Node], weight: Rank, n: int) -> Answer:
    """Answer with the largest sum of weights; its share counts what is missing from `n` as lost.

    The answer's node is its heaviest. Without any weight the first finished answer has to do.
    """
    voters = [node for node in finished if weight(node) > 0]
    known = answered(voters)
    if not known:
        return best_answer(finished, unscored)
    sums = tally(known, weight)
    label = max(sums, key=sums.__getitem__)
    share = sums[label] / sum(map(weight, voters)) * (len(voters) / n)
    best = max((node for node in known if node.answer == label), key=weight)
    return Answer(best, label, min(1.0, share), len(finished))


def tally(known: Iterable[Node], weight: Rank) -> dict[int | None, float]:
    """The sum of weights of each answer, in the order in which they first appear."""
    sums: dict[int | None, float] = {}
    for node in known:
        sums[node.answer] = sums.get(node.answer, 0.0) + weight(node)
    return sums


def answered(finished: Iterable[Node]) -> list[Node]:
    """Those that ended with an answer."""
    return [node for node in finished if node.answer is not None]


def best(nodes: Sequence[Node], width: int, rank: Rank) -> list[Node]:
    """The `width` of the highest rank, best first."""
    return sorted(nodes, key=rank, reverse=True)[:width]


def parent_of(node: Node) -> Node:
    """The parent of a node that is not the prompt."""
    assert node.parent is not None
    return node.parent


def ordinal(node: Node) -> int:
    """The number of a node among its siblings."""
    return node.ordinal


def steps(node: Node) -> tuple[Node, ...]:
    """The nodes from below the prompt down to `node`."""
    path = []
    at: Node | None = node
    while at is not None and at.parent is not None:
        path.append(at)
        at = at.parent
    path.reverse()
    return tuple(path)


def score(node: Node) -> float:
    """The score, or one below all scores where there is none."""
    return node.score if node.score == node.score else -1.0


def last_score(node: Node) -> float:
    """The last score on the path to `node`, or one below all scores."""
    at: Node | None = node
    while at is not None:
        if at.score == at.score:
            return at.score
        at = at.parent
    return -1.0


def one(_: Node) -> float:
    """The weight of a vote that asks no verifier."""
    return 1.0


def unscored(_: Node) -> float:
    """The rank of a node of which nothing is known."""
    return -1.0


def signal(rank: float) -> float:
    """A rank as a signal."""
    return rank if rank >= 0 else UNOBSERVED


def _over_steps(reduce: Callable[[list[float]], float]) -> Rank:
    def rank(node: Node) -> float:
        if node.score != node.score:
            return -1.0
        scores = []
        at: Node | None = node
        while at is not None:
            if at.score == at.score:
                scores.append(at.score)
            at = at.parent
        return reduce(scores)

    return rank


AGGREGATES: Final[Mapping[str, Rank]] = MappingProxyType(
    {
        "last": score,
        "min": _over_steps(min),
        "product": _over_steps(prod),
        "mean": _over_steps(lambda scores: sum(scores) / len(scores)),
        "max": _over_steps(max),
    }
)
"""How the scores of the steps of a trajectory become one, in (0, 1), or -1 where it was not scored.

Source: product, Lightman et al., "Let's Verify Step by Step", arXiv 2305.20050; min, Wang et al.,
"Math-Shepherd", arXiv 2312.08935; last, Snell et al., arXiv 2408.03314, appendix E.
"""
