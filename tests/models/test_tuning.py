"""Training of search parameters: never dearer, better on questions it never saw, and honest where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from models.controller import plan
from models.latency import StepCost
from models.question import question_model
from models.search import ALGORITHMS
from models.tuning import NOT_TRAINED, Bench, Prices, judge, prices, train, trained_parameters
from models.verifier import verifier_model

PRICE = Prices(3e-4, 5e-5)


def bench(preset: str, seed: int = 0) -> Bench:
    questions = question_model(preset)
    return Bench(questions, verifier_model(questions.verifier), seed)


@pytest.mark.slow
def test_a_trained_stopping_rule_is_right_more_often_for_no_more_gpu_seconds() -> None:
    found = train(bench("math-500"), "adaptive_vote", PRICE)
    assert found.gain.low > 0
    assert found.cost_ratio.value <= 1
    assert found.plan != found.default


@pytest.mark.slow
def test_trained_widening_and_pruning_are_better_or_much_cheaper_and_no_worse() -> None:
    found = train(bench("math-500"), "tree_search", PRICE, given={"width": 8})
    better = found.gain.low > 0 and found.cost_ratio.value <= 1
    cheaper = found.gain.low > -0.01 and found.cost_ratio.high < 0.95
    assert better or cheaper


def test_training_is_the_same_every_time_and_tries_only_what_it_is_told() -> None:
    def once() -> object:
        return train(
            bench("gsm8k"), "rebase", PRICE, given={"n": 4}, only=["temperature"], candidates=6,
            questions=100, held_out=100,
        )  # fmt: skip

    first, again = once(), once()
    assert first == again
    assert first.plan.params["n"] == 4  # type: ignore[attr-defined]


def test_a_plan_judged_against_itself_gains_nothing_for_the_same_cost() -> None:
    same = plan("best_of_n", n=4)
    found = judge(bench("gsm8k"), same, same, PRICE, 300)
    assert (found.gain.low, found.gain.high) == (0.0, 0.0)
    assert (found.cost_ratio.low, found.cost_ratio.high) == (1.0, 1.0)


def test_the_interval_of_a_real_difference_holds_it_on_other_questions() -> None:
    few, many = plan("self_consistency", n=2), plan("self_consistency", n=16)
    found = judge(bench("math-500"), many, few, PRICE, 1500)
    other = judge(bench("math-500", seed=5), many, few, PRICE, 6000)
    assert found.gain.low < other.gain.value < found.gain.high
    assert found.cost_ratio.value == pytest.approx(8, rel=0.05)


def test_a_token_costs_what_a_full_batch_makes_of_it() -> None:
    policy = StepCost.linear(8e-3, per_decode=1e-5, per_prefill=2e-5)
    found = prices(policy, policy, batch=64, chunk=2048)
    assert found.generated_s == pytest.approx((8e-3 + 64e-5) / 64)
    assert found.scored_s == pytest.approx((8e-3 + 2048 * 2e-5) / 2048)
    outcomes = bench("gsm8k").play(plan("best_of_n", n=2), 50, "test")
    assert np.allclose(
        found.cost("best_of_n", outcomes),
        outcomes.tokens * (found.generated_s + found.scored_s),
    )
    free = found.cost("self_consistency", outcomes)
    assert np.allclose(free, outcomes.tokens * found.generated_s)


def test_every_number_that_is_no_guard_can_be_trained() -> None:
    assert set(trained_parameters("tree_search")) == {
        "width", "expand", "max_children", "confidence", "margin", "stop",
    }  # fmt: skip
    for name, algorithm in ALGORITHMS.items():
        if set(algorithm.parameters) - NOT_TRAINED:
            assert trained_parameters(name)
