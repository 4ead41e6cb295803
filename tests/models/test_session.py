"""The session keeps the books of one search: barriers, drops, cancellation and the token budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.session import RESERVE_DIVISOR, SearchError, Session, Work, node_path
from models.tree import Answer, Cut, Drop, Expand, Grown, Node, Score, Scored, Search, Tree
from tests.models.toy_world import CASES, IN_ORDER, ToyWorld, in_random_order, play, start

KEYS = st.integers(0, 10_000)


class Line:
    """A world where every child has `length` tokens, and is done if it was grown to the answer."""

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.root = Node(None, 0, 0, 5, 5)

    def grow(self, parent: Node, ordinal: int, until: str, cap: int | None) -> Node:
        tokens = self.length if cap is None else min(cap, self.length)
        done = until == "answer" and tokens == self.length
        return Node(
            parent,
            ordinal,
            parent.depth + 1,
            tokens,
            parent.path_tokens + tokens,
            done,
            7 if done else None,
        )

    def score(self, node: Node) -> float:
        node.score = 0.25
        return node.score

    def is_correct(self, answer: int | None) -> bool:
        return answer == 7


def names(works: list[Work]) -> list[tuple[str, tuple[int, ...], int]]:
    return [(work.kind, node_path(work.node), work.command) for work in works]


NOTHING = Answer(None, None, 0.0)


def test_a_barrier_is_one_outcome_and_each_is_many_in_order_of_completion() -> None:
    world = Line()
    log: list[object] = []

    def search() -> Search:
        grown = yield [Expand((world.root,), 2)]
        log.append(("barrier", type(grown), [node_path(n) for n in grown.nodes]))
        outcome = yield [Expand(grown.nodes, 1, each=True), Score(grown.nodes)]
        for _ in range(3):
            log.append((type(outcome), [node_path(n) for n in outcome.nodes]))
            outcome = yield []
        return NOTHING

    session = Session(search(), world)
    a, b = session.start()
    assert names([a, b]) == [("grow", (0,), 0), ("grow", (1,), 0)]
    assert session.complete(b) == []
    assert log == []
    works = session.complete(a)
    assert log == [("barrier", Grown, [(0,), (1,)])]
    assert names(works) == [
        ("grow", (0, 0), 1),
        ("grow", (1, 0), 1),
        ("score", (0,), 2),
        ("score", (1,), 2),
    ]
    for index in (1, 3, 2):
        assert session.complete(works[index]) == []
    with pytest.raises(SearchError, match="waits for an outcome"):
        session.complete(works[0])
    assert log[1:] == [(Grown, [(1, 0)]), (Scored, [(0,), (1,)]), (Grown, [(0, 0)])]
    assert (session.tokens, session.expansions, session.scores) == (40, 4, 2)


def test_ordinals_go_on_counting_over_several_expansions_of_one_parent() -> None:
    world = Line()

    def search() -> Search:
        first = yield [Expand((world.root,), 2)]
        second = yield [Expand((world.root,), 2)]
        assert [n.ordinal for n in (*first.nodes, *second.nodes)] == [0, 1, 2, 3]
        return NOTHING

    session = Session(search(), world)
    play(session)
    assert session.answer is NOTHING


def test_empty_commands_are_answered_at_once() -> None:
    world = Line()

    def search() -> Search:
        grown = yield [Expand((), 4), Score(())]
        scored = yield []
        assert (grown, scored) == (Grown(()), Scored(()))
        return NOTHING

    session = Session(search(), world)
    assert session.start() == []
    assert session.answer is NOTHING


def after_two(world: Line, misuse: Callable[[Node, Node], list[object]]) -> Search:
    grown = yield [Expand((world.root,), 2)]
    yield misuse(*grown.nodes)  # type: ignore[misc]
    return NOTHING


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda a, b: [Drop((a,)), Expand((a,), 1)], r"expands node \(0,\), which it dropped"),
        (lambda a, b: [Drop((a,)), Score((a,))], r"scores node \(0,\), which it dropped"),
        (lambda a, b: [Drop((b, b))], r"drops node \(1,\), which it dropped"),
        (lambda a, b: [Drop((a.parent,)), Expand((b,), 1)], r"expands node \(1,\), which it drop"),
        (lambda a, b: [], "nothing is in flight"),
        (lambda a, b: [Drop((a, b))], "nothing is in flight"),
    ],
)
def test_a_search_that_breaks_the_protocol_is_told_so(
    misuse: Callable[[Node, Node], list[object]], message: str
) -> None:
    world = Line()
    with pytest.raises(SearchError, match=message):
        play(Session(after_two(world, misuse), world))


def test_a_search_that_expands_a_done_node_is_told_so() -> None:
    world = Line()

    def search() -> Search:
        grown = yield [Expand((world.root,), 1, "answer")]
        yield [Expand(grown.nodes, 1)]
        return NOTHING

    with pytest.raises(SearchError, match=r"expands node \(0,\), which is done"):
        play(Session(search(), world))


def test_work_can_be_completed_only_once() -> None:
    world = Line()
    session = Session(start(("self_consistency", {"n": 2}), world), world)  # type: ignore[arg-type]
    work, _ = session.start()
    session.complete(work)
    with pytest.raises(SearchError, match="completed or cancelled before"):
        session.complete(work)


def test_drop_cancels_what_is_in_flight_below_and_a_barrier_goes_on_with_the_rest() -> None:
    world = Line()
    seen: list[list[tuple[int, ...]]] = []

    def search() -> Search:
        a, b = (yield [Expand((world.root,), 2)]).nodes
        yield [Expand((a, b), 2), Expand((b,), 1, each=True)]
        outcome = yield [Drop((a,))]
        seen.append([node_path(n) for n in outcome.nodes])
        return NOTHING

    session = Session(search(), world)
    first, second = session.start()
    session.complete(first)
    works = session.complete(second)
    assert [path for _, path, _ in names(works)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert session.complete(works[0]) == []
    assert session.complete(works[2]) == []
    assert session.complete(works[4]) == []
    assert [node_path(n) for n in session.dropped] == [(0,)]
    assert names(session.cancelled) == [("grow", (0, 1), 1)]
    assert not works[1].open
    session.complete(works[3])
    assert seen == [[(1, 0), (1, 1)]]


def test_a_barrier_whose_last_work_is_cancelled_comes_with_what_was_complete() -> None:
    world = Line()
    seen: list[list[tuple[int, ...]]] = []

    def search() -> Search:
        a, b = (yield [Expand((world.root,), 2)]).nodes
        yield [Expand((b, a), 1), Expand((b,), 1, each=True)]
        outcome = yield [Drop((a,))]
        seen.append([node_path(n) for n in outcome.nodes])
        return NOTHING

    session = Session(search(), world)
    first, second = session.start()
    session.complete(first)
    of_b, of_a, alone = session.complete(second)
    session.complete(of_b)
    session.complete(alone)
    assert seen == [[(1, 0)]]
    assert session.cancelled == [of_a]
    assert session.answer is NOTHING


def test_drop_cancels_a_score_in_flight_of_a_node_without_children() -> None:
    world = Line()

    def search() -> Search:
        a, b = (yield [Expand((world.root,), 2)]).nodes
        yield [Score((a,)), Expand((b,), 1), Expand((b,), 1)]
        yield [Drop((a,))]
        return NOTHING

    session = Session(search(), world)
    first, second = session.start()
    session.complete(first)
    score, grow, rest = session.complete(second)
    session.complete(grow)
    assert session.cancelled == [score]
    assert rest.open
    session.complete(rest)
    assert session.scores == 0


def test_a_cut_leaves_no_more_grace_than_there_is_budget() -> None:
    world = Line(10)
    graces: list[int] = []

    def search() -> Search:
        try:
            yield [Expand((world.root,), 2)]
        except Cut as cut:
            graces.append(cut.grace)
        return NOTHING

    session = Session(search(), world, max_tokens=50)
    session.start()
    session.cut("deadline", 1_000)
    assert graces == [30]


def test_work_that_is_issued_and_cancelled_in_one_breath_is_never_seen() -> None:
    world = Line()

    def search() -> Search:
        a, b = (yield [Expand((world.root,), 2)]).nodes
        yield [Expand((a, b), 1), Drop((a,))]
        return NOTHING

    session = Session(search(), world)
    first, second = session.start()
    session.complete(first)
    assert names(session.complete(second)) == [("grow", (1, 0), 1)]
    assert session.cancelled == []


def test_an_answer_cancels_everything_in_flight() -> None:
    world = Line()

    def search() -> Search:
        outcome = yield [Expand((world.root,), 3, "answer", each=True)]
        return Answer(outcome.nodes[0], outcome.nodes[0].answer, 1.0, 1)

    session = Session(search(), world)
    a, b, c = session.start()
    assert session.complete(b) == []
    assert session.answer == Answer(b.node, 7, 1.0, 1)
    assert session.cancelled == [a, c]
    assert session.cut("deadline", 5) == []
    assert session.cut_reason is None


def test_a_budget_truncates_in_order_of_issue_and_then_cuts_with_the_reserve() -> None:
    world = Line(10)
    log: list[object] = []

    def search() -> Search:
        grown = yield [Expand((world.root,), 5)]
        log.append([n.tokens for n in grown.nodes])
        try:
            yield [Expand(grown.nodes, 1)]
        except Cut as cut:
            log.append((cut.reason, cut.grace))
            (last,) = (yield [Expand((grown.nodes[0],), 1, "answer", cut.grace)]).nodes
            log.append(last.tokens)
        return NOTHING

    session = Session(search(), world, max_tokens=45)
    play(session)
    assert RESERVE_DIVISOR == 5
    assert log == [[10, 10, 10, 6], ("tokens", 9), 9]
    assert session.tokens == 45
    assert session.cut_reason == "tokens"


def test_the_reserve_is_free_once_a_trajectory_is_finished() -> None:
    world = Line(10)
    log: list[int] = []

    def search() -> Search:
        yield [Expand((world.root,), 1, "answer")]
        grown = yield [Expand((world.root,), 9)]
        log.extend(n.tokens for n in grown.nodes)
        return NOTHING

    session = Session(search(), world, max_tokens=50)
    play(session)
    assert log == [10, 10, 10, 10]


def test_a_single_trajectory_may_use_the_whole_budget() -> None:
    world = Line(10)
    session = Session(start(("direct", {}), world), world, max_tokens=10)  # type: ignore[arg-type]
    play(session)
    assert session.answer is not None
    assert session.answer.answer == 7
    assert session.cut_reason is None


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1, not 0"):
        Session(after_two(Line(), lambda a, b: []), Line(), max_tokens=0)


def test_a_search_that_ignores_a_cut_is_stopped() -> None:
    world = Line(10)

    def stubborn() -> Search:
        while True:
            with suppress(Cut):
                yield [Expand((world.root,), 1)]

    with pytest.raises(SearchError, match="left it no grace"):
        play(Session(stubborn(), world, max_tokens=25))


def test_a_search_that_lets_a_cut_escape_is_told_so() -> None:
    world = Line(10)
    with pytest.raises(SearchError, match="did not handle Cut"):
        play(
            Session(after_two(world, lambda a, b: [Expand((a, b), 9)]), world),
            cut=lambda done: ("deadline", 3) if done == 4 else None,
        )


def test_a_cut_cancels_what_is_in_flight_and_frees_what_the_search_never_saw() -> None:
    world = Line(10)
    log: list[object] = []

    def search() -> Search:
        try:
            yield [Expand((world.root,), 3)]
        except Cut as cut:
            log.append((cut.reason, cut.grace))
        return NOTHING

    session = Session(search(), world, max_tokens=1_000)
    a, b, c = session.start()
    session.complete(b)
    session.cut("deadline", 40)
    assert log == [("deadline", 40)]
    assert session.cancelled == [a, c]
    assert session.dropped == [b.node]
    assert session.cut_reason == "deadline"


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25)
@given(key=KEYS, budget=st.integers(1, 150), order=KEYS)
def test_no_search_exceeds_its_budget_and_each_answers(
    case: tuple[str, dict[str, int]], key: int, budget: int, order: int
) -> None:
    world = ToyWorld(key)
    session = Session(start(case, world), world, budget)
    play(session, in_random_order(order))
    assert sum(node.tokens for node in world.grown) <= budget
    assert session.tokens <= budget
    assert session.answer is not None
    free = Session(start(case, again := ToyWorld(key)), again)
    play(free)
    assert free.cut_reason is None
    if session.cut_reason is None and case in IN_ORDER:
        assert session.answer.answer == free.answer.answer  # type: ignore[union-attr]
        assert session.tokens == free.tokens


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25)
@given(key=KEYS, most=st.integers(1, 12), budget=st.one_of(st.none(), st.integers(1, 150)))
def test_no_search_grows_more_children_than_its_budget_and_each_answers(
    case: tuple[str, dict[str, Any]], key: int, most: int, budget: int | None
) -> None:
    world = ToyWorld(key, answers=4)
    session = Session(start(case, world), world, budget, most)
    play(session)
    assert len(world.grown) <= most
    assert session.expansions <= most
    assert session.answer is not None
    if budget is None and (case[0] != "long_chain" or most > 1):  # it thinks, then it concludes
        assert session.answer.answer is not None
    free = Session(start(case, again := ToyWorld(key, answers=4)), again, budget)
    play(free)
    if session.cut_reason is None:
        assert session.answer.answer == free.answer.answer  # type: ignore[union-attr]
    else:
        assert session.cut_reason == "expansions" or budget is not None


def test_the_last_expansion_is_kept_for_the_one_that_finishes() -> None:
    world = Line()
    log: list[object] = []

    def search() -> Search:
        try:
            nodes = (yield [Expand((world.root,), 5)]).nodes
            log.append(len(nodes))
            yield [Expand(nodes, 1)]
        except Cut as cut:
            log.append((cut.reason, cut.grace > 10**9))
            (end,) = (yield [Expand((nodes[0],), 1, "answer")]).nodes
            log.append(end.answer)
        return NOTHING

    session = Session(search(), world, max_expansions=4)
    play(session)
    assert log == [3, ("expansions", True), 7]
    assert (session.expansions, session.cut_reason) == (4, "expansions")


def test_what_is_injected_lengthens_the_path_and_not_the_bill() -> None:
    world = Line()

    def search() -> Search:
        (first,) = (yield [Expand((world.root,), 1, "answer")]).nodes
        (again,) = (yield [Expand((first,), 1, "answer", inject=3)]).nodes
        assert (again.injected, again.tokens, again.path_tokens) == (3, 10, 5 + 10 + 3 + 10)
        return NOTHING

    session = Session(search(), world)
    play(session)
    assert (session.tokens, session.expansions) == (20, 2)


@given(key=KEYS, budget=st.integers(1, 60))
def test_one_trajectory_resumed_after_a_cut_is_the_same_trajectory(key: int, budget: int) -> None:
    def in_pieces(tree: Tree) -> Search:
        node = tree.root
        while not node.done:
            (node,) = (yield [Expand((node,), 1, "answer", cap=3)]).nodes
        return Answer(node, node.answer, 0.5, 1)

    whole, pieces = ToyWorld(key), ToyWorld(key)
    one = Session(start(("direct", {}), whole), whole)
    many = Session(in_pieces(Tree(pieces.root)), pieces)
    play(one)
    play(many)
    assert one.tokens == many.tokens
    assert whole.grown[-1].answer == pieces.grown[-1].answer
