"""Verifiers: weak early and strong late, errors shared by all copies of a wrong answer, blind spots."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from models.keyed import root_key
from models.presets import PresetError
from models.question import question_model
from models.verifier import VerifierModel, verifier_model
from models.world import World

QUIET = VerifierModel(class_sigma=0.0, step_sigma=0.0, blind_share=0.0)


def worlds(n: int, verifier: VerifierModel | None, preset: str = "math-500") -> list[World]:
    built = question_model({"preset": preset, "wrong_steps": 0} if preset == "math-500" else preset)
    return [built.world(root_key(11, 0, 1, i), 100, verifier) for i in range(n)]


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def auc(scores: list[float], alive: list[bool]) -> float:
    good = [s for s, a in zip(scores, alive, strict=True) if a]
    bad = [s for s, a in zip(scores, alive, strict=True) if not a]
    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


def test_without_noise_the_logit_is_the_formula_at_every_step() -> None:
    for w in worlds(20, QUIET):
        node, steps = w.root, w.grow(w.root, 0, "answer").depth
        for k in range(1, steps + 1):
            node = w.grow(node, 0)
            alive = node.hidden[1] == 0
            expected = 1.3 + 2.9 * (0.45 + 0.55 * k / steps) * (0.5 if alive else -0.5)
            assert logit(w.score(node)) == pytest.approx(expected)


def test_the_step_error_is_stationary_and_autocorrelated_along_a_path() -> None:
    first, second = [], []
    for w in worlds(4_000, VerifierModel(strength=0, class_sigma=0, blind_share=0)):
        a = w.grow(w.root, 0)
        b = w.grow(a, 0)
        first.append(logit(w.score(a)) - 1.3)
        second.append(logit(w.score(b)) - 1.3)
    assert np.std(first) == pytest.approx(1.7, rel=0.05)
    assert np.std(second) == pytest.approx(1.7, rel=0.05)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.25, abs=0.06)


def test_copies_of_a_wrong_answer_share_their_error_and_different_ones_do_not() -> None:
    same: list[tuple[float, float]] = []
    different: list[tuple[float, float]] = []
    for w in worlds(2_000, VerifierModel(blind_share=0)):
        nodes = [w.grow(w.root, o, "answer") for o in range(4)]
        wrong = [n for n in nodes if not w.is_correct(n.answer)]
        for a, b in zip(wrong[::2], wrong[1::2], strict=False):
            pairs = same if a.answer == b.answer else different
            pairs.append((logit(w.score(a)), logit(w.score(b))))
    share = 1.2**2 / (1.2**2 + 1.7**2)  # of the variance, that is the class's
    assert np.corrcoef(np.array(same).T)[0, 1] == pytest.approx(share, abs=0.12)
    assert np.corrcoef(np.array(different).T)[0, 1] == pytest.approx(0, abs=0.08)


def test_blind_spots_are_wrong_answers_alone_and_as_frequent_as_stated() -> None:
    boosted = replace(QUIET, blind_share=0.3, blind_boost=8.0)
    hits = []
    for w in worlds(1_500, boosted):
        node = w.grow(w.root, 0, "answer")
        blind = logit(w.score(node)) > 4
        if w.is_correct(node.answer):
            assert not blind
        else:
            hits.append(blind)
    assert np.mean(hits) == pytest.approx(0.3, abs=0.06)


def test_the_game_of_24_verifier_is_weakest_at_the_first_step() -> None:
    """Tree of Thoughts' Game of 24, GPT-4: AUC .75, .99, .99 by depth."""
    built = question_model({"preset": "game-24", "pass_rate": {"kind": "beta", "a": 2, "b": 4}})
    verifier = verifier_model(built.verifier)
    depths: list[tuple[list[float], list[bool]]] = [([], []), ([], []), ([], [])]
    for i in range(2_500):
        w = built.world(root_key(0, 0, 1, i), 100, verifier)
        node = w.root
        for scores, alive in depths:
            node = w.grow(node, 0)
            scores.append(w.score(node))
            alive.append(node.hidden[1] == 0)
    reached = [auc(scores, alive) for scores, alive in depths]
    assert reached == pytest.approx([0.75, 0.99, 0.99], abs=0.03)


def test_an_outcome_verifier_knows_nothing_before_the_end_and_noise_may_fade_with_depth() -> None:
    blind = verifier_model("math-orm")
    assert [blind.gain(k, 4) for k in range(5)] == [0.0] * 4 + [blind.strength]
    loud = VerifierModel(step_sigma=2.0, noise_early=1.5)
    assert [loud.sigma(k, 2) for k in range(3)] == [3.0, 2.5, 2.0]


def test_all_answers_to_a_question_may_share_an_error() -> None:
    shared = replace(QUIET, question_sigma=1.0, strength=0.0)
    logits = []
    for w in worlds(600, shared):
        first, second = (logit(w.score(w.grow(w.root, o, "answer"))) for o in (0, 1))
        assert first == pytest.approx(second)
        logits.append(first)
    assert np.std(logits) == pytest.approx(1.0, abs=0.1)


def test_scoring_twice_changes_nothing_and_sets_the_score() -> None:
    (w,) = worlds(1, VerifierModel())
    node = w.grow(w.root, 0)
    assert math.isnan(node.score)
    assert w.score(node) == w.score(node) == node.score


def test_versions_differ_in_step_errors_and_share_everything_else() -> None:
    old, new = worlds(300, VerifierModel()), worlds(300, VerifierModel(version=1))
    moved = 0
    for a, b in zip(old, new, strict=True):
        x, y = a.grow(a.root, 0, "answer"), b.grow(b.root, 0, "answer")
        assert (x.key, x.tokens, x.answer) == (y.key, y.tokens, y.answer)
        moved += a.score(x) != b.score(y)
    assert moved == 300


def test_a_score_stays_inside_zero_and_one_however_extreme_the_verifier() -> None:
    for bias in (-1e6, 1e6):
        (w,) = worlds(1, VerifierModel(bias=bias))
        assert 0 < w.score(w.grow(w.root, 0)) < 1


def test_a_question_without_a_verifier_cannot_score() -> None:
    (w,) = worlds(1, None)
    with pytest.raises(ValueError, match="has no verifier"):
        w.score(w.grow(w.root, 0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("math-prn", "Did you mean 'math-prm'"),
        ({"preset": "math-prm", "strenght": 2}, "Did you mean 'strength'"),
        ({"step_sigma": -1}, "must be >= 0"),
        ({"rho": 1.0}, '"rho" of verifier'),
        ({"blind_share": 2}, r"\[0, 1\]"),
        ({"bias": math.nan}, "finite"),
        ({"version": -1}, "65535"),
        ({"outcome": "yes"}, "true or false"),
        ({"common": 1.5}, r"\[0, 1\]"),
        ({"noise_early": -1}, "must be >= 0"),
    ],
)
def test_a_wrong_verifier_is_refused_with_the_way_out(spec: Any, message: str) -> None:
    with pytest.raises((PresetError, ValueError), match=message):
        verifier_model(spec)
