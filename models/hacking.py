"""Reward hacking: what search gains by its verifier and by the truth as pressure grows, and what helps.

The proxy is the verifier's own score of the answer it chooses, the gold whether that answer is right. Under
best-of-n the pressure is d = sqrt(KL), KL = ln n - (n - 1) / n, and gold follows d (alpha - beta d): it turns
where the verifier is fooled faster than it selects.

Source: Gao, Schulman, Hilton, "Scaling laws for reward model overoptimization", arXiv 2210.10760.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.crowd import Bools, Floats
from models.ensemble import best_right
from models.verifier import VerifierModel

PRESSURES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Curve:
    """Gold and proxy at each n, (points,), on so many questions; `correct` is (points, questions)."""

    n: tuple[int, ...]
    gold: Floats
    proxy: Floats
    correct: Floats

    @property
    def gap(self) -> Floats:
        """How much more the verifier believes than is true, at each n."""
        return self.proxy - self.gold


@dataclass(frozen=True, slots=True)
class OverOptimisation:
    """Gold less its value at n = 1 as d (alpha - beta d), with standard errors."""

    alpha: float
    beta: float
    alpha_se: float
    beta_se: float

    @property
    def turns_at(self) -> float:
        """The n at which gold is largest, alpha / (2 beta) as d; infinite when it never turns."""
        if self.beta <= 0 or self.alpha <= 0:
            return math.inf if self.beta <= 0 else 1.0
        return n_of(self.alpha / (2 * self.beta))


def pressure(n: int | Floats) -> Floats:
    """sqrt(KL) of best-of-n from one sample."""
    x = np.asarray(n, dtype=np.float64)
    return np.asarray(np.sqrt(np.maximum(np.log(x) - (x - 1) / x, 0.0)))


def n_of(d: float) -> float:
    """The n whose pressure is d > 0 (bisection)."""
    low, high = 0.0, 700.0  # ln n
    for _ in range(100):
        middle = (low + high) / 2
        if middle - (1 - math.exp(-middle)) < d * d:
            low = middle
        else:
            high = middle
    return math.exp(min(high, 700.0))


def curve(score: Floats, right: Bools, ns: Sequence[int] = PRESSURES) -> Curve:
    """Gold and proxy of best-of-n: `score` (logits) and `right` are (questions, at least max n)."""
    kept = tuple(n for n in ns if n <= score.shape[1])
    correct = np.array([best_right(score[:, :n], right[:, :n]) for n in kept])
    top = np.array([score[:, :n].max(axis=1) for n in kept])
    proxy = (1.0 / (1.0 + np.exp(-np.clip(top, -30, 30)))).mean(axis=1)
    return Curve(kept, correct.mean(axis=1), proxy, correct)


def fit_curve(found: Curve) -> OverOptimisation:
    """Least squares of gold on d and d squared; standard errors from the scatter between questions."""
    d = pressure(np.array(found.n, dtype=np.float64))
    x = np.stack([d, -d * d], axis=1)
    solve = np.linalg.pinv(x)
    gain = found.correct - found.correct[0]
    each = (
        solve @ gain
    )  # (2, questions): the fit is linear, so it is the mean of single questions' fits
    (alpha, beta), n = each.mean(axis=1), each.shape[1]
    errors = each.std(axis=1, ddof=1) / math.sqrt(n)
    return OverOptimisation(float(alpha), float(beta), float(errors[0]), float(errors[1]))


# -- finding it -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a canary set, whose truth is known, says of a search's pressure."""

    gap: float  # proxy less gold at the n in use
    gap_growth: float  # ... less the gap at n = 1
    fall: float  # gold at its best n less gold at the n in use
    fall_se: float
    best_n: int
    late_share: float  # of the wrong answers chosen, those whose least step score is the last

    @property
    def raised(self) -> bool:
        """Whether gold has fallen by more than two paired standard errors."""
        return self.fall > 2 * self.fall_se > 0


def alarm(found: Curve, steps: Floats | None = None, chosen_wrong: Bools | None = None) -> Alarm:
    """Judge the largest n of a curve on canary questions.

    `steps` holds the step scores of the chosen answers, (questions, steps), and `chosen_wrong` which of
    them are wrong: a wrong answer that the verifier doubts only at its last step was hacked on the way.
    """
    best = int(found.gold.argmax())
    lost = found.correct[best] - found.correct[-1]
    se = float(lost.std(ddof=1)) / math.sqrt(len(lost))
    late = math.nan
    if steps is not None and chosen_wrong is not None and chosen_wrong.any():
        late = float((steps[chosen_wrong].argmin(axis=1) == steps.shape[1] - 1).mean())
    gap = found.gap
    return Alarm(
        float(gap[-1]), float(gap[-1] - gap[0]), float(lost.mean()), se, found.n[best], late
    )


# -- what helps -------------------------------------------------------------------------------------------


def soft_choice(score: Floats, right: Bools, temperature: float) -> float:
    """Gold when the answer is drawn with the softmax of score / temperature instead of taken at its top.

    Source: Verdun et al., "Soft best-of-n sampling", arXiv 2505.03156.
    """
    weight = np.exp((score - score.max(axis=1, keepdims=True)) / temperature)
    return float(((weight * right).sum(axis=1) / weight.sum(axis=1)).mean())


def early_stop(canary: Curve) -> int:
    """The smallest n whose gold on the canary set is within two paired standard errors of the best."""
    best = int(canary.gold.argmax())
    for i, n in enumerate(canary.n):
        lost = canary.correct[best] - canary.correct[i]
        if lost.mean() <= 2 * lost.std(ddof=1) / math.sqrt(len(lost)):
            return n
    return canary.n[best]


def retrained(
    verifier: VerifierModel, wrong: Bools, chosen: Bools, transfer: float = 0.8
) -> tuple[VerifierModel, float]:
    """The next version of a verifier, trained on the wrong answers that search chose; and their share.

    `wrong` says which training questions the strongest search is fooled on, `chosen` on which the search
    that hunted was. What it found teaches about blind spots of other questions by `transfer` (assumed .8);
    class errors shrink alike. Step errors, which are noise, stay. Measure the new version on other
    questions.
    """
    found = float((chosen & wrong).sum() / wrong.sum()) if wrong.any() else 0.0
    kept = 1.0 - transfer * found
    better = replace(
        verifier,
        blind_share=verifier.blind_share * kept,
        class_sigma=verifier.class_sigma * math.sqrt(kept),
        version=verifier.version + 1,
    )
    return better, found
