"""A whole run: the same bytes on any number of workers, paired what-ifs, and no query unaccounted for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim.replication
from scenarios.errors import UserError
from scenarios.loader import loads
from sim.records import Result, Table
from sim.resolve import resolve
from sim.run import run

SCENARIO = """
seed: 5
replications: 2
horizon: {warmup: 2s, measure: 18s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, latency: {kind: roofline}}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb, latency: {kind: roofline}}
workload:
  arrivals: {rate: 4/s}
  classes:
    math: {preset: math-500}
tiers:
  fast: {share: 40%, search: {algorithm: direct}}
  voted: {share: 40%, search: {algorithm: best_of_n, n: 4}}
  careful: {share: 20%, search: {algorithm: beam, width: 2, expand: 2}}
"""
ALONE = """
replications: 1
horizon: {warmup: 0s, measure: 20s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, latency: {kind: roofline}}
workload:
  arrivals: {rate: 3/s}
  classes:
    c: {preset: chat}
tiers:
  t: {search: {algorithm: direct}}
"""


@pytest.fixture(autouse=True)
def few_calibration_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)  # 250 rollouts, the least


def result(text: str, *overrides: str, **options: Any) -> Result:
    options.setdefault("workers", 1)
    return run(resolve(loads(text, "asked.yaml", overrides)), **options)


def tables(found: Result) -> tuple[Table, Table, Table]:
    return found.queries, found.timeline, found.pools


def as_bytes(found: Result) -> list[tuple[str, str, bytes]]:
    return [
        (name, str(column.dtype), column.tobytes())
        for table in tables(found)
        for name, column in table.items()
    ]


def count(found: Result, status: str) -> int:
    return int((found.queries["status"] == status).sum())


@pytest.fixture(scope="module")
def base() -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.replication, "_CALIBRATION_BRANCHES", 1)
        return result(SCENARIO)


def test_the_same_seed_gives_the_same_bytes_on_one_worker_or_two(base: Result) -> None:
    again = result(SCENARIO, workers=2)
    assert again.meta["workers"] == 2
    assert as_bytes(again) == as_bytes(base)
    assert len(base.queries["query_id"]) > 100


def test_other_seeds_and_other_replications_are_other_runs(base: Result) -> None:
    other = result(SCENARIO, seed=6, replications=1)
    first = base.queries["arrival_s"][base.queries["replication"] == 0]
    second = base.queries["arrival_s"][base.queries["replication"] == 1]
    assert other.seed == 6
    assert set(other.queries["replication"].tolist()) == {0}
    shared = set(first) & set(other.queries["arrival_s"]) | set(first) & set(second)
    assert not shared


def test_a_replication_does_not_depend_on_how_many_others_run(base: Result) -> None:
    alone = result(SCENARIO, replications=1)
    chosen = base.queries["replication"] == 0
    for name, column in alone.queries.items():
        assert column.tobytes() == base.queries[name][chosen].astype(column.dtype).tobytes(), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("fleet.thinker.device=a100-sxm-80gb", "fleet.thinker.engine.max_num_seqs=24"),
        ("fleet.thinker.replicas=3", "fleet.thinker.router=random"),
        ("fleet.thinker.engine.num_gpu_blocks=700", "fleet.thinker.kv.sharing=per_branch"),
    ],
)
def test_a_what_if_on_hardware_meets_the_same_queries_which_think_the_same(
    base: Result, overrides: tuple[str, ...]
) -> None:
    changed = result(SCENARIO, *overrides).queries
    asked = base.queries
    for name in ("replication", "query_id", "arrival_s", "class", "tier", "input_tokens"):
        assert np.array_equal(asked[name], changed[name]), name
    over = [np.isin(table["status"], ("answered", "cut")) for table in (asked, changed)]
    both = over[0] & over[1]
    assert both.sum() > 0.9 * len(both)
    names = (
        "output_tokens", "answer_tokens", "trajectories", "expansions", "scores", "correct",
        "signal", "confidence", "difficulty",
    )  # fmt: skip
    for name in names:
        assert np.array_equal(asked[name][both], changed[name][both]), name
    late = changed["finish_s"][both] - asked["finish_s"][both]
    assert np.abs(late).max() > 0.1, "the hardware made no difference"


def test_changing_one_tiers_search_leaves_the_queries_of_the_others_as_they_were(
    base: Result,
) -> None:
    changed = result(SCENARIO, "tiers.voted.search.n=2").queries
    asked = base.queries
    others = asked["tier"] != "voted"
    assert np.array_equal(asked["tier"], changed["tier"])
    for name in ("arrival_s", "output_tokens", "correct", "signal"):
        assert np.array_equal(asked[name][others], changed[name][others]), name
    assert not np.array_equal(asked["output_tokens"][~others], changed["output_tokens"][~others])


def test_every_query_has_one_row_with_times_in_order(base: Result) -> None:
    queries = base.queries
    assert np.isin(queries["status"], ("answered", "cut")).all()
    stages = ("arrival_s", "first_scheduled_s", "first_token_s", "first_answer_token_s", "finish_s")
    for before, after in pairwise(stages):
        assert (queries[before] <= queries[after]).all(), (before, after)
    assert (queries["first_token_s"] > queries["arrival_s"]).all()
    direct = queries["tier"] == "fast"  # streamed: the first token of a visible answer is shown
    assert (queries["first_answer_token_s"] < queries["finish_s"])[direct].all()
    assert (queries["first_answer_token_s"] == queries["finish_s"])[~direct].all()
    assert (queries["verify_s"][~direct] > 0).all()
    assert (queries["verify_s"][direct] == 0).all()
    assert np.array_equal(
        queries["measured"], (queries["arrival_s"] >= 2) & (queries["arrival_s"] <= 20)
    )
    for replication in (0, 1):
        ids = queries["query_id"][queries["replication"] == replication]
        assert ids.tolist() == list(range(len(ids)))


def test_without_sharing_the_pages_held_are_those_that_no_sharing_would_take() -> None:
    timeline = result(SCENARIO, "fleet.thinker.kv.sharing=per_branch").timeline
    thinker = timeline["pool"] == "thinker"
    assert timeline["pages_pinned"][thinker].max() > 100
    assert np.array_equal(timeline["pages_pinned"][thinker], timeline["pages_naive"][thinker])


def test_what_queries_are_charged_is_what_the_pools_were_busy(base: Result) -> None:
    queries, pools = base.queries, base.pools
    for row in range(len(pools["pool"])):
        own = queries["replication"] == pools["replication"][row]
        kind = "policy" if pools["role"][row] == "policy" else "verifier"
        charged = float(queries[f"{kind}_gpu_seconds"][own].sum())
        assert charged == pytest.approx(pools["busy_gpu_seconds"][row], rel=1e-9)
        assert charged == pytest.approx(pools["attributed_gpu_seconds"][row], rel=1e-9)
        fleet = pools["total_s"][row] * pools["replicas"][row] * pools["gpus"][row]
        assert pools["fleet_gpu_seconds"][row] == pytest.approx(fleet, rel=1e-12)
        assert charged + pools["idle_gpu_seconds"][row] == pytest.approx(fleet, rel=1e-9)


def test_a_thinking_model_shows_its_first_answer_token_after_its_first_token() -> None:
    found = result(ALONE, "workload.classes.c.preset=thinking-r1", "horizon.measure=60s").queries
    over = found["status"] == "answered"
    assert over.sum() > 50
    gap = (found["first_answer_token_s"] - found["first_token_s"])[over]
    assert (gap > 0).all()
    assert gap.mean() > 0.3 * (found["finish_s"] - found["first_token_s"])[over].mean()
    assert (found["first_answer_token_s"] <= found["finish_s"])[over].all()
    # what follows the first answer token takes its share of the tokens, at a speed that varies little
    shown = ((found["answer_tokens"] - 1) / (found["output_tokens"] - 1))[over]
    lasted = (found["finish_s"] - found["first_answer_token_s"])[over]
    whole = (found["finish_s"] - found["first_token_s"])[over]
    assert np.median(lasted / whole) == pytest.approx(np.median(shown), rel=0.2)
    thinks = (found["answer_tokens"] < found["output_tokens"])[over]
    assert thinks.all()


def test_a_chat_model_shows_its_answer_from_its_first_token_on() -> None:
    found = result(ALONE).queries
    assert np.array_equal(found["first_answer_token_s"], found["first_token_s"])


def test_a_prompt_longer_than_memory_is_refused_and_the_others_are_served() -> None:
    found = result(
        ALONE,
        "fleet.thinker.engine.num_gpu_blocks=250",  # 4,000 tokens
        "workload.classes.c.prompt_tokens={kind: empirical, values: [50, 3999, 90000], "
        "probs: [0.7, 0.1, 0.2]}",
        "workload.classes.c.output_tokens={kind: constant, value: 40}",
    )
    queries = found.queries
    refused = queries["status"] == "refused"
    assert np.array_equal(refused, queries["input_tokens"] >= 3999)
    assert refused.sum() > 5
    assert (queries["status"][~refused] == "answered").all()
    for name in ("first_token_s", "first_answer_token_s", "finish_s", "first_scheduled_s"):
        assert np.isnan(queries[name][refused]).all()
    assert (queries["gpu_seconds"][refused] == 0).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_branch_that_cannot_fit_is_an_error_that_says_where_and_what_to_do(workers: int) -> None:
    overrides = (
        "replications=2",
        "fleet.thinker.engine.num_gpu_blocks=40",
        "workload.classes.c.prompt_tokens={kind: constant, value: 600}",
        "workload.classes.c.output_tokens={kind: constant, value: 200}",
    )
    with pytest.raises(UserError) as caught:
        result(ALONE, *overrides, workers=workers)
    message = str(caught.value)
    assert message.startswith("--set fleet.thinker.engine.num_gpu_blocks=40: ")
    assert "the replica has 40" in message
    assert "raise gpu_memory_utilization" in message
    assert not multiprocessing.active_children()


def test_a_branch_that_does_not_fit_the_verifier_is_reported_at_the_verifiers_pool() -> None:
    text = SCENARIO.replace("role: verifier,", "role: verifier, engine: {num_gpu_blocks: 12},")
    line = 1 + next(n for n, row in enumerate(text.split("\n")) if row.startswith("  judge:"))
    with pytest.raises(UserError) as caught:
        result(text)
    assert str(caught.value).startswith(f"asked.yaml:{line}:")
    assert "the replica has 12" in str(caught.value)


def test_an_overloaded_fleet_leaves_queries_unfinished_and_counts_them() -> None:
    found = result(
        ALONE,
        "horizon.measure=15s",
        "workload.arrivals.rate=20/s",
        "fleet.thinker.engine.max_num_seqs=2",
    )
    queries, pools = found.queries, found.pools
    total = len(queries["status"])
    unfinished = count(found, "unfinished")
    assert 0 < count(found, "answered") < total
    assert unfinished > total / 4
    assert unfinished + count(found, "answered") == total
    assert np.isnan(queries["finish_s"][queries["status"] == "unfinished"]).all()
    charged = float(queries["policy_gpu_seconds"].sum())
    # what runs at the end of time has been charged up to the last event, not up to the end
    assert charged == pytest.approx(float(pools["busy_s"].sum()), rel=1e-9)
    assert found.timeline["waiting_queries"].max() > 50


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_starts_at_nothing_never_goes_back_and_says_what_is_done(workers: int) -> None:
    seen: list[tuple[float, str]] = []
    result(
        ALONE, "replications=2", workers=workers, progress=lambda share, text: seen.append((share, text))
    )  # fmt: skip
    shares = [share for share, _ in seen]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert 0.9 <= shares[-1] <= 1.0
    assert "calibrating" in seen[0][1]
    assert "of 2" in seen[-1][1]


def test_ctrl_c_stops_the_workers_soon_and_leaves_none_behind() -> None:
    long = (
        "replications=2",
        "horizon.measure=3h",  # far more work than the test may wait for
        "workload.arrivals.rate=10/s",
    )
    began: list[float] = []

    def interrupt(share: float, text: str) -> None:
        if share > 0.005 and not began:
            began.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            result(ALONE, *long, workers=2, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.perf_counter() - began[0] < 10
    assert not multiprocessing.active_children()
    assert threading.active_count() == 1


def test_a_scenario_without_a_single_arrival_is_an_empty_result() -> None:
    found = result(ALONE, "horizon.measure=0.001s", "workload.arrivals.rate=0.001/s")
    assert len(found.queries["status"]) == 0
    assert found.pools["busy_s"].tolist() == [0.0]


def test_an_absurd_scenario_is_refused_before_it_runs() -> None:
    with pytest.raises(UserError, match="lower the rate"):
        result(ALONE, "workload.arrivals.rate=1000000/s", "horizon.measure=100h")


def test_this_file_changes_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result(ALONE, "horizon.measure=2s")
    assert not list(tmp_path.iterdir())
