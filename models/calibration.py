"""From a search's raw signal to an honest probability of being right, and how honest it is.

A calibrator is an isotonic fit per (class of questions, search), with Laplace's rule at both ends so that
a few lucky answers never become a promise of 100 %. Judge it on answers that it was not fitted to.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.keyed import normal_quantile

Floats = npt.NDArray[np.float64]
Flags = Sequence[bool] | Floats | npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A rising piecewise-linear map from signal to confidence; constant outside its knots."""

    signals: tuple[float, ...]  # knots, strictly rising
    confidences: tuple[float, ...]  # at the knots, never falling, inside (0, 1)
    samples: int  # answers that it was fitted to

    def __post_init__(self) -> None:
        x, y = self.signals, self.confidences
        if len(x) != len(y) or not x:
            raise ValueError("A calibrator needs as many confidences as signals, at least one.")
        if not all(math.isfinite(v) for v in x) or any(np.diff(x) <= 0):
            raise ValueError("The signals of a calibrator must be finite and strictly rising.")
        if not all(0 < c < 1 for c in y) or any(np.diff(y) < 0):
            raise ValueError("The confidences of a calibrator must lie inside (0, 1) and not fall.")

    @classmethod
    def fit(cls, signals: Sequence[float] | Floats, correct: Flags) -> Calibrator:
        """Fit to answers with these signals (finite) that were correct or not, both of shape (n,).

        One right and one wrong answer are added at each end before the fit (Laplace's rule of
        succession): n answers, all right, give (n + 2) / (n + 4); none at all gives 1/2. Raises
        ValueError when shapes differ or a signal is not finite.

        Source: pool adjacent violators, Barlow et al., "Statistical inference under order restrictions" (1972).
        """
        from scipy.optimize import isotonic_regression  # slow to import: only where it is needed

        x, y = _pair(signals, correct)
        if not len(x):
            return cls((0.5,), (0.5,), 0)
        x = np.concatenate([x, [x.min()] * 2, [x.max()] * 2])
        y = np.concatenate([y, [0.0, 1.0, 0.0, 1.0]])
        knots, place, counts = np.unique(x, return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=y) / counts
        levels = isotonic_regression(means, weights=counts).x
        keep = np.ones(len(knots), dtype=bool)  # inside a level set only its two ends matter
        keep[1:-1] = (levels[1:-1] != levels[:-2]) | (levels[1:-1] != levels[2:])
        return cls(tuple(knots[keep].tolist()), tuple(levels[keep].tolist()), len(x) - 4)

    def confidence(self, signal: float) -> float:
        """The probability, inside (0, 1), that an answer with this signal is right.

        Raises ValueError when `signal` is NaN.
        """
        if math.isnan(signal):
            raise ValueError("A signal that is NaN has no confidence: the search gave no answer.")
        x, y = self.signals, self.confidences
        i = bisect_right(x, signal)
        if i == 0:
            return y[0]
        if i == len(x):
            return y[-1]
        return y[i - 1] + (y[i] - y[i - 1]) * (signal - x[i - 1]) / (x[i] - x[i - 1])

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for `json.dumps`."""
        return {
            "signals": list(self.signals),
            "confidences": list(self.confidences),
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibrator:
        """The inverse of `to_json`. Raises KeyError or ValueError where the data is not a calibrator."""
        return cls(
            tuple(float(v) for v in data["signals"]),
            tuple(float(v) for v in data["confidences"]),
            int(data["samples"]),
        )


def fit_groups(
    groups: Iterable[str | tuple[str, str]],
    signals: Sequence[float] | Floats,
    correct: Flags,
) -> dict[Any, Calibrator]:
    """One calibrator per group, for example per (class, search); all arguments have n elements."""
    rows: dict[Any, tuple[list[float], list[bool]]] = {}
    for group, signal, right in zip(groups, signals, correct, strict=True):
        x, y = rows.setdefault(group, ([], []))
        x.append(float(signal))
        y.append(bool(right))
    return {group: Calibrator.fit(x, y) for group, (x, y) in rows.items()}


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of a reliability table."""

    n: int
    confidence: float  # mean
    accuracy: float  # share that was right
    low: float  # Wilson interval of the accuracy
    high: float


def reliability(
    confidence: Sequence[float] | Floats,
    correct: Flags,
    bins: int = 10,
    level: float = 0.95,
) -> tuple[Bin, ...]:
    """Claimed against observed in at most `bins` groups of nearly equal size, least confident first.

    Answers of equal confidence share a bin. Raises ValueError for confidences that are not finite.
    """
    x, y = _pair(confidence, correct)
    if not len(x):
        return ()
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    edges = np.searchsorted(x, x[np.arange(bins) * len(x) // bins], side="left")
    starts = np.unique(edges).tolist()
    return tuple(
        Bin(
            b - a,
            float(x[a:b].mean()),
            float(y[a:b].mean()),
            *wilson(int(y[a:b].sum()), b - a, level),
        )
        for a, b in zip(starts, [*starts[1:], len(x)], strict=True)
    )


def ece(confidence: Sequence[float] | Floats, correct: Flags, bins: int = 10) -> float:
    """Expected calibration error: mean over answers of |claimed - observed| of their bin; NaN for none.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015, with bins of equal size.
    """
    table = reliability(confidence, correct, bins)
    total = sum(b.n for b in table)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in table) / total if total else math.nan


def brier(confidence: Sequence[float] | Floats, correct: Flags) -> float:
    """Mean squared distance of claim and outcome (0 best, 0.25 for always saying 1/2); NaN for none."""
    x, y = _pair(confidence, correct)
    return float(np.mean((x - y) ** 2)) if len(x) else math.nan


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of a share `successes` / `n`; (0, 1) when n is 0.

    Raises ValueError unless 0 <= successes <= n. Source: Wilson, JASA 22 (1927), 209-212.
    """
    if not 0 <= successes <= n:
        raise ValueError(f'"successes" must lie in [0, n], got {successes} of {n}.')
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _pair(x: Sequence[float] | Floats, y: Flags) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"Signals and outcomes must be two lists of one length, got {a.shape}, {b.shape}."
        )
    if not np.all(np.isfinite(a)):
        raise ValueError("Every signal must be finite: leave out searches without an answer.")
    return a, b
