"""Search algorithms as sans-IO generators: each says what to grow, score and drop, then answers.

They know no clock, no GPU and no random source; `models/session.py` runs them. A new algorithm is
one function here and one entry in `ALGORITHMS`. Ties go to the earlier node, in order of request,
so an answer does not depend on what finished first. What can win no more is dropped at once; a
finished trajectory too, because only its answer is still needed, not its memory.

The signal of an `Answer` is a raw confidence in [0, 1], to be calibrated: 0 without an answer, else
    direct            0.5: nothing was observed
    best_of_n         the verifier's score of the answer
    self_consistency  the answer's share of the n votes
    weighted_vote     the answer's share of the scores, times the part of the n that was scored
    beam              the last verifier score of the answer's trajectory
and 0.5 where a cut left an answer without a score.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from models.tree import (
    Answer,
    Command,
    Cut,
    Drop,
    Expand,
    Grown,
    Node,
    Outcome,
    Score,
    Search,
    Tree,
    Until,
)

UNOBSERVED: Final = 0.5
NO_ANSWER: Final = Answer(None, None, 0.0, 0)

Part = Generator[list[Command], Outcome, list[Node]]
"""A piece of a search, for `yield from`: returns nodes."""


def direct(tree: Tree) -> Search:
    """Grow one trajectory and answer with it."""
    finished = yield from _trajectories(tree.root, 1, verify=False)
    return _answer(finished, _unscored)


def best_of_n(tree: Tree, n: int) -> Search:
    """Grow `n` trajectories, score each at its end, answer with the best."""
    finished = yield from _trajectories(tree.root, n, verify=True)
    return _answer(finished, _score)


def self_consistency(tree: Tree, n: int) -> Search:
    """Grow `n` trajectories and answer with the most frequent answer; asks no verifier."""
    finished = yield from _trajectories(tree.root, n, verify=False)
    return _vote(finished, lambda _: 1.0, n)


def weighted_vote(tree: Tree, n: int) -> Search:
    """Grow `n` trajectories, score each at its end, answer with the largest sum of scores."""
    finished = yield from _trajectories(tree.root, n, verify=True)
    return _vote(finished, _score, n)


def beam(tree: Tree, width: int, expand: int, max_steps: int) -> Search:
    """Keep the `width` best trajectories, step by step, growing `expand` children of each.

    The first expansion grows `width * expand` children of the prompt. A finished trajectory keeps
    its place among the `width`. Ends when all of those are finished; expansion number `max_steps`
    is the last and runs on to the answer, so that the search always has one.
    """
    live = [tree.root]
    finished: list[Node] = []
    fresh: tuple[Node, ...] = ()
    drop: list[Command] = []
    grace = None
    n = width * expand
    try:
        for step in range(1, max_steps + 1):
            until: Until = "step" if step < max_steps else "answer"
            fresh = (yield [*drop, Expand(tuple(live), n, until)]).nodes
            yield [Score(fresh)]
            kept = _best([*finished, *fresh], width)
            finished = [node for node in kept if node.done]
            growing = [node for node in kept if not node.done]
            drop = _drop_all_but(growing, fresh)
            live, fresh, n = growing, (), expand
            if not live:
                break
    except Cut as cut:
        grace = cut.grace
        finished += [node for node in fresh if node.done]
        live = [node for node in fresh if not node.done] or live
    if live and not _answered(finished):
        finished = yield from _finish_one(live, grace)
    return _answer(finished, _score)


def _trajectories(root: Node, n: int, verify: bool) -> Part:
    """Grow `n` whole answers and return the finished ones in node order, scored if `verify`."""
    finished: list[Node] = []
    partial: list[Node] = []
    commands: list[Command] = [Expand((root,), n, "answer", each=True)]
    grace = None
    missing = n
    try:
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
    except Cut as cut:
        grace = cut.grace
        if not finished and not partial:
            partial = [root]
    if partial and not _answered(finished):
        return (yield from _finish_one(partial, grace))
    finished.sort(key=_ordinal)
    return finished


def _finish_one(partial: Sequence[Node], cap: int | None) -> Part:
    """Grow the most promising of `partial` to its answer within `cap` tokens; return it if it ends.

    That is the one with the highest last score, and among equals the longest.
    """
    if cap is not None and cap <= 0:
        return []
    best = max(partial, key=lambda node: (_last_score(node), node.path_tokens))
    try:
        outcome = yield [*_drop_all_but([best], partial), Expand((best,), 1, "answer", cap)]
    except Cut:
        return []
    return [node for node in outcome.nodes if node.done]


def _drop_all_but(live: Iterable[Node], nodes: Iterable[Node]) -> list[Command]:
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


def _answer(finished: Sequence[Node], rank: Callable[[Node], float]) -> Answer:
    """Answer with the first node of the highest rank, which is also the signal."""
    answered = _answered(finished)
    if not answered:
        return NO_ANSWER
    best = max(answered, key=rank)
    return Answer(best, best.answer, _signal(rank(best)), len(finished))


def _vote(finished: Sequence[Node], weight: Callable[[Node], float], n: int) -> Answer:
    """Answer with the largest sum of weights; its share counts what is missing from `n` as lost.

    The answer's node is its heaviest. Without any weight the first finished answer has to do.
    """
    voters = [node for node in finished if weight(node) > 0]
    answered = _answered(voters)
    if not answered:
        return _answer(finished, _unscored)
    sums: dict[int | None, float] = {}
    for node in answered:
        sums[node.answer] = sums.get(node.answer, 0.0) + weight(node)
    label = max(sums, key=sums.__getitem__)
    share = sums[label] / sum(map(weight, voters)) * (len(voters) / n)
    best = max((node for node in answered if node.answer == label), key=weight)
    return Answer(best, label, min(1.0, share), len(finished))


def _answered(finished: Iterable[Node]) -> list[Node]:
    return [node for node in finished if node.answer is not None]


def _best(nodes: Sequence[Node], width: int) -> list[Node]:
    return sorted(nodes, key=_score, reverse=True)[:width]


def _ordinal(node: Node) -> int:
    return node.ordinal


def _score(node: Node) -> float:
    """The score, or one below all scores where there is none."""
    return node.score if node.score == node.score else -1.0


def _last_score(node: Node) -> float:
    """The last score on the path to `node`, or one below all scores."""
    at: Node | None = node
    while at is not None:
        if at.score == at.score:
            return at.score
        at = at.parent
    return -1.0


def _unscored(_: Node) -> float:
    return -1.0


def _signal(rank: float) -> float:
    return rank if rank >= 0 else UNOBSERVED


@dataclass(frozen=True, slots=True)
class Parameter:
    """A whole-number setting of an algorithm and the range in which it makes sense."""

    default: int
    low: int
    high: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A search as the catalogue shows it; `function(tree, **parameters)` starts one."""

    function: Callable[..., Search]
    parameters: Mapping[str, Parameter]
    needs_verifier: bool
    description: str
    source: str


_N: Final = Parameter(16, 1, 65_536, "trajectories grown for one answer")

ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {
        "direct": Algorithm(
            direct,
            MappingProxyType({}),
            False,
            "One trajectory, no verifier: what a plain chat completion does.",
            "the baseline, pass@1",
        ),
        "best_of_n": Algorithm(
            best_of_n,
            MappingProxyType({"n": _N}),
            True,
            "Grow n trajectories, score each at its end, answer with the best score.",
            "Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
        ),
        "self_consistency": Algorithm(
            self_consistency,
            MappingProxyType({"n": _N}),
            False,
            "Grow n trajectories and answer with the most frequent answer.",
            "Wang et al., Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171",
        ),
        "weighted_vote": Algorithm(
            weighted_vote,
            MappingProxyType({"n": _N}),
            True,
            "Grow n trajectories, score each, answer with the largest sum of scores.",
            "Li et al., Making Language Models Better Reasoners with Step-Aware Verifier, "
            "arXiv 2206.02336",
        ),
        "beam": Algorithm(
            beam,
            MappingProxyType(
                {
                    "width": Parameter(4, 1, 4_096, "beams kept after each step"),
                    "expand": Parameter(4, 1, 4_096, "children grown from each beam a step"),
                    "max_steps": Parameter(40, 1, 1_000, "expansions; the last runs to the answer"),
                }
            ),
            True,
            "Grow step by step, keeping the best partial trajectories by verifier score.",
            "Snell et al., Scaling LLM Test-Time Compute Optimally, arXiv 2408.03314, section 5.1",
        ),
    }
)


def needs_verifier(algorithm: str) -> bool:
    """Say whether the algorithm of this name asks for scores. Raises: KeyError for another name."""
    return ALGORITHMS[algorithm].needs_verifier
