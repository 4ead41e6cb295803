"""Searches that think longer instead of wider: one long chain of thought, and revisions of revisions."""

from __future__ import annotations

from typing import Final

from models.search_parts import (
    NO_ANSWER,
    UNOBSERVED,
    answered,
    finish_one,
    score,
    steps,
    vote,
)
from models.tree import Answer, Command, Cut, Drop, Expand, Grown, Node, Score, Search, Tree

WAIT_TOKENS: Final = 2
"""Tokens of "Wait", put after a chain that ends too early. Source: assumed, 2026-11-25."""
CONCLUDE_TOKENS: Final = 8
"""Tokens that end the thinking and ask for the answer. Source: assumed, 2026-11-25."""


def long_chain(tree: Tree, min_think: int, max_think: int, waits: int) -> Search:
    """Think in one chain of `min_think` to `max_think` tokens, then answer; asks no verifier.

    A chain that ends before `min_think` is told to wait and goes on, up to `waits` times; one that
    has not ended at `max_think` is told to conclude. The last answer counts.

    Source: Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393 (budget forcing).
    """
    ends: list[Node] = []
    node = tree.root
    command = Expand((node,), 1, "answer", max_think)
    thought = 0
    try:
        while True:
            (node,) = (yield [command]).nodes
            thought += node.tokens
            if node.done:
                ends.append(node)
                room = max_think - thought
                if len(ends) > waits or thought >= min_think or room <= 0:
                    break
                command = Expand((node,), 1, "answer", room, inject=WAIT_TOKENS)
            elif command.until == "conclude":
                break
            else:
                command = Expand((node,), 1, "conclude", inject=CONCLUDE_TOKENS)
    except Cut as cut:
        if not answered(ends) and cut.grace > 0:
            return (yield from _conclude(node, cut.grace))
    known = answered(ends)
    if not known:
        return NO_ANSWER
    last = known[-1]
    agree = sum(node.answer == last.answer for node in known) / (len(known) + 1)
    forced = command.until == "conclude"
    return Answer(last, last.answer, agree * UNOBSERVED if forced else agree, len(ends))


def _conclude(node: Node, cap: int) -> Search:
    """Answer with what `node` has thought so far, within `cap` tokens."""
    try:
        nodes = (yield [Expand((node,), 1, "conclude", cap, inject=CONCLUDE_TOKENS)]).nodes
    except Cut:
        return NO_ANSWER
    for end in answered(nodes):
        return Answer(end, end.answer, UNOBSERVED * UNOBSERVED, 1)
    return NO_ANSWER


def revision(tree: Tree, n: int, chains: int, inject: int, stop: float) -> Search:
    """Answer, then revise the answer again and again, in `chains` parallel chains of `n` tries in all.

    A revision reads the tries before it and `inject` tokens that ask for it. A chain ends early with a
    try that scores `stop` or more. Answers with the largest sum of scores.

    Source: Snell et al., arXiv 2408.03314, section 6 (sequential revisions, sequential to parallel).
    """
    root = tree.root
    chains = min(chains, n)
    left = [n // chains + (chain < n % chains) - 1 for chain in range(chains)]
    finished: list[Node] = []
    partial: list[Node] = []
    commands: list[Command] = [Expand((root,), chains, "answer", each=True)]
    grace = None
    growing = chains
    try:
        while growing:
            outcome = yield commands
            node = outcome.nodes[0]
            chain = steps(node)[0].ordinal
            commands = []
            if isinstance(outcome, Grown) and node.done:
                commands = [Score((node,), each=True)]
            elif isinstance(outcome, Grown):
                partial.append(node)
                growing -= 1
            else:
                finished.append(node)
                if left[chain] and score(node) < stop:
                    left[chain] -= 1
                    commands = [Expand((node,), 1, "answer", each=True, inject=inject)]
                else:
                    growing -= 1
                    commands = [Drop((steps(node)[0],))]
    except Cut as cut:
        grace = cut.grace
        partial = partial or ([] if finished else [root])
    if partial and not answered(finished):
        finished = yield from finish_one(partial, grace)
    finished.sort(key=lambda node: tuple(step.ordinal for step in steps(node)))
    return vote(finished, score, n)
