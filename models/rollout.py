"""The instant driver: hardware without limits on which every branch grows one token per tick.

It plays a search to its end in order of tokens, for calibration, controller training and tests.
Tree, answer and tokens are those of the simulator on infinite hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from models.session import Session, Work, World
from models.tree import Node, Search, Tree


@dataclass(frozen=True, slots=True)
class Rollout:
    """How one search ended; `tree.leaves` holds the grown nodes that nothing was grown from."""

    answer: int | None
    signal: float
    correct: bool
    tokens: int  # generated, also by branches that were cancelled
    makespan_tokens: int  # ticks from start to answer: the tokens that had to follow one another
    expansions: int
    scores: int
    trajectories: int
    cut_reason: str | None
    tree: Tree


def rollout(
    search: Search,
    world: World,
    max_tokens: int | None = None,
    max_expansions: int | None = None,
) -> Rollout:
    """Play `search`, which starts from `world.root`, to its answer; scoring takes no time.

    Units that end in the same tick are completed in their order of issue.
    Raises: SearchError if the search breaks the protocol, ValueError if a budget is below 1.
    """
    session = Session(search, world, max_tokens, max_expansions)
    heap: list[tuple[int, int, Work]] = []  # (tick of its end, order of issue, work)
    grown: list[Node] = []
    now = issued = unfinished = 0
    todo = session.start()
    while True:
        for work in todo:
            work.at = now + work.node.tokens if work.kind == "grow" else now
            heappush(heap, (work.at, issued, work))
            issued += 1
        if session.cancelled:
            for work in session.cancelled:
                if work.kind == "grow":
                    unfinished += now - (work.at - work.node.tokens)
            session.cancelled.clear()
        answer = session.answer
        if answer is not None:
            break
        now, _, work = heappop(heap)
        if not work.open:
            todo = []
            continue
        if work.kind == "grow":
            grown.append(work.node)
        todo = session.complete(work)
    return Rollout(
        answer=answer.answer,
        signal=answer.signal,
        correct=world.is_correct(answer.answer),
        tokens=session.tokens + unfinished,
        makespan_tokens=now,
        expansions=session.expansions,
        scores=session.scores,
        trajectories=answer.trajectories,
        cut_reason=session.cut_reason,
        tree=Tree(world.root, [node for node in grown if not node.requested]),
    )


def rollouts(
    search: Callable[[Tree], Search], worlds: Iterable[World], max_tokens: int | None = None
) -> Iterator[Rollout]:
    """Play one search per world, for example `rollouts(partial(best_of_n, n=16), worlds)`.

    One at a time: keep the figures that you need and not the trees.
    """
    for world in worlds:
        yield rollout(search(Tree(world.root)), world, max_tokens)
