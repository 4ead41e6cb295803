"""Deadlines and GPU-second budgets: never exceeded, and what was found by then is the answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.search import ALGORITHMS
from scenarios.loader import loads
from sim.batch import Settings
from sim.records import measured
from sim.resolve import resolve
from sim.run import run
from tests.sim.driving import House, questions
from tests.sim.test_every_search import SMALL, TEXT

POOL = Settings(4000, 16, 24, 512)
SEARCHES = [
    (name, {key: SMALL[key] for key in item.parameters if key in SMALL})
    for name, item in ALGORITHMS.items()
]


def asked(search: tuple[str, dict[str, Any]], seed: int, **limits: float) -> House:
    """Ten questions that arrive within a second, under limits."""
    house = House(POOL, POOL)
    for number, world in enumerate(questions("math-500", seed, 10)):
        house.ask(world, search[0], at_s=0.1 * number, **search[1], **limits)
    house.env.run()
    return house


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    search=st.sampled_from(SEARCHES),
    seed=st.integers(0, 2**32),
    deadline_s=st.floats(0.01, 20.0),
)
def test_every_search_answers_by_its_deadline(search: Any, seed: int, deadline_s: float) -> None:
    for query in asked(search, seed, deadline_s=deadline_s).queries:
        assert query.spent is not None
        assert query.finish_s - query.arrival_s <= deadline_s * (1 + 1e-12) + 1e-12
        if query.spent.cut:
            assert query.session.cut_reason == "deadline"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    search=st.sampled_from(SEARCHES),
    seed=st.integers(0, 2**32),
    max_gpu_s=st.floats(0.05, 10.0),
)
def test_no_search_spends_more_gpu_seconds_than_its_budget(
    search: Any, seed: int, max_gpu_s: float
) -> None:
    for query in asked(search, seed, max_gpu_s=max_gpu_s).queries:
        spent = query.settle()
        assert spent.answered
        assert query.policy_s + query.judge_s <= max_gpu_s
        if spent.cut:
            assert query.session.cut_reason == "gpu_seconds"


def test_a_query_alone_on_many_gpus_spends_no_more_than_its_budget_but_most_of_it() -> None:
    """Alone it spends as many GPU-seconds a second as there are GPUs: nobody may look later than that."""
    used = []
    for world in questions("math-500", 5, 6):
        house = House(POOL, POOL, gpus=(8, 4))
        house.ask(world, "weighted_vote", n=12, max_gpu_s=6.0)
        house.env.run()
        (query,) = house.queries
        assert query.settle().cut
        used.append(8 * query.policy_s + 4 * query.judge_s)
    assert 0.8 * 6.0 < min(used) <= max(used) <= 6.0


def test_the_budget_of_gpu_seconds_is_used_up_where_it_binds() -> None:
    search = ("best_of_n", {"n": 12})
    free = asked(search, 3).queries
    for query in free:
        query.settle()
    most = max(query.policy_s + query.judge_s for query in free) / 2
    used = []
    for query in asked(search, 3, max_gpu_s=most).queries:
        if query.settle().cut:
            used.append((query.policy_s + query.judge_s) / most)
    assert used
    assert min(used) > 0.6


def test_a_beam_without_an_answer_is_cut_early_enough_to_finish_one() -> None:
    search = ("beam", {"width": 3, "expand": 2})
    in_time = answered = 0
    for seed in range(4):
        times = sorted(query.finish_s - query.arrival_s for query in asked(search, seed).queries)
        in_time += 4  # with this deadline and nothing done about it
        for query in asked(search, seed, deadline_s=times[3]).queries:
            assert query.spent is not None
            answered += query.spent.answer is not None
    assert answered > 1.3 * in_time


def test_what_cancelled_branches_had_generated_is_counted() -> None:
    house = asked(("best_of_n", {"n": 6}), 8, deadline_s=1.5)
    for query in house.queries:
        spent = query.settle()
        whole = query.session.tokens
        issued = sum(node.tokens for node in query.world.grown)  # type: ignore[attr-defined]
        assert whole <= spent.tokens <= issued
        if spent.cut:
            assert whole < spent.tokens < issued
    assert sum(query.settle().cut for query in house.queries) >= 5


@pytest.mark.parametrize(
    ("limit", "reason"), [("deadline: 2s", "e2e"), ("max_gpu_time: 150ms", "gpu")]
)
def test_a_scenario_limits_its_searches(limit: str, reason: str) -> None:
    search = "{algorithm: beam, width: 3, expand: 3, " + limit + "}"
    queries = measured(run(resolve(loads(TEXT.replace("SEARCH", search))), workers=1).queries)
    assert {"cut"} <= set(queries["status"]) <= {"cut", "answered"}
    if reason == "e2e":
        assert (queries["finish_s"] - queries["arrival_s"]).max() <= 2.0 + 1e-9
    else:
        assert queries["gpu_seconds"].max() <= 0.15
