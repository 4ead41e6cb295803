"""Distribution shift: a verifier trained on one policy's steps, searched on another's, and what tells.

Shift is a distance >= 0 in the units of the training distribution's spread. Away from home a verifier
separates right from wrong less, believes more, and errs more; the further, the worse. Whether a query is
far is read from what is seen of it: the scores and lengths of a few answers.

Source: that process verifiers over-estimate off their distribution, more for weak policies and hard
problems: arXiv 2506.09338; the rates below are assumed, 2026-11-25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from models.batch_rollout import Samples
from models.crowd import Bools, Floats
from models.fit_steps import auc
from models.verifier import VerifierModel

FADES: Final = 0.35  # of the strength a unit of distance: exp(-FADES d)
BELIEVES: Final = 0.5  # logits of bias a unit
ERRS: Final = 0.20  # more noise a unit: (1 + ERRS d)


@dataclass(frozen=True, slots=True)
class Training:
    """Options of training against shift, both off by default.

    `robust` mixes steps of other policies in: sensitivity to distance falls by that share, and strength at
    home by `COST` of it. `updates` is the number of labelled queries of the new distribution that an
    online update has seen: the verifier comes home by updates / (updates + HALF_WAY).
    """

    robust: float = 0.0
    updates: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.robust <= 1 or self.updates < 0:
            raise ValueError('"robust" must lie in [0, 1] and "updates" be >= 0.')


COST: Final = 0.08  # of the strength at home that fully robust training costs (assumed)
HALF_WAY: Final = 500  # labelled queries that halve the distance (assumed)


def shifted(
    verifier: VerifierModel, distance: float, training: Training | None = None
) -> VerifierModel:
    """The verifier as it behaves `distance` from where it was trained. Raises ValueError below 0."""
    if distance < 0:
        raise ValueError(f'"distance" must be >= 0, got {distance}.')
    how = training or Training()
    d = distance * (1 - how.robust) * HALF_WAY / (HALF_WAY + how.updates)
    noisier = 1 + ERRS * d
    return replace(
        verifier,
        strength=verifier.strength * (1 - COST * how.robust) * math.exp(-FADES * d),
        bias=verifier.bias + BELIEVES * d,
        class_sigma=verifier.class_sigma * noisier,
        step_sigma=verifier.step_sigma * noisier,
    )


# -- telling from afar ------------------------------------------------------------------------------------


def features(seen: Samples) -> Floats:
    """What is seen of each question's answers, (questions, 6): scores, agreement, lengths."""
    logit = np.log(seen.score) - np.log1p(-seen.score)
    n = logit.shape[1]
    same = (seen.wrong[:, :, None] == seen.wrong[:, None, :]).sum(axis=(1, 2)) - n
    tokens = np.log(seen.tokens)
    return np.stack(
        [
            logit.mean(axis=1), logit.std(axis=1), logit.max(axis=1),
            same / max(1, n * (n - 1)), tokens.mean(axis=1), tokens.std(axis=1),
        ],
        axis=1,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detector:
    """A logistic regression on standardised features: how likely a question is far from home."""

    centre: Floats
    scale: Floats
    weights: Floats
    intercept: float

    def score(self, seen: Samples) -> Floats:
        """The probability that each question is from afar, under even odds."""
        z = (features(seen) - self.centre) / self.scale
        return np.asarray(1.0 / (1.0 + np.exp(-(z @ self.weights + self.intercept))))


def learn_detector(home: Samples, away: Samples) -> Detector:
    """Learn to tell questions seen from afar from those at home; judge it on others."""
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([features(home), features(away)])
    y = np.repeat([0, 1], [len(home.difficulty), len(away.difficulty)])
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-12
    model = LogisticRegression(class_weight="balanced").fit((x - centre) / scale, y)
    return Detector(centre, scale, np.asarray(model.coef_[0]), float(model.intercept_[0]))


def detector_auc(detector: Detector, home: Samples, away: Samples) -> float:
    """The chance that a question from afar scores above one from home."""
    return auc(detector.score(away), detector.score(home))


def summary(right: Bools, score: Floats) -> Mapping[str, Any]:
    """Accuracy of best-of-n and the AUC of single answers, for one verifier on one distribution."""
    picked = np.take_along_axis(right, score.argmax(axis=1)[:, None], 1)[:, 0]
    return {"best_of_n": float(picked.mean()), "auc": auc(score[right], score[~right])}
