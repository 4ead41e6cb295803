"""Flat prices, confidence tiers and the best menu on one and the same queries."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import scenarios
from pricing.menu import at_prices
from pricing.offers import Played, as_it_is, misjudged, played, segments_of, variants
from pricing.optimise import Optimised, optimise
from scenarios.errors import UserError
from scenarios.loader import load
from sim.compare import compare
from sim.resolve import resolve
from sim.run import run

FILE = Path(scenarios.__file__).parent / "flat-to-confidence.yaml"
SMALL = (
    "horizon.warmup=10s", "horizon.measure=50s", "replications=2",
    "pricing.calibration_queries=1000",
)  # fmt: skip


@lru_cache(maxsize=1)
def small() -> tuple[Played, Played]:
    """The scenario and its base, some seconds of both."""
    loaded = load(FILE, SMALL)
    assert loaded.base is not None
    found = []
    for item in (loaded, loaded.base):
        resolved = resolve(item)
        size = {"seed": loaded.scenario.seed, "replications": 2}
        result = run(resolved, workers=1, **size)  # type: ignore[arg-type]
        found.append(played(item.scenario.name, resolved, result))
    return found[0], found[1]


@lru_cache(maxsize=1)
def best() -> Optimised:
    here, base = small()
    return optimise([here], base)


def test_all_regimes_are_of_the_same_queries() -> None:
    here, base = (item.priced.result for item in small())
    assert compare(base, here).tiers
    keys = [
        set(zip(r.queries["replication"].tolist(), r.queries["query_id"].tolist(), strict=True))
        for r in (here, base)
    ]
    assert keys[0] == keys[1]
    assert (here.queries["arrival_s"] == base.queries["arrival_s"]).all()
    assert (here.queries["class"] == base.queries["class"]).all()


def test_flat_tiers_and_the_best_menu_stand_side_by_side_with_intervals() -> None:
    found = best()
    assert [regime.name for regime in found.regimes] == [
        "base: flat-per-token", "today: flat-to-confidence", "best menu",
    ]  # fmt: skip
    for regime in found.regimes:
        assert regime.margin.low < regime.margin.value < regime.margin.high
        assert 0 <= regime.cross_subsidy.value < 1
        assert sum(item.bought for item in regime.sold) == pytest.approx(regime.served)
        for item in regime.sold:
            assert 0 < item.coverage.value <= 1
    flat, today, menu = found.regimes
    assert menu.margin.value > max(flat.margin.value, today.margin.value)
    assert menu.gpu_s <= found.capacity * (1 + 1e-6)
    # a price per token follows the cost, confidence does not: hard questions are not sold
    assert flat.cross_subsidy.value + 0.1 < today.cross_subsidy.value


def test_the_records_bring_what_the_model_of_demand_says() -> None:
    """Every segment asks one class here, so that weighting records is exact."""
    here, _ = small()
    segments, today = segments_of(here.resolved.scenario), as_it_is(here)
    rows = [list(row) for row in zip(*(item.offers for item in today), strict=True)]
    menu = at_prices(segments, rows, [1.0] * len(today))
    regime = best().regimes[1]
    assert regime.margin.value == pytest.approx(1000 * menu.margin_usd, rel=1e-9)
    assert regime.served == pytest.approx(float(menu.bought(segments).sum()))


def test_a_stricter_promise_is_kept_better_and_sold_less_and_costs_more_an_answer() -> None:
    here, _ = small()
    ways = {item.promise: item for item in variants([here])["sure"]}
    loose, strict = ways[0.75], ways[0.97]
    for a, b in zip(loose.offers, strict.offers, strict=True):
        assert b.coverage <= a.coverage
        assert b.precision >= a.precision - 1e-12
        assert b.cost_usd == a.cost_usd
    assert sum(o.coverage for o in strict.offers) < sum(o.coverage for o in loose.offers)


def test_the_menu_is_best_where_demand_is_as_assumed_and_its_risks_are_no_gifts() -> None:
    found = best()
    assert len(found.risks) == 8
    for risk in found.risks:
        assert risk.margin <= risk.best + 1e-6
    margins = [margin for _, margin, _ in found.frontier]
    together = [margin + surplus for _, margin, surplus in found.frontier]
    assert margins == sorted(margins, reverse=True)
    assert (np.diff(together) > -1e-6).all()


def test_wrong_answers_that_the_sample_missed_cost_precision_and_refunds() -> None:
    here, _ = small()
    offer = as_it_is(here)[1].offers[1]
    worse = misjudged(offer, 0.05)
    assert worse.precision == pytest.approx(offer.precision - 0.05)
    # two prices back for each wrong answer sold, at 0.01 USD
    assert offer.units - worse.units == pytest.approx(0.05 * 2.0 * 0.01 * offer.coverage, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("pricing.segments=null",), "add pricing: {segments:"),
        (
            ("tiers.quick.price=null", "tiers.sure.price=null", "tiers.certain.price=null"),
            "add price:",
        ),
    ],
)
def test_without_segments_or_prices_the_way_out_is_named(
    changes: tuple[str, ...], words: str
) -> None:
    here, _ = small()
    bare = replace(here, resolved=resolve(load(FILE, [*SMALL, *changes])))
    with pytest.raises(UserError, match=words):
        optimise([bare])


def test_a_capacity_that_binds_has_a_shadow_price() -> None:
    here, _ = small()
    tight = load(FILE, [*SMALL, "pricing.month.busy=15%"])
    found = optimise([replace(here, resolved=resolve(tight))])
    assert found.shadow_usd > 0
    assert found.regimes[-1].gpu_s == pytest.approx(found.capacity, rel=1e-4)
    assert found.regimes[-1].margin.value < best().regimes[-1].margin.value
    assert not math.isnan(found.regimes[-1].margin.high)
