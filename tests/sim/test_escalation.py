"""A doubtful answer is searched for again in a larger pool: books, luck and confidence of both searches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

import scenarios
import sim.replication
from pricing.contract import price
from scenarios.errors import ScenarioError
from scenarios.loader import Loaded, load, loads
from sim.compare import compare
from sim.escalation import Escalations, elsewhere
from sim.fleet import Fleet
from sim.metrics import tier_table
from sim.query import Thinking
from sim.records import Result
from sim.replication import arrivals, calibrate_all
from sim.resolve import resolve
from sim.retell import retell
from sim.run import run
from sim.workload import queries

FOLDER = Path(scenarios.__file__).parent
CASCADE = """
replications: 2
horizon: {warmup: 2s, measure: 40s}
fleet:
  small: {model: llama-3.1-8b, device: h200-sxm-141gb, latency: {kind: roofline}}
  large: {model: llama-3.1-70b, device: h200-sxm-141gb, tensor_parallel: 2, latency: {kind: roofline}}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb, latency: {kind: roofline}}
workload:
  arrivals: {rate: 5/s}
  classes:
    math: {preset: math-500, escalated: {pass_rate: {kind: beta, a: 4, b: 1}}}
tiers:
  solver:
    search: {algorithm: self_consistency, n: 4}
    escalate: {below: 80%, search: {algorithm: best_of_n, n: 4}}
pricing: {device_rates: {h200-sxm-141gb: 3.60 USD/h}}
"""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)


def played(*overrides: str) -> tuple[Loaded, Result]:
    asked = loads(CASCADE, "cascade.yaml", overrides)
    return asked, run(resolve(asked), workers=1)


@cache
def cascade() -> tuple[Loaded, Result]:
    return played()


def went_on(found: Result) -> Any:
    return found.queries["first_pool"] != found.queries["policy_pool"]


def test_the_books_of_every_pool_balance_and_both_searches_are_charged() -> None:
    asked, found = cascade()
    table, on = found.queries, went_on(found)
    assert 0.1 < on.mean() < 0.9
    bill = price(found, asked.scenario).bill  # raises where attributed + idle is not the fleet's
    assert bill.attributed_usd + bill.idle_usd == pytest.approx(bill.total_usd, rel=1e-9)
    first, spent = table["first_gpu_seconds"], table["policy_gpu_seconds"]
    assert np.array_equal(first[~on], spent[~on])
    assert (first[on] > 0).all()
    assert (spent[on] > first[on]).all()
    attributed = found.pools["attributed_gpu_seconds"]
    assert attributed[found.pools["pool"] == "small"].sum() == pytest.approx(first.sum())
    assert attributed[found.pools["pool"] == "large"].sum() == pytest.approx((spent - first).sum())
    assert (table["output_tokens"][on] > table["first_output_tokens"][on]).all()
    assert (table["trajectories"][on] == 8).all()
    assert (table["trajectories"][~on] == 4).all()
    assert (table["scores"][~on] == 0).all()
    assert (table["status"] == "answered").all()


def test_the_same_seed_gives_the_same_bytes_on_two_workers() -> None:
    asked, found = cascade()
    again = run(resolve(asked), workers=2)
    for name, column in found.queries.items():
        assert column.tobytes() == again.queries[name].tobytes(), name


def test_hard_questions_go_on_and_are_more_often_right_there() -> None:
    _, found = cascade()
    on = went_on(found)
    assert found.queries["difficulty"][on].mean() < found.queries["difficulty"][~on].mean() - 0.2
    _, never = played("tiers.solver.escalate.below=0.0001")
    assert not went_on(never).any()
    kept = {"difficulty", "first_output_tokens", "input_tokens", "arrival_s"}
    for name in kept:  # the same questions, and the same first searches
        assert np.array_equal(found.queries[name], never.queries[name]), name
    right = found.queries["correct"].astype(float) - never.queries["correct"].astype(float)
    assert not right[~on].any()
    assert right[on].mean() > 0.1


def test_an_answer_from_the_larger_pool_is_as_often_right_as_its_confidence_says() -> None:
    _, found = cascade()
    on = went_on(found)
    said, right = found.queries["confidence"][on], found.queries["correct"][on]
    error = float(np.sqrt((said * (1 - said)).sum()) / on.sum())
    assert abs(said.mean() - right.mean()) < 3 * error + 0.03


def test_nothing_of_either_tree_is_left_when_all_is_over() -> None:
    resolved = resolve(loads(CASCADE, "cascade.yaml"))
    assert resolved.larger is not None
    env, demand = simpy.Environment(), queries(resolved.scenario, 0)
    fleet = Fleet(env, resolved.policy, resolved.judge, resolved.larger.pool)
    thinking: list[Thinking | None] = []
    on = Escalations(resolved, demand, fleet, thinking, calibrate_all(resolved))
    env.process(arrivals(env, resolved, demand, fleet, thinking, begun=on.watch))
    env.run()
    assert on.first
    for replica in fleet.replicas:
        count = replica.batch.tree.count()
        assert (replica.searches, count.pinned, count.cached) == (0, 0, 0), replica.pool


def test_the_first_search_of_an_escalated_query_is_told_as_it_was() -> None:
    asked, found = cascade()
    table = found.queries
    row = int(np.flatnonzero(went_on(found) & (table["replication"] == 0))[3])
    story = retell(resolve(asked), row)
    grown = sum(step.tokens for step in story.steps)
    assert grown == table["first_output_tokens"][row]


def test_the_larger_model_meets_the_same_question_with_other_luck() -> None:
    item = resolve(loads(CASCADE, "cascade.yaml")).classes[0]
    lengths = []
    for key in range(1, 40):
        here, there = item.world(key, 100, -1), elsewhere(item.world(key, 100, -1))
        assert here.difficulty == there.difficulty
        answers = [w.grow(w.root, 0, "answer", None) for w in (here, there)]
        assert here.is_correct(answers[0].answer) == there.is_correct(answers[0].answer)
        lengths.append(answers[0].tokens == answers[1].tokens)
    assert sum(lengths) < 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fleet.large=null", "no pool to escalate to"),
        ("tiers.solver.escalate=null", "no tier escalates to large"),
        ("workload.classes.math.escalated=null", "larger|doubtful"),
        ("tiers.solver.escalate.below=null", "how sure an answer has to be"),
        ("tiers.solver.promise={budget: 9000 tokens}", "bounds a whole query"),
        ("fleet.judge=null", "scores with a verifier"),
    ],
)
def test_what_cannot_escalate_is_refused_with_the_reason(override: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        loads(CASCADE, "cascade.yaml", (override,))


@pytest.mark.slow
def test_the_shipped_cascade_is_as_right_as_the_large_model_alone_and_faster() -> None:
    cascaded, alone = (
        (asked, run(resolve(asked), workers=1, replications=3))
        for asked in (load(FOLDER / f"{name}.yaml") for name in ("small-first", "always-large"))
    )
    assert not tier_table(cascaded[1], cascaded[0].scenario)[0].missed
    assert tier_table(alone[1], alone[0].scenario)[0].missed
    changes = {row.name: row.change for row in compare(cascaded[1], alone[1]).tiers[0].differences}
    assert changes["accuracy"].high < 0.02
    assert changes["mean E2E"].low > 0
    assert changes["GPU-seconds per query"].low > 0
