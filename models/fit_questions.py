"""Maximum likelihood for classes of questions: graded samples -> parameters, their intervals, the misfit.

Every fit says what it could not explain: a row compares what was observed with what the fitted model
gives, beside the standard error of the observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, gammaln, logsumexp

from models.graded import Graded, Pairs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BOTTLENECK: Final = (10**-5.5, 10**-2)  # there the pass rate is log-uniform, as in the presets
TWO_SIDED: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A parameter with its 95 % interval (NaN ends where the data do not bound it)."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Check:
    """What was observed, what the fitted model gives, and the standard error of the observation."""

    name: str
    observed: float
    fitted: float
    error: float

    @property
    def fits(self) -> bool:
        """Whether the two lie within two standard errors of one another."""
        return abs(self.observed - self.fitted) <= 2 * self.error + 1e-12


@dataclass(frozen=True, slots=True)
class Fit:
    """Parameters of a question or verifier model by name, and how well they do."""

    name: str
    questions: int
    samples: int
    parameters: Mapping[str, Estimate]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    preset: Mapping[str, Any] = field(default_factory=dict)  # as a scenario's `question:` takes it
    verifier: Mapping[str, Any] = field(default_factory=dict)  # as `verifier:` of a pool takes it


# -- pass rates -----------------------------------------------------------------------------------------


def pass_at_k(right: Ints, n: Ints, k: int) -> tuple[float, float]:
    """The unbiased estimate of pass@k over questions with `right` of `n` samples right, and its SE.

    Raises ValueError where a question has fewer than k samples. Source: Chen et al., "Evaluating large
    language models trained on code", arXiv 2107.03374, equation 1.
    """
    if (n < k).any():
        raise ValueError(f"pass@{k} needs at least {k} samples of every question.")
    wrong = n - right
    with np.errstate(invalid="ignore"):
        missed = np.exp(
            gammaln(wrong + 1) - gammaln(np.maximum(wrong - k, 0) + 1)
            - gammaln(n + 1) + gammaln(n - k + 1)
        )  # fmt: skip
    solved = 1.0 - np.where(wrong >= k, missed, 0.0)
    spread = float(solved.std(ddof=1)) if len(solved) > 1 else math.nan
    return float(solved.mean()), spread / math.sqrt(len(solved))


def beta_pass_at_k(a: float, b: float, k: float) -> float:
    """Pass@k when the pass rate is Beta(a, b): 1 - B(a, b + k) / B(a, b)."""
    return float(-np.expm1(betaln(a, b + k) - betaln(a, b)))


def fit_pass_rates(right: Ints, n: Ints) -> tuple[dict[str, Estimate], float]:
    """Beta(a, b) pass rates by maximum likelihood (beta-binomial), and the log-likelihood reached.

    `right` of `n` samples were right, by question. The intervals are Wald's in log a and log b. Raises
    ValueError when all samples are right or all wrong: any steep enough Beta fits those.
    """
    if not 0 < right.sum() < n.sum():
        raise ValueError("All samples are right, or all are wrong: the pass rates have no scale.")

    def loss(x: Floats) -> float:
        a, b = np.exp(x)
        return -float((betaln(a + right, b + n - right) - betaln(a, b)).sum())

    x, sd = minimise(loss, np.log([0.5, 0.5]))
    choose = gammaln(n + 1) - gammaln(right + 1) - gammaln(n - right + 1)
    return positive(("a", "b"), x, sd), -loss(x) + float(choose.sum())


def fit_bottleneck(right: Ints, n: Ints, a: float, b: float) -> tuple[dict[str, Estimate], float]:
    """As `fit_pass_rates`, with a share of questions whose pass rate is log-uniform in BOTTLENECK."""
    low, high = np.log(BOTTLENECK)
    p = np.exp(low + (high - low) * (np.arange(200) + 0.5) / 200)
    hard = logsumexp(right[:, None] * np.log(p) + (n - right)[:, None] * np.log1p(-p), axis=1)
    hard -= math.log(len(p))

    def loss(x: Floats) -> float:
        a, b, share = math.exp(x[0]), math.exp(x[1]), 1.0 / (1.0 + math.exp(-x[2]))
        easy = betaln(a + right, b + n - right) - betaln(a, b)
        return -float(np.logaddexp(math.log(share) + hard, math.log1p(-share) + easy).sum())

    x, sd = minimise(loss, np.array([math.log(a), math.log(b), -2.0]))
    found = positive(("a", "b"), x[:2], sd[:2])
    ends = 1.0 / (1.0 + np.exp(-(x[2] + TWO_SIDED * sd[2] * np.array([0.0, -1.0, 1.0]))))
    found["bottleneck"] = Estimate(*(float(v) for v in ends))
    choose = gammaln(n + 1) - gammaln(right + 1) - gammaln(n - right + 1)
    return found, -loss(x) + float(choose.sum())


def minimise(loss: Callable[[Floats], float], start: Floats) -> tuple[Floats, Floats]:
    """The minimum and the standard errors there, from the curvature; NaN where it is not positive."""
    from scipy.optimize import minimize

    options = {"xatol": 1e-3, "fatol": 1e-3, "maxfev": 250 * len(start)}
    x: Floats = minimize(loss, start, method="Nelder-Mead", options=options).x
    size, step = len(x), 0.02
    curve = np.empty((size, size))
    eye = np.eye(size) * step
    for i in range(size):
        for j in range(size):
            corners = (
                loss(x + eye[i] + eye[j]) - loss(x + eye[i] - eye[j])
                - loss(x - eye[i] + eye[j]) + loss(x - eye[i] - eye[j])
            )  # fmt: skip
            curve[i, j] = corners / (4 * step * step)
    try:
        variance = np.diag(np.linalg.inv(curve))
    except np.linalg.LinAlgError:
        variance = np.full(size, math.nan)
    return x, np.sqrt(np.where(variance > 0, variance, math.nan))


def positive(names: tuple[str, ...], x: Floats, sd: Floats) -> dict[str, Estimate]:
    """Estimates of positive parameters from their logarithms."""
    return {
        name: Estimate(*(float(v) for v in np.exp([m, m - TWO_SIDED * s, m + TWO_SIDED * s])))
        for name, m, s in zip(names, x, sd, strict=True)
    }


# -- wrong answers --------------------------------------------------------------------------------------


def fit_theta(groups: list[list[int]]) -> Estimate | None:
    """How scattered wrong answers are: theta of GEM(theta), from the copies of each, by question.

    `groups` holds for each question how often each wrong answer came. None when no question has two wrong
    answers that differ, or none that agree. Source: Ewens, "The sampling theory of selectively neutral
    alleles" (1972): the number of different ones is sufficient.
    """
    groups = [copies for copies in groups if sum(copies) > 1]
    kinds, total = sum(map(len, groups)), sum(sum(copies) for copies in groups)
    if not len(groups) < kinds < total:
        return None
    drawn = np.concatenate([np.arange(sum(copies), dtype=np.float64) for copies in groups])

    def loss(x: Floats) -> float:
        return -kinds * float(x[0]) + float(np.log(math.exp(x[0]) + drawn).sum())

    x, sd = minimise(loss, np.array([1.5]))
    return positive(("theta",), x, sd)["theta"]


def wrong_copies(data: Graded) -> list[list[int]]:
    """How often each wrong answer came, by question; samples without an answer are left out."""
    found: list[dict[str, int]] = [{} for _ in range(data.questions)]
    for question, right, answer in zip(
        data.question.tolist(), data.correct.tolist(), data.answer or (), strict=True
    ):
        if not right and answer:
            found[question][answer] = found[question].get(answer, 0) + 1
    return [list(copies.values()) for copies in found]


def agreement(groups: list[list[int]]) -> tuple[float, int]:
    """The share of pairs of wrong answers to a question that agree, and how many pairs there are."""
    same = sum(c * (c - 1) for copies in groups for c in copies)
    pairs = sum(sum(copies) * (sum(copies) - 1) for copies in groups)
    return (same / pairs if pairs else math.nan), pairs // 2


# -- one class of questions -----------------------------------------------------------------------------


def fit_graded(data: Graded) -> Fit:
    """Fit pass rates, wrong answers and lengths to the samples of one policy.

    The share of bottleneck questions is fitted where a question has 20 samples or more and it earns its
    parameter (Akaike). Raises ValueError where all samples are right, or all wrong.
    """
    right, n = data.counts()
    found, likelihood = fit_pass_rates(right, n)
    notes: list[str] = []
    preset: dict[str, Any] = {"kind": "single_step"}
    if n.min() >= 20:
        wider, better = fit_bottleneck(right, n, found["a"].value, found["b"].value)
        if better > likelihood + 1.0:
            found, likelihood = wider, better
        else:
            notes.append(
                f"A bottleneck of questions adds {better - likelihood:.2f} to the log-likelihood: it is "
                "left out (one parameter has to add 1)."
            )
    a, b = found["a"].value, found["b"].value
    share = found["bottleneck"].value if "bottleneck" in found else 0.0
    checks = []
    for k in (1, 2, 4, 5, 8, 10, 20, 50, 100):
        if k <= n.min():
            solved = share * _bottleneck_pass_at_k(k) + (1 - share) * beta_pass_at_k(a, b, k)
            checks.append(Check(f"pass@{k}", *_second(pass_at_k(right, n, k), solved)))
    checks.append(_unsolved(right, n, a, b, share))
    preset["pass_rate"] = {"kind": "beta", "a": rounded(a), "b": rounded(b)}
    if share:
        preset["bottleneck"] = rounded(share)
    if data.answer is not None:
        groups = wrong_copies(data)
        theta = fit_theta(groups)
        if theta is None:
            notes.append("Wrong answers never agree, or are always the same: theta has no scale.")
        else:
            found["theta"] = theta
            preset["theta"] = rounded(theta.value)
            share_same, pairs = agreement(groups)
            expected = 1.0 / (1.0 + theta.value)
            questions = sum(sum(copies) > 1 for copies in groups)
            error = math.sqrt(share_same * (1 - share_same) / max(1, questions))
            checks.append(Check("two wrong answers agree", share_same, expected, error))
            notes.append(
                f"theta rests on {questions} questions with {pairs:,} pairs of wrong answers."
            )
    if data.tokens is not None:
        _lengths(data, found, preset, notes)
    return Fit(
        data.name, data.questions, len(data.correct), found, tuple(checks), tuple(notes), preset
    )


def _bottleneck_pass_at_k(k: int) -> float:
    low, high = np.log(BOTTLENECK)
    p = np.exp(low + (high - low) * (np.arange(200) + 0.5) / 200)
    return float(-np.expm1(k * np.log1p(-p)).mean())


def _second(observed: tuple[float, float], fitted: float) -> tuple[float, float, float]:
    return observed[0], fitted, observed[1]


def _unsolved(right: Ints, n: Ints, a: float, b: float, share: float) -> Check:
    """Questions that no sample solves."""
    never = float(np.mean(right == 0))
    missed = [
        share * (1 - _bottleneck_pass_at_k(m)) + (1 - share) * (1 - beta_pass_at_k(a, b, m))
        for m in n.tolist()
    ]
    error = math.sqrt(max(never * (1 - never), 1e-9) / len(n))
    return Check("questions never solved", never, float(np.mean(missed)), error)


def _lengths(
    data: Graded, found: dict[str, Estimate], preset: dict[str, Any], notes: list[str]
) -> None:
    """Median and spread of the tokens of an answer, and how much longer a wrong one is."""
    assert data.tokens is not None
    logs = np.log(np.maximum(data.tokens, 1.0))
    error = TWO_SIDED * float(logs.std()) / math.sqrt(len(logs))
    middle = float(np.median(logs))
    found["tokens, median"] = Estimate(*(math.exp(middle + d) for d in (0.0, -error, error)))
    found["tokens, sigma"] = Estimate(float(logs.std()))
    preset["output_tokens"] = {
        "kind": "lognormal",
        "median": round(math.exp(middle)),
        "sigma": rounded(float(logs.std())),
    }
    differences = []
    for question in range(data.questions):
        mine = data.question == question
        good, bad = mine & (data.correct == 1), mine & (data.correct == 0)
        if good.any() and bad.any():
            differences.append(float(logs[bad].mean() - logs[good].mean()))
    if len(differences) > 1:
        mean = float(np.mean(differences))
        half = TWO_SIDED * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
        ends = (math.exp(mean + d) for d in (0.0, -half, half))
        found["wrong longer by"] = Estimate(*ends)
    if data.tokens_assumed:
        notes.append("Tokens are characters over 4 (assumed): the file does not count tokens.")


def rounded(x: float) -> float:
    return float(f"{x:.4g}")


# -- several models on the same questions -----------------------------------------------------------------


def fit_pairs(data: Pairs) -> list[Fit]:
    """Pass rates of models that share the difficulty of a question, from one sample of each.

    A question has one u, and model m answers it right with the u-quantile of Beta(c mean_m, c (1 - mean_m)):
    the means and one concentration c. With two models that is as many parameters as the four shares of
    (right, wrong) have freedom, so only agreement of more than two models is a test.
    """
    from scipy.special import betaincinv

    right = data.correct.astype(np.float64)
    means = np.clip(right.mean(axis=0), 1e-3, 1 - 1e-3)
    patterns, times = np.unique(right, axis=0, return_counts=True)
    u = (np.arange(400) + 0.5) / 400

    def rates(c: float) -> Floats:
        return np.array([betaincinv(c * m, c * (1 - m), u) for m in means]).clip(1e-12, 1 - 1e-12)

    def loss(x: Floats) -> float:
        p = rates(math.exp(x[0]))
        each = logsumexp(patterns @ np.log(p) + (1 - patterns) @ np.log1p(-p), axis=1)
        return -float((times * each).sum())

    x, sd = minimise(loss, np.array([0.0]))
    c = positive(("concentration",), x, sd)["concentration"]
    p = rates(c.value)
    fits = []
    for i, model in enumerate(data.models):
        a, b = c.value * means[i], c.value * (1 - means[i])
        half = math.sqrt(means[i] * (1 - means[i]) / len(right))
        checks = [Check("pass@1", float(means[i]), float(p[i].mean()), half)]
        for j in range(i + 1, len(data.models)):
            both = float((right[:, i] * right[:, j]).mean())
            error = math.sqrt(max(both * (1 - both), 1e-9) / len(right))
            name = f"{model} and {data.models[j]} right"
            checks.append(Check(name, both, float((p[i] * p[j]).mean()), error))
        found = {
            "mean": Estimate(means[i], means[i] - TWO_SIDED * half, means[i] + TWO_SIDED * half),
            "concentration": c,
        }
        preset = {"pass_rate": {"kind": "beta", "a": rounded(a), "b": rounded(b)}}
        notes = (
            "The concentration is shared by the models: one sample of each bounds it only together.",
        )
        name = f"{data.name}: {model}" if data.name != "all" else model
        fits.append(Fit(name, len(right), len(right), found, tuple(checks), notes, preset))
    return fits
