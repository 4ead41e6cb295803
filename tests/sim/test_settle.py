"""A pool settles where what comes in is what goes out: closed forms of a linear step cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.latency import StepCost
from sim.bound import Demand
from sim.settle import settle

PLENTY = {"kv_tokens": 1e12, "max_num_seqs": 4096}


def demand(rate: float, prefill: float = 0.0, decode: float = 1000.0) -> Demand:
    return Demand(rate, prefill, decode)


@given(rate=st.floats(0.01, 20.0), replicas=st.integers(1, 8))
def test_the_batch_is_the_fixed_point_of_littles_law(rate: float, replicas: int) -> None:
    cost = StepCost.linear(base=0.01, per_decode=1e-5)
    found = settle(demand(rate), cost, replicas=replicas, **PLENTY)
    tokens = rate / replicas * 1000
    assert not found.full
    assert found.batch == pytest.approx(tokens * 0.01 / (1 - tokens * 1e-5), rel=0.02, abs=1.6)


def test_prefill_takes_its_share_of_every_second_first() -> None:
    cost = StepCost.linear(base=0.01, per_prefill=1e-4)
    found = settle(demand(5.0, prefill=1000.0), cost, replicas=1, **PLENTY)
    assert found.step_s == pytest.approx(0.01 / (1 - 5 * 1000 * 1e-4), rel=1e-6)


@pytest.mark.parametrize(
    "limits", [{"kv_tokens": 1e12, "max_num_seqs": 16}, {"kv_tokens": 8_000, "max_num_seqs": 4096}]
)
def test_a_pool_that_no_batch_lets_keep_up_is_full(limits: dict[str, float]) -> None:
    cost = StepCost.linear(base=0.01)
    asked = Demand(10.0, 0.0, 1000.0, kv_token_steps=500_000.0)  # each holds 500 tokens
    found = settle(asked, cost, replicas=1, **limits)  # type: ignore[arg-type]
    assert found.full
    assert found.batch == 16


def test_a_verifier_decodes_nothing_and_is_never_full() -> None:
    assert not settle(Demand(9.0, 100.0, 0.0), StepCost.linear(0.01), replicas=1, **PLENTY).full
