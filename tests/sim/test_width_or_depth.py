"""Width against depth at equal tokens: the wide search is faster on an idle fleet, the deep one under load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import scenarios
import sim.replication
from scenarios.loader import load
from sim.records import measured
from sim.resolve import resolve
from sim.run import run


@pytest.mark.slow
def test_a_vote_is_faster_than_beams_of_as_many_tokens_until_its_kv_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)
    found: dict[tuple[str, float], tuple[float, float, int]] = {}
    for _, cell in load(Path(scenarios.__file__).parent / "width-or-depth.yaml").sweep_cells():
        result = run(resolve(cell), workers=1)
        queries = measured(result.queries)
        took = queries["finish_s"] - queries["arrival_s"]
        assert np.isfinite(took).all()
        name = cell.scenario.tiers["solver"].search.algorithm
        rate = cell.scenario.workload.arrivals.rate  # type: ignore[union-attr]
        preempted = int(result.pools["num_preemptions"].sum())
        tokens = float(queries["output_tokens"].mean())
        found[name, rate] = (float(np.median(took)), tokens, preempted)
    for rate in (0.01, 0.04, 0.07):
        wide, deep = found["weighted_vote", rate], found["beam", rate]
        assert deep[1] == pytest.approx(wide[1], rel=0.1), "about as many tokens"
    assert found["weighted_vote", 0.01][0] < found["beam", 0.01][0]
    assert found["weighted_vote", 0.04][0] > 1.2 * found["beam", 0.04][0]
    assert found["weighted_vote", 0.07][0] > 2 * found["beam", 0.07][0]
    assert found["weighted_vote", 0.07][2] > 1000 > found["beam", 0.07][2]
