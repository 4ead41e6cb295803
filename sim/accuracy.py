"""How far a prediction is from a measurement: the error of mean and percentiles, and the KS distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sim.renewal import Floats

STATISTICS: Final = ("mean", "p50", "p90", "p95", "p99")
MEAN_LIMIT: Final = 0.02
"""What the mean of a metric may be off by."""
P99_LIMIT: Final = 0.05
"""What its 99th percentile may be off by."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One latency, measured and simulated: each of STATISTICS in s, its relative error, the KS distance.

    An error is simulated / measured - 1. `spread` is the standard error of the measured mean over the mean:
    what another sample of as many requests would differ by.
    """

    name: str
    measured: Mapping[str, float]
    simulated: Mapping[str, float]
    error: Mapping[str, float]
    ks: float
    spread: float
    count: int

    @property
    def holds(self) -> bool:
        """Whether mean and p99 are within the limits."""
        return abs(self.error["mean"]) <= MEAN_LIMIT and abs(self.error["p99"]) <= P99_LIMIT


def compare(name: str, measured: Floats, simulated: Floats) -> Metric:
    """Compare two samples of one latency, both in s and not empty."""
    found, ours = statistics(measured), statistics(simulated)
    error = {key: ours[key] / found[key] - 1 if found[key] else 0.0 for key in STATISTICS}
    mean = found["mean"]
    spread = float(np.std(measured)) / (mean * len(measured) ** 0.5) if mean else 0.0
    return Metric(name, found, ours, error, ks_distance(measured, simulated), spread, len(measured))


def statistics(sample: Floats) -> dict[str, float]:
    """Each of STATISTICS; percentiles interpolate linearly."""
    values = [float(np.mean(sample)), *np.percentile(sample, [50, 90, 95, 99]).tolist()]
    return dict(zip(STATISTICS, values, strict=True))


def ks_distance(one: Floats, other: Floats) -> float:
    """The largest difference of two empirical distribution functions.

    Source: Kolmogorov-Smirnov statistic of two samples.
    """
    a, b = np.sort(one), np.sort(other)
    points = np.concatenate([a, b])
    below_a = np.searchsorted(a, points, side="right") / len(a)
    below_b = np.searchsorted(b, points, side="right") / len(b)
    return float(np.max(np.abs(below_a - below_b)))
