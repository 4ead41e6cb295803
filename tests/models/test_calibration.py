"""Calibration: the fit rises, few samples promise little, and what is claimed is what happens."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from models.calibration import Calibrator, brier, ece, fit_groups, reliability, wilson

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


@given(ANSWERS, st.lists(st.floats(-1, 2), min_size=2, max_size=20))
def test_confidence_never_falls_with_the_signal_and_stays_inside_zero_and_one(
    answers: list[tuple[float, bool]], signals: list[float]
) -> None:
    fitted = Calibrator.fit([s for s, _ in answers], [c for _, c in answers])
    confidence = [fitted.confidence(s) for s in sorted(signals)]
    assert all(a <= b + 1e-12 for a, b in pairwise(confidence))
    assert all(0 < c < 1 for c in confidence)
    assert fitted.samples == len(answers)


@given(ANSWERS)
def test_a_calibrator_survives_json_unchanged(answers: list[tuple[float, bool]]) -> None:
    fitted = Calibrator.fit([s for s, _ in answers], [c for _, c in answers])
    assert Calibrator.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


@pytest.mark.parametrize("n", [0, 1, 3, 20])
def test_n_right_answers_in_a_row_promise_laplaces_rule_and_no_more(n: int) -> None:
    fitted = Calibrator.fit([0.9] * n, [True] * n)
    assert fitted.confidence(0.9) == pytest.approx((n + 2) / (n + 4) if n else 0.5)


def test_the_top_of_many_right_answers_comes_close_to_certainty_but_not_there() -> None:
    signals = np.linspace(0.5, 1.0, 400)
    top = Calibrator.fit(signals, signals > 0.6).confidence(1.0)
    assert 0.99 < top < 1.0


def test_calibrated_confidence_matches_the_truth_on_fresh_answers() -> None:
    rng = np.random.default_rng(5)
    signal = rng.random((2, 20_000))
    truth = signal**3  # an over-confident signal
    correct = rng.random(signal.shape) < truth
    fitted = Calibrator.fit(signal[0], correct[0])
    fresh = np.array([fitted.confidence(s) for s in signal[1]])
    assert ece(signal[1], correct[1]) == pytest.approx(0.25, abs=0.01)  # E[s - s^3]
    assert ece(fresh, correct[1]) < 0.02
    assert brier(fresh, correct[1]) < brier(signal[1], correct[1])
    assert np.abs(fresh - truth[1]).mean() < 0.03


def test_groups_are_calibrated_apart() -> None:
    groups = [("math", "beam"), ("chat", "direct")] * 200
    fitted = fit_groups(groups, [0.5] * 400, [True, False] * 200)
    assert fitted["math", "beam"].confidence(0.5) > 0.95
    assert fitted["chat", "direct"].confidence(0.5) < 0.05


def test_the_reliability_table_counts_every_answer_once_and_keeps_ties_together() -> None:
    confidence = [0.2] * 30 + [0.8] * 70
    correct = [True] * 6 + [False] * 24 + [True] * 56 + [False] * 14
    table = reliability(confidence, correct, bins=7)
    assert [(b.n, b.confidence, b.accuracy) for b in table] == [
        (30, pytest.approx(0.2), pytest.approx(0.2)),
        (70, pytest.approx(0.8), pytest.approx(0.8)),
    ]
    assert ece(confidence, correct) == pytest.approx(0.0, abs=1e-12)
    assert all(b.low < b.accuracy < b.high for b in table)


@given(st.integers(1, 500), st.data())
def test_the_wilson_interval_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(0.9, method="wilson")
    assert wilson(k, n, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_brier_score_of_always_saying_one_half_is_a_quarter() -> None:
    assert brier([0.5, 0.5], [True, False]) == 0.25
    assert math.isnan(brier([], []))
    assert math.isnan(ece([], []))
    assert reliability([], []) == ()
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Calibrator.fit([0.1, 0.2], [True]), "two lists of one length"),
        (lambda: Calibrator.fit([math.nan], [True]), "leave out searches without an answer"),
        (lambda: Calibrator.fit([], []).confidence(math.nan), "gave no answer"),
        (lambda: Calibrator((0.0, 0.0), (0.5, 0.6), 1), "strictly rising"),
        (lambda: Calibrator((0.0, 1.0), (0.6, 0.5), 1), "not fall"),
        (lambda: Calibrator((0.0,), (1.0,), 1), "inside"),
        (lambda: Calibrator((), (), 0), "at least one"),
        (lambda: wilson(3, 2), "got 3 of 2"),
    ],
)
def test_a_misuse_is_refused_with_the_rule(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
