"""Plans are complete and checked; the fixed controller gives every query what its tier says."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from models.controller import Features, PlanError, controller, plan, search_for
from models.rollout import rollout
from models.search import ALGORITHMS, best_of_n
from models.tree import Tree
from tests.models.toy_world import ToyWorld


def test_a_plan_fills_in_the_defaults_of_its_algorithm() -> None:
    chosen = plan("beam", width=2, max_steps=None)
    assert chosen.params == {"width": 2, "expand": 4, "max_steps": 40, "aggregate": "last"}
    assert chosen.max_tokens is None
    assert plan("direct", n=None).params == {}


def test_a_plan_is_a_value_that_can_be_compared_hashed_and_sent_to_a_worker() -> None:
    assert plan("best_of_n", n=4) == plan("best_of_n", n=4)
    assert plan("best_of_n", n=4) != plan("best_of_n", n=5)
    assert len({plan("best_of_n", n=4), plan("best_of_n", n=4)}) == 1
    assert pickle.loads(pickle.dumps(plan("beam"))) == plan("beam")


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ("best-of-n", {}, "search algorithm 'best-of-n' does not exist; did you mean 'best_of_n'?"),
        ("zzz", {}, "search algorithm 'zzz' does not exist; it has: direct, best_of_n, "),
        ("beam", {"widht": 2}, "search beam has no parameter 'widht'; did you mean 'width'?"),
        ("best_of_n", {"width": 2}, "search best_of_n has no parameter 'width'; it has: n, "),
        ("direct", {"n": 4}, "search direct has no parameter 'n'; it has none: leave it out"),
        (
            "best_of_n",
            {"n": 0},
            "n (trajectories grown for one answer) must be between 1 and 65536",
        ),
        ("best_of_n", {"n": 2.5}, "must be a whole number, not 2.5"),
        ("best_of_n", {"n": True}, "must be a whole number, not True"),
        ("best_of_n", {"aggregate": "sum"}, "must be one of last, min, product, mean, max, not 's"),
        ("rebase", {"temperature": 0}, "by score) must be between 0.001 and 1000, not 0"),
        ("rebase", {"temperature": "1"}, "must be a number, not '1'"),
        ("adaptive_vote", {"certainty": 2.0}, "stops the vote) must be between 0 and 1, not 2.0"),
        (
            "direct",
            {"max_expansions": 0},
            "max_expansions (children grown for one query) must be at",
        ),
        ("direct", {"max_tokens": 0}, "max_tokens (tokens generated for one query) must be at lea"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_way_out(
    algorithm: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError) as error:
        plan(algorithm, **settings)
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)


def test_the_fixed_controller_returns_what_the_tier_says() -> None:
    tier = plan("best_of_n", n=3, max_tokens=500)
    assert controller("fixed").plan(Features(tier, "math", 120)) is tier


def test_an_unknown_controller_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PlanError, match=r"controller 'fix' does not exist; did you mean 'fixed'\?"):
        controller("fix")


def test_search_for_starts_the_algorithm_with_the_plans_settings() -> None:
    for name in ALGORITHMS:
        world = ToyWorld(1)
        assert rollout(search_for(plan(name), Tree(world.root)), world).expansions >= 1
    one, other = ToyWorld(5), ToyWorld(5)
    planned = rollout(search_for(plan("best_of_n", n=3), Tree(one.root)), one)
    called = rollout(best_of_n(Tree(other.root), 3), other)
    assert (planned.answer, planned.tokens) == (called.answer, called.tokens)
