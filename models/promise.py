"""What confidence may be promised: bounds on the share of right answers among those sold, from a calibration sample.

A sample is one row a query: the raw signal of its answer (NaN without one) and whether it was right. A promise
is kept by selling only answers whose signal reaches a threshold; the threshold is chosen by Learn-then-Test, so
that the promise is broken in at most a share `delta` of calibration samples. A plug-in threshold breaks it in half.

certified = certify(signals, correct, promise=0.95)      # None: the sample does not support it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

Floats = npt.NDArray[np.float64]

DELTA: Final = 0.05  # share of calibration samples in which a certified promise may be broken
STEPS: Final = 50  # thresholds of the sequence, equally spaced in coverage
SPARE: Final = (3, 2, 1, 0)  # wrong answers that the first, strictest threshold should survive
LADDER: Final = (*(round(0.50 + 0.01 * i, 2) for i in range(50)), 0.995, 0.999)


@dataclass(frozen=True, slots=True)
class Certified:
    """A threshold under which a promise holds, and what the calibration sample says of it.

    `coverage` is the share of the sample's queries whose answer is sold, `precision` the share right of
    those, `bound` its one-sided lower confidence bound.
    """

    promise: float
    threshold: float
    n: int
    sold: int
    right: int
    bound: float

    @property
    def coverage(self) -> float:
        """Share of all queries of the sample whose answer is sold."""
        return self.sold / self.n

    @property
    def precision(self) -> float:
        """Share of the sold answers of the sample that are right."""
        return self.right / self.sold


def lower_bound(right: int, n: int, delta: float = DELTA) -> float:
    """The one-sided Clopper-Pearson bound: with confidence 1 - delta the true share is not below it.

    0 for no right answer. Raises ValueError unless 0 <= right <= n and 0 < delta < 1.
    Source: Clopper and Pearson, Biometrika 26 (1934), 404-413, by the quantile of Beta(right, n - right + 1).
    """
    _check(right, n, delta)
    return float(betaincinv(right, n - right + 1, delta)) if right else 0.0


def upper_bound(right: int, n: int, delta: float = DELTA) -> float:
    """The other side of `lower_bound`: with confidence 1 - delta the true share is not above it."""
    _check(right, n, delta)
    return 1.0 if right == n else float(betaincinv(right + 1, n - right, 1 - delta))


@lru_cache(maxsize=1024)
def sample_needed(promise: float, wrong: int = 0, delta: float = DELTA) -> int:
    """The least number of sold answers, `wrong` of them wrong, whose lower bound reaches a promise in (0, 1).

    Raises ValueError for a promise outside (0, 1).
    """
    if not 0 < promise < 1:
        raise ValueError(f'"promise" must lie inside (0, 1), got {promise}.')
    if wrong == 0:
        return max(1, math.ceil(math.log(delta) / math.log(promise) - 1e-9))
    low, high = wrong, wrong + 1
    while lower_bound(high - wrong, high, delta) < promise:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if lower_bound(middle - wrong, middle, delta) < promise:
            low = middle
        else:
            high = middle
    return high


def sample_for(promise: float, precision: float, delta: float = DELTA) -> int | None:
    """How many sold answers support a promise when a share `precision` of them is right; None: never.

    The least n whose bound at round-down(precision * n) right answers reaches the promise: a little more
    than half of all samples of that size will do. Raises ValueError as `sample_needed`.
    """
    if not promise < precision <= 1:
        return None
    n = sample_needed(promise, 0, delta)
    while lower_bound(math.floor(precision * n), n, delta) < promise:
        wrong = n - math.floor(precision * n)
        n = max(n + 1, sample_needed(promise, wrong, delta))
    return n


def certify(
    signals: Sequence[float] | Floats,
    correct: Sequence[bool] | npt.NDArray[Any],
    promise: float,
    delta: float = DELTA,
) -> Certified | None:
    """The threshold with the largest coverage under which the promise holds, or None: not supported.

    Thresholds are tested from the strictest to the loosest, each with the exact binomial test at level
    `delta`, until one fails: a fixed sequence, so that all of them together are wrong with probability
    `delta` at most. Their order, and where it starts (at a sample that survives a few wrong answers),
    depends on signals alone. Raises ValueError for shapes that differ and a promise outside (0, 1).

    Source: Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test", arXiv 2110.01052, section 2.
    """
    signal, right = _rows(signals, correct)
    n = len(signal)
    order = np.argsort(-signal, kind="stable")  # NaN last
    known = int(np.isfinite(signal).sum())
    cumulated = np.concatenate([[0], np.cumsum(right[order])])
    ranked = signal[order]
    first = _start(promise, known, delta)
    sizes = _sizes(ranked[:known], first, n)
    hits = cumulated[sizes]
    bounds = np.where(hits > 0, betaincinv(np.maximum(hits, 1), sizes - hits + 1, delta), 0.0)
    passed = int(np.argmin(bounds >= promise)) if (bounds < promise).any() else len(sizes)
    if not passed:
        return None
    sold, good = int(sizes[passed - 1]), int(hits[passed - 1])
    return Certified(promise, float(ranked[sold - 1]), n, sold, good, float(bounds[passed - 1]))


def highest(
    signals: Sequence[float] | Floats,
    correct: Sequence[bool] | npt.NDArray[Any],
    delta: float = DELTA,
    below: float = 1.0,
) -> Certified | None:
    """The highest promise of `LADDER` under `below` that the sample supports; None where it supports none.

    The ladder is climbed from 50 % until `certify` first fails; at the threshold reached, what its bound
    allows. What is found was chosen on this sample: confirm it on a fresh one before it is sold.
    """
    best = None
    for promise in LADDER:
        found = certify(signals, correct, promise, delta) if promise < below else None
        if found is None:
            break
        best = found
    if best is None:
        return None
    reached = max(promise for promise in LADDER if promise <= best.bound and promise < below)
    return replace(best, promise=max(best.promise, reached))


def at_threshold(
    signals: Sequence[float] | Floats,
    correct: Sequence[bool] | npt.NDArray[Any],
    threshold: float,
    promise: float,
    delta: float = DELTA,
) -> Certified | None:
    """What the sample says of one threshold that was fixed beforehand; None where nothing reaches it."""
    signal, right = _rows(signals, correct)
    sold = signal >= threshold
    count, hits = int(sold.sum()), int(right[sold].sum())
    if not count:
        return None
    return Certified(promise, threshold, len(signal), count, hits, lower_bound(hits, count, delta))


def _start(promise: float, n: int, delta: float) -> int:
    """How many answers the strictest threshold sells: enough to survive a few wrong ones, if there are."""
    sizes = [sample_needed(promise, wrong, delta) for wrong in SPARE]
    return next((size for size in sizes if 2 * size <= n), sizes[-1])


def _sizes(ranked: Floats, first: int, n: int) -> npt.NDArray[np.int64]:
    """How many answers each threshold sells, rising; answers of equal signal are sold together."""
    if not len(ranked) or first > len(ranked):
        return np.empty(0, dtype=np.int64)
    marks = np.maximum(first, n * np.arange(STEPS + 1) // STEPS)
    rising = -ranked
    ends = np.searchsorted(rising, rising[np.minimum(marks, len(ranked)) - 1], side="right")
    return np.unique(ends)


def _rows(
    signals: Sequence[float] | Floats, correct: Sequence[bool] | npt.NDArray[Any]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    signal, right = np.asarray(signals, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if signal.ndim != 1 or signal.shape != right.shape:
        raise ValueError(
            f"Signals and outcomes must be two lists of one length, got {signal.shape}, {right.shape}."
        )
    return signal, right


def _check(right: int, n: int, delta: float) -> None:
    if not 0 <= right <= n:
        raise ValueError(f'"right" must lie in [0, n], got {right} of {n}.')
    if not 0 < delta < 1:
        raise ValueError(f'"delta" must lie inside (0, 1), got {delta}.')
