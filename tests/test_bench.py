"""The bench measures what it says, on the smallest settings: every figure is there, finite and positive."""

from __future__ import annotations

import json
import math
from pathlib import Path

from models.compiled import core
from tests import bench
from tests.flat import Flat

TINY = bench.Settings(
    timeouts=2_000,
    end_to_end_repeats=1,
    end_to_end=("replications=1", "horizon.warmup=0s", "horizon.measure=10s"),
    limit_repeats=1,
    limit_measure_s=10.0,
    controller_repeats=1,
    controller_measure_s=5.0,
    steady_repeats=1,
    steady_measure_s=10.0,
    flat_repeats=1,
    flat=(bench.FlatCase("few", Flat(5, 20, 30, 1.0), 100, 10.0),),
)
KEYS = (
    "branch_steps_per_s", "simpy_timeouts_per_s", "double_tokens_wall_ratio",
    "double_queries_wall_ratio", "at_pool_limit_branch_steps_per_s", "regimes_per_branch_step",
    "workers", "bench_wall_s", "simpy_timeouts_per_cpu_s",
)  # fmt: skip


def test_the_bench_writes_every_figure_finite_and_positive(tmp_path: Path) -> None:
    said: list[str] = []
    place = tmp_path / "build" / "bench.json"
    returned = bench.main(TINY, place, said.append)
    figures = json.loads(place.read_text(encoding="utf-8"))
    assert figures == returned
    for key in KEYS:
        assert math.isfinite(figures[key]) and figures[key] > 0, key
    assert {"python", "simpy", "numpy", "cores"} <= set(figures["context"])
    assert sum("goal" in line for line in said) == 7
    assert figures["flat_requests"]["few"]["loop_s"] > 0
    assert figures["steady_preemptions"] == 0
    assert figures["core"] == core()
    assert all(figures["controllers"][key] > 0 for key in ("branch_steps_ratio", "decision_us"))


def test_the_limit_of_the_pool_really_is_one(tmp_path: Path) -> None:
    settings = bench.Settings(limit_repeats=1, limit_measure_s=20.0, timeouts=2_000)
    figures = bench._at_the_limit(settings, [], lambda text: None)
    assert figures["at_pool_limit_preemptions_per_branch_step"] > 0


def test_raw_simpy_is_counted_per_second() -> None:
    assert 1_000 < bench.simpy_timeouts_per_s(10_000) < 1e9
