"""What a what-if does to its base: the laws of merging, and extends, --set and sweeps built on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.document import Value
from scenarios.errors import Mark, ScenarioError
from scenarios.loader import load, loads
from scenarios.merge import merge, overlay
from scenarios.schema import Diurnal, Gamma, Poisson, TraceReplay
from tests.scenarios.test_bad_input import GOOD

HERE = Mark("here", 1, 1)
KEYS = st.sampled_from("abc")
LEAVES = st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=2))
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=3)
WITH_NULLS = st.dictionaries(
    KEYS,
    st.recursive(
        st.one_of(LEAVES, st.none()),
        lambda inner: st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)


def value(plain: Any) -> Value:
    if isinstance(plain, dict):
        return Value({k: value(v) for k, v in plain.items()}, HERE, dict.fromkeys(plain, HERE))
    if isinstance(plain, list):
        return Value([value(item) for item in plain], HERE)
    return Value(plain, HERE)


def merged(base: Any, over: Any) -> Any:
    return merge(value(base), value(over))[0].plain()


@given(MAPPINGS)
def test_an_empty_change_changes_nothing(base: Any) -> None:
    assert merged(base, {}) == base


@given(MAPPINGS)
def test_a_change_of_nothing_is_the_change(over: Any) -> None:
    assert merged({}, over) == over


@given(MAPPINGS, WITH_NULLS)
def test_the_same_change_twice_is_the_change_once(base: Any, over: Any) -> None:
    once = merged(base, over)
    assert merged(once, over) == once


# of one shape: a key is a mapping on every side or on none
INNER = st.fixed_dictionaries({}, optional={"c": LEAVES, "d": LEAVES})
SHAPED = st.fixed_dictionaries(
    {}, optional={"a": LEAVES, "b": st.fixed_dictionaries({}, optional={"c": LEAVES, "e": INNER})}
)


@given(SHAPED, SHAPED, SHAPED)
def test_changes_in_turn_are_one_change_of_both(base: Any, first: Any, second: Any) -> None:
    both = overlay(value(first), value(second)).plain()
    assert merged(merged(base, first), second) == merged(base, both)


@given(MAPPINGS, WITH_NULLS)
def test_no_null_is_left_and_neither_side_is_changed(base: Any, over: Any) -> None:
    left, right = value(base), value(over)
    result = merge(left, right)[0].plain()
    assert "None" not in repr(result)
    assert (left.plain(), right.plain()) == (base, over)


def test_a_mapping_merges_a_list_replaces_and_null_deletes() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(base, {"a": {"c": [9]}, "d": None}) == {"a": {"b": 1, "c": [9]}}


def test_a_mapping_whose_kind_changes_is_replaced_whole() -> None:
    base = {"arrivals": {"kind": "gamma", "rate": 1, "cv": 2}}
    assert merged(base, {"arrivals": {"rate": 3}})["arrivals"]["cv"] == 2
    assert merged(base, {"arrivals": {"kind": "gamma", "rate": 3}})["arrivals"]["cv"] == 2
    new = {"kind": "poisson", "rate": 3}
    assert merged(base, {"arrivals": new}) == {"arrivals": new}
    implied = {"arrivals": {"rate": 1}}
    assert merged(implied, {"arrivals": {"kind": "poisson"}}) == {
        "arrivals": {"kind": "poisson", "rate": 1}
    }


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(GOOD + "name: base\n", encoding="utf-8")
    what_if = "extends: base.yaml\nfleet: {thinker: {kv: {sharing: per_branch}}}\n"
    (tmp_path / "what-if.yaml").write_text(what_if, encoding="utf-8")
    return tmp_path


def test_a_what_if_is_its_base_with_its_own_name_and_question(house: Path) -> None:
    loaded = load(house / "what-if.yaml")
    assert loaded.scenario.name == "what-if"
    assert loaded.scenario.question == ""
    assert loaded.base is not None
    assert loaded.base.scenario.question == "Does it fit?"
    assert loaded.base.scenario.fleet["thinker"].kv.sharing == "tree"
    assert loaded.scenario.fleet["thinker"].kv.sharing == "per_branch"
    assert loaded.scenario.fleet["thinker"].replicas == 2


def test_an_override_reaches_the_base_too_so_that_the_comparison_stays_paired(house: Path) -> None:
    loaded = load(house / "what-if.yaml", ["workload.arrivals.rate=9/s", "name=other", "seed=5"])
    assert loaded.base is not None
    for scenario in (loaded.scenario, loaded.base.scenario):
        assert isinstance(scenario.workload.arrivals, Poisson)
        assert (scenario.workload.arrivals.rate, scenario.seed) == (9.0, 5)
    assert (loaded.scenario.name, loaded.base.scenario.name) == ("other", "base")


def test_an_override_of_what_only_the_what_if_has_leaves_the_base_alone(house: Path) -> None:
    text = "extends: base.yaml\nworkload: {classes: {chat: {tiers: {fast: 90%, careful: 10%}}}}\n"
    (house / "what-if.yaml").write_text(text, encoding="utf-8")
    loaded = load(house / "what-if.yaml", ["fleet.judge={role: verifier, model: m, device: d}"])
    assert loaded.base is not None
    assert loaded.base.scenario.fleet["judge"].model == "m"


def test_places_survive_extends_and_set(house: Path) -> None:
    loaded = load(house / "what-if.yaml", ["seed=4"])
    assert loaded.where(("fleet", "thinker", "kv", "sharing")) == f"{house}/what-if.yaml:2:33"
    assert loaded.where(("fleet", "judge", "model")) == f"{house}/base.yaml:4:34"
    assert loaded.where(("seed",)) == "--set seed=4"
    assert loaded.where(("fleet", "thinker", "engine", "block_size")) == f"{house}/what-if.yaml:2:9"


def test_later_overrides_win_and_their_order_does_not_matter_for_a_new_kind() -> None:
    sets = ("workload.arrivals.cv=2", "workload.arrivals.kind=gamma", "workload.arrivals.rate=1/s")
    for order in (sets, sets[::-1]):
        arrivals = loads(
            GOOD, overrides=(*order, "workload.arrivals.rate=2/s")
        ).scenario.workload.arrivals
        assert arrivals == Gamma(rate="2/s", cv=2)  # type: ignore[arg-type]


def test_a_trace_in_a_file_is_relative_to_the_file_and_one_set_to_where_you_are(
    house: Path,
) -> None:
    text = GOOD.replace("{rate: 3/s}", "{kind: trace, path: data/x.csv}")
    (house / "trace.yaml").write_text(text, encoding="utf-8")
    inside = load(house / "trace.yaml").scenario
    outside = load(house / "trace.yaml", ["workload.arrivals.path=data/x.csv"]).scenario
    assert isinstance(inside.workload.arrivals, TraceReplay)
    assert isinstance(outside.workload.arrivals, TraceReplay)
    assert inside.workload.arrivals.path == f"{house}/data/x.csv"
    assert outside.workload.arrivals.path == "data/x.csv"
    assert (inside.horizon.warmup_s, inside.horizon.measure_s) == (0.0, None)


def test_a_sweep_is_every_combination_with_the_same_seed() -> None:
    grid = (
        "sweep: {grid: {workload.arrivals.rate: [6/s, 12/s], fleet.thinker.replicas: [4, 8, 16]}}\n"
    )
    cells = loads(GOOD + grid).sweep_cells()
    assert [label for label, _ in cells][:4] == [
        "rate=6/s, replicas=4",
        "rate=6/s, replicas=8",
        "rate=6/s, replicas=16",
        "rate=12/s, replicas=4",
    ]
    assert len(cells) == 6
    assert {cell.scenario.seed for _, cell in cells} == {0}
    assert cells[-1][1].scenario.fleet["thinker"].replicas == 16
    assert cells[-1][1].scenario.sweep is None


def test_a_sweep_without_common_random_numbers_gives_each_cell_its_seed() -> None:
    grid = (
        "sweep: {common_random_numbers: false, grid: {fleet.thinker.replicas: [4, 8]}}\nseed: 3\n"
    )
    assert [cell.scenario.seed for _, cell in loads(GOOD + grid).sweep_cells()] == [3, 4]


def test_a_grid_of_too_many_cells_is_refused_before_it_is_built() -> None:
    axis = f"[{', '.join(str(i) for i in range(1, 101))}]"
    grid = f"sweep: {{grid: {{fleet.thinker.replicas: {axis}, fleet.judge.replicas: {axis}, seed: {axis}}}}}\n"
    with pytest.raises(ScenarioError, match="the grid has 1,000,000 cells, at most 1,000"):
        loads(GOOD + grid)


def test_absolute_hourly_rates_give_the_mean_rate() -> None:
    hours = ", ".join(f"{i}/s" for i in range(24))
    loaded = loads(GOOD.replace("{rate: 3/s}", f"{{kind: diurnal, hourly: [{hours}]}}"))
    arrivals = loaded.scenario.workload.arrivals
    assert isinstance(arrivals, Diurnal)
    assert arrivals.rate == pytest.approx(11.5)
    assert arrivals.hourly == tuple(float(i) for i in range(24))
