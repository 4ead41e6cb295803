"""Workloads: rates, burstiness and lengths as asked, and the laws of common random numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from models.keyed import root_key
from models.question import question_model
from scenarios.arrivals import Arrivals
from scenarios.errors import UserError
from scenarios.schema import Scenario
from sim.workload import QUERIES, Queries, arrivals, queries, source

KEY = 0x9E3779B97F4A7C15


def spec(**given: Any) -> Any:
    return TypeAdapter(Arrivals).validate_python(given)


def scenario(
    arrivals: dict[str, Any] | None = None,
    classes: dict[str, Any] | None = None,
    tiers: dict[str, Any] | None = None,
    **given: Any,
) -> Scenario:
    return Scenario.model_validate(
        {
            "fleet": {"policy": {"model": "llama-3.1-8b", "device": "h200-sxm-141gb"}},
            "workload": {
                "arrivals": arrivals or {"rate": "10/s"},
                "classes": classes or {"chat": {"preset": "chat"}},
            },
            "tiers": tiers or {"only": {}},
        }
        | given
    )


def trace(path: Path, rows: list[tuple[float, int, int, list[int]]]) -> dict[str, Any]:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (path / "t.jsonl").write_text("\n".join(lines))
    return {"kind": "trace", "path": str(path / "t.jsonl")}


def same(a: Queries, b: Queries) -> list[bool]:
    """Whether each column of queries is equal, but for the arrivals."""
    names = ("class_index", "tier_index", "input_tokens", "output_tokens_given", "key")
    return [np.array_equal(getattr(a, name), getattr(b, name)) for name in names]


# arrivals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"rate": "20/s"}, {"kind": "gamma", "rate": "20/s", "cv": 1.0}])
def test_poisson_counts_have_mean_and_variance_of_rate_times_horizon(given: Any) -> None:
    counts = np.asarray([len(arrivals(spec(**given), 10.0, key)) for key in range(2000)])
    assert counts.mean() == pytest.approx(200, abs=4 * math.sqrt(200 / 2000))
    assert counts.var() == pytest.approx(200, rel=4 * math.sqrt(2 / 2000))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.3, 5.0])
def test_gamma_arrivals_have_the_rate_and_cv_asked_for(cv: float) -> None:
    gaps = np.diff(arrivals(spec(kind="gamma", rate="4/s", cv=cv), 50_000.0, KEY))
    n = len(gaps)
    kurtosis = 3.0 + 6.0 * cv**2
    assert gaps.mean() == pytest.approx(0.25, rel=4 * cv / math.sqrt(n))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=4 * math.sqrt(kurtosis / (4 * n)))


def test_hourly_rates_are_followed_hour_by_hour() -> None:
    hourly = [10.0 + 5.0 * (h % 5) if h != 3 else 0.0 for h in range(24)]
    asked = spec(kind="diurnal", hourly=[f"{r}/s" for r in hourly], start_hour=22.0)
    counts = np.histogram(arrivals(asked, 86400.0, KEY), np.arange(25) * 3600)[0]
    expected = np.roll(hourly, -22) * 3600
    assert np.abs(counts - expected).max() <= 4.5 * math.sqrt(expected.max())
    assert counts[5] == 0


def test_relative_hourly_rates_keep_the_mean_rate() -> None:
    asked = spec(kind="diurnal", rate="2/s", hourly=[1, 3] * 12, period="2h")
    points = arrivals(asked, 7200.0, KEY)
    assert len(points) == pytest.approx(14_400, abs=4 * 120)
    odd = ((points // 300).astype(int) % 2).mean()
    assert odd == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("peak", [1.0, 1.5, 2.66, 10.0])
def test_a_smooth_day_has_its_mean_and_its_peak_at_hour_12(peak: float) -> None:
    asked = spec(kind="diurnal", rate="5/s", peak_to_mean=peak)
    points = arrivals(asked, 86400.0, KEY)
    assert len(points) == pytest.approx(5 * 86400, abs=4 * math.sqrt(5 * 86400))
    around = ((points > 43200 - 600) & (points < 43200 + 600)).sum() / 1200
    assert around == pytest.approx(5 * peak, rel=0.06)


def test_half_hours_into_a_day_start_there() -> None:
    asked = spec(kind="diurnal", hourly=["0/s"] * 12 + ["8/s"] * 12, start_hour=11.5)
    points = arrivals(asked, 3600.0, KEY)
    assert points[0] > 1800
    assert len(points) == pytest.approx(8 * 1800, abs=4 * 120)


@given(st.integers(0, 2**64 - 1), st.sampled_from([{}, {"kind": "gamma", "cv": 2.3}]))
def test_twice_the_rate_is_the_same_points_in_half_the_time(key: int, shape: Any) -> None:
    slow = arrivals(spec(rate="3/s", **shape), 40.0, key)
    fast = arrivals(spec(rate="6/s", **shape), 20.0, key)
    assert (fast * 2).tolist() == slow.tolist()


def test_twice_the_diurnal_rate_keeps_the_order_of_a_unit_rate_process() -> None:
    slow = arrivals(spec(kind="diurnal", rate="1/s", peak_to_mean=1.0), 2000.0, KEY)
    fast = arrivals(spec(kind="diurnal", rate="2/s", peak_to_mean=1.0), 1000.0, KEY)
    assert fast * 2 == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize(
    "given",
    [{"rate": "3/s"}, {"kind": "gamma", "rate": "3/s", "cv": 4.0},
     {"kind": "diurnal", "rate": "3/s", "peak_to_mean": 2.0, "start_hour": 5.0}],
)  # fmt: skip
def test_a_longer_horizon_only_adds_arrivals(given: Any) -> None:
    short, long = (arrivals(spec(**given), h, KEY) for h in (50.0, 500.0))
    assert short == pytest.approx(long[: len(short)], rel=1e-9)
    assert short.max() < 50.0 <= long[len(short)]


def test_absurd_amounts_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(UserError, match=r"workload\.arrivals\.rate: 1e\+09/s .*lower the rate"):
        arrivals(spec(rate="1000000000/s"), 600.0, KEY)
    with pytest.raises(UserError, match=r"workload\.arrivals\.period"):
        arrivals(spec(kind="diurnal", rate="1/s", peak_to_mean=2.0, period="1ms"), 600.0, KEY)
    with pytest.raises(UserError, match="measure: 10min"):
        arrivals(spec(rate="1/s"), None, KEY)


# queries -------------------------------------------------------------------------------------

MIX = {
    "chat": {"preset": "chat", "share": "60%"},
    "math": {
        "preset": "math-500",
        "share": "40%",
        "prompt_tokens": {"kind": "lognormal", "median": 210, "sigma": 0.5, "min": 50, "max": 900},
    },
}
MENU = {"fast": {"share": "70%"}, "careful": {"share": "30%"}}


def test_the_key_of_a_query_is_that_of_its_number_in_the_replication() -> None:
    found = queries(scenario(seed=7), 2)
    assert [root_key(7, 2, QUERIES, i) for i in range(5)] == found.key[:5].tolist()
    assert len(set(found.key.tolist())) == len(found)


def test_queries_arrive_within_warm_up_and_measurement() -> None:
    found = queries(scenario(horizon={"warmup": "30s", "measure": "70s"}), 0)
    assert np.all(np.diff(found.arrival_s) >= 0)
    assert 90 < found.arrival_s[-1] < 100


def test_shares_of_classes_and_tiers_are_met_and_independent() -> None:
    asked = scenario({"rate": "100/s"}, MIX, MENU, horizon={"measure": "400s"})
    found = queries(asked, 0)
    n = len(found)
    error = 4 * 0.5 / math.sqrt(n)
    assert (found.class_index == 1).mean() == pytest.approx(0.4, abs=error)
    assert (found.tier_index == 1).mean() == pytest.approx(0.3, abs=error)
    both = ((found.class_index == 1) & (found.tier_index == 1)).mean()
    assert both == pytest.approx(0.12, abs=error)


def test_a_class_with_its_own_tiers_uses_only_those() -> None:
    classes = {**MIX, "math": {**MIX["math"], "tiers": {"careful": "100%"}}}
    found = queries(scenario(None, classes, MENU), 0)
    assert set(found.tier_index[found.class_index == 1].tolist()) == {1}
    assert (found.tier_index[found.class_index == 0] == 1).mean() == pytest.approx(0.3, abs=0.05)


def test_prompts_follow_their_distribution_and_its_limits() -> None:
    found = queries(scenario({"rate": "50/s"}, MIX), 0)
    prompts = found.input_tokens[found.class_index == 1]
    assert np.median(prompts) == pytest.approx(210, rel=0.03)
    assert prompts.min() >= 50
    assert prompts.max() <= 900
    log = np.log(prompts[(prompts > 50) & (prompts < 900)])
    assert log.std() == pytest.approx(0.5, rel=0.05)


def test_prompts_without_a_length_come_from_the_preset() -> None:
    found = queries(scenario({"rate": "50/s"}), 0)
    expected = question_model("chat").prompt_tokens(0.5)
    assert np.median(found.input_tokens) == pytest.approx(expected, rel=0.05)
    assert set(found.output_tokens_given.tolist()) == {-1}
    assert found.prefix is None


def test_an_unknown_preset_names_the_class() -> None:
    with pytest.raises(UserError, match=r"workload\.classes\.chat: .*'chatt'.*chat"):
        queries(scenario(classes={"chat": {"preset": "chatt"}}), 0)


def test_a_shared_prefix_comes_on_top_of_the_prompt() -> None:
    alone = queries(scenario(None, MIX), 0)
    classes = {**MIX, "chat": {**MIX["chat"], "shared_prefix_tokens": 2000}}
    found = queries(scenario(None, classes), 0)
    chat = found.class_index == 0
    assert (found.input_tokens - alone.input_tokens).tolist() == np.where(chat, 2000, 0).tolist()
    assert found.prefix is not None
    assert {found.prefix[i] for i in np.flatnonzero(chat)} == {(("chat", 2000),)}
    assert {found.prefix[i] for i in np.flatnonzero(~chat)} == {()}


# common random numbers -----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_queries_and_another_does_not() -> None:
    one, again = queries(scenario(None, MIX, MENU), 0), queries(scenario(None, MIX, MENU), 0)
    assert one.arrival_s.tolist() == again.arrival_s.tolist()
    assert all(same(one, again))
    for other in (queries(scenario(None, MIX, MENU, seed=1), 0), queries(scenario(None, MIX), 1)):
        assert other.arrival_s[0] != one.arrival_s[0]
        assert other.key[0] != one.key[0]


def test_the_fleet_and_the_searches_of_tiers_do_not_change_the_queries() -> None:
    fleet = {"big": {"model": "qwq-32b", "device": "b200-sxm-180gb", "replicas": 9}}
    menu = {"fast": {"share": "70%", "search": {"algorithm": "self_consistency", "n": 8}},
            "careful": {"share": "30%", "slo": {"e2e_p95": "9s"}}}  # fmt: skip
    one, other = (
        queries(scenario(None, MIX, MENU), 0),
        queries(scenario(None, MIX, menu, fleet=fleet), 0),
    )
    assert one.arrival_s.tolist() == other.arrival_s.tolist()
    assert all(same(one, other))


def test_at_twice_the_rate_a_query_of_the_same_number_is_the_same_query() -> None:
    slow = queries(scenario({"rate": "5/s"}, MIX, MENU), 0)
    fast = queries(scenario({"rate": "10/s"}, MIX, MENU), 0)
    n = len(slow)
    assert (fast.arrival_s[:n] * 2).tolist() == slow.arrival_s.tolist()
    assert fast.input_tokens[:n].tolist() == slow.input_tokens.tolist()
    assert fast.tier_index[:n].tolist() == slow.tier_index.tolist()


def test_changing_tier_shares_moves_only_the_difference_and_nothing_else() -> None:
    one = queries(scenario({"rate": "50/s"}, MIX, MENU), 0)
    menu = {"fast": {"share": "60%"}, "careful": {"share": "40%"}}
    other = queries(scenario({"rate": "50/s"}, MIX, menu), 0)
    assert same(one, other) == [True, False, True, True, True]
    moved = one.tier_index != other.tier_index
    assert moved.mean() == pytest.approx(0.1, abs=0.01)
    assert set(other.tier_index[moved].tolist()) == {1}


def test_a_new_tier_only_takes_queries_and_the_order_of_tiers_is_irrelevant() -> None:
    one = queries(scenario({"rate": "50/s"}, MIX, MENU), 0)
    menu = {"new": {"share": "20%"}, "careful": {"share": "24%"}, "fast": {"share": "56%"}}
    other = queries(scenario({"rate": "50/s"}, MIX, menu), 0)
    names = np.asarray(other.tiers)[other.tier_index]
    before = np.asarray(one.tiers)[one.tier_index]
    assert (names == "new").mean() == pytest.approx(0.2, abs=0.015)
    assert np.array_equal(names[names != "new"], before[names != "new"])


# replayed traces -----------------------------------------------------------------------------

ROWS = [(1000 * i, 100 + i, 10 + i, [0, i]) for i in range(1, 11)]
LONG = [(t, n + 500, out, ids) for t, n, out, ids in ROWS]
WHOLE: dict[str, Any] = {"horizon": {"warmup": "0s", "measure": None}}


def test_a_trace_gives_arrivals_and_both_lengths(tmp_path: Path) -> None:
    found = queries(scenario(trace(tmp_path, LONG)), 0)
    assert found.arrival_s == pytest.approx(np.arange(10))
    assert found.input_tokens.tolist() == [600 + i for i in range(1, 11)]
    assert found.output_tokens_given.tolist() == [10 + i for i in range(1, 11)]
    assert found.provenance == "raw"


def test_hashed_blocks_become_a_chain_that_adds_up_to_the_prompt(tmp_path: Path) -> None:
    rows = [(0, 1025, 5, [0, 1, 2]), (1, 1024, 5, [0, 1]), (2, 700, 5, [0]), (3, 9, 5, [])]
    found = queries(scenario(trace(tmp_path, rows)), 0)
    assert found.prefix == [
        ((0, 512), (1, 512), (2, 1)),
        ((0, 512), (1, 512)),
        ((0, 512),),
        (),
    ]


def test_speed_start_and_limit_cut_and_scale_a_trace(tmp_path: Path) -> None:
    asked = trace(tmp_path, LONG) | {"speed": 2.0, "start": "3s", "limit": 4}
    found = queries(scenario(asked), 0)
    assert found.arrival_s == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert found.input_tokens.tolist() == [604, 605, 606, 607]
    assert found.provenance == "scaled"
    all_of_it = queries(scenario(trace(tmp_path, LONG)), 0)
    assert found.key.tolist() == all_of_it.key[3:7].tolist()


def test_a_measured_horizon_cuts_a_trace_in_simulated_time(tmp_path: Path) -> None:
    asked = scenario(
        trace(tmp_path, LONG) | {"speed": 2.0}, horizon={"warmup": "1s", "measure": "1s"}
    )
    assert queries(asked, 0).arrival_s.tolist() == [0.0, 0.5, 1.0, 1.5]


def test_the_lengths_that_a_class_states_beat_those_of_the_trace(tmp_path: Path) -> None:
    fixed = {"kind": "constant", "value": 77}
    classes = {"chat": {"preset": "chat", "prompt_tokens": fixed, "output_tokens": fixed}}
    found = queries(scenario(trace(tmp_path, LONG), classes), 0)
    assert set(found.input_tokens.tolist()) == {77}
    assert set(found.output_tokens_given.tolist()) == {-1}
    assert set(found.prefix or ()) == {()}


def test_a_shared_prefix_is_part_of_a_recorded_prompt(tmp_path: Path) -> None:
    bare = trace(tmp_path, [(0, 50, 5, []), (9, 500, 5, [])])
    classes = {"chat": {"preset": "chat", "shared_prefix_tokens": 100}}
    found = queries(scenario(bare, classes), 0)
    assert found.input_tokens.tolist() == [50, 500]
    assert found.prefix == [(("chat", 49),), (("chat", 100),)]


def test_a_trace_read_once_serves_all_replications(tmp_path: Path) -> None:
    asked = scenario(trace(tmp_path, LONG), MIX, MENU)
    once = source(asked)
    assert source(scenario()) is None
    for replication in (0, 1):
        one, other = queries(asked, replication, once), queries(asked, replication)
        assert all(same(one, other))
    assert queries(asked, 0, once).key[0] != queries(asked, 1, once).key[0]


def test_a_start_after_the_end_of_a_trace_is_refused(tmp_path: Path) -> None:
    asked = scenario(trace(tmp_path, LONG) | {"start": "1h"})
    with pytest.raises(UserError, match=r"no request arrives between 3600 s and its end; lower"):
        queries(asked, 0)
