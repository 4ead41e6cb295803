"""Questions and a verifier fitted to a published table of accuracies by simulated likelihood.

A table of majority vote, best-of-n and weighted vote at a few N does not show single answers, but the
generative model predicts every cell. The cells' binomial likelihood is maximised over five parameters,
around the values of a preset; the same simulated questions serve every trial, so that the surface is
smooth enough to search. Beam search is left out of the fit and predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.batch_rollout import Samples, best, samples, vote
from models.fit_questions import Check, Estimate, Fit, rounded
from models.graded import Point
from models.keyed import root_keys
from models.question import question_model
from models.verifier import verifier_model
from models.world import RIGHT, QuestionModel

Floats = npt.NDArray[np.float64]

METHODS: Final[Mapping[str, str]] = {
    "majority": "majority",
    "self_consistency": "majority",
    "naive": "best_of_n",
    "best_of_n": "best_of_n",
    "weighted": "weighted_vote",
    "weighted_vote": "weighted_vote",
    "pass": "coverage",
    "coverage": "coverage",
}
QUESTIONS: Final = 3_000  # simulated for every trial
TRIALS: Final = 120
# what is fitted, as the logarithm of its ratio to the preset's, and how far it may go from there (sd)
SPREAD: Final[Mapping[str, float]] = {
    "a": 0.5,
    "b": 0.5,
    "theta": 0.5,
    "strength": 0.3,
    "noise": 0.2,
}


def chosen(grown: Samples, method: str, n: int) -> Floats:
    """Whether each question is answered right by `method` on its first n answers: 0 or 1, (questions,)."""
    wrong, score = grown.wrong[:, :n], grown.score[:, :n]
    if method == "coverage":
        return np.asarray((wrong == RIGHT).any(axis=1), dtype=np.float64)
    if method == "best_of_n":
        picked = best(wrong, score)[0]
    else:
        picked = vote(wrong, np.ones(wrong.shape) if method == "majority" else score)[0]
    return np.asarray(picked == RIGHT, dtype=np.float64)


def fit_table(
    points: Sequence[Point],
    preset: str = "math-500",
    report: Callable[[float], None] | None = None,
) -> Fit:
    """Fit pass rates, theta, and the verifier's strength and noise around those of `preset`.

    `report` is told the share of trials done. Raises ValueError when no row is one that the fit knows:
    METHODS names them.
    """
    known = [p for p in points if p.method in METHODS]
    if not known:
        methods = ", ".join(sorted({p.method for p in points}))
        raise ValueError(
            f"No row is of a method that can be fitted ({', '.join(METHODS)}): {methods}."
        )
    base = question_model(preset)
    verifier = verifier_model(base.verifier)
    start = {"a": base.pass_rate[0], "b": base.pass_rate[1], "theta": base.theta}
    start |= {"strength": verifier.strength, "noise": 1.0}
    keys = root_keys(0, 0, 1, QUESTIONS)
    most = max(p.n for p in known)
    trials = 0

    def grow(x: Floats) -> Samples:
        model, judge = _specs(base, start, x)
        return samples(question_model(model), verifier_model(judge), keys, most)

    def loss(x: Floats) -> float:
        nonlocal trials
        trials += 1
        if report:
            report(min(trials / TRIALS, 1.0))
        grown = grow(x)
        total = float(((x / np.array(list(SPREAD.values()))) ** 2).sum()) / 2
        for point in known:
            p = min(
                max(float(chosen(grown, METHODS[point.method], point.n).mean()), 1e-4), 1 - 1e-4
            )
            right = point.accuracy * point.questions
            total -= right * math.log(p) + (point.questions - right) * math.log1p(-p)
        return total

    from scipy.optimize import minimize

    corners = np.vstack([np.zeros(5), np.diag([0.2, 0.2, 0.3, 0.2, 0.15])])
    options = {"maxfev": TRIALS, "initial_simplex": corners, "xatol": 1e-2, "fatol": 1e-3}
    x: Floats = minimize(loss, np.zeros(5), method="Nelder-Mead", options=options).x
    model, judge = _specs(base, start, x)
    fresh = root_keys(1, 0, 1, 4 * QUESTIONS)
    grown = samples(question_model(model), verifier_model(judge), fresh, most)
    checks = []
    for point in known:
        fitted = float(chosen(grown, METHODS[point.method], point.n).mean())
        error = math.sqrt(point.accuracy * (1 - point.accuracy) / point.questions)
        checks.append(Check(f"{point.method}, N = {point.n}", point.accuracy, fitted, error))
    values = [s * math.exp(d) for s, d in zip(start.values(), x.tolist(), strict=True)]
    found = {name: Estimate(value) for name, value in zip(start, values, strict=True)}
    found["noise"] = Estimate(values[4] * math.hypot(verifier.class_sigma, verifier.step_sigma))
    left_out = sorted({p.method for p in points if p.method not in METHODS})
    notes = [f"Fitted around {preset}: the rest of the model is that preset's."]
    if left_out:
        notes.append(f"Left out of the fit: {', '.join(left_out)}.")
    question = {key: model[key] for key in ("preset", "pass_rate", "theta")}
    return Fit(
        "table", max(p.questions for p in known), len(known), found, tuple(checks), tuple(notes),
        question, {k: rounded(v) if k != "preset" else v for k, v in judge.items()},
    )  # fmt: skip


def _specs(
    base: QuestionModel, start: Mapping[str, float], x: Floats
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The question and the verifier at `x`, as `question_model` and `verifier_model` take them."""
    scale = np.exp(x)
    verifier = verifier_model(base.verifier)
    a, b, theta, strength = (
        rounded(s * f) for s, f in zip(start.values(), scale[:4], strict=False)
    )
    question = {"preset": base.name, "pass_rate": {"kind": "beta", "a": a, "b": b}, "theta": theta}
    noise = float(scale[4])
    judge = {
        "preset": base.verifier,
        "strength": strength,
        "class_sigma": verifier.class_sigma * noise,
        "step_sigma": verifier.step_sigma * noise,
        "question_sigma": verifier.question_sigma * noise,
    }
    return question, judge
