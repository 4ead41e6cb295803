"""A tier that sheds refuses on arrival, at no cost and no revenue, and thinking less beats it at the peak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import scenarios
import sim.replication
from pricing.contract import price
from scenarios.errors import ScenarioError
from scenarios.loader import Loaded, load, loads
from sim.compare import compare
from sim.metrics import tier_table
from sim.records import Result
from sim.resolve import resolve
from sim.run import run

FOLDER = Path(scenarios.__file__).parent
CROWDED = """
replications: 2
horizon: {warmup: 2s, measure: 20s}
fleet:
  thinker:
    model: llama-3.1-8b
    device: h200-sxm-141gb
    latency: {kind: roofline}
    engine: {max_num_seqs: 8, max_num_batched_tokens: 512}
workload: {arrivals: {rate: 12/s}, classes: {chat: {preset: chat}}}
tiers:
  cheap: {share: 50%, price: {per_query: 0.001 USD}, slo: {e2e_p95: 5s}}
  dear: {share: 50%, price: {per_query: 0.01 USD, refund: 100%}, promise: {confidence: 10%}, slo: {e2e_p95: 5s}}
"""
SHEDS = ("tiers.cheap.shed_above=1.0", "tiers.dear.shed_above=3.0")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)


def crowded(*overrides: str) -> tuple[Loaded, Result]:
    asked = loads(CROWDED, "crowded.yaml", overrides)
    return asked, run(resolve(asked), workers=1)


def test_what_arrives_is_answered_refused_or_unfinished_and_the_lowest_threshold_sheds_first(
    few: None,
) -> None:
    asked, found = crowded(*SHEDS)
    tiers = {row.tier: row for row in tier_table(found, asked.scenario)}
    for row in tiers.values():
        assert row.n == row.answered + row.refused + row.unfinished
    assert tiers["cheap"].refused > tiers["dear"].refused > 0
    again = crowded(*SHEDS)[1]
    for name, column in found.queries.items():
        assert column.tobytes() == again.queries[name].tobytes(), name


def test_a_refused_query_uses_nothing_pays_nothing_and_misses_its_objective(few: None) -> None:
    asked, found = crowded(*SHEDS, "pricing.device_rates={h200-sxm-141gb: 3.60 USD/h}")
    priced = price(found, asked.scenario)  # raises where the books do not balance
    gone = priced.result.queries["status"] == "refused"
    for column in ("gpu_seconds", "cost_usd", "charge_usd", "refund_usd", "credit_usd"):
        assert not priced.result.queries[column][gone].any(), column
    for row in tier_table(found, asked.scenario):
        assert row.attained.value <= 1 - row.refused / row.n


def test_a_threshold_that_is_never_reached_changes_nothing(few: None) -> None:
    _, plain = crowded()
    _, never = crowded("tiers.cheap.shed_above=900", "tiers.dear.shed_above=900")
    for name, column in plain.queries.items():
        assert column.tobytes() == never.queries[name].tobytes(), name


def test_shedding_shortens_the_wait_of_those_who_stay(few: None) -> None:
    wait = []
    for overrides in ((), ("tiers.cheap.shed_above=1.0",)):
        queries = crowded(*overrides)[1].queries
        stayed = (queries["tier"] == "dear") & (queries["status"] == "answered")
        wait.append(float(np.mean((queries["finish_s"] - queries["arrival_s"])[stayed])))
    assert wait[1] < 0.8 * wait[0]


def test_a_threshold_of_nought_is_refused() -> None:
    with pytest.raises(ScenarioError, match="shed_above"):
        loads(CROWDED, "crowded.yaml", ("tiers.cheap.shed_above=0",))


@pytest.mark.slow
def test_at_the_peak_thinking_less_keeps_every_tier_that_shedding_loses() -> None:
    ever, less, shed = (
        (asked, run(resolve(asked), workers=1))
        for asked in (
            load(FOLDER / f"{n}.yaml") for n in ("busy-evening", "think-less", "shed-load")
        )
    )
    for asked, found in (ever, shed):
        assert all(row.missed for row in tier_table(found, asked.scenario))
    for row in tier_table(less[1], less[0].scenario):
        assert not row.missed
        assert row.attained.low > 0.93
    changes = {
        (tier.tier, row.name): row.change
        for base in (ever, shed)
        for tier in compare(base[1], less[1]).tiers
        for row in tier.differences
        if row.name == ("accuracy" if base is ever else "answered")
    }
    assert changes["instant", "answered"].low > 0.2
    assert changes["careful", "answered"].low > 0.2
    for tier in ("instant", "careful", "assured"):  # the stated cost in accuracy
        assert changes[tier, "accuracy"].low > -0.04
