"""Which replica a query is placed on: by the searches in progress there, policy and verifier alike."""

from __future__ import annotations

import numpy as np
import pytest

import sim.replication
from scenarios.loader import loads
from sim.resolve import resolve
from sim.run import run

TWO_JUDGES = """
replications: 1
horizon: {warmup: 0s, measure: 15s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, latency: {kind: roofline}, replicas: 2}
  judge:
    {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb, latency: {kind: roofline}, replicas: 2}
workload: {arrivals: {rate: 4/s}, classes: {math: {preset: math-500}}}
tiers: {voted: {search: {algorithm: best_of_n, n: 8}}}
"""


@pytest.mark.parametrize("pool", ["thinker", "judge"])
def test_the_replicas_of_a_pool_share_its_searches(
    pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)
    line = run(resolve(loads(TWO_JUDGES, "two.yaml")), workers=1).timeline
    held = [
        float(np.mean(line["active_searches"][(line["pool"] == pool) & (line["replica"] == index)]))
        for index in range(2)
    ]
    assert min(held) > 0.5 * max(held)
