"""A vote in stages: after each, somebody decides whether what is seen is worth another, or a beam instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from models.evidence import seen_one
from models.search_beam import beam_after
from models.search_parts import (
    NO_ANSWER,
    UNOBSERVED,
    answered,
    finish_one,
    grow_each,
    ordinal,
    score,
)
from models.switch import MAX_STEPS, found_one
from models.tree import Answer, Command, Cut, Node, Search, Tree


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave the vote for a beam; `judge` then hears the numbers of models.switch.FOUND.

    It says the chances that the leading answer of the vote and that of the beam are right.
    """

    width: int
    expand: int
    judge: Callable[[list[float]], tuple[float, float]]


Decide = Callable[[int, list[float] | None], float | Leave | None]
"""Asked after a stage (its number, the numbers of models.evidence.SEEN, or None of nothing): None to go on, else what to do.

A number ends the search: the chance of being right.
"""


def staged_vote(tree: Tree, decide: Decide, stages: Sequence[int]) -> Search:
    """Grow and score trajectories stage by stage until `decide` has seen enough; the leading answer wins.

    `stages` are the trajectories after each stage, rising; a first stage of 0 asks before anything is grown.
    The signal is what `decide` says.
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
            if n > grown:
                rest = yield from grow_each(root, n - grown, True, finished, partial, rest)
            grown = n
            finished.sort(key=ordinal)
            if n and not finished:
                continue
            found = decide(stage, _seen(finished)[0] if finished else None)
            if isinstance(found, Leave):
                return (yield from _as_beam(tree, found, finished, rest))
            if found is not None:
                signal = found
                break
    except Cut as cut:
        grace = cut.grace
        if not finished and not partial:
            partial = [root]
        if (
            finished
        ):  # what there is by now is judged as the stage before it, or as the first of any
            count = max(len(finished), next(filter(None, stages)))
            reached = max(s for s, n in enumerate(stages) if n <= count)
            told = decide(-1 - reached, _seen(finished)[0])
            signal = told if isinstance(told, float) else UNOBSERVED
    if not answered(finished):
        if partial:
            finished = yield from finish_one(partial, grace)
        signal = UNOBSERVED
    if not answered(finished):
        return NO_ANSWER
    finished.sort(key=ordinal)
    return _leading(finished, signal, len(finished))


def _as_beam(tree: Tree, leave: Leave, finished: list[Node], rest: list[Command]) -> Search:
    """Go on as a beam, and answer with whichever of both answers is the likelier."""
    found = yield from beam_after(rest, tree, leave.width, leave.expand, MAX_STEPS)
    if not answered(finished):
        return replace(
            found, signal=leave.judge(found_one([], [], None, found.answer, found.signal))[1]
        )
    answers = [node.answer for node in finished]
    lead = _seen(finished)[1]
    numbers = found_one(answers, [n.score for n in finished], lead, found.answer, found.signal)
    of_lead, of_beam = leave.judge(numbers)
    grown = len(finished) + found.trajectories
    if found.node is None or of_beam <= of_lead:
        return _leading(finished, of_lead, grown)
    return replace(found, signal=of_beam, trajectories=grown)


def _leading(finished: Sequence[Node], signal: float, trajectories: int) -> Answer:
    label = _seen(finished)[1]
    if label is None:  # most trajectories came to nothing, and so does the answer
        label = max(answered(finished), key=score).answer
    node = max((node for node in finished if node.answer == label), key=score)
    return Answer(node, node.answer, signal, trajectories)


def _seen(finished: Sequence[Node]) -> tuple[list[float], object]:
    tokens = [node.tokens for node in finished]
    return seen_one([n.answer for n in finished], [n.score for n in finished], tokens)
