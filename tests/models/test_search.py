"""The search algorithms against brute force, under any order of completion and cut at any point."""

from __future__ import annotations

from collections import Counter, defaultdict
from inspect import signature
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.search import ALGORITHMS, needs_verifier
from models.session import Session, node_path
from models.tree import Answer, Expand, Node, Search, Tree
from tests.models.toy_world import CASES, IN_ORDER, ToyWorld, in_random_order, play, start

KEYS = st.integers(0, 10_000)
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_case_in_order = pytest.mark.parametrize("case", IN_ORDER, ids=str)
Case = tuple[str, dict[str, Any]]
BARRIERS = {"beam", "rebase"}  # what lost is dropped with the next expansion, of all that live
KEEPERS = {
    "mcts",
    "tree_search",
    "dvts",
    "revision",
    "long_chain",
}  # children compete with later ones, or wait for siblings
DROPPERS = [
    case
    for case in CASES
    if case[0] not in KEEPERS and (case[0] == "beam" or "aggregate" not in case[1])
]


def answer_of(case: Case, world: ToyWorld) -> Answer:
    session = Session(start(case, world), world)
    play(session)
    assert session.answer is not None
    return session.answer


def trajectories(key: int, n: int) -> list[Node]:
    world = ToyWorld(key)
    nodes = [world.grow(world.root, ordinal, "answer", None) for ordinal in range(n)]
    for node in nodes:
        world.score(node)
    return nodes


@given(key=KEYS)
def test_direct_answers_with_the_first_trajectory(key: int) -> None:
    answer = answer_of(("direct", {}), ToyWorld(key))
    (only,) = trajectories(key, 1)
    assert answer.answer == only.answer
    assert answer.signal == (0.0 if only.answer is None else 0.5)


@given(key=KEYS, n=st.integers(1, 9))
def test_best_of_n_is_the_argmax_over_all_trajectories(key: int, n: int) -> None:
    answer = answer_of(("best_of_n", {"n": n}), ToyWorld(key))
    answered = [node for node in trajectories(key, n) if node.answer is not None]
    if not answered:
        assert answer == Answer(None, None, 0.0, 0)
        return
    highest = max(node.score for node in answered)
    earliest = min(node.ordinal for node in answered if node.score == highest)
    assert answer.node is not None
    assert (answer.node.ordinal, answer.signal) == (earliest, highest)
    assert answer.trajectories == n


@given(key=KEYS, n=st.integers(1, 12))
def test_self_consistency_is_the_majority_of_a_counter(key: int, n: int) -> None:
    answer = answer_of(("self_consistency", {"n": n}), ToyWorld(key))
    votes = Counter(node.answer for node in trajectories(key, n) if node.answer is not None)
    if not votes:
        assert answer.answer is None
        return
    label, count = votes.most_common(1)[0]  # a Counter keeps the order of first votes among ties
    assert (answer.answer, answer.signal) == (label, pytest.approx(count / n))


@given(key=KEYS, n=st.integers(1, 12))
def test_weighted_vote_is_the_largest_sum_of_scores(key: int, n: int) -> None:
    answer = answer_of(("weighted_vote", {"n": n}), ToyWorld(key))
    nodes = trajectories(key, n)
    sums: dict[int, float] = defaultdict(float)
    for node in nodes:
        if node.answer is not None:
            sums[node.answer] += node.score
    if not sums:
        assert answer.answer is None
        return
    label = sorted(sums, key=lambda a: -sums[a])[0]
    assert answer.answer == label
    assert answer.signal == pytest.approx(sums[label] / sum(node.score for node in nodes))


def reference_beam(world: ToyWorld, width: int, expand: int, max_steps: int) -> Answer:
    """Beam search over plain ordinal paths, recomputing every node from the root."""

    def node_at(path: tuple[int, ...]) -> Node:
        node = world.root
        for depth, ordinal in enumerate(path):
            last = depth == max_steps - 1
            node = world.grow(node, ordinal, "answer" if last else "step", None)
        if path:
            world.score(node)
        return node

    beams: list[tuple[int, ...]] = [()]
    for step in range(max_steps):
        growing = [path for path in beams if not node_at(path).done]
        children = width * expand if step == 0 else expand
        pool = [path for path in beams if path not in growing]
        pool += [(*path, ordinal) for path in growing for ordinal in range(children)]
        beams = []
        for _ in range(min(width, len(pool))):
            highest = max(node_at(path).score for path in pool)
            beams.append(next(path for path in pool if node_at(path).score == highest))
            pool.remove(beams[-1])
    ends = [node_at(path) for path in beams]
    answered = [node for node in ends if node.answer is not None]
    if not answered:
        return Answer(None, None, 0.0, 0)
    best = max(answered, key=lambda node: node.score)
    return Answer(best, best.answer, best.score, len(ends))


@given(key=KEYS, width=st.integers(1, 4), expand=st.integers(1, 3), max_steps=st.integers(1, 6))
def test_beam_agrees_with_a_reference_over_plain_paths(
    key: int, width: int, expand: int, max_steps: int
) -> None:
    case = ("beam", {"width": width, "expand": expand, "max_steps": max_steps})
    got = answer_of(case, ToyWorld(key, depth=5))
    expected = reference_beam(ToyWorld(key, depth=5), width, expand, max_steps)
    assert (got.answer, got.signal) == (expected.answer, expected.signal)
    assert got.trajectories == expected.trajectories
    if got.node is not None and expected.node is not None:
        assert node_path(got.node) == node_path(expected.node)


@given(key=KEYS, n=st.integers(1, 8))
def test_beam_of_one_expansion_is_best_of_n(key: int, n: int) -> None:
    beam = answer_of(("beam", {"width": n, "expand": 1, "max_steps": 1}), ToyWorld(key))
    best = answer_of(("best_of_n", {"n": n}), ToyWorld(key))
    assert (beam.answer, beam.signal) == (best.answer, best.signal)


@by_case_in_order
@settings(max_examples=25)
@given(key=KEYS, order=KEYS)
def test_the_answer_and_the_tree_do_not_depend_on_the_order_of_completion(
    case: Case, key: int, order: int
) -> None:
    def outcome(pick: int | None) -> object:
        world = ToyWorld(key)
        session = Session(start(case, world), world)
        play(session) if pick is None else play(session, in_random_order(pick))
        answer = session.answer
        assert answer is not None
        tree = sorted((node_path(n), n.tokens, n.done, n.answer) for n in world.grown)
        path = None if answer.node is None else node_path(answer.node)
        return path, answer.answer, answer.signal, session.tokens, session.scores, repr(tree)

    assert outcome(None) == outcome(order)


@by_case
@settings(max_examples=25)
@given(key=KEYS, order=KEYS, grace=st.integers(0, 30))
def test_a_cut_at_every_point_still_brings_an_answer_within_the_grace(
    case: Case, key: int, order: int, grace: int
) -> None:
    world = ToyWorld(key)
    whole = play(Session(start(case, world), world), in_random_order(order))
    for point in range(whole):
        world = ToyWorld(key)
        session = Session(start(case, world), world)
        before: list[int] = []

        def cut(
            done: int, point: int = point, world: ToyWorld = world, before: list[int] = before
        ) -> tuple[str, int] | None:
            if done != point:
                return None
            before.append(len(world.grown))
            return "deadline", grace

        play(session, in_random_order(order), cut)
        assert session.answer is not None
        assert session.cut_reason == "deadline"
        after = world.grown[before[0] :]
        assert len(after) <= 1, "the grace finishes one trajectory, never more"
        assert sum(node.tokens for node in after) <= grace
        if after and after[0].done:
            assert session.answer.answer == after[0].answer
        if session.answer.answer is not None:
            assert session.answer.node is not None
            assert session.answer.node.done
            assert 0 < session.answer.signal <= 1


@by_case
@settings(max_examples=25)
@given(key=KEYS, order=KEYS, point=st.integers(0, 30), again=st.integers(0, 2))
def test_a_second_cut_ends_the_search_at_once(
    case: Case, key: int, order: int, point: int, again: int
) -> None:
    world = ToyWorld(key)
    session = Session(start(case, world), world)
    play(
        session,
        in_random_order(order),
        lambda done: (
            ("deadline", 9 if done == point else 0) if done in (point, point + again) else None
        ),
    )
    assert session.answer is not None


@by_case
@settings(max_examples=25)
@given(key=KEYS, order=KEYS, point=st.integers(0, 60))
def test_an_ample_grace_always_brings_an_answer(
    case: Case, key: int, order: int, point: int
) -> None:
    world = ToyWorld(key, answers=4)
    session = Session(start(case, world), world)
    play(session, in_random_order(order), lambda done: ("deadline", 99) if done == point else None)
    assert session.answer is not None
    assert session.answer.answer is not None


@by_case
@settings(max_examples=25)
@given(key=KEYS, budget=st.integers(40, 120))
def test_a_budget_whose_reserve_holds_a_trajectory_always_brings_an_answer(
    case: Case, key: int, budget: int
) -> None:
    world = ToyWorld(key, depth=1, answers=4)
    session = Session(start(case, world), world, budget)
    play(session)
    assert session.answer is not None
    assert session.answer.answer is not None


def test_a_beam_cut_before_its_scores_answers_with_a_child_that_is_finished() -> None:
    world = ToyWorld(5, depth=1, answers=4)
    session = Session(start(("beam", {"width": 2, "expand": 2, "max_steps": 5}), world), world)
    play(session, cut=lambda done: ("deadline", 0) if done == 4 else None)
    assert session.answer is not None
    assert session.answer.answer is not None
    assert (session.answer.signal, session.scores) == (0.5, 0)


@given(key=KEYS, steps=st.integers(1, 4))
def test_the_grace_goes_to_the_beam_with_the_highest_score(key: int, steps: int) -> None:
    world = ToyWorld(key, depth=30, early=False)
    search = start(("beam", {"width": 3, "expand": 2, "max_steps": 30}), world)
    session = Session(search, world)
    todo = session.start()
    while max(node.depth for node in world.grown) <= steps:
        todo += session.complete(todo.pop(0))
    live = {work.node.parent for work in todo}
    (last,) = session.cut("deadline", 1)
    assert last.node.parent in live
    assert len(live) == 3
    assert last.node.parent.score == max(node.score for node in live if node is not None)


def test_the_grace_turns_a_beam_that_would_answer_nothing_into_an_answer() -> None:
    case = ("beam", {"width": 2, "expand": 2, "max_steps": 20})

    def answered(grace: int) -> int:
        count = 0
        for key in range(200):
            world = ToyWorld(key, depth=8, answers=4)
            session = Session(start(case, world), world)
            play(session, cut=lambda done: ("deadline", grace) if done == 6 else None)
            assert session.answer is not None
            count += session.answer.answer is not None
        return count

    assert answered(0) < answered(10) < answered(60) == 200


def test_a_cut_counts_only_what_is_finished_and_lowers_the_agreement() -> None:
    world = ToyWorld(3, answers=1)
    session = Session(start(("self_consistency", {"n": 8}), world), world)
    play(session, cut=lambda done: ("deadline", 0) if done == 2 else None)
    answer = session.answer
    assert answer is not None
    assert (answer.answer, answer.signal, answer.trajectories) == (0, 2 / 8, 2)


def test_a_finished_answer_without_a_score_has_the_signal_of_nothing_observed() -> None:
    for name in ("best_of_n", "weighted_vote"):
        world = ToyWorld(3, answers=1)
        session = Session(start((name, {"n": 3}), world), world)
        todo = session.start()
        session.complete(todo[1])
        session.cut("deadline", 0)
        assert session.answer is not None
        assert session.answer.node is not None
        assert (session.answer.node.ordinal, session.answer.signal) == (1, 0.5)


@pytest.mark.parametrize("case", DROPPERS, ids=str)
@settings(max_examples=25)
@given(key=KEYS, order=KEYS)
def test_what_lost_is_dropped_as_soon_as_it_lost(case: Case, key: int, order: int) -> None:
    """All that is held has work in flight below it (asked of a beam when it has just expanded)."""
    world = ToyWorld(key, depth=6)
    session = Session(start(case, world), world)
    pick = in_random_order(order)
    todo = session.start()
    complete: set[Node] = set()
    while todo and session.answer is None:
        work = todo.pop(pick(len(todo)))
        issued = session.complete(work)
        todo += issued
        if work.kind == "grow":
            complete.add(work.node)
        if session.answer is not None or (case[0] in BARRIERS and not issued):
            continue
        gone = set(session.dropped)
        held = {node for node in complete if not any(a in gone for a in lineage(node))}
        needed = {node for unit in todo for node in lineage(unit.node)}
        assert held <= needed


def lineage(node: Node) -> list[Node]:
    path = [node]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path


@by_case
def test_a_search_is_deterministic_and_asks_the_verifier_only_if_it_says_so(case: Case) -> None:
    def facts(key: int) -> tuple[object, ...]:
        world = ToyWorld(key)
        session = Session(start(case, world), world)
        play(session)
        assert session.answer is not None
        return session.answer.answer, session.answer.signal, session.tokens, session.scores

    for key in range(20):
        assert facts(key) == facts(key)
        assert (facts(key)[3] != 0) == needs_verifier(case[0])


def test_the_catalogue_describes_each_algorithm_with_parameters_its_function_takes() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.function.__name__ == name
        assert tuple(signature(algorithm.function).parameters) == ("tree", *algorithm.parameters)
        assert algorithm.description.endswith(".")
        assert algorithm.source
        for parameter in algorithm.parameters.values():
            if isinstance(parameter.default, str):
                assert parameter.default in parameter.choices
            else:
                assert parameter.low <= parameter.default <= parameter.high
        defaults = {key: p.default for key, p in algorithm.parameters.items()}
        search: Search = algorithm.function(Tree(ToyWorld(0).root), **defaults)
        assert all(isinstance(command, Expand) for command in next(search))
        assert algorithm.signal
