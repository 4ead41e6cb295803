"""Fits find the parameters that data were made with, and say so where the data are something else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betaln

from models.batch_rollout import samples
from models.crowd import crowds
from models.fit_questions import (
    Fit,
    agreement,
    beta_pass_at_k,
    fit_graded,
    fit_pairs,
    fit_pass_rates,
    fit_theta,
    pass_at_k,
)
from models.fit_steps import auc, auc_error, fit_judged, fit_scores, fit_steps
from models.fit_table import chosen, fit_table
from models.graded import Graded, Judged, Pairs, Point
from models.keyed import root_keys
from models.question import question_model
from models.verifier import verifier_model


def graded(spec: dict[str, object], questions: int, n: int, seed: int = 3) -> Graded:
    """Samples of the generative model itself, as a file of graded answers would hold them."""
    model = question_model(spec)
    grown = samples(model, verifier_model(model.verifier), root_keys(seed, 0, 1, questions), n)
    return Graded(
        "made",
        np.repeat(np.arange(questions), n),
        grown.right.ravel().astype(np.int64),
        tuple(map(str, grown.wrong.ravel())),
        grown.tokens.ravel().astype(np.float64),
    )


def inside(fit: Fit, name: str, value: float) -> bool:
    found = fit.parameters[name]
    return found.low <= value <= found.high


def test_the_unbiased_pass_at_k_is_the_mean_over_all_subsets() -> None:
    right, n = np.array([0, 1, 3, 4]), np.array([4, 4, 4, 4])
    found, _ = pass_at_k(right, n, 2)
    expected = np.mean([1 - math.comb(4 - c, 2) / math.comb(4, 2) for c in (0, 1, 3, 4)])
    assert found == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="pass@5 needs at least 5"):
        pass_at_k(right, n, 5)


def test_beta_pass_rates_are_found_again() -> None:
    rng = np.random.default_rng(1)
    right = rng.binomial(20, rng.beta(0.4, 0.7, 600))
    found, likelihood = fit_pass_rates(right, np.full(600, 20))
    assert found["a"].low < 0.4 < found["a"].high
    assert found["b"].low < 0.7 < found["b"].high
    a, b = found["a"].value, found["b"].value
    choose = [math.log(math.comb(20, int(c))) for c in right]
    direct = sum(choose) + float((betaln(a + right, b + 20 - right) - betaln(a, b)).sum())
    assert likelihood == pytest.approx(direct, rel=1e-6)
    assert beta_pass_at_k(a, b, 1) == pytest.approx(a / (a + b))


def test_samples_that_are_all_right_have_no_pass_rates_to_fit() -> None:
    with pytest.raises(ValueError, match="no scale"):
        fit_pass_rates(np.array([4, 4]), np.array([4, 4]))


def test_the_questions_own_parameters_are_found_again() -> None:
    spec = {
        "preset": "math-500",
        "pass_rate": {"a": 1.2, "b": 0.9},
        "bottleneck": 0.15,
        "ramble": 0,
    }
    fit = fit_graded(graded(spec, 400, 40))
    assert inside(fit, "a", 1.2)
    assert inside(fit, "b", 0.9)
    assert inside(fit, "bottleneck", 0.15)
    assert inside(fit, "theta", 6.8)
    assert all(check.fits for check in fit.checks), fit.checks


def test_a_bottleneck_that_is_not_there_is_left_out_and_said() -> None:
    fit = fit_graded(graded({"preset": "math-500", "bottleneck": 0, "ramble": 0}, 300, 24))
    assert "bottleneck" not in fit.parameters
    assert any("left out" in note for note in fit.notes)


def test_a_misfit_is_shown() -> None:
    """Questions that are either easy or impossible are no Beta."""
    rng = np.random.default_rng(2)
    rates = np.where(rng.random(300) < 0.5, 0.5, 0.02)
    right = rng.binomial(16, rates)
    data = Graded(
        "two kinds",
        np.repeat(np.arange(300), 16),
        np.concatenate([np.arange(16) < c for c in right]).astype(np.int64),
    )
    fit = fit_graded(data)
    assert not all(check.fits for check in fit.checks)


def test_theta_is_ewens_estimate_and_needs_both_copies_and_variety() -> None:
    assert fit_theta([[1, 1, 1]]) is None
    assert fit_theta([[3], [2]]) is None
    found = fit_theta([[4, 2, 1, 1]] * 50)
    assert found is not None
    expected = sum(found.value / (found.value + i) for i in range(8))
    assert expected == pytest.approx(4, abs=0.01)
    assert agreement([[2, 1]]) == (pytest.approx(1 / 3), 3)


def test_two_models_share_the_difficulty_of_a_question() -> None:
    rng = np.random.default_rng(4)
    u = rng.random(4_000)
    from scipy.special import betaincinv

    rates = np.array([betaincinv(2 * m, 2 * (1 - m), u) for m in (0.6, 0.8)]).T
    fits = fit_pairs(Pairs("all", ("small", "big"), (rng.random((4_000, 2)) < rates).astype(int)))
    assert [fit.name for fit in fits] == ["small", "big"]
    assert all(inside(fit, "concentration", 2.0) for fit in fits)
    assert all(check.fits for fit in fits for check in fit.checks)


@pytest.mark.slow
def test_the_weights_of_steps_are_found_again() -> None:
    spec = {"preset": "game-24", "pass_rate": {"a": 0.6, "b": 1.4}, "weights": [0.2, 0.7, 0.1]}
    model, n, questions = question_model(spec | {"kappa": 3}), 30, 120
    good = np.zeros((questions, n), dtype=np.int64)
    for places, crowd in crowds(model, None, root_keys(1, 0, 1, questions), n):
        nodes = crowd.root()
        for k in range(3):
            nodes = crowd.grow(nodes, k, 1 if k else n)
            good[places] += nodes.wrong == 0
    data = Graded(
        "made", np.repeat(np.arange(questions), n), (good == 3).ravel().astype(int),
        good_steps=good.ravel(),
    )  # fmt: skip
    fit = fit_steps(data)
    weights = [fit.parameters[f"weight of step {k}"].value for k in (1, 2, 3)]
    assert weights == pytest.approx([0.2, 0.7, 0.1], abs=0.06)
    assert inside(fit, "kappa", 3.0)
    assert all(abs(check.observed - check.fitted) < 0.06 for check in fit.checks), fit.checks


def test_an_auc_counts_ties_half_and_its_error_is_hanleys() -> None:
    assert auc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)
    assert math.isnan(auc(np.array([]), np.array([1.0])))
    assert auc_error(0.85, 58, 51) == pytest.approx(0.0372, abs=0.001)


def test_a_verifiers_distance_follows_from_its_auc_at_each_depth() -> None:
    rng = np.random.default_rng(5)
    depth, alive = rng.integers(1, 3, 8_000), rng.integers(0, 2, 8_000)
    value = rng.normal(size=8_000) * 1.7 + alive * np.where(depth == 1, 1.0, 4.0)
    fit = fit_judged(Judged(depth, alive, value))
    assert fit.parameters["distance at depth 1"].value == pytest.approx(1.0, abs=0.15)
    assert fit.parameters["distance at depth 2"].value == pytest.approx(4.0, abs=0.2)
    assert fit.verifier["gains"][1] == 1.0


def test_a_process_verifier_is_found_again_from_its_step_scores() -> None:
    verifier = {"preset": "math-prm", "class_sigma": 1.5, "step_sigma": 1.2, "blind_share": 0}
    model = question_model({"preset": "math-500", "ramble": 0, "wrong_steps": 0, "steps": 6})
    judge, keys, n = verifier_model(verifier), root_keys(9, 0, 1, 150), 24
    rows = []
    for places, crowd in crowds(model, judge, keys, n):
        nodes, scores = crowd.root(), []
        for k in range(6):
            nodes = crowd.grow(nodes, k, 1 if k else n)
            scores.append(crowd.score(nodes, k + 1))
        path = np.stack(scores, axis=2)
        for i, place in enumerate(places):
            rows += [(int(place), int(nodes.wrong[i, j]), tuple(path[i, j])) for j in range(n)]
    data = Graded(
        "made",
        np.array([row[0] for row in rows]),
        np.array([int(row[1] == 0) for row in rows]),
        tuple(str(row[1]) for row in rows),
        scores=tuple(row[2] for row in rows),
    )
    found = fit_scores(data).verifier
    assert found["strength"] == pytest.approx(2.75, abs=0.3)
    assert found["class_sigma"] == pytest.approx(1.5, abs=0.35)
    assert found["step_sigma"] == pytest.approx(1.2, abs=0.2)
    assert found["rho"] == pytest.approx(0.25, abs=0.1)
    assert 0.2 < found["early"] < 0.9


@pytest.mark.slow
def test_a_table_made_by_the_model_leads_back_to_it() -> None:
    spec = {"preset": "math-500", "pass_rate": {"a": 0.7, "b": 1.3}}
    judge = verifier_model({"preset": "math-prm", "strength": 3.4})
    grown = samples(question_model(spec), judge, root_keys(77, 0, 1, 20_000), 16)
    points = [
        Point(method, n, float(chosen(grown, kind, n).mean()), math.nan, 2_000)
        for n in (2, 4, 8, 16)
        for method, kind in (
            ("majority", "majority"),
            ("naive", "best_of_n"),
            ("weighted", "weighted_vote"),
        )
    ]
    fit = fit_table([*points, Point("beam_search", 4, 0.5, math.nan, 100)])
    a, b = fit.parameters["a"].value, fit.parameters["b"].value
    assert a / (a + b) == pytest.approx(0.35, abs=0.02)
    assert all(abs(check.observed - check.fitted) < 0.02 for check in fit.checks)
    ratio = fit.parameters["strength"].value / fit.parameters["noise"].value
    assert ratio == pytest.approx(3.4 / math.hypot(1.05, 1.55), rel=0.15)
    assert any("beam_search" in note for note in fit.notes)


def test_a_table_without_a_known_method_is_refused() -> None:
    with pytest.raises(ValueError, match="No row is of a method"):
        fit_table([Point("mystery", 4, 0.5, math.nan, 100)])
