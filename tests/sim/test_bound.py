"""The analytic bound obeys its formulas, and the binding constraint is the one that was built in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.latency import StepCost
from scenarios.schema import Search
from sim.bound import Demand, binding, bounds, kv_throughput, noted, pool_bound, token_steps, width
from sim.metrics import tier_table
from sim.records import Result
from tests.sim import fixtures


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_single_chain_holds_what_a_count_says(prompt: int, tokens: int) -> None:
    counted = sum(prompt + step for step in range(1, tokens + 1))
    assert token_steps(prompt, tokens) == pytest.approx(counted)


@given(st.integers(0, 300), st.integers(1, 100), st.integers(1, 16))
def test_n_chains_share_one_prompt(prompt: int, each: int, n: int) -> None:
    counted = sum(prompt + n * step for step in range(1, each + 1))
    assert token_steps(prompt, n * each, n, n) == pytest.approx(counted)


def test_kv_throughput_is_m_over_b_e_g() -> None:
    assert kv_throughput(20_000, 0.5, 1_000) == pytest.approx(40.0)
    assert kv_throughput(20_000, 0.5, 0) == float("inf")


def test_compute_bound_by_hand() -> None:
    cost = StepCost.linear(0.010, per_decode=0.0001, per_prefill=0.00001)
    found = pool_bound(
        "p", Demand(10.0, 100.0, 200.0), cost,
        kv_tokens=1e9, max_num_seqs=100, max_num_batched_tokens=1100, fleet=2,
    )  # fmt: skip
    service = 200 * (0.010 + 100 * 0.0001) / 100 + 100 * 0.00001
    assert found.gpu_seconds == pytest.approx(service)
    assert found.compute == pytest.approx(10 * service)
    assert (found.replicas, found.kv) == (1, 0.0)


def test_little_memory_makes_the_batch_small_and_the_bound_high() -> None:
    cost = StepCost.linear(0.010)
    demand = Demand(10.0, 0.0, 200.0, kv_token_steps=200 * 1000.0)
    given_memory = {"max_num_seqs": 100, "max_num_batched_tokens": 8192, "fleet": 2}
    found = pool_bound("p", demand, cost, kv_tokens=10_000, **given_memory)
    assert found.batch == pytest.approx(10.0)
    assert found.kv == pytest.approx(10 * 0.010 * 200_000 / 10_000)
    assert found.replicas == 2
    assert "KV memory" in found.reason


@given(st.floats(0.1, 50), st.floats(1.0, 4.0))
def test_more_load_never_needs_fewer_replicas(rate: float, factor: float) -> None:
    cost = StepCost.linear(0.010, per_decode=1e-4, per_prefill=1e-5, kv=1e-8)
    a, b = (
        pool_bound(
            "p", Demand(r, 500, 800, 1e6, 1e6), cost,
            kv_tokens=4e5, max_num_seqs=256, max_num_batched_tokens=8192, fleet=1,
        )
        for r in (rate, rate * factor)
    )  # fmt: skip
    assert b.replicas >= a.replicas


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"algorithm": "direct"}, (1, 1)),
        ({"algorithm": "best_of_n", "n": 8}, (8, 8)),
        ({"algorithm": "beam", "width": 2, "expand": 3}, (6, 2)),
    ],
)
def test_the_width_of_a_search(search: dict[str, Any], expected: tuple[int, int]) -> None:
    assert width(Search.model_validate(search)) == expected


def test_bounds_cover_every_pool_and_sharing_needs_no_more_than_copies() -> None:
    result, cost = fixtures.result(), StepCost.linear(0.010, per_decode=1e-4, per_prefill=1e-5)
    shared = fixtures.loaded().scenario
    copies = fixtures.loaded(
        fixtures.SCENARIO.replace(
            "replicas: 2}", "replicas: 2, kv: {sharing: per_branch, attention: naive}}"
        )
    ).scenario
    costs = {"thinker": cost, "judge": cost}
    with_sharing, without = bounds(result, shared, costs), bounds(result, copies, costs)
    assert [row.pool for row in with_sharing] == ["thinker", "judge"]
    assert with_sharing[0].fleet == 2
    assert with_sharing[0].kv < without[0].kv
    assert with_sharing[1].kv == 0


def sampled(**changes: Any) -> Result:
    """A result whose thinker looks like `changes` in every sample."""
    rows = [fixtures.sample(0, float(t), "thinker", **changes) for t in range(20)]
    rows += [fixtures.sample(0, float(t), "judge") for t in range(20)]
    return replace(fixtures.result(n=20), timeline=fixtures.table("timeline", *rows))


@pytest.mark.parametrize(
    ("changes", "constraint", "evidence"),
    [
        ({}, "step_time", "busy 50%"),
        ({"waiting": 5, "pages_pinned": 48_000}, "kv", "96% pinned"),
        ({"waiting": 5, "running": 256}, "max_num_seqs", "256"),
        ({"waiting": 5}, "compute", "token budget"),
        ({"waiting_queries": 5, "pages_pinned": 49_000}, "kv", "preemptions"),
    ],
)
def test_the_binding_constraint_is_the_one_built_in(
    changes: dict[str, int], constraint: str, evidence: str
) -> None:
    found = binding(sampled(**changes), fixtures.loaded().scenario)
    assert found.constraint == constraint
    assert evidence in str(found)


def test_a_bounded_number_of_searches_is_named() -> None:
    text = fixtures.SCENARIO.replace(
        "replicas: 2}", "replicas: 2, engine: {max_active_searches: 9}}"
    )
    found = binding(sampled(waiting_queries=4), fixtures.loaded(text).scenario)
    assert found.constraint == "max_active_searches"


def test_a_queue_at_the_verifier_blames_the_verifier() -> None:
    rows = [fixtures.sample(0, float(t), "judge", waiting=3) for t in range(20)]
    result = replace(fixtures.result(n=20), timeline=fixtures.table("timeline", *rows))
    found = binding(result, fixtures.loaded().scenario)
    assert (found.constraint, found.pool) == ("verifier", "judge")


def test_an_engine_that_is_always_busy_with_a_small_batch_does_not_bind() -> None:
    result = fixtures.result(n=20)
    result.pools["busy_s"] = result.pools["total_s"] * result.pools["replicas"] * 0.99
    found = binding(result, fixtures.loaded().scenario)
    assert found.constraint == "step_time"
    assert "20 of 256 sequences" in str(found)


def test_step_time_binds_only_where_an_objective_is_missed() -> None:
    result, spec = fixtures.result(n=20), fixtures.loaded().scenario
    assert any(tier.missed for tier in tier_table(result, spec))
    late = binding(result, spec)
    assert late.numbers["step_s"] == pytest.approx(
        result.pools["busy_s"][0] / result.pools["iterations"][0]
    )
    easy = spec.model_copy(
        update={"tiers": {n: t.model_copy(update={"slo": None}) for n, t in spec.tiers.items()}}
    )
    assert binding(result, easy).constraint == "none"


def test_a_full_batch_or_a_load_near_the_bound_is_limited_by_compute_without_a_queue() -> None:
    full = sampled(running=250)
    full.pools["busy_s"] = full.pools["total_s"] * full.pools["replicas"] * 0.95
    spec = fixtures.loaded().scenario
    assert binding(full, spec).constraint == "compute"
    slow = StepCost.linear(0.010, per_decode=0.02)
    near = noted(fixtures.result(n=60), spec, {"thinker": slow})
    assert near.meta["bounds"][0]["compute"] > 0.9 * 2
    assert (binding(near, spec).constraint, binding(near, spec).pool) == ("compute", "thinker")
