"""Beam search as search-and-learn runs it: what is finished leaves, and its place is filled again.

The published figures of beam search on MATH-500 were made this way. All `n` places are grown at every
step until nothing is left that goes on, so one line that loses its thread keeps the whole beam busy:
the difference to `models.search.beam`, where a finished trajectory keeps its place.
"""

from __future__ import annotations

from models.search import NO_ANSWER
from models.tree import Answer, Command, Cut, Drop, Expand, Node, Score, Search, Tree, Until


def refilled_beam(
    tree: Tree, n: int, beam_width: int, iterations: int = 40, max_tokens: int | None = None
) -> Search:
    """Fill `n` places with copies of what is live, keep the best n / beam_width, `iterations` times at most.

    The last iteration runs on to the answer. `max_tokens` ends a step, not a trajectory; what it cuts
    short has no answer. Answers with the best score among the best `n` finished; its signal is that score.
    Source: procedure of Hugging Face's search-and-learn, "beam_search.py" (2024), lookahead 0, last-step
    aggregation, sorted by score.
    """
    live = [tree.root]
    finished: list[Node] = []
    drop: list[Command] = []
    try:
        for left in reversed(range(iterations)):
            until: Until = "step" if left else "answer"
            more = n % len(live)  # the first of the live get one copy more
            shares = [(live[:more], n // len(live) + 1), (live[more:], n // len(live))]
            commands = [Expand(tuple(p), k, until, max_tokens) for p, k in shares if p]
            fresh = (yield [*drop, *commands]).nodes
            for _ in commands[1:]:
                fresh += (yield []).nodes
            yield [Score(fresh)]
            finished += [node for node in fresh if node.done]
            growing = sorted((node for node in fresh if not node.done), key=_score, reverse=True)
            live, lost = growing[: max(1, n // beam_width)], growing[max(1, n // beam_width) :]
            drop = [Drop(tuple(lost))] if lost else []
            if not live:
                break
    except Cut:
        pass
    ranked = sorted(finished, key=_score, reverse=True)[:n]
    if not ranked:
        return NO_ANSWER
    return Answer(ranked[0], ranked[0].answer, ranked[0].score, len(ranked))


def _score(node: Node) -> float:
    return node.score
