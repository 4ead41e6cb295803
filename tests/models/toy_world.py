"""A small keyed world for tests of searches, and a driver that ends work in any order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from models.keyed import child_key, mix
from models.search import ALGORITHMS
from models.session import Session
from models.tree import Node, Search, Tree, Until


class ToyWorld:
    """Trajectories of at most `depth` steps of 1 to 7 tokens, few answers, coarse scores (ties).

    Without `early` every trajectory has `depth` steps.

    `hidden` is (steps begun, tokens left of the step that was truncated).
    """

    def __init__(self, key: int, depth: int = 4, answers: int = 5, early: bool = True) -> None:
        self.depth = depth
        self.answers = answers
        self.early = early
        self.root = Node(None, 0, 0, 10, 10, key=mix(key), hidden=(0, 0))
        self.grown: list[Node] = []

    def grow(self, parent: Node, ordinal: int, until: Until, cap: int | None) -> Node:
        number = ordinal
        key, (level, left) = parent.key, parent.hidden
        if parent.done:  # another try
            level = left = 0
        elif until == "conclude":
            key, level, left = child_key(key, ordinal), self.depth, 2
        room = 10**9 if cap is None else cap
        assert room > 0
        tokens = 0
        done = False
        while True:
            if left == 0:
                key = child_key(key, ordinal)
                ordinal = 0
                level += 1
                left = 1 + mix(key ^ 1) % 7
            taken = min(left, room - tokens)
            tokens += taken
            left -= taken
            if left:
                break
            done = level == self.depth or (self.early and mix(key ^ 2) % 3 == 0)
            if done or until == "step" or tokens == room:
                break
        answer = mix(key ^ 3) % self.answers if done else None
        node = Node(
            parent,
            number,
            level,
            tokens,
            parent.path_tokens + tokens,
            done,
            answer if answer != 4 else None,
            key=key,
            hidden=(level, left),
        )
        self.grown.append(node)
        return node

    def score(self, node: Node) -> float:
        node.score = (1 + mix(node.key ^ 4) % 6) / 8
        return node.score

    def is_correct(self, answer: int | None) -> bool:
        return answer == 0


def _tree(**given: float) -> dict[str, float]:
    return {"stop": 1.0, "max_steps": 9} | given


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "direct": [{}],
    "best_of_n": [{"n": 1}, {"n": 5}, {"n": 4, "aggregate": "min"}],
    "self_consistency": [{"n": 1}, {"n": 6}],
    "weighted_vote": [{"n": 7}, {"n": 3, "aggregate": "mean"}],
    "beam": [
        {"width": 1, "expand": 1, "max_steps": 9},
        {"width": 2, "expand": 3, "max_steps": 9},
        {"width": 3, "expand": 2, "max_steps": 2},
        {"width": 4, "expand": 1, "max_steps": 1},
        {"width": 2, "expand": 2, "max_steps": 9, "aggregate": "product"},
    ],
    "first_finish": [{"n": 1}, {"n": 5}],
    "adaptive_consistency": [
        {"n": 9, "window": 2, "certainty": 0.8},
        {"n": 5, "window": 3, "certainty": 1.0},
    ],
    "adaptive_vote": [{"n": 8, "window": 3, "certainty": 0.75}],
    "dvts": [
        {"subtrees": 3, "expand": 2, "max_steps": 9},
        {"subtrees": 1, "expand": 3, "max_steps": 2},
        {"subtrees": 4, "expand": 1, "max_steps": 1},
    ],
    "rebase": [
        {"n": 5, "temperature": 0.2, "max_steps": 9},
        {"n": 4, "temperature": 5.0, "max_steps": 2},
        {"n": 1, "temperature": 0.01, "max_steps": 1},
    ],
    "tree_search": [
        _tree(width=2, expand=2, max_children=5, confidence=0.6, margin=0.3, stop=0.7),
        _tree(width=1, expand=1, max_children=1, confidence=0.0, margin=0.0, stop=0.0),
        _tree(width=3, expand=1, max_children=3, confidence=1.0, margin=1.0, max_steps=2),
    ],
    "mcts": [
        {"simulations": 9, "expand": 2, "exploration": 1.0, "parallel": 3},
        {"simulations": 4, "expand": 3, "exploration": 0.0, "parallel": 1},
        {"simulations": 1, "expand": 1, "exploration": 9.0, "parallel": 5},
    ],
    "revision": [
        {"n": 5, "chains": 2, "inject": 3, "stop": 0.7},
        {"n": 3, "chains": 1, "inject": 1, "stop": 1.0},
        {"n": 2, "chains": 4, "inject": 1, "stop": 0.0},
    ],
    "long_chain": [
        {"min_think": 40, "max_think": 60, "waits": 3},
        {"min_think": 1, "max_think": 6, "waits": 1},
        {"min_think": 30, "max_think": 20, "waits": 9},
    ],
}
CASES = [(name, params) for name, many in SETTINGS.items() for params in many]
IN_ORDER = [case for case in CASES if ALGORITHMS[case[0]].in_order]


def start(case: tuple[str, dict[str, Any]], world: ToyWorld) -> Search:
    name, params = case
    return ALGORITHMS[name].function(Tree(world.root), **params)


def first(_: int) -> int:
    return 0


def in_random_order(seed: int) -> Callable[[int], int]:
    return Random(seed).randrange


def play(
    session: Session,
    pick: Callable[[int], int] = first,
    cut: Callable[[int], tuple[str, int] | None] = lambda _: None,
) -> int:
    """Drive to the answer; `pick(n)` chooses which of n units ends next; returns units completed.

    Before unit number i ends, `cut(i)` may interrupt with (reason, grace).
    """
    todo = session.start()
    completed = 0
    while session.answer is None:
        interrupt = cut(completed)
        if interrupt:
            todo += session.cut(*interrupt)
        todo = [work for work in todo if work.open]
        if session.answer is not None:
            break
        assert todo, "the session waits for nothing"
        todo += session.complete(todo.pop(pick(len(todo))))
        completed += 1
        assert completed < 100_000
    return completed
