"""The report says the verdict first, fits 100 columns of plain text, and its JSON is JSON."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dashboards.report import summary, to_text
from dashboards.verdict import next_command, verdict
from models.latency import StepCost
from pricing.contract import Priced, price
from scenarios.loader import Loaded, loads
from sim.bound import binding, noted
from sim.compare import compare
from sim.metrics import tier_table
from sim.records import Result
from tests.sim import fixtures

CAREFUL_60S = "slo: {ttft_p95: 2s, e2e_p95: 60s}"


def priced(result: Result, loaded: Loaded | None = None) -> tuple[Result, Loaded, Priced]:
    """What `report` takes, for a result."""
    spec = loaded or fixtures.loaded()
    money = price(result, spec.scenario)
    return money.result, spec, money


def text(result: Result, loaded: Loaded | None = None, **more: Any) -> str:
    return to_text(*priced(result, loaded), **more)


def test_the_verdict_comes_first_and_says_by_how_much_which_objective_is_missed() -> None:
    shown = text(fixtures.result(slow=2.0))
    row = tier_table(fixtures.result(slow=2.0), fixtures.loaded().scenario)[1]
    by = row.of("e2e").p95.value - 60
    line = next(line for line in shown.splitlines() if "careful misses E2E p95" in line)
    assert f"{by:.1f} s too late" in line
    assert f"{100 * row.targets[1].attained:.1f} % of {row.n} within" in line
    assert shown.index("MISSED") < shown.index("Tiers")


def test_a_tier_that_holds_is_named_beside_one_that_misses_and_all_may_hold() -> None:
    spec = fixtures.loaded(fixtures.SCENARIO.replace(CAREFUL_60S, "slo: {e2e_p95: 1h}")).scenario
    lines = verdict(tier_table(fixtures.result(slow=2.0), spec))
    assert [line.split(":")[0] for line in lines] == ["MISSED", "HOLDS"]
    assert lines[1] == "HOLDS: careful."
    spec = fixtures.loaded(re.sub("slo: {[^}]*}", "slo: {e2e_p95: 1h}", fixtures.SCENARIO)).scenario
    assert verdict(tier_table(fixtures.result(), spec)) == ["ALL HOLD: 2 tiers with objectives."]


def test_without_objectives_nothing_is_said_to_hold() -> None:
    bare = re.sub(r"slo: {[^}]*}", "slo: null", fixtures.SCENARIO).replace(", late_credit: 10%", "")
    assert "NO OBJECTIVE" in text(fixtures.result(n=30), fixtures.loaded(bare))


def test_queries_that_were_never_answered_are_said_so() -> None:
    result = fixtures.result(n=50)
    result.queries["status"] = np.full(150, "unfinished")
    result.queries["finish_s"][:] = math.nan
    shown = text(result)
    assert "fast misses E2E p95 20.0 s: never, too many were never answered (0.0 %" in shown


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_line_fits_and_holds_no_escape_sequence(width: int) -> None:
    base, other = fixtures.result(), fixtures.result(slow=2.0)
    shown = text(
        other, comparison=compare(priced(base)[0], priced(other)[0]), run_dir="runs/x", width=width
    )
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown


def test_figures_are_not_cut_off_at_100_columns_even_with_long_names_and_large_sums() -> None:
    long = fixtures.SCENARIO.replace("careful", "c" * 64).replace("thinker", "t" * 64)
    result = fixtures.result(n=2000, slow=50)
    for table, column in ((result.queries, "tier"), (result.queries, "policy_pool"), (result.queries, "first_pool"),
                          (result.pools, "pool"), (result.timeline, "pool")):  # fmt: skip
        values = np.where(table[column] == "careful", "c" * 64, table[column])
        table[column] = np.where(values == "thinker", "t" * 64, values)
    for column in (
        "gpu_seconds", "policy_gpu_seconds", "verifier_gpu_seconds", "first_gpu_seconds"
    ):  # fmt: skip
        result.queries[column] *= 1e6
    for column in (
        "fleet_gpu_seconds",
        "attributed_gpu_seconds",
        "idle_gpu_seconds",
        "busy_gpu_seconds",
    ):
        result.pools[column] *= 1e6
    shown = text(result, fixtures.loaded(long))
    assert max(len(line) for line in shown.splitlines()) <= 100
    tables = shown[shown.index("Tiers") : shown.index("Step cost")]
    assert "…" not in re.sub("[ct]+…", "", tables)


def test_names_cannot_smuggle_markup_or_terminal_sequences_into_the_report() -> None:
    spec = loads(
        fixtures.SCENARIO.replace("Do careful answers pay?", '"[red]x[/red] \\e[31m\\u202e"')
    )
    shown = text(replace(fixtures.result(n=30), scenario_name="[bold]"), spec)
    assert "[red]x[/red] \\x1b[31m\\u202e" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_the_report_holds_every_section_and_the_same_figures_as_the_metrics() -> None:
    result = fixtures.result()
    row = tier_table(result, fixtures.loaded().scenario)[0]
    shown = text(result)
    for part in ("Verdict", "Binding", "Tiers", "Latency", "TTFT", "TTFAT", "E2E", "Quality by latency",
                 "Fleet and KV memory", "unique pages", "Money", "idle", "Step cost", "Next"):  # fmt: skip
        assert part in shown, part
    assert f"{100 * row.accuracy.value:.1f} %" in shown
    assert "roofline (not measured on your GPU) [roofline]; its error is not known" in " ".join(
        shown.split()
    )
    assert "? fast" not in shown
    assert "! careful: " in shown  # few samples


def test_bounds_and_measured_errors_stand_in_the_report_when_the_run_noted_them() -> None:
    cost = replace(StepCost.linear(0.010, 1e-4, 1e-5), error="2.1 % (held out)")
    spec = fixtures.loaded().scenario
    shown = text(noted(fixtures.result(), spec, {"thinker": cost}))
    assert "thinker needs at least 1 replica, has 2" in shown
    assert "error 2.1 % (held out)" in shown


def test_a_comparison_shows_what_changed_with_its_interval_and_names_what_did_not() -> None:
    base, other = fixtures.result(name="base"), fixtures.result(slow=2.0)
    comparison = compare(priced(base)[0], priced(other)[0])
    shown = text(other, comparison=comparison)
    assert "Against base, the same queries" in shown
    found = next(d for d in comparison.tiers[0].differences if d.name == "mean E2E")
    assert f"+{found.change.value:.2f} s" in shown
    assert "fast: unchanged are answered, accuracy, coverage" in shown


def test_commands_can_be_pasted_as_printed() -> None:
    loaded = loads(fixtures.SCENARIO, "my files/it's.yaml")
    shown = text(fixtures.result(slow=2.0), loaded, run_dir="runs/two words", width=300)
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines()[-3:]}
    assert shlex.split(lines["Again"]) == ["treeline", "show", "runs/two words"]
    assert shlex.split(lines["Next"])[:3] == ["treeline", "run", "my files/it's.yaml"]


def test_the_next_command_loads_as_an_override() -> None:
    for slow in (0.1, 2.0):
        result, loaded, _ = priced(fixtures.result(slow=slow))
        tiers, found = tier_table(result, loaded.scenario), binding(result, loaded.scenario)
        command = next_command("treeline run x", loaded.scenario, tiers, found)
        override = shlex.split(command)[-1]
        assert loads(fixtures.SCENARIO, overrides=[override]).scenario != loaded.scenario


def test_the_summary_is_strict_json_with_null_for_what_is_not_a_number() -> None:
    result, loaded, money = priced(fixtures.result(n=0, replications=1))
    found = summary(result, loaded, money)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["tiers"][0]["accuracy"]["value"] is None
    assert found["verdict"]["holds"] is True


def test_the_summary_says_what_the_report_says() -> None:
    base, other = fixtures.result(), fixtures.result(slow=2.0)
    result, loaded, money = priced(other)
    found = summary(result, loaded, money, compare(priced(base)[0], result), "runs/x")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not found["verdict"]["holds"]
    assert {row["name"] for row in found["verdict"]["missed"]} == {"e2e_p95", "ttft_p95"}
    assert found["money"]["bill"]["total_usd"] == pytest.approx(money.bill.total_usd)
    assert found["comparison"]["base_name"] == "made-up"
    assert found["binding"]["constraint"] == "step_time"


def test_an_empty_run_has_a_report_too() -> None:
    shown = text(fixtures.result(n=0, replications=1))
    assert "fast: no query arrived in the measured time" in shown


def test_unknown_rates_leave_the_money_unknown_and_say_the_way_out() -> None:
    result, loaded = fixtures.result(n=50), fixtures.loaded()
    money = price(result, loaded.scenario, {"thinker": None, "judge": None})
    shown = to_text(money.result, loaded, money)
    assert "No USD/h is known for h200-sxm-141gb: add pricing: {device_rates:" in shown
    json.dumps(summary(money.result, loaded, money), allow_nan=False)
