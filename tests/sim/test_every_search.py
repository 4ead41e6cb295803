"""Every algorithm of the catalogue runs from a scenario to a report's figures."""

from __future__ import annotations

import pytest

import sim.replication
from models.search import ALGORITHMS
from scenarios.loader import loads
from sim.batch import Settings
from sim.records import measured
from sim.resolve import resolve
from sim.run import run
from tests.sim.driving import House, questions

TEXT = """
name: any
replications: 1
horizon: {warmup: 0s, measure: 12s}
fleet:
  thinker: {model: qwen2.5-7b, device: l40s-48gb, latency: {kind: roofline}}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: l40s-48gb, latency: {kind: roofline}}
workload:
  arrivals: {kind: poisson, rate: 2/s}
  classes: {math: {preset: math-500}}
tiers:
  only: {search: SEARCH, slo: {e2e_p95: 60s}}
"""
SMALL = {
    "n": 3,
    "window": 2,
    "width": 2,
    "subtrees": 2,
    "expand": 2,
    "simulations": 6,
    "min_think": 300,
}


@pytest.fixture(autouse=True)
def few_calibration_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)  # 250 rollouts, the least


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_from_a_scenario(name: str) -> None:
    known = ALGORITHMS[name].parameters
    given = {"algorithm": name} | {key: SMALL[key] for key in known if key in SMALL}
    text = TEXT.replace("SEARCH", "{" + ", ".join(f"{k}: {v}" for k, v in given.items()) + "}")
    queries = measured(run(resolve(loads(text, "any.yaml")), workers=1).queries)
    assert len(queries["status"]) > 5
    assert set(queries["status"]) == {"answered"}
    assert 0.1 < queries["correct"].mean() < 1
    assert (queries["scores"].sum() > 0) == ALGORITHMS[name].needs_verifier
    assert (queries["confidence"] > 0).all()


def test_what_is_injected_is_read_once_by_the_policy_and_once_by_the_verifier() -> None:
    def read(inject: int) -> tuple[int, int]:
        house = House(Settings(4000, 16, 24, 512), Settings(4000, 16, 24, 512))
        for world in questions("math-500", 4, 3):
            house.ask(world, "revision", n=4, chains=1, inject=inject)
        house.env.run()
        return house.replica.batch.computed_tokens, house.judge.batch.computed_tokens

    few, many = read(1), read(101)
    assert many[0] - few[0] == 3 * 3 * 100  # three questions, three revisions each
    assert many[1] - few[1] == 3 * 3 * 100
