"""Which promises a verifier can keep: each class in each tier against a calibration sample, refused where it cannot.

A promise needs a threshold of the confidence that Learn-then-Test certifies on as many questions as the business
calibrates with (`pricing.calibration_queries`, other ones than the confidence was fitted to); one that rests on the
raw score has its threshold already; one whose verifier has drifted since has none. What is refused comes with what
could be sold instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from models.batch_rollout import Outcomes, batch_rollout
from models.calibration import Calibrator
from models.crowd import Bools, Floats
from models.keyed import root_keys
from models.promise import Certified, at_threshold, certify, highest, sample_for, sample_needed
from models.search import ALGORITHMS
from models.verifier import VerifierModel
from pricing.contract import Priced
from scenarios.schema import Drift
from sim.estimate import mean
from sim.metrics import answered
from sim.records import Table, measured
from sim.replication import Calibrators, calibrate, pairs
from sim.resolve import Resolved

_SAMPLE, _AUDIT = 5, 6  # random streams: questions that no run and no calibrator meets
_LEAST = 30  # sold answers behind a precision that is used to plan a sample


@dataclass(frozen=True, slots=True)
class Judged:
    """One promise for one class in one tier; USD with the share of idle time.

    `certified` is the threshold under which it may be sold, None where it is refused and `reason` says
    why; `as_sold` is what the sample says of the rule in force (the confidence reaches the promise);
    `supported` the highest promise of the calibrated confidence that
    the sample does support; `needed` the calibration queries this promise would take (`at_least` if
    every sold answer were right), None where no sample would do.
    """

    tier: str
    query_class: str
    promise: float
    basis: str
    queries: int
    certified: Certified | None
    reason: str
    as_sold: Certified | None
    supported: Certified | None
    needed: int | None
    at_least: int
    cost_per_query: float

    @property
    def kept(self) -> bool:
        """Whether the promise may be sold."""
        return self.certified is not None

    def cost_per_sold(self, under: Certified | None) -> float:
        """USD per answer sold under a threshold; inf where none is sold."""
        return self.cost_per_query / under.coverage if under is not None else math.inf


def judge(resolved: Resolved, priced: Priced, calibrators: Calibrators) -> tuple[Judged, ...]:
    """Every promised confidence, by tier and class, in the scenario's order.

    `calibrators` are those of `calibrators_of`.
    """
    scenario = resolved.scenario
    table, overhead = measured(priced.result.queries), priced.bill.overhead
    found = []
    for tier_index, (tier, item) in enumerate(scenario.tiers.items()):
        if item.promise is None or item.promise.confidence is None:
            continue
        for class_index, name in enumerate(scenario.workload.classes):
            if (class_index, tier_index) in calibrators:
                rows = (table["tier"] == tier) & (table["class"] == name)
                cost = mean(table["cost_usd"][rows]) * overhead
                calibrator = calibrators[class_index, tier_index]
                found.append(_judge(resolved, class_index, tier_index, calibrator, cost))
    return tuple(found)


def calibrators_of(resolved: Resolved) -> Calibrators:
    """The calibrators of the run for every class and tier with a promised confidence."""
    tiers = list(resolved.scenario.tiers.values())
    return {
        (c, t): calibrate(resolved, c, t)
        for c, t in pairs(resolved)
        if (promise := tiers[t].promise) is not None and promise.confidence is not None
    }


def certified_only(priced: Priced, judged: tuple[Judged, ...]) -> Table:
    """The queries of a run, with `accepted` where the promise is certified and the confidence reaches its threshold.

    Classes and tiers without a promised confidence stay as they are.
    """
    table = dict(priced.result.queries)
    accepted = table["accepted"].copy()
    for item in judged:
        rows = (table["tier"] == item.tier) & (table["class"] == item.query_class)
        limit = math.inf if item.certified is None else item.certified.threshold
        accepted[rows] = answered(table)[rows] & (table["confidence"][rows] >= limit)
    table["accepted"] = accepted
    return table


def sample(
    resolved: Resolved, class_index: int, tier_index: int, n: int, *, audit: bool = False,
    drift: Drift | None = None,
) -> Outcomes:  # fmt: skip
    """The outcomes of `n` fresh questions of a class under a tier's search, with the verifier drifted or not.

    `audit` draws other questions than the calibration sample.
    """
    item, chosen = resolved.classes[class_index], resolved.plans[tier_index]
    stream = _AUDIT if audit else _SAMPLE
    keys = root_keys(resolved.scenario.seed, class_index * 1000 + tier_index, stream, n)
    tokens = max(1, round(item.questions.prompt_tokens(0.5)))
    verifier = item.verifier if drift is None else drifted(item.verifier, drift)
    return batch_rollout(item.questions, verifier, keys, chosen, item.output_tokens, tokens)


def drifted(verifier: VerifierModel | None, drift: Drift) -> VerifierModel | None:
    """The verifier in service after a drift: shifted, weaker or stronger, with the same noise."""
    if verifier is None:
        return None
    bias, strength = verifier.bias + drift.bias, verifier.strength * drift.strength
    return replace(verifier, bias=bias, strength=strength)


def confidences(found: Outcomes, basis: str, calibrator: Calibrator) -> Floats:
    """The confidence of each outcome of a sample as a tier sells it, NaN where there is no answer, shape (n,)."""
    signal = np.where(found.answered, found.signal, np.nan)
    if basis == "score":
        return signal
    return np.interp(signal, calibrator.signals, calibrator.confidences)


def plan_sample(confidence: Floats, correct: Bools, promise: float, delta: float) -> int | None:
    """About how many calibration queries a promise would take, judged by this sample; None: no number would do.

    For each threshold with enough sold answers: the sample that its precision needs (drawn a little
    towards one half, by Laplace's rule) over its coverage; the least of them.
    """
    order = np.argsort(-confidence, kind="stable")
    known = int(np.isfinite(confidence).sum())
    right = np.cumsum(correct[order])
    needed: list[int] = []
    for sold in sorted({min(known, max(_LEAST, known * step // 20)) for step in range(1, 21)}):
        if sold < min(_LEAST, known) or sold == 0:
            continue
        wanted = sample_for(promise, (int(right[sold - 1]) + 1) / (sold + 2), delta)
        if wanted is not None:
            needed.append(math.ceil(wanted * len(confidence) / sold))
    return min(needed, default=None)


def _judge(
    resolved: Resolved, class_index: int, tier_index: int, calibrator: Calibrator, cost: float
) -> Judged:
    scenario = resolved.scenario
    pricing = scenario.pricing
    tier = list(scenario.tiers)[tier_index]
    promised = scenario.tiers[tier].promise
    assert promised is not None
    assert promised.confidence is not None
    goal, basis, delta = promised.confidence, promised.basis, pricing.delta
    if resolved.onward(tier_index) is not None:
        return _uncertified(resolved, class_index, tier_index, cost)
    n = pricing.calibration_queries
    drawn = sample(resolved, class_index, tier_index, n)
    said = confidences(drawn, basis, calibrator)
    rule = at_threshold(said, drawn.correct, goal, goal, delta)
    if basis == "score":
        found = rule if rule is not None and rule.bound >= goal else None
        reason = "the raw score is no confidence"
    else:
        found = certify(said, drawn.correct, goal, delta)
        reason = _why(n, sample_needed(goal, 0, delta))
    verified = ALGORITHMS[resolved.plans[tier_index].algorithm].needs_verifier
    if pricing.drift is not None and verified:
        drawn = sample(resolved, class_index, tier_index, n, audit=True, drift=pricing.drift)
        said = confidences(drawn, basis, calibrator)
        rule = at_threshold(said, drawn.correct, goal, goal, delta)
        found, reason = None, "calibrated before the verifier drifted"
    honest = confidences(drawn, "calibrated", calibrator)
    return Judged(
        tier=tier,
        query_class=list(scenario.workload.classes)[class_index],
        promise=goal,
        basis=basis,
        queries=n,
        certified=found,
        reason="" if found else reason,
        as_sold=rule,
        supported=found or highest(honest, drawn.correct, delta, below=goal),
        needed=None if found else plan_sample(honest, drawn.correct, goal, delta),
        at_least=sample_needed(goal, 0, delta),
        cost_per_query=cost,
    )


def _uncertified(resolved: Resolved, class_index: int, tier_index: int, cost: float) -> Judged:
    """The promise of a tier that escalates: what two searches come to is not certified."""
    tier = list(resolved.scenario.tiers)[tier_index]
    promised = resolved.scenario.tiers[tier].promise
    assert promised is not None
    assert promised.confidence is not None
    goal, pricing = promised.confidence, resolved.scenario.pricing
    return Judged(
        tier=tier,
        query_class=list(resolved.scenario.workload.classes)[class_index],
        promise=goal,
        basis=promised.basis,
        queries=0,
        certified=None,
        reason="a tier that escalates answers by two searches, which this version does not certify",
        as_sold=None,
        supported=None,
        needed=None,
        at_least=sample_needed(goal, 0, pricing.delta),
        cost_per_query=cost,
    )


def _why(n: int, at_least: int) -> str:
    if n < at_least:
        return f"{n:,} calibration queries are too few"
    return "no threshold of the confidence supports it"
