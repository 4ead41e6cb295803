"""One operation's time over its rows: a smooth floor times a learned residual, through every measured point.

A measured time t at m rows is floor(m) exp(r(m)): the floor is physics (bytes over bandwidth and FLOP over
rate, rounded where they meet, plus a launch), the residual r is what was measured on top. Where the very
matrix was measured, r comes from its points; elsewhere others lend theirs (models/kriging.py). Times are
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
    from scipy.optimize import isotonic_regression

    projected = np.maximum.accumulate(np.exp(isotonic_regression(np.log(times)).x))
    return projected, float(np.median(np.abs(projected / times - 1)))


def nearest(
    target: tuple[float, ...], sizes: Array, rows: Column, logs: Column
) -> tuple[Array, Array]:
    """Residuals of what was measured nearest in size (any number of axes): (rows, log residuals)."""
    away = ((np.log(np.maximum(sizes, 1)) - np.log(np.maximum(target, 1))) ** 2).sum(axis=1)
    keep = away <= away.min() + 1e-12
    return rows[keep].astype(float), logs[keep]
