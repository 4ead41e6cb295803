"""Published comparisons: what must hold does, by a rule that can fail."""

from __future__ import annotations

import math

import pytest

from models.science import Row, experiments, run

MISSES = {f"beam, N = {n}: tokens over best-of-n's" for n in (2, 4, 8, 16)}
"""The published beam grows 1.3 to 1.8 times the tokens of best-of-n; ours about as many."""


def row(rule: str, ours: float, target: float, **more: float) -> Row:
    return Row("x", "y", ours, rule, target, **more)  # type: ignore[arg-type]


def test_a_verdict_follows_the_rule_and_is_open_near_a_bound() -> None:
    assert row("within", 0.52, 0.5, tolerance=0.03).verdict == "holds"
    assert row("within", 0.54, 0.5, tolerance=0.03).verdict == "missed"
    assert row("at_least", 0.10, 0.05, se=0.02).verdict == "holds"
    assert row("at_least", 0.08, 0.05, se=0.02).verdict == "open"
    assert row("at_least", 0.04, 0.05, se=0.02).verdict == "missed"
    assert row("at_most", 0.04, 0.05, se=0.001).verdict == "holds"
    assert row("shown", 0.04, math.nan).verdict == ""


def test_the_quick_tables_hold_on_few_questions() -> None:
    rows = run(["game-24", "prm-scores", "coverage-law"], scale=0.3)
    assert [r.claim for r in rows if r.verdict == "missed"] == []
    assert len(rows) > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", list(experiments()))
def test_every_published_comparison_holds_but_those_known_to_be_missed(name: str) -> None:
    rows = run([name])
    assert rows
    assert {r.claim for r in rows if r.verdict == "missed"} <= MISSES
    assert all(r.experiment == name for r in rows)


def test_an_experiment_that_does_not_exist_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="alchemy"):
        run(["alchemy"])
