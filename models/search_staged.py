"""A vote in stages: after each, somebody decides whether what is seen is worth another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.evidence import seen_one
from models.search_parts import (
    NO_ANSWER,
    UNOBSERVED,
    answered,
    finish_one,
    grow_each,
    ordinal,
    score,
)
from models.tree import Answer, Command, Cut, Node, Search, Tree

Decide = Callable[[int, list[float]], float | None]
"""Asked after a stage (its number, the numbers of models.evidence.SEEN): None to go on, else the chance of being right."""


def staged_vote(tree: Tree, decide: Decide, stages: Sequence[int]) -> Search:
    """Grow and score trajectories stage by stage until `decide` has seen enough; the leading answer wins.

    `stages` are the trajectories after each stage, rising. The signal is what `decide` says.
    """
    root = tree.root
    finished: list[Node] = []
    partial: list[Node] = []
    rest: list[Command] = []
    grace = None
    signal = UNOBSERVED
    grown = stage = 0
    try:
        for stage, n in enumerate(stages):
            rest = yield from grow_each(root, n - grown, True, finished, partial, rest)
            grown = n
            finished.sort(key=ordinal)
            if finished and (found := decide(stage, _seen(finished)[0])) is not None:
                signal = found
                break
    except Cut as cut:
        grace = cut.grace
        if not finished and not partial:
            partial = [root]
        if finished:  # what there is by now is judged as the stage before it
            reached = max((s for s, n in enumerate(stages) if n <= len(finished)), default=0)
            signal = decide(-1 - reached, _seen(finished)[0]) or UNOBSERVED
    if not answered(finished):
        if partial:
            finished = yield from finish_one(partial, grace)
        signal = UNOBSERVED
    if not answered(finished):
        return NO_ANSWER
    finished.sort(key=ordinal)
    label = _seen(finished)[1]
    if label is None:  # most trajectories came to nothing, and so does the answer
        label = max(answered(finished), key=score).answer
    node = max((node for node in finished if node.answer == label), key=score)
    return Answer(node, node.answer, signal, len(finished))


def _seen(finished: Sequence[Node]) -> tuple[list[float], object]:
    tokens = [node.tokens for node in finished]
    return seen_one([n.answer for n in finished], [n.score for n in finished], tokens)
