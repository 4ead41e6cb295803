"""A promise that the verifier cannot keep is refused by class, with what could be sold instead; and what drift costs."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest

from pricing.contract import Priced, price
from pricing.drift import alarm_days, divergence, drift_costs
from pricing.pricelist import price_list
from pricing.promises import Judged, calibrators_of, judge
from scenarios.loader import loads
from scenarios.schema import Drift
from sim.records import Result
from sim.replication import Calibrators, replicate
from sim.resolve import Resolved, resolve

SCENARIO = """
name: promises
question: What may be promised?
replications: 1
horizon: {warmup: 2s, measure: 20s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, latency: {kind: roofline}}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb, latency: {kind: roofline}}
workload:
  arrivals: {rate: 4/s}
  classes: {math: {preset: math-500, share: 50%}, puzzle: {preset: gsm8k, share: 50%}}
tiers:
  sure:
    share: 50%
    search: {algorithm: weighted_vote, n: 8}
    promise: {confidence: SURE}
    price: {per_answer: 0.02 USD, refund: 100%}
  score:
    share: 50%
    search: {algorithm: best_of_n, n: 4}
    promise: {confidence: 90%, basis: score}
    price: {per_answer: 0.01 USD, refund: 2.0}
pricing: {calibration_queries: QUERIESDRIFT}
"""


@lru_cache(maxsize=4)
def played(sure: str, queries: int, drift: str = "") -> tuple[Resolved, Result, Priced]:
    text = SCENARIO.replace("SURE", sure).replace("QUERIES", str(queries)).replace("DRIFT", drift)
    resolved = resolve(loads(text, "promises.yaml"))
    result = replicate(resolved, 0, calibrators())
    return resolved, result, price(result, resolved.scenario)


@lru_cache(maxsize=1)
def calibrators() -> Calibrators:
    """Of all variants: they depend on the questions and the searches alone."""
    text = SCENARIO.replace("SURE", "90%").replace("QUERIES", "90").replace("DRIFT", "")
    return calibrators_of(resolve(loads(text, "promises.yaml")))


def judged(sure: str, queries: int, drift: str = "") -> dict[tuple[str, str], Judged]:
    resolved, _, priced = played(sure, queries, drift)
    found = judge(resolved, priced, calibrators())
    return {(item.tier, item.query_class): item for item in found}


def test_97_percent_a_class_is_refused_on_90_calibration_queries_and_99_are_the_least() -> None:
    found = judged("97%", 90)
    for name in ("math", "puzzle"):
        item = found["sure", name]
        assert not item.kept
        assert item.reason == "90 calibration queries are too few"
        assert (item.queries, item.at_least) == (90, 99)
        assert item.needed is None or item.needed > 90
        assert item.supported is not None
        assert 0.5 < item.supported.promise < 0.97
        assert item.supported.bound >= item.supported.promise
        cost = item.cost_per_query / item.supported.coverage
        assert item.cost_per_sold(item.supported) == pytest.approx(cost)


def test_90_percent_from_the_raw_score_at_4_samples_is_refused_where_it_is_not_true() -> None:
    found = judged("90%", 1000)
    item = found["score", "math"]
    assert not item.kept
    assert item.reason == "the raw score is no confidence"
    assert item.as_sold is not None
    assert item.as_sold.precision < 0.8
    assert item.supported is not None
    assert item.supported.promise < 0.9
    for other in found.values():  # a class of which it is true would be sold
        if other.tier == "score":
            assert other.as_sold is not None
            assert other.kept == (other.as_sold.bound >= 0.9)


def test_the_same_promise_is_kept_on_a_thousand_queries_and_refused_after_a_drift() -> None:
    before, after = judged("90%", 1000), judged("90%", 1000, ", drift: {bias: 1.0, strength: 0.6}")
    for name in ("math", "puzzle"):
        assert before["sure", name].kept
        assert not after["sure", name].kept
        assert not after["score", name].kept
        assert after["sure", name].reason == "calibrated before the verifier drifted"
        assert after["score", name].as_sold is not None
    score = "score", "math"
    assert after[score].as_sold.precision < before[score].as_sold.precision  # type: ignore[union-attr]


def test_a_certified_promise_holds_on_fresh_queries() -> None:
    from pricing.promises import confidences, sample

    resolved, _, _ = played("90%", 1000)
    for index, name in enumerate(resolved.scenario.workload.classes):
        found = judged("90%", 1000)["sure", name].certified
        assert found is not None
        fresh = sample(resolved, index, 0, 3000, audit=True)
        sold = confidences(fresh, "calibrated", calibrators()[index, 0]) >= found.threshold
        assert sold.mean() == pytest.approx(found.coverage, abs=0.06)
        assert fresh.correct[sold].mean() >= 0.9


def test_the_list_earns_less_or_more_when_only_certified_promises_are_sold() -> None:
    resolved, result, priced = played("97%", 90)
    found = price_list(resolved, result)
    assert {item.tier for item in found.refused} == {"sure", "score"}
    assert [line.tier for line in found.lines] == ["sure", "score"]
    sure, before = found.certified[0], priced.tiers[0]
    assert sure.revenue_usd == 0
    assert sure.margin_usd == pytest.approx(-(before.cost_usd + before.idle_usd))


def test_a_shifted_verifier_sells_more_wrong_answers_and_the_money_is_the_closed_form() -> None:
    resolved, _, priced = played("90%", 1000)
    drift = Drift(bias=1.5, audited=0.02)
    (sure, score) = drift_costs(resolved, priced, calibrators(), drift)
    assert (sure.tier, score.tier) == ("sure", "score")
    assert score.coverage[1] > score.coverage[0]
    assert score.precision[1] < score.precision[0]
    assert score.wrong > 0
    assert 0 < score.days < math.inf
    each = [
        a * 0.01 * (1 - 2 * (1 - s)) for a, s in zip(score.coverage, score.precision, strict=True)
    ]
    assert score.lost_usd == pytest.approx((each[0] - each[1]) * score.queries)
    assert score.seen_days == min(score.days, score.unlabelled_days)
    assert score.until_seen_usd == pytest.approx(score.lost_usd * score.seen_days)
    none = drift_costs(resolved, priced, calibrators(), Drift())
    assert [(row.lost_usd, row.until_seen_usd) for row in none] == [(0, 0), (0, 0)]


def test_the_audit_raises_its_alarm_when_it_is_said_to_and_rarely_without_a_reason() -> None:
    before, after, per_day, quiet_days = 0.95, 0.85, 200.0, 30.0
    rng = np.random.default_rng(2)
    threshold = math.log(per_day * quiet_days)
    good, bad = math.log(after / before), math.log((1 - after) / (1 - before))

    def checks(share: float, most: int) -> int:
        total = 0.0
        for number in range(1, most):
            total = max(0.0, total + (good if rng.random() < share else bad))
            if total >= threshold:
                return number
        return most

    delay = np.mean([checks(after, 100_000) for _ in range(200)]) / per_day
    assert alarm_days(before, after, per_day, quiet_days) == pytest.approx(delay, rel=0.25)
    alarms = [checks(before, int(per_day * quiet_days)) < per_day * quiet_days for _ in range(40)]
    assert np.mean(alarms) < 0.5
    assert math.isinf(alarm_days(0.9, 0.9, per_day, quiet_days))
    assert divergence(0.5, 0.25) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
