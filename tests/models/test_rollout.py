"""The instant driver against hand-made time tables and against the session in any other order."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rollout import rollout, rollouts
from models.search import beam, best_of_n, self_consistency
from models.search_parts import steps
from models.session import SearchError, Session, node_path
from models.tree import Answer, Drop, Expand, Node, Score, Search, Tree
from tests.models.toy_world import IN_ORDER, ToyWorld, in_random_order, play, start

KEYS = st.integers(0, 10_000)


class Lengths:
    """A world whose root has done children of the given tokens; answers are ordinals."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths
        self.root = Node(None, 0, 0, 1, 1)

    def grow(self, parent: Node, ordinal: int, until: str, cap: int | None) -> Node:
        tokens = self.lengths[ordinal]
        return Node(parent, ordinal, 1, tokens, 1 + tokens, True, ordinal)

    def score(self, node: Node) -> float:
        node.score = 1 / (1 + node.tokens)
        return node.score

    def is_correct(self, answer: int | None) -> bool:
        return answer == 1


def test_parallel_branches_take_as_long_as_the_longest_and_scores_take_no_time() -> None:
    world = Lengths(5, 3, 9)
    result = rollout(best_of_n(Tree(world.root), 3), world)
    assert (result.answer, result.correct, result.signal) == (1, True, 0.25)
    assert (result.tokens, result.makespan_tokens) == (17, 9)
    assert (result.expansions, result.scores, result.trajectories) == (3, 3, 3)
    assert result.cut_reason is None
    assert [node.ordinal for node in result.tree.leaves] == [1, 0, 2]


def test_a_cancelled_branch_counts_the_tokens_that_it_had_grown_by_then() -> None:
    world = Lengths(5, 3, 9)

    def first_to_finish(tree: Tree) -> Search:
        outcome = yield [Expand((tree.root,), 3, "answer", each=True)]
        (node,) = outcome.nodes
        return Answer(node, node.answer, 0.5, 1)

    result = rollout(first_to_finish(Tree(world.root)), world)
    assert (result.answer, result.makespan_tokens) == (1, 3)
    assert (result.tokens, result.expansions) == (3 + 3 + 3, 1)


def test_a_branch_dropped_in_flight_counts_only_up_to_its_drop_and_is_not_waited_for() -> None:
    world = ToyWorld(16)

    def search(tree: Tree) -> Search:
        a, b = (yield [Expand((tree.root,), 2)]).nodes
        yield [Expand((a,), 1, each=True), Expand((b,), 1, each=True)]
        yield [Drop((a, b)), Expand((tree.root,), 1)]
        return Answer(None, None, 0.0)

    result = rollout(search(Tree(world.root)), world)
    assert [node.tokens for node in world.grown] == [3, 6, 7, 2, 7]
    assert result.tokens == 3 + 6 + 2 + 2 + 7
    assert result.makespan_tokens == 6 + 2 + 7
    assert result.expansions == 4


def test_units_that_end_together_are_completed_in_order_of_issue() -> None:
    world = Lengths(4, 4, 4, 2)
    log: list[tuple[str, int]] = []

    def search(tree: Tree) -> Search:
        commands: list[Expand | Score] = [Expand((tree.root,), 4, "answer", each=True)]
        while len(log) < 7:
            outcome = yield list(commands)
            (node,) = outcome.nodes
            log.append((type(outcome).__name__, node.ordinal))
            commands = [Score((node,))] if len(log) in (1, 3, 4) else []
        return Answer(None, None, 0.0)

    rollout(search(Tree(world.root)), world)
    assert log == [
        ("Grown", 3),
        ("Scored", 3),
        ("Grown", 0),
        ("Grown", 1),
        ("Grown", 2),
        ("Scored", 0),
        ("Scored", 1),
    ]


@pytest.mark.parametrize("case", IN_ORDER, ids=str)
@settings(max_examples=25)
@given(key=KEYS, order=KEYS)
def test_tree_answer_and_tokens_are_those_of_any_other_driver(
    case: tuple[str, dict[str, Any]], key: int, order: int
) -> None:
    world, other = ToyWorld(key), ToyWorld(key)
    result = rollout(start(case, world), world)
    session = Session(start(case, other), other)
    play(session, in_random_order(order))
    answer = session.answer
    assert answer is not None
    assert (result.answer, result.signal) == (answer.answer, answer.signal)
    assert (result.tokens, result.expansions) == (session.tokens, session.expansions)
    assert (result.scores, result.trajectories) == (session.scores, answer.trajectories)
    leaves = sorted(node_path(node) for node in other.grown if not node.requested)
    assert sorted(node_path(node) for node in result.tree.leaves) == leaves
    longest = max(sum(step.tokens for step in steps(node)) for node in world.grown)
    assert longest <= result.makespan_tokens <= result.tokens
    if case[0] in {"direct", "best_of_n", "self_consistency", "weighted_vote"}:
        assert result.makespan_tokens == longest


@given(key=KEYS)
def test_a_beam_takes_the_longest_child_of_every_step(key: int) -> None:
    world = ToyWorld(key, depth=6)
    result = rollout(beam(Tree(world.root), 2, 2, 10), world)
    levels: dict[int, int] = {}
    for node in world.grown:
        levels[node.depth] = max(levels.get(node.depth, 0), node.tokens)
    assert result.makespan_tokens == sum(levels.values())


def test_many_rollouts_are_one_each_and_repeatable() -> None:
    def run() -> list[tuple[int | None, float, int]]:
        worlds = [ToyWorld(key) for key in range(50)]
        results = list(rollouts(partial(self_consistency, n=4), worlds, max_tokens=60))
        assert all(result.tokens <= 60 for result in results)
        return [(result.answer, result.signal, result.tokens) for result in results]

    assert run() == run()
    assert len(set(run())) > 10


def test_a_broken_search_is_reported_and_not_waited_for() -> None:
    def waits(tree: Tree) -> Search:
        yield []
        return Answer(None, None, 0.0)

    world = Lengths(1)
    with pytest.raises(SearchError, match="nothing is in flight"):
        rollout(waits(Tree(world.root)), world)
