"""A query that fits alone always finishes, however many others want the same pages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.controller import plan, search_for
from models.rollout import rollout
from models.tree import Tree
from sim.batch import Settings
from sim.kv import DoesNotFitError
from tests.sim.driving import House, Watched, questions

LAYOUTS = (("tree", "copy_tail"), ("tree", "recompute_tail"), ("per_branch", "copy_tail"))
SMALL = {
    "kind": "steps",
    "steps": {"kind": "poisson", "mean": 3, "min": 2, "max": 7},
    "step_tokens": {"kind": "lognormal", "median": 40, "sigma": 0.8},
    "prompt_tokens": {"kind": "lognormal", "median": 60, "sigma": 0.8},
}


def all_answered_and_nothing_left(house: House, count: int) -> None:
    assert len(house.queries) == count
    open_ = [q.row for q in house.queries if q.session.answer is None]
    assert not open_, f"queries {open_} never finished"
    assert all(q.finish_s == q.finish_s for q in house.queries)
    for replica in house.replicas:
        batch = replica.batch
        assert batch.waiting_branches == 0
        assert (batch.decoders, batch.fill, batch.active_searches) == (0, None, 0)
        tree = batch.tree.count()
        assert (tree.pinned, tree.cached, tree.free) == (0, 0, tree.total)


@pytest.mark.parametrize(
    ("pages", "judge_pages", "sharing", "fork", "width", "reclaim"),
    [
        (1_000, 1_000, "tree", "copy_tail", 3, "youngest"),
        (1_000, 1_000, "tree", "copy_tail", 2, "lru"),
        (1_400, 1_000, "tree", "recompute_tail", 2, "youngest"),
        (1_000, 3_000, "per_branch", "copy_tail", 2, "youngest"),
        (7_000, 1_000, "per_branch", "copy_tail", 2, "youngest"),
        (50_000, 50_000, "tree", "copy_tail", 2, "youngest"),
    ],
)
def test_300_beam_searches_at_once_all_finish(
    pages: int, judge_pages: int, sharing: Any, fork: Any, width: int, reclaim: Any
) -> None:
    shared: dict[str, Any] = {"sharing": sharing, "fork": fork, "reclaim": reclaim}
    house = House(Settings(pages, **shared), Settings(judge_pages, max_num_seqs=64, **shared))
    for world in questions("math-500", pages, 300):
        house.ask(world, "beam", width=width, expand=width)
    house.env.run()
    all_answered_and_nothing_left(house, 300)
    if pages < 2_000:
        assert house.replica.batch.num_preemptions > 30, "the pool was not tight"


def longest(worlds: list[Watched], **parameters: int) -> tuple[int, int]:
    """The longest path in tokens and its depth, over the trees of all searches."""
    tokens = depth = 0
    for world in worlds:
        chosen = plan("beam", None, **parameters)
        rollout(search_for(chosen, Tree(world.root)), world)
        tokens = max(tokens, *(node.path_tokens for node in world.grown))
        depth = max(depth, *(node.depth for node in world.grown))
    return tokens, depth


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    layout=st.sampled_from(LAYOUTS),
    judge_layout=st.sampled_from(LAYOUTS),
    block=st.sampled_from([1, 4, 16]),
    spare=st.integers(0, 40),
    width=st.integers(1, 4),
    expand=st.integers(1, 4),
    seqs=st.sampled_from([1, 2, 7, 100]),
    budget=st.sampled_from([8, 64, 2048]),
    searches=st.sampled_from([None, 1, 3]),
    gap_s=st.sampled_from([0.0, 0.013]),
    vllm=st.fixed_dictionaries(
        {
            "reclaim": st.sampled_from(["youngest", "lru"]),
            "enable_prefix_caching": st.sampled_from([True, True, False]),
            "scheduler_reserve_full_isl": st.booleans(),
            "async_scheduling": st.booleans(),
        }
    ),
)
def test_pools_that_hold_one_longest_branch_are_enough_for_every_search(
    seed: int, layout: Any, judge_layout: Any, block: int, spare: int, width: int, expand: int,
    seqs: int, budget: int, searches: int | None, gap_s: float, vllm: dict[str, Any],
) -> None:  # fmt: skip
    tokens, depth = longest(questions(SMALL, seed, 12), width=width, expand=expand)
    # one branch holds its path, and under `tree` up to a page of copied tail for each fork on it
    pages = -(-tokens // block) + depth + 1
    engines = [
        Settings(pages + spare, block, seqs, budget, searches, *chosen, **vllm)
        for chosen in (layout, judge_layout)
    ]
    house = House(*engines)
    for number, world in enumerate(questions(SMALL, seed, 12)):
        house.ask(world, "beam", at_s=number * gap_s, width=width, expand=expand)
    house.env.run()
    all_answered_and_nothing_left(house, 12)


def test_a_branch_longer_than_the_pool_is_an_error_and_not_a_hang() -> None:
    tokens, _ = longest(questions(SMALL, 5, 6), width=2, expand=2)
    house = House(Settings(-(-tokens // 16) - 1), Settings(1_000))
    for world in questions(SMALL, 5, 6):
        house.ask(world, "beam", width=2, expand=2)
    with pytest.raises(DoesNotFitError, match="shorten the prompt"):
        house.env.run()


def test_searches_finish_just_the_same_after_ten_years_on_the_clock() -> None:
    # floats are 6e-8 s apart there: an end computed twice need not be the same number
    house = House(Settings(1_000), Settings(1_000))
    for number, world in enumerate(questions(SMALL, 7, 20)):
        house.ask(world, "beam", at_s=3e8 + 0.0123 * number, width=2, expand=2)
    house.env.run()
    all_answered_and_nothing_left(house, 20)
