"""How well a predicted run and a measured run of the same queries agree: ticks, latencies, pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sim.accuracy import ks_distance
from sim.renewal import Floats
from sim.rig import QueryRow, Run
from sim.stepper import TickRow

QUANTILES: Final = (0.50, 0.90, 0.99)
LIMITS: Final[Mapping[str, float]] = {"tick": 0.05, "p50": 0.10, "p90": 0.10, "p99": 0.15}
"""The goals: median error of an iteration, errors of a query's latency. Source: Treeline's goals for the
mini-engine, 2026-11-23."""
_RESAMPLES = 2_000
_COVERED = (5.0, 95.0)  # percentiles of the resampled errors


@dataclass(frozen=True, slots=True)
class TickError:
    """Charged against measured seconds of the same ticks: |charged / measured - 1|, and the ratio of the sums."""

    pool: str
    ticks: int
    median: float
    p90: float
    bias: float  # sum charged / sum measured - 1


@dataclass(frozen=True, slots=True)
class LatencyError:
    """One quantile of a query's latency: predicted and measured in s, the error and its 90 % interval."""

    quantile: str
    predicted_s: float
    measured_s: float
    error: float
    low: float
    high: float


def tick_errors(ticks: Sequence[TickRow]) -> list[TickError]:
    """The error of an iteration's time, by pool and over all."""
    found = []
    for pool in (*dict.fromkeys(row.pool for row in ticks), "all"):
        rows = [row for row in ticks if pool in (row.pool, "all")]
        charged = np.array([row.charged_s for row in rows])
        seconds = np.array([row.seconds for row in rows])
        error = np.abs(charged / seconds - 1.0)
        found.append(
            TickError(
                pool,
                len(rows),
                float(np.median(error)),
                float(np.quantile(error, 0.9)),
                float(charged.sum() / seconds.sum() - 1.0),
            )
        )
    return found


def latencies(queries: Sequence[QueryRow]) -> Floats:
    """Seconds from arrival to answer, in order of number."""
    return np.array([row.finish_s - row.arrival_s for row in queries])


def latency_errors(predicted: Floats, measured: Floats, seed: int = 0) -> list[LatencyError]:
    """Errors of the quantiles over the same queries, resampled in pairs for their intervals."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(measured), (_RESAMPLES, len(measured)))
    found = []
    for q in QUANTILES:
        ours, theirs = float(np.quantile(predicted, q)), float(np.quantile(measured, q))
        again = np.quantile(predicted[draws], q, axis=1) / np.quantile(measured[draws], q, axis=1)
        low, high = np.percentile(again - 1.0, _COVERED).tolist()
        found.append(LatencyError(f"p{q * 100:.0f}", ours, theirs, ours / theirs - 1.0, low, high))
    return found


def agreement(predicted: Run, measured: Run) -> dict[str, Any]:
    """Everything the report says of one load: errors, distance, pages. Both runs hold the same queries."""
    same = [
        (a.number, a.algorithm, a.tokens, a.scores) == (b.number, b.algorithm, b.tokens, b.scores)
        for a, b in zip(predicted.queries, measured.queries, strict=True)
    ]
    ours, theirs = latencies(predicted.queries), latencies(measured.queries)
    return {
        "queries": len(ours),
        "ticks": {
            e.pool: _row(e, ("ticks", "median", "p90", "bias")) for e in tick_errors(measured.ticks)
        },
        "latency": {
            e.quantile: _row(e, ("predicted_s", "measured_s", "error", "low", "high"))
            for e in latency_errors(ours, theirs)
        },
        "ks": ks_distance(ours, theirs),
        "tokens_and_scores_of_each_query_equal": all(same),
        "pages_named_equal_pages_counted": measured.books_agree
        and all(row.pages_named == row.pages_held for row in measured.ticks),
        "peak_pages": {
            pool: {"predicted": predicted.pages_max[pool], "measured": measured.pages_max[pool]}
            for pool in measured.pages_max
        },
        "utilisation": sum(row.seconds for row in measured.ticks) / measured.span_s,
    }


def _row(value: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def verdict(found: Mapping[str, Any]) -> dict[str, bool]:
    """Which goals one load meets."""
    errors = {name: abs(row["error"]) for name, row in found["latency"].items()}
    held = {name: errors[name] <= LIMITS[name] for name in errors}
    return {"tick": found["ticks"]["all"]["median"] <= LIMITS["tick"], **held}
