"""A figure and how far to trust it: percentiles by rank, Student-t intervals over replications or batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sim.records import Table, select, size

Floats = NDArray[np.float64]

_LEVEL = 0.95  # of every interval
_BATCHES = 10  # batch means within one replication


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure from n samples with a 95 % interval; low and high are NaN where none can be given."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0


def rank(q: float, n: int) -> int:
    """The 1-based rank of percentile q in (0, 1] among n sorted values."""
    return min(n, max(1, math.ceil(q * n - 1e-9)))


def percentile(values: Floats, q: float) -> float:
    """The smallest value that at least a share q of the values do not exceed; NaN values are left out.

    Returns NaN for no value. Source: Hyndman and Fan, Sample Quantiles, definition 1, 1996.
    """
    kept = values[~np.isnan(values)]
    if not kept.size:
        return math.nan
    index = rank(q, kept.size) - 1
    return float(np.partition(kept, index)[index])


def interval(
    statistic: Callable[[Table], float], table: Table, least: int = 2
) -> tuple[float, float]:
    """Half-width of the 95 % Student-t interval of a statistic, and the number of groups behind it.

    Groups are the replications; with one replication, 10 batches in order of arrival of at least
    `least` rows. NaN with fewer than two groups or where a group has no finite value.
    Source: Law, Simulation Modeling and Analysis, sections 9.4.1 and 9.5.3, 2015.
    """
    replications = np.unique(table["replication"]) if size(table) else np.array([])
    if replications.size > 1:
        groups = [select(table, table["replication"] == one) for one in replications]
    elif size(table) >= _BATCHES * least:
        order = np.argsort(table["arrival_s"], kind="stable")
        groups = [select(table, part) for part in np.array_split(order, _BATCHES)]
    else:
        return math.nan, 0
    values = np.array([statistic(group) for group in groups])
    if not np.isfinite(values).all():
        return math.nan, len(groups)
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, (1 + _LEVEL) / 2)) * spread, len(groups)


def estimate(
    statistic: Callable[[Table], float],
    table: Table,
    *,
    n: int | None = None,
    least: int = 2,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """A statistic of all rows with its interval, clipped to the bounds that it cannot leave."""
    value = statistic(table)
    half, _ = interval(statistic, table, least)
    low, high = value - half, value + half
    if not math.isnan(half):
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Estimate(value, low, high, size(table) if n is None else n)


def mean(values: NDArray[Any]) -> float:
    """The mean, NaN for no value."""
    return float(values.mean()) if values.size else math.nan
