"""Published tables: MATH-500, Game of 24, AIME, ARC, and a process verifier's scores, against the presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy.special import betaln

from models.batch_rollout import Samples, samples
from models.crowd import Bools, Floats, crowds
from models.fit_steps import auc, auc_error
from models.fit_table import chosen
from models.keyed import root_keys
from models.question import question_model
from models.refilled_beam import refilled_beam
from models.rollout import rollout
from models.science import Experiment, Row, mean, size
from models.tree import Tree
from models.verifier import verifier_model
from models.world import QuestionModel, World

SEED: Final = 20_251_125
NS: Final = (2, 4, 8, 16)
MATH_500: Final = "math-500-long"  # every row of the MATH-500 table
MATH: Final = "search-and-learn runs, Qwen2.5-1.5B and a PRM, 100 questions of MATH-500"
TOT: Final = "Tree of Thoughts' logs of GPT-4 on the Game of 24"
AIME: Final = "R1-Distill-1.5B on AIME, 372 problems x 8"
ACCURACY: Final[Mapping[str, tuple[float, ...]]] = {
    "majority": (0.422, 0.514, 0.600, 0.647),
    "best_of_n": (0.528, 0.606, 0.654, 0.674),
    "weighted_vote": (0.528, 0.605, 0.664, 0.703),
}
FINAL_BEAMS: Final = {4: 0.638, 8: 0.730, 16: 0.799}
TOKENS: Final = {2: 1295 / 972, 4: 2649 / 1988, 8: 7010 / 4007, 16: 14153 / 7976}
BEAMS: Final = {2: (2, 40), 4: (4, 40), 8: (4, 20), 16: (4, 20)}
"""Children a beam and iterations of each N. The table does not tell: settings of the runs of NUMINA."""
CALL_TOKENS: Final = 2_048  # Source: "max_tokens" of search-and-learn, src/sal/config.py (2024)
NUMINA: Final = {
    (2, 2, 40): (1484.3, 1164.0),
    (4, 2, 40): (3565.8, 2340.7),
    (8, 4, 20): (7118.8, 4681.9),
    (16, 2, 40): (21465.7, 9376.1),
    (16, 4, 20): (15331.9, 9376.1),
    (32, 2, 20): (34825.4, 18765.8),
    (32, 4, 40): (49158.5, 18765.8),
}
"""Tokens a question of beam search and of n answers, by N, children a beam, iterations."""
COST: Final = "the same runs' costs on NuminaMath; the model is that of MATH-500"


def grown(preset: str, n: int, questions: int, seed: int = SEED) -> Samples:
    """`n` scored answers to each of so many questions of a preset."""
    model = question_model(preset)
    return samples(model, verifier_model(model.verifier), root_keys(seed, 0, 1, questions), n)


def worlds(model: QuestionModel, questions: int, seed: int) -> list[World]:
    """Questions for a generator, with the preset's own verifier."""
    verifier = verifier_model(model.verifier)
    return [model.world(int(key), 1, verifier) for key in root_keys(seed, 0, 1, questions)]


def math_500(scale: float) -> list[Row]:
    """Accuracy of three ways to choose among N answers, and of beam search, with its tokens."""
    found = grown(MATH_500, 16, size(8_000, scale))
    rows = []
    for method, targets in ACCURACY.items():
        for n, target in zip(NS, targets, strict=True):
            ours, se, count = mean(chosen(found, method, n))
            claim = f"{method}, N = {n}: accuracy"
            rows.append(Row("math-500", claim, ours, "within", target, 0.03, count, se, MATH))
    alone = float(found.tokens.mean())
    for n, (beam_width, iterations) in BEAMS.items():
        covered, right, tokens = beamed(n, beam_width, iterations, size(3_000, scale))
        if n in FINAL_BEAMS:
            ours, se, count = mean(covered)
            claim = f"beam, N = {n}: any of the final beams is right"
            target = FINAL_BEAMS[n]
            rows.append(Row("math-500", claim, ours, "within", target, 0.05, count, se, MATH))
        ours, se, count = mean(right)
        claim = f"beam, N = {n}: the one its verifier selects is right"
        rows.append(Row("math-500", claim, ours, "shown", n=count, se=se))
        ours, se, count = mean(tokens / (n * alone))
        claim = f"beam, N = {n}: tokens over best-of-n's"
        target = TOKENS[n]
        rows.append(Row("math-500", claim, ours, "within", target, 0.15 * target, count, se, MATH))
    return rows


def beamed(n: int, beam_width: int, iterations: int, questions: int) -> tuple[Bools, Bools, Floats]:
    """Play the published beam: whether any of its final beams is right, whether the chosen one, its tokens.

    Its limit of tokens holds for a call, here a step: the iterations are all that stops a trajectory.
    """
    model = question_model({"preset": MATH_500, "max_output": CALL_TOKENS * iterations})
    covered, right, tokens = [], [], []
    for world in worlds(model, questions, SEED + 1):
        search = refilled_beam(Tree(world.root), n, beam_width, iterations, CALL_TOKENS)
        end = rollout(search, world)
        ends = sorted((x for x in end.tree.leaves if x.done), key=lambda x: -x.score)[:n]
        covered.append(any(world.is_correct(x.answer) for x in ends))
        right.append(end.correct)
        tokens.append(float(end.tokens))
    return np.array(covered), np.array(right), np.array(tokens)


def beam_tokens(scale: float) -> list[Row]:
    """Tokens of beam search over best-of-n's on other questions, at settings that are told."""
    alone = float(grown(MATH_500, 1, size(40_000, scale)).tokens.mean())
    rows = []
    for (n, beam_width, iterations), (beam, single) in NUMINA.items():
        _, _, tokens = beamed(n, beam_width, iterations, size(800, scale))
        ours, se, count = mean(tokens / (n * alone))
        claim = f"N = {n}, {beam_width} children a beam, at most {iterations} steps"
        target = beam / single
        rows.append(
            Row("beam-tokens", claim, ours, "within", target, 0.15 * target, count, se, COST)
        )
    return rows


def coverage(scale: float) -> list[Row]:
    """Pass@k of three presets, from the latent pass rates of their questions."""
    tables = {
        "game-24": ({1: 0.040, 2: 0.073, 5: 0.143, 10: 0.215, 20: 0.296, 50: 0.407, 100: 0.490}, TOT),
        "aime": ({1: 0.403, 2: 0.525, 4: 0.624, 8: 0.710}, AIME),
        "math-500": ({100: 0.882, 10_000: 0.957}, MATH),
    }  # fmt: skip
    rows = []
    for preset, (targets, source) in tables.items():
        p = grown(preset, 1, size(40_000, scale)).difficulty
        for k, target in targets.items():
            ours, se, count = mean(-np.expm1(k * np.log1p(-np.minimum(p, 1 - 1e-12))))
            claim = f"{preset}: pass@{k}"
            rows.append(Row("coverage", claim, ours, "within", target, 0.02, count, se, source))
    return rows


def game_24(scale: float) -> list[Row]:
    """Which share of steps keeps a puzzle solvable, and how well the verifier tells, by depth."""
    model = question_model("game-24")
    verifier = verifier_model(model.verifier)
    n = size(20_000, scale)
    alive: list[list[Bools]] = [[], [], []]
    scores: list[list[Floats]] = [[], [], []]
    for _, crowd in crowds(model, verifier, root_keys(SEED + 2, 0, 1, n), 1):
        nodes = crowd.root()
        for k in range(3):
            nodes = crowd.grow(nodes, k, 1)
            alive[k].append(np.equal(nodes.wrong, 0).ravel())
            scores[k].append(crowd.score(nodes, k + 1).ravel())
    rows = []
    before = n
    for k, (target, area) in enumerate(((0.370, 0.75), (0.143, 0.99), (0.915, 0.99))):
        good, score = np.concatenate(alive[k]), np.concatenate(scores[k])
        share = float(good.sum() / before)
        se = math.sqrt(share * (1 - share) / before)
        claim = f"step {k + 1} keeps the puzzle solvable"
        rows.append(Row("game-24", claim, share, "within", target, 0.03, before, se, TOT))
        before = int(good.sum())
        ours = auc(score[good], score[~good])
        error = auc_error(ours, before, n - before)
        claim = f"the verifier's AUC at step {k + 1}"
        rows.append(Row("game-24", claim, ours, "within", area, 0.03, n, error, TOT))
    return rows


def aime(scale: float) -> list[Row]:
    """Thinking cut at a cap, how much longer a wrong answer runs, and what ten times the compute buys."""
    found = grown("aime", 4, size(8_000, scale))
    rows, caps = [], (4_096, 8_192, 16_384)
    for cap, target in zip(caps, (0.182, 0.364, 0.403), strict=True):
        ours, se, count = mean((found.right & (found.tokens <= cap)).mean(axis=1))
        claim = f"accuracy, thinking capped at {cap:,} tokens"
        rows.append(Row("aime", claim, ours, "within", target, 0.02, count, se, AIME))
    logs = np.log(found.tokens)
    both = found.right.any(axis=1) & ~found.right.all(axis=1)
    good = np.where(found.right, logs, np.nan)[both]
    bad = np.where(found.right, np.nan, logs)[both]
    ours, se, count = mean(np.nanmean(bad, axis=1) - np.nanmean(good, axis=1))
    longer, error = math.exp(ours), math.exp(ours) * se
    claim = "a wrong answer is longer than a right one to the same problem, times"
    rows.append(Row("aime", claim, longer, "within", 1.3, 0.1, count, error, AIME))
    ladder = np.array([4_096, 6_144, 8_192, 12_288, 16_384])
    right = np.array([(found.right & (found.tokens <= cap)).mean() for cap in ladder])
    spent = np.array([np.minimum(found.tokens, cap).mean() for cap in ladder])
    odds = np.log(right / (1 - right))
    source = "ARC Prize leaderboard, 589 rows: median 1.74 inside a model family, IQR 1.27 to 2.33"
    slope = float(np.polyfit(np.log10(ladder), odds, 1)[0])
    claim = "logit of accuracy per tenfold budget of thinking, 4k to 16k tokens"
    rows.append(Row("aime", claim, slope, "within", 1.80, 0.53, len(found.right), source=source))
    slope = float(np.polyfit(np.log10(spent), odds, 1)[0])
    claim = "... per tenfold tokens spent: what ends early spends no more"
    rows.append(Row("aime", claim, slope, "shown", n=len(found.right)))
    return rows


def prm_scores(scale: float) -> list[Row]:
    """How the verifier's errors on wrong answers covary: copies of one answer, different answers."""
    found = grown("math-500", 24, size(3_000, scale), SEED + 3)
    logit = np.log(found.score) - np.log1p(-found.score)
    bad = ~found.right
    centre = np.where(bad, logit - logit[bad].mean(), 0.0)
    same, pairs = np.zeros(len(bad)), np.zeros(len(bad))
    all_of, all_pairs = _pairs(centre, bad)
    for answer in range(1, int(found.wrong[found.wrong < 10**6].max()) + 1):
        value, count = _pairs(centre, found.wrong == answer)
        same, pairs = same + value, pairs + count
    total = float(logit[bad].var())
    source = "PRM step scores of Llama-1B on MATH, 512 samples of two problems"
    rows = []
    for claim, value, count, target in (
        ("correlation of the logits of two copies of a wrong answer", same, pairs, 0.50),
        (
            "... of two different wrong answers to a question",
            all_of - same,
            all_pairs - pairs,
            0.10,
        ),
    ):
        ours = float(value.sum() / count.sum()) / total
        n = int((count > 0).sum())
        se = (
            float((value / total - ours * count).std()) * math.sqrt(len(count)) / float(count.sum())
        )
        rows.append(Row("prm-scores", claim, ours, "within", target, 0.10, n, se, source))
    return rows


def _pairs(centre: Floats, chosen: Bools) -> tuple[Floats, Floats]:
    """Sum of products over ordered pairs of the chosen of each row, and how many pairs."""
    x = np.where(chosen, centre, 0.0)
    count = chosen.sum(axis=1).astype(np.float64)
    return x.sum(axis=1) ** 2 - (x**2).sum(axis=1), count * (count - 1)


def beta_tail(scale: float) -> list[Row]:
    """Failure of k samples falls as k^-a: the exponent is the left tail of the pass rates."""
    p = grown("aime", 1, size(40_000, scale)).difficulty
    ks = np.array([16, 32, 64, 128, 256])
    missed = np.array([np.exp(k * np.log1p(-np.minimum(p, 1 - 1e-12))).mean() for k in ks])
    slope = float(-np.polyfit(np.log(ks), np.log(missed), 1)[0])
    a, b = question_model("aime").pass_rate
    exact = betaln(a, b + ks) - betaln(a, b)
    target = float(-np.polyfit(np.log(ks), exact, 1)[0])
    claim = "exponent of the failures of k samples of aime, k = 16 to 256"
    source = "Schaeffer et al., arXiv 2502.17578: B(a, b + k) / B(a, b), about k^-a"
    return [Row("coverage-law", claim, slope, "within", target, 0.03, len(p), source=source)]


EXPERIMENTS: Final[dict[str, Experiment]] = {
    "math-500": math_500,
    "beam-tokens": beam_tokens,
    "coverage": coverage,
    "game-24": game_24,
    "aime": aime,
    "prm-scores": prm_scores,
    "coverage-law": beta_tail,
}
