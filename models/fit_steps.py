"""Maximum likelihood for the steps of a solution and for the verifier that scores them.

Three kinds of evidence: where samples took their first wrong step, a search's judged steps, and the step
scores of whole graded solutions.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, gammaincinv, logsumexp, ndtr, ndtri
from scipy.stats import qmc, rankdata

from models.fit_questions import (
    TWO_SIDED,
    Check,
    Estimate,
    Fit,
    minimise,
    positive,
    rounded,
)
from models.graded import Graded, Judged

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS: Final = 512  # latent questions over which a likelihood is averaged
CLIP: Final = 1e-4  # scores are taken to lie this far from 0 and 1


def auc(alive: Floats, dead: Floats) -> float:
    """The chance that a score of `alive` exceeds one of `dead`, ties counted half; NaN without both."""
    if not (len(alive) and len(dead)):
        return math.nan
    ranks = rankdata(np.concatenate([alive, dead]))[: len(alive)].sum()
    return float((ranks - len(alive) * (len(alive) + 1) / 2) / (len(alive) * len(dead)))


def auc_error(area: float, alive: int, dead: int) -> float:
    """The standard error of an AUC. Source: Hanley and McNeil, Radiology 143 (1982), equation 2."""
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    spread = area * (1 - area) + (alive - 1) * (q1 - area**2) + (dead - 1) * (q2 - area**2)
    return math.sqrt(max(spread, 0.0) / (alive * dead)) if alive and dead else math.nan


# -- where samples go wrong -------------------------------------------------------------------------------


def fit_steps(data: Graded, steps: int | None = None) -> Fit:
    """Fit pass rates and the steps' weights to how many steps of each sample were good.

    A question has p ~ Beta(a, b) and weights w ~ Dirichlet(kappa K mean); step k is good with p^{w_k}. The
    likelihood of a question's samples is averaged over DRAWS latent questions, the same ones for every
    parameter. `steps` is K, by default the most good steps that any sample has.
    """
    assert data.good_steps is not None
    total = steps or int(data.good_steps.max())
    counts = np.zeros((data.questions, total + 1))
    np.add.at(counts, (data.question, np.minimum(data.good_steps, total)), 1.0)
    draws = qmc.Sobol(total + 1, seed=0).random(DRAWS).clip(1e-9, 1 - 1e-9)

    def alive(x: Floats) -> Floats:
        """Log chance that a sample's first k steps are good, k = 0 to K: (DRAWS, K + 1)."""
        mean = np.exp(np.concatenate([[0.0], x[3:]]))
        shape = math.exp(x[2]) * total * mean / mean.sum()
        gammas = gammaincinv(shape, draws[:, 1:]) + 1e-300
        p = np.maximum(betaincinv(math.exp(x[0]), math.exp(x[1]), draws[:, 0]), 1e-300)
        logs = np.log(p)[:, None] * np.cumsum(gammas / gammas.sum(axis=1, keepdims=True), axis=1)
        return np.concatenate([np.zeros((DRAWS, 1)), logs], axis=1)

    def loss(x: Floats) -> float:
        if abs(x).max() > 8:
            return 1e9
        kept = np.exp(alive(x))
        ends = np.concatenate([kept[:, :-1] - kept[:, 1:], kept[:, -1:]], axis=1)
        likelihood = counts @ np.log(np.maximum(ends, 1e-300)).T
        return -float(logsumexp(likelihood, axis=1).sum())

    start = np.concatenate([np.log([0.3, 4.0, 2.0]), np.zeros(total - 1)])
    x, sd = minimise(loss, start)
    found = positive(("a", "b", "kappa"), x[:3], sd[:3])
    mean = np.exp(np.concatenate([[0.0], x[3:]]))
    mean /= mean.sum()
    found |= {f"weight of step {k + 1}": Estimate(float(m)) for k, m in enumerate(mean)}
    kept = np.exp(alive(x)).mean(axis=0)
    reached = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # samples with at least k good steps
    checks = [
        Check(
            f"step {k} is good",
            float(reached[:, k].sum() / reached[:, k - 1].sum()),
            float(kept[k] / kept[k - 1]),
            _ratio_error(reached[:, k], reached[:, k - 1]),
        )
        for k in range(1, total + 1)
    ]
    preset = {
        "kind": "steps",
        "steps": total,
        "pass_rate": {
            "kind": "beta",
            "a": rounded(found["a"].value),
            "b": rounded(found["b"].value),
        },
        "kappa": rounded(found["kappa"].value),
        "weights": [rounded(float(m)) for m in mean],
    }
    name = f"{data.name}, steps"
    return Fit(name, data.questions, len(data.correct), found, tuple(checks), (), preset)


def _ratio_error(top: Floats, bottom: Floats) -> float:
    """The standard error of sum(top) / sum(bottom) over questions (linearised)."""
    ratio = top.sum() / bottom.sum()
    rest = top - ratio * bottom
    return float(math.sqrt(len(rest) * rest.var(ddof=1)) / bottom.sum())


# -- a search's judged steps -----------------------------------------------------------------------------


def fit_judged(data: Judged) -> Fit:
    """How well a verifier tells steps apart at each depth: AUC -> the distance of right and wrong.

    The value is read as a rank: with normal errors of standard deviation sigma in all, a distance m gives
    AUC = Phi(m / (sigma sqrt 2)). sigma is 1.7, the scale of the presets: only ratios matter to a search.
    """
    sigma = 1.7
    found: dict[str, Estimate] = {}
    checks, distances = [], []
    for depth in np.unique(data.depth).tolist():
        mine = data.depth == depth
        good, bad = data.value[mine & (data.alive == 1)], data.value[mine & (data.alive == 0)]
        area = auc(good, bad)
        found[f"steps kept solvable at depth {depth}"] = Estimate(float(data.alive[mine].mean()))
        if math.isnan(area):
            continue
        error = auc_error(area, len(good), len(bad))
        distance = float(ndtri(min(area, 0.9999))) * sigma * math.sqrt(2)
        distances.append(distance)
        fitted = float(ndtr(distance / (sigma * math.sqrt(2))))
        found[f"distance at depth {depth}"] = Estimate(distance)
        checks.append(Check(f"AUC at depth {depth}", area, fitted, error))
    strength = max(distances, default=0.0)
    verifier: dict[str, Any] = {}
    if strength > 0:
        gains = [rounded(max(d, 0.0) / strength) for d in distances]
        verifier = {"strength": rounded(strength), "gains": gains}
    notes = ("One distance a depth reproduces one AUC a depth: a description, not a test.",)
    return Fit("judged steps", 0, len(data.depth), found, tuple(checks), notes, {}, verifier)


# -- the scores of whole solutions --------------------------------------------------------------------------


def fit_scores(data: Graded) -> Fit:
    """Fit a process verifier to the step scores of graded solutions, by moments of their logits.

    At the last step: bias and strength from the means of right and wrong; the variance of wrong answers in
    three parts, from how pairs of them covary (different answers to a question: the question's; copies of
    one: the question's and the answer's). `early` is the slope of the distance over the path, taking the
    fatal step to be anywhere alike; `rho` the correlation of neighbouring steps of right solutions.
    """
    assert data.scores is not None and data.answer is not None
    last = np.array([_logit(scores[-1]) for scores in data.scores])
    right = data.correct == 1
    good, bad = last[right], last[~right]
    strength = float(good.mean() - bad.mean())
    total = float(bad.var())
    same, different, pairs = _covariances(data, last)
    question = min(max(different, 0.0), total)
    copies = min(max(same, question), total)
    parts = {
        "question_sigma": math.sqrt(question),
        "class_sigma": math.sqrt(copies - question),
        "step_sigma": math.sqrt(total - copies),
    }
    early, rho = _early(data, strength), _rho(data)
    numbers = {"strength": strength, "bias": float(good.mean() + bad.mean()) / 2, **parts}
    numbers |= {"early": early, "rho": rho}
    found = {name: Estimate(value) for name, value in numbers.items()}
    found["strength"] = Estimate(
        strength, *(strength + d * _spread(good, bad) for d in (-TWO_SIDED, TWO_SIDED))
    )
    area, error = _within(data, last)
    noise = math.sqrt(2 * parts["step_sigma"] ** 2 + parts["class_sigma"] ** 2)
    checks = (
        Check("AUC at the last step", area, float(ndtr(strength / noise)), error),
        Check("correlation, copies of a wrong answer", same / total, copies / total, 0.1),
        Check("correlation, different wrong answers", different / total, question / total, 0.1),
        Check(
            "sd of right answers' logits",
            float(good.std()),
            math.sqrt(parts["step_sigma"] ** 2 + question),
            float(good.std()) / math.sqrt(2 * len(good)) + 0.2,
        ),
    )
    notes = (
        f"{pairs:,} pairs of copies; scores nearer to 0 or 1 than {CLIP:g} are taken at that distance.",
        "The standard errors of correlations and of the sd are rough: few questions carry them.",
    )
    verifier = {name: rounded(value) for name, value in numbers.items()}
    name = f"{data.name}, verifier"
    return Fit(name, data.questions, len(last), found, checks, notes, {}, verifier)


def _logit(score: float) -> float:
    kept = min(max(score, CLIP), 1 - CLIP)
    return math.log(kept / (1 - kept))


def _spread(good: Floats, bad: Floats) -> float:
    return math.sqrt(float(good.var()) / len(good) + float(bad.var()) / len(bad))


def _covariances(data: Graded, last: Floats) -> tuple[float, float, int]:
    """Covariance of the logits of two wrong answers: copies of one, different ones; and pairs of copies."""
    assert data.answer is not None
    rows = np.flatnonzero(data.correct == 0)
    centre = last - last[rows].mean()
    sums = {"same": [0.0, 0.0], "different": [0.0, 0.0]}
    for question in range(data.questions):
        mine = [int(i) for i in rows if data.question[i] == question]
        by_answer: dict[str, list[float]] = {}
        for i in mine:
            by_answer.setdefault(data.answer[i], []).append(float(centre[i]))
        groups = [np.array(group) for group in by_answer.values()]
        whole = sum(float(g.sum()) for g in groups)
        inner = sum(float(g.sum()) ** 2 - float((g**2).sum()) for g in groups)
        inner_pairs = sum(len(g) * (len(g) - 1) for g in groups)
        outer = whole**2 - sum(float(g.sum()) ** 2 for g in groups)
        outer_pairs = len(mine) ** 2 - sum(len(g) ** 2 for g in groups)
        for kind, value, count in (("same", inner, inner_pairs), ("different", outer, outer_pairs)):
            sums[kind][0] += value
            sums[kind][1] += count
    same, different = (v / c if c else 0.0 for v, c in (sums["same"], sums["different"]))
    return same, different, int(sums["same"][1]) // 2


def _early(data: Graded, strength: float) -> float:
    """The share of the strength that is there at the start of a path."""
    assert data.scores is not None
    right = data.correct == 1
    positions, distances, weights = [], [], []
    for low in np.arange(0.1, 1.0, 0.1):
        places = [min(int(low * len(s)), len(s) - 1) for s in data.scores]
        here = np.array([_logit(s[i]) for s, i in zip(data.scores, places, strict=True)])
        position = float(
            np.mean([(i + 1) / len(s) for s, i in zip(data.scores, places, strict=True)])
        )
        gap = float(here[right].mean() - here[~right].mean())
        positions.append(position)
        distances.append(gap / position / strength)
        weights.append(position)
    slope, level = np.polyfit(positions, distances, 1, w=weights)
    return float(min(max(level / max(level + slope, 1e-9), 0.0), 1.0))


def _rho(data: Graded) -> float:
    """The correlation of neighbouring steps' logits in right solutions, within question and step."""
    assert data.scores is not None
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for question, correct, scores in zip(
        data.question.tolist(), data.correct.tolist(), data.scores, strict=True
    ):
        if correct:
            for k in range(len(scores) - 1):
                pair = (_logit(scores[k]), _logit(scores[k + 1]))
                cells.setdefault((question, k), []).append(pair)
    rest = [np.array(c) - np.mean(c, axis=0) for c in cells.values() if len(c) > 2]
    if not rest:
        return 0.0
    return float(min(max(np.corrcoef(np.concatenate(rest).T)[0, 1], -0.99), 0.99))


def _within(data: Graded, last: Floats) -> tuple[float, float]:
    """AUC within questions, weighted by pairs, and its standard error."""
    area = pairs = variance = 0.0
    for question in range(data.questions):
        mine = data.question == question
        good, bad = last[mine & (data.correct == 1)], last[mine & (data.correct == 0)]
        count = len(good) * len(bad)
        if count:
            one = auc(good, bad)
            area, pairs = area + one * count, pairs + count
            variance += (auc_error(one, len(good), len(bad)) * count) ** 2
    return (area / pairs, math.sqrt(variance) / pairs) if pairs else (math.nan, math.nan)
