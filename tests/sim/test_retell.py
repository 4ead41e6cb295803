"""A query told again is the very query of the run: same times, same tokens, same answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from scenarios.errors import UserError
from scenarios.loader import load
from sim.resolve import resolve
from sim.retell import retell, trace
from sim.run import run

SHORT = ("horizon.warmup=5s", "horizon.measure=25s", "replications=1", "workload.arrivals.rate=2/s")
QUICK = Path(__file__).resolve().parents[2] / "scenarios" / "quickstart.yaml"


@pytest.fixture(scope="module")
def resolved():
    return resolve(load(QUICK, SHORT))


def test_the_story_of_a_query_agrees_with_its_row(resolved) -> None:
    queries = run(resolved, workers=1).queries
    for row in (
        int(queries["query_id"][queries["tier"] == tier][3]) for tier in ("fast", "careful")
    ):
        found = retell(resolved, row)
        at = queries["query_id"] == row
        arrival = float(queries["arrival_s"][at][0])
        assert found.finish_s == pytest.approx(
            float(queries["finish_s"][at][0]) - arrival, abs=1e-9
        )
        assert found.first_s == pytest.approx(
            float(queries["first_token_s"][at][0]) - arrival, abs=1e-9
        )
        done = [step for step in found.steps if not math.isnan(step.end_s)]
        assert sum(step.tokens for step in done) == int(queries["output_tokens"][at][0])
        assert len(done) == int(queries["expansions"][at][0])
        assert found.correct == bool(queries["correct"][at][0])
        assert found.replica == int(queries["replica"][at][0])
        assert found.tier == str(queries["tier"][at][0])


def test_a_tree_grows_from_parents_and_nothing_grows_below_what_was_pruned(resolved) -> None:
    queries = run(resolved, workers=1).queries
    row = int(queries["query_id"][queries["expansions"].argmax()])  # one that thinks long
    found = retell(resolved, row)
    steps = {step.name: step for step in found.steps}
    assert any(step.fate == "pruned" for step in found.steps)
    assert [step for step in found.steps if step.fate == "answer"]
    for step in found.steps:
        assert step.asked_s < step.end_s or step.fate == "cancelled"
        if step.parent:
            parent = steps[step.parent]
            assert parent.fate in ("expanded", "answer")
            assert parent.end_s <= step.asked_s
            assert step.path_tokens == parent.path_tokens + step.tokens
            assert math.isnan(parent.score) or 0 < parent.score < 1


def test_a_trace_has_an_event_for_every_step_and_no_two_at_once_in_a_lane(resolved) -> None:
    queries = run(resolved, workers=1).queries
    found = retell(resolved, int(queries["query_id"][queries["tier"] == "careful"][0]))
    document = json.loads(json.dumps(trace(found)))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in events} >= {step.name for step in found.steps}
    lanes: dict[int, float] = {}
    for event in sorted(events, key=lambda event: event["ts"]):
        assert event["ts"] >= lanes.get(event["tid"], 0.0) - 1e-3
        lanes[event["tid"]] = event["ts"] + event["dur"]


def test_a_query_that_does_not_exist_is_refused_with_those_that_do(resolved) -> None:
    with pytest.raises(UserError, match="queries 0 to"):
        retell(resolved, 10**9)
