"""The replay experiment: costs are recovered from ticks, agreement is measured honestly, files come in their order."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from hw.engine_step import Tick
from models.latency import StepCost
from sim.agreement import agreement, latency_errors, tick_errors, verdict
from sim.batch import Batch, Settings
from sim.executor import Executor
from sim.replay import arguments, capacity, planned, replay, text
from sim.rig import rig, run
from sim.rigcost import Measured, fit, grid
from sim.stepper import TickRow
from tests.sim.test_replay_is_the_simulator import Ghost

COST = StepCost.linear(4e-3, per_decode=5e-5, per_prefill=2e-5, kv=2e-7, saturation=8)


def row(**changes: float) -> TickRow:
    made = {
        "pool": "policy", "tick": 0, "at_s": 0.0, "seconds": 0.01, "charged_s": 0.01, "waited_s": 0.0,
        "decoders": 1, "prefill": 0, "read": 0.0, "attended": 0, "context": 0.0, "copied": 0,
        "pages_held": 0, "pages_named": 0, "pages_pinned": 0, "finished": (),
    }  # fmt: skip
    return TickRow(**(made | changes))  # type: ignore[arg-type]


def test_a_fit_finds_the_cost_that_made_the_ticks_and_where_reading_saturates() -> None:
    rng = np.random.default_rng(0)
    ticks = []
    for b in (1, 2, 4, 8, 16, 32, 64):
        for shared in (0, 500, 3_000):
            for chunk in (0, 40, 500):
                own, context = b * 100, chunk * (2 * shared + chunk / 2)
                seconds = 3e-3 + 6e-5 * b + (2e-3 + 3e-5 * chunk if chunk else 0.0) + 4e-9 * context
                seconds += 3e-7 * (own + shared * max(1.0, b / 16))
                seconds *= 1 + 0.01 * rng.standard_normal()
                tick = row(
                    seconds=seconds, decoders=b, prefill=chunk, read=own + shared, context=context
                )
                ticks.append(Measured(tick, float(shared if b > 1 else 0), b))
    found = fit(ticks, padded=False)
    assert found.cost.saturation == 16
    assert found.median < 0.02
    assert found.cost.kv_s == pytest.approx(3e-7, rel=0.1)
    assert found.cost.base_s(24, 0) == pytest.approx(3e-3 + 6e-5 * 24, rel=0.05)
    assert found.cost.context_s(500) == pytest.approx(4e-9 * 500, rel=0.3)
    values = [found.cost.base_s(b, 0) for b in range(1, 200)]
    assert values == sorted(values)


def test_a_stutter_of_the_host_does_not_move_the_fit() -> None:
    ticks = [Measured(row(seconds=4e-3 + 1e-4 * b, decoders=b), 0.0, 1) for b in range(1, 33)] * 3
    ticks[5::16] = [
        Measured(row(seconds=0.5, decoders=one.row.decoders), 0.0, 1) for one in ticks[5::16]
    ]
    assert fit(ticks, padded=False).cost.base_s(16, 0) == pytest.approx(4e-3 + 16e-4, rel=0.03)


def test_the_grid_fits_into_the_pool_it_is_made_for() -> None:
    for limits in (Settings(400, 16, 24, 256), Settings(10_000, 16, 128, 2_048)):
        for flat in grid(limits, judges=False):
            branches = flat.prompts * flat.children
            assert branches <= limits.max_num_seqs
            tokens = flat.prompts * (flat.tokens + 5 * flat.prompts) + branches * (flat.ticks + 32)
            assert tokens <= limits.num_gpu_blocks * limits.block_size
    assert {flat.ticks for flat in grid(Settings(400, 16, 24, 256), judges=True)} == {0}


def test_errors_are_of_the_same_ticks_and_intervals_hold_the_error() -> None:
    ticks = [row(charged_s=0.011), row(charged_s=0.009), row(pool="judge", charged_s=0.010)]
    errors = {error.pool: error for error in tick_errors(ticks)}
    assert errors["policy"].median == pytest.approx(0.1)
    assert errors["judge"].median == 0
    assert errors["all"].ticks == 3
    assert errors["all"].bias == pytest.approx(0, abs=1e-12)
    measured = np.random.default_rng(1).lognormal(0, 0.5, 200)
    for error in latency_errors(1.1 * measured, measured):
        assert error.error == pytest.approx(0.1)
        assert error.low <= error.error + 1e-9
        assert error.high >= error.error - 1e-9


def test_a_run_agrees_with_itself_and_not_with_one_of_a_slower_device() -> None:
    setup = rig("cpu")
    costs, slow = (COST, COST), (StepCost.linear(5e-3, 6e-5, 3e-5, 3e-7), COST)
    one = run(setup, costs, 3, 2.0, 4.0)
    same = agreement(one, run(setup, costs, 3, 2.0, 4.0))
    assert all(verdict(same).values())
    assert same["ks"] == 0
    assert same["tokens_and_scores_of_each_query_equal"]
    assert same["pages_named_equal_pages_counted"]
    other = agreement(one, run(setup, slow, 3, 2.0, 4.0))
    assert other["latency"]["p50"]["error"] < -0.15
    assert other["tokens_and_scores_of_each_query_equal"]
    assert not verdict(other)["p50"]


def test_capacity_halves_when_everything_takes_twice_as_long() -> None:
    setup = rig("cpu")
    double = StepCost.linear(8e-3, per_decode=1e-4, per_prefill=4e-5, kv=4e-7, saturation=8)
    assert capacity(setup, (COST, COST)) == pytest.approx(
        2 * capacity(setup, (double, double)), rel=1e-6
    )


def test_the_experiment_writes_its_prediction_before_it_runs_and_reports_what_it_found(
    tmp_path: Path,
) -> None:
    setup = rig("cpu")
    out = tmp_path / "replay"
    asked = arguments(
        f"--device cpu --clock cpu --loads 0.5 --seeds 4 --seconds 0.2 --out {out}".split()
    )
    engines = (
        Ghost(setup.policy_limits.num_gpu_blocks, 16),
        Ghost(setup.judge_limits.num_gpu_blocks, 16),
    )
    report = replay(asked, engines)
    prediction = (out / "prediction.json").read_bytes()
    assert sha256(prediction).hexdigest() == report["prediction_sha256"]
    measured = out / "load-50-seed-4.json"
    assert measured.stat().st_mtime_ns >= (out / "prediction.json").stat().st_mtime_ns
    queries = json.loads(measured.read_bytes())["queries"]
    predicted = json.loads(prediction)["runs"]["load-50-seed-4"]["queries"]
    for column in ("number", "algorithm", "arrival_s", "tokens", "scores"):
        assert queries[column] == predicted[column]
    (load,) = report["loads"].values()
    assert load["pages_named_equal_pages_counted"]
    assert load["queries"] == len(queries["number"])
    assert "every tick" in text(report)
    assert json.loads((out / "report.json").read_bytes())["loads"]["50%"]["ks"] == load["ks"]


def test_an_interrupted_experiment_reports_the_runs_that_were_finished(tmp_path: Path) -> None:
    setup = rig("cpu")
    asked = arguments(
        f"--device cpu --clock cpu --loads 0.5 0.6 --seeds 4 --seconds 0.1 --out {tmp_path}".split()
    )

    class Impatient(Ghost):
        def run(self, tick: Tick) -> object:
            if (tmp_path / "load-50-seed-4.json").exists():
                raise KeyboardInterrupt
            return super().run(tick)

    engines = (
        Impatient(setup.policy_limits.num_gpu_blocks, 16),
        Ghost(setup.judge_limits.num_gpu_blocks, 16),
    )
    report = replay(asked, engines)
    assert report["interrupted"]
    assert list(report["loads"]) == ["50%"]
    assert "60%" not in text(report)
    assert json.loads((tmp_path / "report.json").read_bytes())["interrupted"]


def test_settings_that_are_not_played_and_unknown_rigs_are_refused() -> None:
    with pytest.raises(ValueError, match="replay with sharing: tree"):
        Executor(Batch(Settings(10, sharing="per_branch"), COST), 100)
    with pytest.raises(ValueError, match="replay with async_scheduling: False"):
        Executor(Batch(Settings(10, async_scheduling=True), COST), 100)
    with pytest.raises(ValueError, match="replay with enable_prefix_caching: True"):
        Executor(Batch(Settings(10, enable_prefix_caching=False), COST), 100)
    with pytest.raises(ValueError, match="no rig for 'tpu'"):
        rig("tpu")


@pytest.mark.slow
def test_a_dry_run_says_what_would_run_and_that_nothing_was_measured() -> None:
    asked = arguments("--device cuda --out x --dry-run --loads 0.3 --seeds 0 --seconds 4".split())
    said = planned(asked)
    assert "llama-3.1-8b and qwen2.5-math-prm-7b" in said
    assert "not measured" in said
    assert "30%" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--loads", "0"], "must be above 0"),
        (["--seconds", "-1"], "must be above 0"),
        (["--clock", "cpu", "--device", "cuda"], "would not see what a GPU does"),
    ],
)
def test_what_makes_no_sense_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(["--device", "cpu", "--out", "x", *given])
    assert message in capsys.readouterr().err
