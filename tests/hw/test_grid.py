"""The plan of a profile: what is on the grid, what is kept out of every fit, and that neither moves."""

from __future__ import annotations

import pytest

from hw.device import device
from hw.grid import FULL, LINEAR, QUICK, digest, fits, grid, holdout
from hw.measure import MODELS, Request, plan_of
from hw.profiler import estimate_s
from hw.transformer import transformer

ON_GPU = [transformer(name) for name in MODELS["cuda"]]
ON_CPU = [transformer(name) for name in MODELS["cpu"]]


def test_the_full_grid_is_about_what_five_minutes_hold() -> None:
    points = grid(ON_GPU, FULL)
    assert 2000 <= len(points) <= 2600
    assert len({point.seed for point in points}) == len(points)
    assert all(fits(point, FULL) for point in points)
    plan = plan_of(Request("cuda"), "NVIDIA H200")
    assert plan.device.name == "h200-sxm-141gb"
    assert estimate_s(plan, "cuda") < 420


def test_the_quick_grid_takes_about_a_minute_and_holds_every_kind_of_operation() -> None:
    quick, full = grid(ON_CPU, QUICK), grid(ON_CPU, FULL)
    assert {p.op for p in quick} == {p.op for p in full}
    assert estimate_s(plan_of(Request("cpu", quick=True)), "cpu") < 75


def test_the_holdout_is_frozen() -> None:
    """Whoever changes it makes every error quoted so far incomparable: a new seed is a new holdout."""
    points = tuple(holdout(ON_GPU[0], FULL))
    assert len(points) == FULL.holdout
    assert digest(points) == "41ea595bca8ea2f9d8027264d77d88f5f31167fca983167d10151e5144e35d2c"


def test_the_holdout_lies_between_the_lines_and_never_on_a_point_of_the_grid() -> None:
    points = grid(ON_GPU, FULL)
    keys = [(p.op, p.model, p.branches, p.prefix, p.suffix, p.rows, p.variant) for p in points]
    kept = {key for key, p in zip(keys, points, strict=True) if p.holdout}
    assert len(kept) >= 0.95 * FULL.holdout
    assert not kept & {key for key, p in zip(keys, points, strict=True) if not p.holdout}
    off = [p for p in points if p.holdout and p.op in LINEAR and p.rows not in FULL.m]
    assert len(off) >= 20


def test_attention_is_measured_once_for_models_of_one_head_shape() -> None:
    twins = [transformer("qwen2.5-7b"), transformer("qwen2.5-math-prm-7b")]
    points = grid(twins, QUICK)
    assert {p.model for p in points if p.op == "suffix_attention"} == {"qwen2.5-7b"}
    assert {p.model for p in points if p.op == "qkv"} == {t.name for t in twins}


def test_a_model_that_the_kernels_do_not_compute_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="deepseek-r1: .*import a profile"):
        grid([transformer("deepseek-r1")], QUICK)
    assert device("cpu").name == "cpu"
