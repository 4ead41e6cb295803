"""A search grows the same tree in the instant driver and in the simulator."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.controller import plan, search_for
from models.latency import StepCost
from models.rollout import rollout
from models.search import ALGORITHMS
from models.tree import Answer, Tree
from sim.batch import Settings
from tests.sim.driving import House, Watched, questions

SEARCHES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("direct", {}),
    ("best_of_n", {"n": 7}),
    ("best_of_n", {"n": 3, "aggregate": "min"}),
    ("self_consistency", {"n": 5}),
    ("weighted_vote", {"n": 6}),
    ("first_finish", {"n": 4}),
    ("adaptive_consistency", {"n": 7, "window": 2, "certainty": 0.8}),
    ("adaptive_vote", {"n": 6, "window": 3}),
    ("beam", {"width": 3, "expand": 2}),
    ("beam", {"width": 2, "expand": 3, "max_steps": 3}),
    ("dvts", {"subtrees": 2, "expand": 3}),
    ("rebase", {"n": 5}),
    ("tree_search", {"width": 2, "expand": 2, "max_children": 4}),
    ("mcts", {"simulations": 6, "expand": 2, "parallel": 2}),
    ("revision", {"n": 5, "chains": 2, "stop": 0.8}),
    ("long_chain", {"min_think": 600, "max_think": 1500, "waits": 3}),
)
IN_ORDER = [search for search in SEARCHES if ALGORITHMS[search[0]].in_order]
PRESETS = ("chat", "math-500", "gsm8k", "code", "aime", "game-24", "thinking-r1")
ENDLESS = Settings(1 << 40, 16, 1 << 20, 1 << 40)


def in_an_instant(
    worlds: list[Watched], algorithm: str, budget: int | None, parameters: dict[str, Any]
) -> list[Any]:
    ends = []
    for world in worlds:
        search = search_for(plan(algorithm, budget, **parameters), Tree(world.root))
        end = rollout(search, world, budget)
        ends.append(
            (world.tree(), end.answer, end.signal, end.tokens, end.expansions, end.scores,
             end.trajectories, end.correct, end.cut_reason)
        )  # fmt: skip
    return ends


def in_the_simulator(
    worlds: list[Watched],
    algorithm: str,
    budget: int | None,
    parameters: dict[str, Any],
    engine: Settings = ENDLESS,
    judge: Settings = ENDLESS,
    gap_s: float = 0.0,
) -> tuple[list[Any], House]:
    house = House(engine, judge)
    for number, world in enumerate(worlds):
        house.ask(world, algorithm, at_s=number * gap_s, max_tokens=budget, **parameters)
    house.env.run()
    ends = []
    for query, world in zip(house.queries, worlds, strict=True):
        session = query.session
        answer = session.answer
        assert isinstance(answer, Answer), "the search never answered"
        ends.append(
            (world.tree(), answer.answer, answer.signal, query.settle().tokens, session.expansions,
             session.scores, answer.trajectories, world.is_correct(answer.answer),
             session.cut_reason)
        )  # fmt: skip
    return ends, house


def test_every_algorithm_of_the_catalogue_is_played_here() -> None:
    assert {algorithm for algorithm, _ in SEARCHES} == set(ALGORITHMS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("algorithm", "parameters"), SEARCHES, ids=str)
def test_on_infinite_hardware_every_search_is_the_one_of_the_instant_driver(
    preset: str, algorithm: str, parameters: dict[str, Any]
) -> None:
    expected = in_an_instant(questions(preset, 3, 6), algorithm, None, parameters)
    found, house = in_the_simulator(questions(preset, 3, 6), algorithm, None, parameters)
    assert found == expected
    assert sum(end[3] for end in found) > 100
    assert house.replica.batch.num_preemptions == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    preset=st.sampled_from(PRESETS[:6]),
    search=st.sampled_from(SEARCHES),
    seed=st.integers(0, 2**32),
    budget=st.one_of(st.integers(1, 60), st.integers(100, 6_000)),
    gap_s=st.sampled_from([0.0, 0.05]),
)
def test_so_it_is_under_every_token_budget_which_is_never_exceeded(
    preset: str, search: Any, seed: int, budget: int, gap_s: float
) -> None:
    algorithm, parameters = search
    expected = in_an_instant(questions(preset, seed, 3), algorithm, budget, parameters)
    found, _ = in_the_simulator(
        questions(preset, seed, 3), algorithm, budget, parameters, gap_s=gap_s
    )
    if ALGORITHMS[algorithm].in_order:  # else its parts draw on the budget as they come
        assert found == expected
    for end in found:
        grown = sum(node[2] for node in end[0])
        assert grown <= budget
        assert end[3] == grown or (end[3] < grown and not ALGORITHMS[algorithm].in_order)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    search=st.sampled_from(IN_ORDER),
    seed=st.integers(0, 2**32),
    budget=st.one_of(st.none(), st.integers(50, 4_000)),
    pages=st.integers(260, 500),
    sharing=st.sampled_from(["tree", "per_branch"]),
    fork=st.sampled_from(["copy_tail", "recompute_tail"]),
    seqs=st.sampled_from([2, 5, 64]),
    tokens=st.sampled_from([16, 200, 8192]),
    searches=st.sampled_from([None, 2]),
)
def test_tight_hardware_changes_when_things_happen_but_not_the_tree(
    search: Any, seed: int, budget: int | None, pages: int, sharing: Any, fork: Any, seqs: int,
    tokens: int, searches: int | None,
) -> None:  # fmt: skip
    algorithm, parameters = search
    if algorithm in ("dvts", "revision") or "aggregate" in parameters:
        budget = None  # its paths do not wait for each other, and draw on the budget as they come
    model = {"preset": "math-500", "step_tokens": {"kind": "uniform", "low": 5, "high": 150}}
    engine = Settings(pages, 16, seqs, tokens, searches, sharing, fork)
    expected = in_an_instant(questions(model, seed, 8), algorithm, budget, parameters)
    found, _ = in_the_simulator(
        questions(model, seed, 8), algorithm, budget, parameters, engine, engine, gap_s=0.1
    )
    assert found == expected


def test_the_tight_hardware_of_these_tests_does_preempt() -> None:
    model = {"preset": "math-500", "step_tokens": {"kind": "uniform", "low": 5, "high": 150}}
    engine = Settings(260, 16, 64, 200)
    _, house = in_the_simulator(
        questions(model, 1, 8), "best_of_n", None, {"n": 7}, engine, engine, gap_s=0.1
    )
    assert house.replica.batch.num_preemptions > 5


def test_the_makespan_in_ticks_is_that_of_the_instant_driver_where_nobody_judges() -> None:
    worlds = questions("aime", 11, 20)
    for world, again in zip(worlds, questions("aime", 11, 20), strict=True):
        chosen = plan("self_consistency", None, n=5)
        ticks = rollout(search_for(chosen, Tree(world.root)), world).makespan_tokens
        house = House(ENDLESS, ENDLESS, StepCost.linear(0.25))
        house.ask(again, "self_consistency", n=5)
        house.env.run()
        assert house.env.now == pytest.approx(0.25 * ticks, rel=1e-12)
        assert house.queries[0].finish_s == pytest.approx(0.25 * ticks, rel=1e-12)
