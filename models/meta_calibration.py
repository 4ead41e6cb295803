"""From several things seen of an answer to one honest confidence, per type of question.

The features (a signal, its spread over an ensemble, the agreement of answers, ...) become one score by a
logistic regression; the score becomes a confidence by an isotonic or a beta fit of its type. A type with
few answers borrows the fit of all. Judge it on answers that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from models.calibration import Calibrator

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEAST: Final = 100  # answers of a type from which it has a fit of its own
CLIP: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Beta:
    """The beta map s -> 1 / (1 + exp(-(a ln s - b ln(1 - s) + c))), rising where a, b >= 0.

    Source: Kull, Silva Filho, Flach, "Beta calibration", AISTATS 2017.
    """

    a: float
    b: float
    c: float

    def confidence(self, signal: float) -> float:
        """The probability that an answer with this signal in [0, 1] is right."""
        s = min(max(signal, CLIP), 1 - CLIP)
        return float(1 / (1 + np.exp(-(self.a * np.log(s) - self.b * np.log1p(-s) + self.c))))


def fit_beta(signals: Floats, correct: Bools) -> Beta:
    """Fit a beta map by maximum likelihood, a and b kept >= 0 so that it never falls.

    Raises ValueError unless there are right and wrong answers.
    """
    from scipy.optimize import minimize

    if correct.all() or not correct.any():
        raise ValueError("A beta map needs right and wrong answers.")
    s = np.clip(signals, CLIP, 1 - CLIP)
    x = np.stack([np.log(s), -np.log1p(-s), np.ones(len(s))], axis=1)
    sign = np.where(correct, 1.0, -1.0)

    def loss(w: Floats) -> float:
        return float(np.logaddexp(0, -sign * (x @ w)).mean())

    def slope(w: Floats) -> Floats:
        z = -sign * (x @ w)
        return np.asarray(((-sign / (1 + np.exp(-z)))[:, None] * x).mean(axis=0))

    bounds = [(0, None), (0, None), (None, None)]
    found = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=slope, bounds=bounds, method="L-BFGS-B").x
    return Beta(*(float(v) for v in found))


@dataclass(frozen=True, slots=True)
class MetaCalibrator:
    """Features and type of an answer -> confidence; made by `fit_meta`."""

    centre: Floats
    scale: Floats
    weights: Floats
    intercept: float
    maps: Mapping[str, Calibrator | Beta]
    pooled: Calibrator | Beta

    def confidence(self, features: Floats, types: Sequence[str]) -> Floats:
        """The probability that each answer is right; `features` is (answers, features)."""
        score = self.score(features)
        found = [
            self.maps.get(kind, self.pooled).confidence(float(s))
            for kind, s in zip(types, score, strict=True)
        ]
        return np.array(found)

    def score(self, features: Floats) -> Floats:
        """The features as one number in (0, 1), before it is calibrated."""
        z = (features - self.centre) / self.scale @ self.weights + self.intercept
        return np.asarray(1.0 / (1.0 + np.exp(-z)))


def fit_meta(
    features: Floats,
    correct: Bools,
    types: Sequence[str],
    method: Literal["isotonic", "beta"] = "isotonic",
) -> MetaCalibrator:
    """Fit to answers with these features, (answers, features), that were right or not.

    Raises ValueError unless there are right and wrong answers.
    """
    from sklearn.linear_model import LogisticRegression

    if correct.all() or not correct.any():
        raise ValueError("Calibration from features needs right and wrong answers.")
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-12
    model = LogisticRegression().fit((features - centre) / scale, correct)
    first = MetaCalibrator(
        centre, scale, np.asarray(model.coef_[0]), float(model.intercept_[0]), {}, Beta(1, 1, 0)
    )
    score, kinds = first.score(features), np.array(types)
    pooled = _map(score, correct, method)
    maps: dict[str, Calibrator | Beta] = {}
    for kind in np.unique(kinds):
        mine = kinds == kind
        if mine.sum() >= LEAST and correct[mine].any() and not correct[mine].all():
            maps[str(kind)] = _map(score[mine], correct[mine], method)
    return MetaCalibrator(centre, scale, first.weights, first.intercept, maps, pooled)


def _map(score: Floats, correct: Bools, method: str) -> Calibrator | Beta:
    return fit_beta(score, correct) if method == "beta" else Calibrator.fit(score, correct)
