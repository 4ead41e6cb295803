"""Published comparisons: what must hold does, by a rule that can fail."""

from __future__ import annotations

import math

import pytest

from models.keyed import root_keys
from models.question import question_model
from models.refilled_beam import refilled_beam
from models.rollout import Rollout, rollout
from models.science import Row, experiments, run
from models.tree import Tree
from models.verifier import verifier_model


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


def refilled(
    preset: str, n: int, beam_width: int, iterations: int, max_tokens: int = 2_048
) -> list[Rollout]:
    model, verifier = (
        question_model({"preset": preset, "max_output": 80_000}),
        verifier_model("math-prm"),
    )
    asked = (model.world(int(key), 1, verifier) for key in root_keys(3, 0, 1, 150))
    return [
        rollout(refilled_beam(Tree(world.root), n, beam_width, iterations, max_tokens), world)
        for world in asked
    ]


def test_a_line_that_loses_its_thread_keeps_a_refilled_beam_busy_to_its_last_iteration() -> None:
    ends, long = (refilled(preset, 8, 4, 20) for preset in ("math-500", "math-500-long"))
    assert max(end.expansions for end in ends) < 8 * 20
    assert max(end.expansions for end in long) == 8 * 20
    busy = sum(end.expansions == 8 * 20 for end in long)
    assert busy < sum(end.expansions == 8 * 10 for end in refilled("math-500-long", 8, 4, 10))
    assert max(end.makespan_tokens for end in long) <= 19 * 1_024 + 2_048
    assert any(not leaf.done for end in long for leaf in end.tree.leaves)  # cut by the last call


def test_a_refilled_beam_of_one_is_a_single_trajectory_in_steps() -> None:
    for end in refilled("math-500", 1, 1, 40):
        assert end.trajectories == 1
        assert end.expansions == end.tree.leaves[0].depth
        assert end.tokens == end.makespan_tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", list(experiments()))
def test_every_published_comparison_holds(name: str) -> None:
    rows = run([name])
    assert rows
    assert [r.claim for r in rows if r.verdict == "missed"] == []
    assert all(r.experiment == name for r in rows)


def test_an_experiment_that_does_not_exist_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="alchemy"):
        run(["alchemy"])
