"""Ensembles, labels, over-optimisation, shift, calibration from features and scaling laws, on small cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from models.calibration import ece
from models.ensemble import (
    Labels,
    Quality,
    best_right,
    combined,
    is_right,
    label_quality,
    learn_router,
    logits,
    members,
    routed,
    trained,
)
from models.hacking import (
    Curve,
    alarm,
    curve,
    early_stop,
    fit_curve,
    n_of,
    pressure,
    retrained,
    soft_choice,
)
from models.keyed import root_keys
from models.meta_calibration import LEAST, Beta, fit_beta, fit_meta
from models.question import question_model
from models.scaling import (
    chinchilla_flops,
    chinchilla_loss,
    compute_optimal,
    fit_power_law,
    frontier,
    loss,
    optimal_model,
    to_match,
    train_tokens_for,
)
from models.shift import Training, shifted
from models.verifier import VerifierModel, verifier_model

MODEL = question_model("math-500")
KEYS = root_keys(8, 0, 1, 400)


# -- ensembles ------------------------------------------------------------------------------------------


def test_members_share_class_errors_and_blind_spots_by_the_share_they_have_in_common() -> None:
    base = VerifierModel(step_sigma=0.0, blind_share=0.0)
    for common in (1.0, 0.5, 0.0):
        grown, logit = logits(MODEL, members(base, 2, common), KEYS, 8)
        wrong = ~is_right(grown)
        found = np.corrcoef(logit[0][wrong], logit[1][wrong])[0, 1]
        assert found == pytest.approx(common, abs=0.12)


def test_an_ensemble_scores_the_same_answers() -> None:
    first, _ = logits(MODEL, members(verifier_model("general"), 2), KEYS[:20], 4)
    second, _ = logits(MODEL, members(verifier_model("general"), 2)[1:], KEYS[:20], 4)
    assert (first.wrong == second.wrong).all()
    assert (first.score != second.score).any()


def test_caution_takes_back_what_one_members_blind_spot_adds() -> None:
    logit = np.array([[[1.0, 9.0]], [[1.0, 1.0]]])  # two members, one question, two answers
    assert combined(logit).tolist() == [[1.0, 5.0]]
    assert combined(logit, 1.0).tolist() == [[1.0, 1.0]]


def test_a_router_asks_each_specialist_what_it_knows() -> None:
    right = np.array([[True, False]] * 40)
    good, bad = np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]])
    types = ["a", "b"] * 20
    is_a = np.array([t == "a" for t in types])[:, None]
    logit = np.stack([np.where(is_a, good, bad), np.where(is_a, bad, good)])
    router = learn_router(types, logit, right)
    assert router.choice == {"a": 0, "b": 1}
    assert best_right(routed(router, types, logit), right).mean() == 1.0
    assert router(["unseen"]).tolist() == [router.default]


# -- labels ---------------------------------------------------------------------------------------------


def test_more_rollouts_and_a_filter_make_better_hard_labels() -> None:
    honest = {"lucky": 0.0}
    late = [label_quality(MODEL, Labels(m, **honest), KEYS).late for m in (1, 4, 16)]  # type: ignore[arg-type]
    assert late == sorted(late)
    assert late[-1] > 0.95
    plain, filtered = (label_quality(MODEL, Labels(2, consensus=c), KEYS) for c in (0.0, 0.6))
    assert filtered.early > plain.early
    assert plain.early < plain.late  # from the first step more is left to go wrong


def test_a_verifier_of_its_own_labels_is_itself_and_one_of_worse_labels_is_weaker() -> None:
    judge = verifier_model("math-prm")
    same = Quality(0.6, 0.9)
    assert trained(judge, same, same) == judge
    worse = trained(judge, Quality(0.3, 0.6), same)
    assert worse.strength == pytest.approx(judge.strength * 2 / 3)
    assert worse.early == pytest.approx(judge.early * 0.5 / (2 / 3))


@pytest.mark.parametrize("given", [{"rollouts": 0}, {"kind": "firm"}, {"lucky": 2.0}])
def test_impossible_labels_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Labels(**given)  # type: ignore[arg-type]


# -- over-optimisation ------------------------------------------------------------------------------------


def test_pressure_is_the_root_of_the_divergence_of_best_of_n() -> None:
    assert pressure(1) == 0
    assert float(pressure(4)) ** 2 == pytest.approx(math.log(4) - 3 / 4)
    assert n_of(float(pressure(64))) == pytest.approx(64)


def test_an_over_optimisation_curve_is_found_again() -> None:
    n = (1, 4, 16, 64, 256)
    d = pressure(np.array(n, dtype=float))
    gold = 0.4 + d * (0.3 - 0.08 * d)
    rng = np.random.default_rng(0)
    correct = (rng.random((1, 20_000)) < gold[:, None]).astype(float)
    found = fit_curve(Curve(n, correct.mean(axis=1), np.full(len(n), 0.9), correct))
    assert found.alpha == pytest.approx(0.3, abs=4 * found.alpha_se)
    assert found.beta == pytest.approx(0.08, abs=4 * found.beta_se)
    assert found.turns_at == pytest.approx(n_of(0.3 / 0.16), rel=0.5)


def test_a_verifier_that_hates_the_truth_raises_the_alarm_and_is_stopped_early() -> None:
    rng = np.random.default_rng(1)
    right = rng.random((2_000, 64)) < 0.7
    score = rng.normal(size=right.shape) + np.where(right, 0.0, 3.0)
    found = curve(score, right)
    told = alarm(found)
    assert told.raised
    assert told.best_n == 1
    assert early_stop(found) == 1
    assert told.gap_growth > 0.5
    kind = curve(-score, right)
    assert not alarm(kind).raised


def test_a_soft_choice_lies_between_a_random_one_and_the_best() -> None:
    rng = np.random.default_rng(2)
    right = rng.random((3_000, 16)) < 0.5
    score = rng.normal(size=right.shape) + right
    warm, cold = soft_choice(score, right, 1e6), soft_choice(score, right, 1e-3)
    assert warm == pytest.approx(right.mean(), abs=1e-4)
    assert cold == pytest.approx(best_right(score, right).mean(), abs=1e-3)
    assert warm < soft_choice(score, right, 1.0) < cold


def test_retraining_shrinks_blind_spots_by_what_search_found() -> None:
    judge = verifier_model("general")
    fooled = np.array([True, True, False, False])
    better, share = retrained(judge, fooled, np.array([True, False, True, False]), transfer=0.5)
    assert share == 0.5
    assert better.blind_share == pytest.approx(judge.blind_share * 0.75)
    assert better.version == judge.version + 1
    assert better.step_sigma == judge.step_sigma
    nothing, share = retrained(judge, fooled, np.zeros(4, dtype=bool))
    assert share == 0.0
    assert nothing == replace(judge, version=1)


# -- shift ------------------------------------------------------------------------------------------------


def test_far_from_home_a_verifier_is_weaker_surer_and_noisier_and_training_brings_it_back() -> None:
    judge = verifier_model("math-prm")
    assert shifted(judge, 0.0) == judge
    away = shifted(judge, 2.0)
    assert away.strength < judge.strength
    assert away.bias > judge.bias
    assert away.step_sigma > judge.step_sigma
    updated = shifted(judge, 2.0, Training(updates=500))
    assert updated == shifted(judge, 1.0)
    robust = shifted(judge, 2.0, Training(robust=0.5))
    assert away.strength < robust.strength
    assert shifted(judge, 0.0, Training(robust=0.5)).strength < judge.strength  # its price at home
    with pytest.raises(ValueError, match="distance"):
        shifted(judge, -1.0)


# -- confidence ---------------------------------------------------------------------------------------------


def test_a_beta_map_is_found_again_and_never_falls() -> None:
    rng = np.random.default_rng(3)
    signal = rng.random(20_000)
    truth = Beta(1.5, 0.5, 0.3)
    chance = np.array([truth.confidence(s) for s in signal])
    found = fit_beta(signal, rng.random(20_000) < chance)
    assert (found.a, found.b, found.c) == pytest.approx((1.5, 0.5, 0.3), abs=0.12)
    backwards = fit_beta(signal, rng.random(20_000) > chance)
    assert min(backwards.a, backwards.b) >= 0
    with pytest.raises(ValueError, match="right and wrong"):
        fit_beta(signal, np.ones(20_000, dtype=bool))


@pytest.mark.parametrize("method", ["isotonic", "beta"])
def test_types_that_mean_different_things_by_a_score_are_told_apart(method: str) -> None:
    rng = np.random.default_rng(4)
    n = 6_000
    kinds = np.where(np.arange(n) % 2 == 0, "easy", "hard")
    x = rng.normal(size=(n, 2))
    z = x[:, 0] + 0.8 * x[:, 1] + np.where(kinds == "easy", 1.5, -1.5)
    y = rng.random(n) < 1 / (1 + np.exp(-z))
    fit = np.arange(n) < n // 2
    meta = fit_meta(x[fit], y[fit], kinds[fit].tolist(), method)  # type: ignore[arg-type]
    claimed = meta.confidence(x[~fit], kinds[~fit].tolist())
    pooled = meta.confidence(x[~fit], ["never seen"] * int((~fit).sum()))
    for kind in ("easy", "hard"):
        mine = kinds[~fit] == kind
        assert ece(claimed[mine], y[~fit][mine].astype(float)) < 0.05
        assert ece(pooled[mine], y[~fit][mine].astype(float)) > 0.15
    few = fit_meta(x[:LEAST], y[:LEAST], ["rare"] * (LEAST - 1) + ["other"], method)  # type: ignore[arg-type]
    assert not few.maps


# -- scaling ------------------------------------------------------------------------------------------------


def test_a_power_law_is_found_again_with_its_interval() -> None:
    rng = np.random.default_rng(5)
    tokens = np.repeat(np.array([[1e3], [4e3], [16e3], [64e3]]), 4_000, axis=1)
    correct = (rng.random(tokens.shape) > 2.0 * tokens**-0.2).astype(float)
    law = fit_power_law(tokens, correct)
    assert law.low < 0.2 < law.high
    assert law.error(4e3) == pytest.approx(2.0 * 4e3**-0.2, rel=0.1)
    with pytest.raises(ValueError, match="no logarithm"):
        fit_power_law(tokens, np.ones_like(correct))


def test_a_plan_that_another_beats_for_less_is_not_on_the_frontier() -> None:
    accuracy = {"a": 0.5, "b": 0.4, "c": 0.6}
    tokens = {"a": 10.0, "b": 20.0, "c": 30.0}
    assert [row[0] for row in compute_optimal(accuracy, tokens)] == ["a", "c"]


def test_a_compute_optimal_model_has_the_least_loss_of_its_flops() -> None:
    size, tokens = optimal_model(1e22)
    assert 6 * size * tokens == pytest.approx(1e22)
    for factor in (0.5, 2.0):
        assert loss(size * factor, tokens / factor) > loss(size, tokens)
    assert chinchilla_loss(chinchilla_flops(2.0)) == pytest.approx(2.0)
    assert loss(1e10, train_tokens_for(1e10, 2.1)) == pytest.approx(2.1)
    assert math.isinf(train_tokens_for(1e6, 2.0))


def test_many_queries_make_the_model_smaller_and_thinking_shorter() -> None:
    few, many = frontier(2.0, 1e4, 500)[0], frontier(2.0, 1e14, 500)[0]
    assert many.thinking < few.thinking
    plain = [frontier(2.0, q, 500, thinking=(1.0,))[0] for q in (1e4, 1e14)]
    assert plain[1].parameters < plain[0].parameters
    assert loss(plain[1].parameters, plain[1].train_tokens) == pytest.approx(2.0)
    assert to_match(1.0, 1e12, 1e9) == 1.0
    with pytest.raises(ValueError, match="irreducible"):
        frontier(1.5, 1e6, 500)
