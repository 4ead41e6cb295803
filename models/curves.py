"""One operation's time over its rows: a smooth floor times a learned residual, through every measured point.

A measured time t at m rows is floor(m) exp(r(m)): the floor is physics (bytes over bandwidth and FLOP over
rate, rounded where they meet, plus a launch), the residual r is what was measured on top. Where the very
matrix was measured, r comes from its points. Elsewhere r carries over from matrices of nearby size by a
locally weighted quadratic regression in (log n, log k), one for each m (scikit-learn's Ridge). Times are
then made monotone in m by isotonic projection, and between two points follow the floor. Outside the
points the utilisation of the last one is held.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw.profile import Column

Array = np.ndarray[Any, np.dtype[Any]]
# A kernel starts, runs and ends: no operation is shorter. Only the shape of the floor between points depends on
# it. Source: least of 27,648 H200 GEMMs, NVIDIA aiconfigurator, 2026-11-23.
LAUNCH_S = 4e-6
# Width of the neighbourhood in log size: e^0.35 is 1.4 times as wide or as narrow. Source: least error on
# matrices left out, docs/cost-model.md.
_WIDTH = 0.35
_RIDGE = 1e-3
_LEAST_NEIGHBOURS = 8
# Kernels take tiles of this many rows: other counts run ragged, at another speed. Source: the jump of fp8
# GEMMs between m = 768 and 769 in aiconfigurator's H200 tables.
TILE = 16


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of all calls of one operation over its rows (ascending), monotone by construction.

    `floor(m)` is the smooth floor in s; `times` are those at `rows`. `shift` is the median relative change
    that the isotonic projection made at the points, `exact` whether the very matrix was measured.
    """

    floor: Callable[[float], float]
    rows: tuple[float, ...]
    times: tuple[float, ...]
    shift: float = 0.0
    exact: bool = True
    source: str = ""

    def seconds(self, rows: float) -> float:
        """Time at `rows`: the points where they were measured, the floor's shape between them."""
        if rows <= 0:
            return 0.0
        i = bisect_left(self.rows, rows)
        if i < len(self.rows) and self.rows[i] == rows:
            return self.times[i]
        floor = self.floor(rows)
        if i == 0:
            return floor * self.times[0] / self.floor(self.rows[0])
        if i == len(self.rows):
            return floor * self.times[-1] / self.floor(self.rows[-1])
        low, high = self.floor(self.rows[i - 1]), self.floor(self.rows[i])
        if high > low:
            share = (floor - low) / (high - low)
        else:
            share = (rows - self.rows[i - 1]) / (self.rows[i] - self.rows[i - 1])
        return self.times[i - 1] + share * (self.times[i] - self.times[i - 1])

    def inside(self, rows: float) -> bool:
        """Whether `rows` lies between measured points."""
        return self.rows[0] <= rows <= self.rows[-1]


def smooth_floor(moved: float, flop: float, bandwidth: float, rate: float, calls: int = 1) -> float:
    """Seconds of `calls` launches, bytes and FLOP together: the larger counts, rounded where they meet."""
    return calls * LAUNCH_S + math.hypot(moved / bandwidth, flop / rate)


def ragged(rows: Column) -> Column:
    """Which row counts fill no whole tile (and are more than one tile)."""
    found: Column = (rows > TILE) & (rows % TILE != 0)
    return found


def chosen(rows: Column, *, whole_tiles: bool) -> Column:
    """The points of a curve: up to a tile all, beyond it those that fill tiles, or those that do not.

    All of them where the kind that is asked for was not measured.
    """
    odd = ragged(rows)
    keep = ~odd if whole_tiles else odd | (rows <= TILE)
    beyond = keep & (rows > TILE)
    return keep if beyond.any() else np.ones(len(rows), bool)


def through(floor: Callable[[float], float], rows: Column, times: Column, **more: Any) -> Curve:
    """The curve through measured (rows, seconds): medians of repeated points, then isotonic."""
    points = np.unique(rows)
    middle = np.array([np.median(times[rows == point]) for point in points])
    smooth, shift = isotonic(points, middle)
    return Curve(floor, tuple(map(float, points)), tuple(smooth.tolist()), shift, **more)


def isotonic(rows: Column, times: Column) -> tuple[Column, float]:
    """Times made non-decreasing in rows with the least change in log time; and the median change."""
    if len(times) < 2 or bool(np.all(np.diff(times) >= 0)):
        return times, 0.0
    from sklearn.isotonic import IsotonicRegression

    projected = np.exp(IsotonicRegression().fit(rows, np.log(times)).predict(rows))
    projected = np.maximum.accumulate(projected)
    return projected, float(np.median(np.abs(projected / times - 1)))


def transferred(
    target: tuple[float, float], sizes: Array, rows: Column, logs: Column
) -> tuple[Array, Array] | None:
    """Residuals of a matrix of size `target` (n, k) from those of others: (rows, log residuals).

    `sizes` (points, 2), `rows` and `logs` are of the measured points. The target is held inside the hull of
    sizes. None when fewer than eight matrices lie near.
    """
    from sklearn.linear_model import Ridge

    matrices, index = np.unique(sizes, axis=0, return_inverse=True)
    index = index.reshape(-1)
    logs_of = np.log(matrices)
    held = np.clip(np.log(target), logs_of.min(axis=0), logs_of.max(axis=0))
    away = logs_of - held
    weight = np.exp(-(away**2).sum(axis=1) / (2 * _WIDTH**2))
    near = weight > 1e-3
    if near.sum() < _LEAST_NEIGHBOURS:
        return None
    features = np.column_stack([away, away**2, away[:, 0] * away[:, 1]])
    points = np.unique(rows)
    table = np.full((len(matrices), len(points)), np.nan)
    table[index, np.searchsorted(points, rows)] = logs
    known = near[:, None] & ~np.isnan(table)
    enough = known.sum(axis=0) >= _LEAST_NEIGHBOURS
    found = np.full(len(points), np.nan)
    for pattern in np.unique(known[:, enough], axis=1).T:  # one regression for all m measured alike
        alike = enough & (known == pattern[:, None]).all(axis=0)
        here = table[pattern][:, alike]
        fit = Ridge(alpha=_RIDGE).fit(features[pattern], here, sample_weight=weight[pattern])
        # A residual is no further off than those of its neighbours.
        found[alike] = np.clip(fit.intercept_, here.min(axis=0), here.max(axis=0))
    return (points[enough].astype(float), found[enough]) if enough.any() else None


def nearest(
    target: tuple[float, ...], sizes: Array, rows: Column, logs: Column
) -> tuple[Array, Array]:
    """Residuals of what was measured nearest in size (any number of axes): (rows, log residuals)."""
    away = ((np.log(np.maximum(sizes, 1)) - np.log(np.maximum(target, 1))) ** 2).sum(axis=1)
    keep = away <= away.min() + 1e-12
    return rows[keep].astype(float), logs[keep]
