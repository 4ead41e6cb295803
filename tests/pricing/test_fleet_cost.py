"""In every scenario of the repository what queries are charged for, and idle time, are the fleet's bill to 1e-9."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import scenarios
from models.calibration import Calibrator
from pricing.breakdown import LABELS, breakdowns
from pricing.contract import Priced, price
from scenarios.loader import Loaded, load
from sim.records import Result, measured, merge
from sim.replication import calibrated, replicate
from sim.resolve import resolve

FILES = sorted(Path(scenarios.__file__).parent.glob("*.yaml"))
DATA = Path(os.environ.get("TREELINE_DATA", "../shared/data"))
AZURE = DATA / "traces/azure2023/AzureLLMInferenceTrace_conv.csv"
SMALL = ("horizon.warmup=4s", "horizon.measure=12s")
EXACT = 1e-9


def small(file: Path) -> Loaded:
    """A scenario of seconds; a trace is cut to its first requests."""
    if "kind: trace" not in file.read_text(encoding="utf-8"):
        loaded = load(file, SMALL)
        rare = loaded.scenario.workload.arrivals.rate < 0.2  # too few queries for a test of seconds
        return load(file, [*SMALL, "workload.arrivals.rate=0.5/s"]) if rare else loaded
    if not AZURE.exists():
        pytest.skip(f"{AZURE.name} is not here (TREELINE_DATA)")
    return load(file, [f"workload.arrivals.path={AZURE.resolve()}", "workload.arrivals.limit=60"])


def played(loaded: Loaded, replications: int = 2) -> tuple[Result, Priced]:
    """A run without the calibration, whose confidences do not matter here."""
    resolved = resolve(loaded)
    flat = {pair: Calibrator.fit([], []) for pair in calibrated(resolved)}
    result = merge([replicate(resolved, number, flat) for number in range(replications)])
    return result, price(result, loaded.scenario)


def check(result: Result, priced: Priced) -> None:
    """The books of a run: by pool, over all queries, by every way to split the measured ones."""
    bill, queries = priced.bill, priced.result.queries
    hours = result.pools["fleet_gpu_seconds"].sum() / 3600
    assert bill.gpu_hours == pytest.approx(hours, rel=EXACT)
    due = sum(line.gpu_hours * line.rate for line in bill.pools)
    assert bill.total_usd == pytest.approx(due, rel=EXACT)
    assert queries["cost_usd"].sum() + bill.idle_usd == pytest.approx(due, rel=EXACT)
    assert (queries["cost_usd"] >= 0).all()
    mine = measured(queries)
    for split in breakdowns(priced):
        assert split.by in LABELS
        assert sum(group.n for group in split.groups) == len(mine["tier"])
        loaded_usd = sum(group.cost_usd + group.idle_usd for group in split.groups)
        assert loaded_usd == pytest.approx(mine["cost_usd"].sum() * bill.overhead, rel=EXACT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_attributed_and_idle_cost_are_the_fleets(file: Path) -> None:
    result, priced = played(small(file))
    assert priced.bill.attributed_usd > 0
    check(result, priced)


@pytest.mark.parametrize("sharing", ["tree", "per_branch"])
def test_so_they_are_when_the_pool_is_too_small_and_branches_are_preempted(sharing: str) -> None:
    full = load(
        Path(scenarios.__file__).parent / "evening-peak.yaml",
        [*SMALL, "fleet.reasoner.replicas=1", "fleet.reasoner.engine.num_gpu_blocks=2600",
         f"fleet.reasoner.kv.sharing={sharing}"],
    )  # fmt: skip
    result, priced = played(full, replications=1)
    assert result.pools["num_preemptions"].sum() > 0
    check(result, priced)


def test_so_they_are_in_an_almost_idle_fleet() -> None:
    file = Path(scenarios.__file__).parent / "quickstart.yaml"
    result, priced = played(load(file, [*SMALL, "workload.arrivals.rate=0.1/s"]))
    assert priced.bill.idle_usd > 0.5 * priced.bill.total_usd
    check(result, priced)


def test_the_transfers_of_a_split_cancel_out() -> None:
    _, priced = played(load(Path(scenarios.__file__).parent / "quickstart.yaml", SMALL))
    for split in breakdowns(priced):
        moved = np.array([group.transfer_usd for group in split.groups])
        assert moved.sum() == pytest.approx(0, abs=1e-9 * np.abs(moved).sum() + 1e-15)
