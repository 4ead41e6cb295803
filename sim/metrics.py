"""Queries become figures per tier: latency percentiles, attainment, goodput, quality, calibration.

Definitions. Only queries of the measured horizon count, and *all* of them that were offered: one
that was refused or never finished has infinite latency. TTFT = first token - arrival; TTFAT = first
token of the answer - arrival; E2E = finish - arrival; TPOT = (E2E - TTFT) / (output tokens - 1), in
tokens of all branches. A percentile q of n offered queries is the ceil(q n)-th smallest value, so
that it is within a target exactly when the attained share is at least q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.schema import Scenario, Tier
from sim.estimate import Estimate, Floats, estimate, mean, percentile, rank
from sim.records import Result, Table, measured, select, size

LATENCIES = ("ttft", "ttfat", "tpot", "e2e")
QUANTILES = (0.50, 0.95, 0.99)
_BEYOND = 10  # samples beyond a percentile below which it is marked as having few


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one latency in s over n offered queries; `few` names those with few samples."""

    metric: str
    n: int
    p50: Estimate
    p95: Estimate
    p99: Estimate
    few: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One objective of a tier: observed percentile (s) beside its target, and the attained share."""

    name: str
    metric: str
    quantile: float
    target_s: float
    observed_s: float
    attained: float
    n: int
    met: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability table: mean confidence and share correct of its n answers."""

    low: float
    high: float
    n: int
    confidence: float
    correct: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence is from the truth over n answers that came with one.

    ece = sum over bins of share * |confidence - correct|; brier = mean (confidence - correct)^2.
    Source: Guo et al., On Calibration of Modern Neural Networks, section 2, 2017; Brier, 1950.
    """

    n: int
    mean_confidence: float
    ece: float
    brier: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class TierMetrics:
    """All figures of one tier; rates in 1/s, shares in [0, 1], latencies in s.

    `goodput` are queries per second that met every target of the tier (`attained`: their share of
    all offered). Of several targets on one latency the loosest is what a single query has to meet.
    `accuracy` is over those answered, `coverage` the accepted share of all offered, `precision` the
    share correct of those accepted.
    """

    tier: str
    n: int
    offered_per_s: float
    goodput_per_s: Estimate
    attained: Estimate
    answered: int
    cut: int
    refused: int
    unfinished: int
    escalated: int
    accuracy: Estimate
    coverage: Estimate
    precision: Estimate
    promised: float | None
    calibration: Calibration
    latency: tuple[Latency, ...]
    targets: tuple[Target, ...]
    output_tokens: float
    trajectories: float
    gpu_seconds: float
    verify_s: float
    preemptions: int

    @property
    def missed(self) -> tuple[Target, ...]:
        """The targets that do not hold."""
        return tuple(target for target in self.targets if not target.met)

    def of(self, metric: str) -> Latency:
        """The percentiles of one of `LATENCIES`."""
        return self.latency[LATENCIES.index(metric)]


def answered(queries: Table) -> NDArray[np.bool_]:
    """Which queries got an answer, shape (rows,)."""
    status = queries["status"]
    return np.asarray((status == "answered") | (status == "cut"))


def latencies(queries: Table) -> dict[str, Floats]:
    """Latency in s by name, shape (rows,): inf where it never came, NaN where it does not apply.

    TPOT does not apply to fewer than two output tokens, the others not to an answered query whose
    time is not recorded.
    """
    arrival = queries["arrival_s"]
    got = answered(queries)
    e2e = queries["finish_s"] - arrival
    ttft = queries["first_token_s"] - arrival
    found = {"ttft": ttft, "ttfat": queries["first_answer_token_s"] - arrival, "e2e": e2e}
    tokens = queries["output_tokens"].astype(np.float64)
    found["tpot"] = np.divide(
        e2e - ttft, tokens - 1, out=np.full_like(e2e, np.nan), where=tokens > 1
    )
    late = {name: np.where(np.isnan(value) & ~got, np.inf, value) for name, value in found.items()}
    return {name: late[name] for name in LATENCIES}


def calibration(confidence: Floats, correct: NDArray[np.bool_], bins: int = 10) -> Calibration:
    """Compare confidences in [0, 1] with the truth in equal-width bins; NaN confidences are left out."""
    known = ~np.isnan(confidence)
    said, truth = confidence[known], correct[known].astype(np.float64)
    if not said.size:
        return Calibration(0, math.nan, math.nan, math.nan, ())
    index = np.minimum((said * bins).astype(np.int64), bins - 1)
    table = []
    for number in np.unique(index):
        inside = index == number
        table.append(
            Bin(
                number / bins,
                (number + 1) / bins,
                int(inside.sum()),
                mean(said[inside]),
                mean(truth[inside]),
            )
        )
    ece = sum(row.n * abs(row.confidence - row.correct) for row in table) / said.size
    return Calibration(said.size, mean(said), ece, mean((said - truth) ** 2), tuple(table))


def split_target(name: str) -> tuple[str, float]:
    """`e2e_p95` is ("e2e", 0.95)."""
    metric, quantile = name.rsplit("_p", 1)
    return metric, int(quantile) / 100


def loosest(tier: Tier) -> dict[str, float]:
    """The bound in s that a single query of a tier has to meet, by latency."""
    bounds: dict[str, float] = {}
    for name, target_s in (tier.slo.targets if tier.slo else {}).items():
        metric, _ = split_target(name)
        bounds[metric] = max(target_s, bounds.get(metric, 0.0))
    return bounds


def meets(queries: Table, tier: Tier) -> NDArray[np.bool_]:
    """Which queries were answered within every bound of the tier, shape (rows,)."""
    good = answered(queries)
    times = latencies(queries)
    for metric, bound_s in loosest(tier).items():
        good = good & ((times[metric] <= bound_s) | np.isnan(times[metric]))
    return np.asarray(good)


def span_s(result: Result) -> float:
    """Measured seconds, summed over replications."""
    pools = result.pools
    return sum(
        float(pools["span_s"][pools["replication"] == one].max())
        for one in np.unique(pools["replication"])
    )


def tier_table(result: Result, scenario: Scenario) -> list[TierMetrics]:
    """The figures of every tier, in the scenario's order; a tier without queries has n = 0."""
    queries, span = measured(result.queries), span_s(result)
    return [
        _tier(name, tier, select(queries, queries["tier"] == name), span)
        for name, tier in scenario.tiers.items()
    ]


def _tier(name: str, tier: Tier, table: Table, span: float) -> TierMetrics:
    n, got, status = size(table), answered(table), table["status"]
    rate = n / span if span > 0 else math.nan
    kept, sold = select(table, got), select(table, table["accepted"])
    attained = estimate(lambda rows: mean(meets(rows, tier)), table, bounds=(0, 1))
    return TierMetrics(
        tier=name,
        n=n,
        offered_per_s=rate,
        goodput_per_s=_goodput(attained, rate),
        attained=attained,
        answered=int(got.sum()),
        cut=int((status == "cut").sum()),
        refused=int((status == "refused").sum()),
        unfinished=int((status == "unfinished").sum()),
        escalated=int((table["first_pool"] != table["policy_pool"]).sum()),
        accuracy=estimate(lambda rows: mean(rows["correct"]), kept, bounds=(0, 1)),
        coverage=estimate(lambda rows: mean(rows["accepted"]), table, bounds=(0, 1)),
        precision=estimate(lambda rows: mean(rows["correct"]), sold, bounds=(0, 1)),
        promised=tier.promise.confidence if tier.promise else None,
        calibration=calibration(kept["confidence"], kept["correct"]),
        latency=tuple(latency(table, metric) for metric in LATENCIES),
        targets=targets(table, tier),
        output_tokens=mean(kept["output_tokens"]),
        trajectories=mean(kept["trajectories"]),
        gpu_seconds=mean(table["gpu_seconds"]),
        verify_s=mean(kept["verify_s"]),
        preemptions=int(table["num_preemptions"].sum()),
    )


def _goodput(attained: Estimate, rate: float) -> Estimate:
    """Attained share times offered rate, with the interval of the share."""
    return Estimate(attained.value * rate, attained.low * rate, attained.high * rate, attained.n)


def latency(table: Table, metric: str) -> Latency:
    """The percentiles of one of `LATENCIES` with intervals, and which rest on few samples."""
    times = latencies(table)[metric]
    kept = ~np.isnan(times)
    slim = {"replication": table["replication"], "arrival_s": table["arrival_s"], "time_s": times}
    slim = select(slim, kept)
    n = size(slim)

    def at(q: float) -> Estimate:
        beyond = math.ceil(1 / (1 - q))  # a batch needs at least one sample beyond the percentile
        return estimate(
            lambda rows: percentile(rows["time_s"], q), slim, least=beyond, bounds=(0, math.inf)
        )

    few = tuple(f"p{round(100 * q)}" for q in QUANTILES if n * (1 - q) < _BEYOND - 1e-9)
    return Latency(metric, n, at(0.50), at(0.95), at(0.99), few)


def targets(table: Table, tier: Tier) -> tuple[Target, ...]:
    """Judge each target of a tier over all offered queries; with no query at all it holds."""
    times, found = latencies(table), []
    for name, target_s in (tier.slo.targets if tier.slo else {}).items():
        metric, q = split_target(name)
        values = times[metric][~np.isnan(times[metric])]
        within = int((values <= target_s).sum())
        met = not values.size or within >= rank(q, values.size)
        share = within / values.size if values.size else math.nan
        found.append(
            Target(name, metric, q, target_s, percentile(values, q), share, values.size, met)
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class JointBin:
    """Answers by latency: within [low_s, high_s], n of them, their accuracy and mean confidence."""

    low_s: float
    high_s: float
    n: int
    accuracy: float
    confidence: float


def joint(queries: Table, bins: int = 4) -> tuple[JointBin, ...]:
    """Quality given latency: answers in `bins` groups of equal size by E2E, fastest first."""
    kept = select(queries, answered(queries))
    e2e = latencies(kept)["e2e"]
    order = np.argsort(e2e, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, max(1, order.size))):
        if part.size:
            said = kept["confidence"][part]
            low, high = float(e2e[part[0]]), float(e2e[part[-1]])
            sure = mean(said[~np.isnan(said)])
            found.append(JointBin(low, high, part.size, mean(kept["correct"][part]), sure))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class PoolMetrics:
    """KV memory and use of one pool over all replications; pages are per replica.

    Means are over the samples of the measured span: pages that running sequences hold (`pinned_mean`), those
    kept for reuse (`cached_mean`), and what the running ones would hold without sharing (`naive_mean`);
    `saved` is the share of the latter that sharing saves. `pages_max` is the most that a replica ever
    pinned, `hit` the share of context tokens found in the prefix cache, `utilisation` of the whole simulation.
    """

    pool: str
    role: str
    device: str
    replicas: int
    gpus: int
    utilisation: float
    pages_total: int
    pages_max: int
    naive_mean: float
    pinned_mean: float
    cached_mean: float
    saved: float
    hit: float
    num_preemptions: int
    cost_label: str
    cost_source_kind: str


def pool_table(result: Result) -> list[PoolMetrics]:
    """The figures of every pool, in the order of the table."""
    pools = result.pools
    names = list(dict.fromkeys(pools["pool"].tolist()))
    return [_pool(result, name) for name in names]


def _pool(result: Result, name: str) -> PoolMetrics:
    rows = select(result.pools, result.pools["pool"] == name)
    samples = _in_span(select(result.timeline, result.timeline["pool"] == name), rows)
    time = float((rows["total_s"] * rows["replicas"]).sum())
    naive, pinned = mean(samples["pages_naive"]), mean(samples["pages_pinned"])
    context = float(rows["prefix_hit_tokens"].sum() + rows["computed_tokens"].sum())
    return PoolMetrics(
        pool=name,
        role=str(rows["role"][0]),
        device=str(rows["device"][0]),
        replicas=int(rows["replicas"][0]),
        gpus=int(rows["gpus"][0]),
        utilisation=float(rows["busy_s"].sum()) / time if time > 0 else math.nan,
        pages_total=int(rows["pages_total"][0]),
        pages_max=int(rows["pages_max"].max()),
        naive_mean=naive,
        pinned_mean=pinned,
        cached_mean=mean(samples["pages_cached"]),
        saved=1 - pinned / naive if naive > 0 else 0.0,
        hit=float(rows["prefix_hit_tokens"].sum()) / context if context > 0 else 0.0,
        num_preemptions=int(rows["num_preemptions"].sum()),
        cost_label=str(rows["cost_label"][0]),
        cost_source_kind=str(rows["cost_source_kind"][0]),
    )


def _in_span(samples: Table, rows: Table) -> Table:
    """The samples of the measured span, which ends with the last sample of each replication."""
    kept = np.zeros(size(samples), dtype=bool)
    for replication, span in zip(rows["replication"], rows["span_s"], strict=True):
        mine = samples["replication"] == replication
        if mine.any():
            kept |= mine & (samples["time_s"] > samples["time_s"][mine].max() - span)
    return select(samples, kept)


def warnings(tiers: Sequence[TierMetrics]) -> list[str]:
    """What a reader has to know before believing the percentiles, one sentence each."""
    found = []
    for tier in tiers:
        few = sorted({name for item in tier.latency if item.metric != "tpot" for name in item.few})
        if tier.n and few:
            found.append(f"{tier.tier}: {tier.n} queries are few for {', '.join(few)}")
        elif not tier.n:
            found.append(f"{tier.tier}: no query arrived in the measured time")
    return found
