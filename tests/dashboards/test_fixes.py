"""What would fix a missed objective is priced from the catalogue, judged on paper, and recognised once it was played."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dashboards import data, fixes
from dashboards.report import summary
from pricing.contract import price
from scenarios.loader import loads
from sim.resolve import resolve
from sim.run import run
from sim.settle import Settled
from sim.store import save
from tests.sim import fixtures

LATE = """
seed: 3
replications: 2
horizon: {warmup: 10s, measure: 60s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, replicas: 2, latency: {kind: roofline}}
workload:
  arrivals: {rate: 12/s}
  classes: {math: {preset: math-500}}
tiers:
  voted: {search: {algorithm: self_consistency, n: 8}, slo: {e2e_p95: 6s}}
"""


def found(text: str, slow: float = 3.0) -> tuple[list[fixes.Fix], dict[str, Any]]:
    """The fixes of a made-up run that is late, and its summary."""
    loaded, result = loads(text, "made-up.yaml"), fixtures.result(slow=slow)
    told = summary(result, loaded, price(result, loaded.scenario))
    return fixes.fixes(resolve(loaded), text, result, told), told


def test_a_fix_costs_what_its_gpus_cost_an_hour() -> None:
    made, told = found(fixtures.SCENARIO)
    assert not told["verdict"]["holds"]
    assert fixes.usd_per_h(loads(fixtures.SCENARIO).scenario) == pytest.approx(3 * 3.60)
    by_what = {fix.what: fix for fix in made}
    assert by_what["thinker: 3 replicas"].usd_per_h == pytest.approx(4 * 3.60)
    doubled = by_what["thinker: tensor_parallel 2 (2 GPUs a replica)"]
    assert (doubled.gpus, doubled.usd_per_h) == (5, pytest.approx(5 * 3.60))
    same = by_what["thinker: the same GPUs as 1 replica of 2, each with twice the sequences"]
    assert same.usd_per_h == pytest.approx(3 * 3.60)
    assert "careful thinks less: width 2 (its accuracy falls)" in by_what


def test_where_all_objectives_hold_the_changes_do_with_less() -> None:
    made, told = found(fixtures.SCENARIO, slow=0.1)
    assert told["verdict"]["holds"]
    assert [fix.what for fix in made] == ["thinker: 1 replica"]
    assert made[0].usd_per_h < fixes.usd_per_h(loads(fixtures.SCENARIO).scenario)


def test_a_run_with_a_queue_has_no_estimate_but_a_word_on_the_next_queue() -> None:
    made, told = found(fixtures.SCENARIO)
    late = fixes.Fix("x", ("a=1",), 1, 1.0, None, made[0].after, "")
    states = fixes.projected(told["tiers"], late)
    assert math.isnan(late.ratio)
    assert {state for _, state in states.values()} == {"no queue on paper"}


def test_a_first_token_has_no_estimate_where_less_of_the_batch_is_left_for_bursts() -> None:
    _, told = found(fixtures.SCENARIO, slow=0.1)
    calm, full = Settled(10.0, 0.01, 0.2), Settled(40.0, 0.01, 0.8)
    for before, after, expected in ((full, calm, "holds"), (calm, full, "not estimated")):
        fix = fixes.Fix("x", ("a=1",), 1, 1.0, before, after, "")
        states = fixes.projected(told["tiers"], fix)
        assert states["careful TTFT p95 2.00 s"][1] == expected
        assert states["careful E2E p95 60.0 s"][1] == "holds"
        assert fixes.overall(states) == expected


def test_a_verdict_names_the_tiers_that_miss_once_each() -> None:
    states = {
        "a b E2E p95 60.0 s": ("70 s", "MISSED"),
        "a b TTFT p95 900 ms": ("1 s", "MISSED"),
        "c E2E p95 9.00 s": ("1 s", "holds"),
    }
    assert fixes.overall(states) + fixes.missing(states) == "MISSED: a b"


def test_a_run_of_the_change_is_known_by_what_it_plays_and_not_by_its_name(tmp_path: Path) -> None:
    made, told = found(fixtures.SCENARIO)
    for number, fix in enumerate(made):
        loaded = loads(fixtures.SCENARIO, "other.yaml", fix.settings)
        reports = {"summary.json": json.dumps(told)}
        save(fixtures.result(), loaded, tmp_path / f"run{number}", reports=reports)
        assert data.essence(data.resolved(tmp_path, f"run{number}")) == fix.essence
    assert len({fix.essence for fix in made}) == len(made)


@pytest.mark.slow
def test_an_estimate_lies_within_the_edge_of_what_is_then_simulated() -> None:
    loaded = loads(LATE, "late.yaml")
    base = run(resolve(loaded), workers=1)
    told = summary(base, loaded, price(base, loaded.scenario))
    assert not told["verdict"]["holds"]
    checked = 0
    for fix in fixes.fixes(resolve(loaded), LATE, base, told):
        if math.isnan(fix.ratio) or fix.settings[0].startswith("tiers."):
            continue
        other = loads(LATE, "late.yaml", fix.settings)
        played = run(resolve(other), workers=1)
        was, now = (
            summary(one, other, price(one, other.scenario))["tiers"][0]["targets"][0]["observed_s"]
            for one in (base, played)
        )
        print(fix.what, fix.ratio, now / was)
        assert now / was == pytest.approx(fix.ratio, rel=fixes.EDGE)
        checked += 1
    assert checked >= 3
