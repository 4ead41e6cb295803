"""The best menu for a scenario: promises, runs and prices chosen together, beside what is sold today, with its risks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricing.breakdown import cross_subsidy, difficulty, paid
from pricing.demand import Offer, Segment
from pricing.menu import Menu, at_prices, best_prices
from pricing.offers import Played, Variant, as_it_is, misjudged, segments_of, variants
from scenarios.errors import UserError
from sim.estimate import Estimate, estimate
from sim.records import Table, concatenate, select, size
from sim.resolve import Resolved

Tell = Callable[[float, str], None]
WELFARE: Final = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights of the clients' surplus, for the frontier
_PASSES = 4  # of the search over promises, tier by tier


@dataclass(frozen=True, slots=True)
class Sold:
    """One tier of a regime. `factor` multiplies today's prices; `price` is then per answer sold, USD.

    `bought` is the share of all queries that go to it, `coverage` and `precision` those of its sold answers.
    """

    tier: str
    label: str
    promise: float | None
    factor: float
    price: float
    bought: float
    coverage: Estimate
    precision: Estimate


@dataclass(frozen=True, slots=True)
class Regime:
    """One way of pricing the same queries; USD per thousand queries that arrive, intervals over replications.

    `cross_subsidy` is the share of the revenue that moves between quarters of difficulty; `served` the
    share of queries that buy anything; `gpu_s` GPU-seconds per arriving query.
    """

    name: str
    sold: tuple[Sold, ...]
    served: float
    revenue: Estimate
    margin: Estimate
    surplus: float
    cross_subsidy: Estimate
    gpu_s: float


@dataclass(frozen=True, slots=True)
class Risk:
    """The best menu's prices in another world: what they bring, and what the best prices there would."""

    what: str
    margin: float
    best: float


@dataclass(frozen=True, slots=True)
class Optimised:
    """The regimes from the base's to the best, and how the best one stands; USD per thousand queries.

    `capacity` is in GPU-seconds per arriving query, `shadow_usd` what one more of them would earn;
    `frontier` holds (weight of the clients' surplus, margin, surplus).
    """

    scenario: str
    regimes: tuple[Regime, ...]
    capacity: float
    shadow_usd: float
    risks: tuple[Risk, ...]
    frontier: tuple[tuple[float, float, float], ...]


def optimise(
    runs: Sequence[Played], base: Played | None = None, tell: Tell | None = None
) -> Optimised:
    """Choose for each tier the run, the promise and the price that together earn most.

    `runs` are of one scenario (a sweep has several), on the same queries; `base` is what it is compared
    with. Raises UserError where the scenario has no segments or no tier has a price.
    """
    say = tell or (lambda share, text: None)
    scenario = runs[0].resolved.scenario
    segments = segments_of(scenario)
    choices = variants(runs)
    if not segments or not choices:
        raise UserError(_lacking(bool(segments)))
    capacity = _capacity(runs[0])
    chosen, menu = _search(segments, choices, capacity, say)
    today = as_it_is(runs[0])
    regimes = [regime(f"today: {runs[0].label}", runs[0], segments, today, None)]
    if base is not None:
        base = replace(base, resolved=_with_segments(base, runs[0]))
        regimes.insert(0, regime(f"base: {base.label}", base, segments, as_it_is(base), None))
    regimes.append(regime("best menu", runs[0], segments, chosen, menu))
    say(0.9, "trying the menu in other worlds")
    return Optimised(
        scenario=scenario.name,
        regimes=tuple(regimes),
        capacity=capacity,
        shadow_usd=menu.shadow_usd,
        risks=tuple(_risks(segments, chosen, menu, capacity)),
        frontier=tuple(_frontier(segments, chosen, capacity)),
    )


def regime(
    name: str,
    run: Played,
    segments: Sequence[Segment],
    chosen: Sequence[Variant],
    menu: Menu | None,
) -> Regime:
    """What a menu brings on the records of a run; without `menu` at today's prices.

    Each record stands for the queries of its class that would choose its tier, so that all regimes are
    of the same queries.
    """
    offers = _rows(chosen)
    found = menu or at_prices(segments, offers, [1.0] * len(chosen))
    rows = _weighted(run, segments, chosen, found)
    overhead = run.priced.bill.overhead

    def per_thousand(value: Callable[[Table], NDArray[np.float64]]) -> Estimate:
        return estimate(
            lambda part: 1000 * float(part["weight"] @ value(part)) / float(part["arrived"].sum()),
            rows,
        )

    return Regime(
        name=name,
        sold=tuple(
            _sold(item, found.prices[k], float(found.bought(segments)[k]))
            for k, item in enumerate(chosen)
        ),
        served=float(found.bought(segments).sum()),
        revenue=per_thousand(lambda part: part["charge_usd"]),
        margin=per_thousand(lambda part: paid(part) - part["cost_usd"] * overhead),
        surplus=1000 * found.surplus_usd,
        cross_subsidy=estimate(
            lambda part: cross_subsidy(part, difficulty(part), overhead, part["weight"]), rows
        ),
        gpu_s=found.gpu_s,
    )


def _sold(item: Variant, factor: float, bought: float) -> Sold:
    table = item.table
    charged = table["charge_usd"] > 0
    answers = select(table, table["accepted"])
    each = float(table["charge_usd"][charged].mean()) if charged.any() else math.nan
    return Sold(
        tier=item.tier,
        label=item.label,
        promise=item.promise,
        factor=factor,
        price=factor * each,
        bought=bought,
        coverage=estimate(lambda rows: float(rows["accepted"].mean()), table, bounds=(0, 1)),
        precision=estimate(lambda rows: float(rows["correct"].mean()), answers, bounds=(0, 1))
        if size(answers)
        else Estimate(math.nan),
    )


def _weighted(
    run: Played, segments: Sequence[Segment], chosen: Sequence[Variant], menu: Menu
) -> Table:
    """The records of all tiers at the menu's prices, each with its weight; `arrived` counts to all queries.

    A record of tier k and class c weighs what the queries of its class that choose k are to the records
    there are of both.
    """
    classes = list(run.resolved.scenario.workload.classes)
    given = run.resolved.scenario.pricing.segments
    total = sum(size(item.table) for item in chosen)
    counts = {c: sum(int((item.table["class"] == c).sum()) for item in chosen) for c in classes}
    parts = []
    for k, item in enumerate(chosen):
        weight = np.zeros(size(item.table))
        for c in classes:
            rows = item.table["class"] == c
            mass = sum(
                segment.share
                * menu.shares[s][k]
                * _share_of(c, given[segment.name].classes, counts)
                for s, segment in enumerate(segments)
            )
            weight[rows] = mass * total / max(1, int(rows.sum()))
        scaled = dict(item.table)
        for column in ("charge_usd", "refund_usd", "credit_usd"):
            scaled[column] = menu.prices[k] * scaled[column]
        parts.append({**scaled, "weight": weight, "arrived": np.ones(size(item.table))})
    return concatenate(parts)


def _share_of(name: str, asked: Sequence[str] | None, counts: Mapping[str, int]) -> float:
    """Which share of a segment's queries are of a class."""
    mine = {c: n for c, n in counts.items() if asked is None or c in asked}
    return mine.get(name, 0) / sum(mine.values()) if sum(mine.values()) else 0.0


def _search(
    segments: Sequence[Segment],
    choices: Mapping[str, Sequence[Variant]],
    capacity: float,
    say: Tell,
) -> tuple[list[Variant], Menu]:
    """Coordinate ascent over the variants of each tier, from the strictest and from the loosest promises."""
    best: tuple[float, list[Variant], Menu] | None = None
    known: dict[tuple[int, ...], Menu | None] = {}
    names = list(choices)

    def brings(places: tuple[int, ...]) -> Menu | None:
        if places not in known:
            chosen = [choices[name][i] for name, i in zip(names, places, strict=True)]
            try:
                known[places] = best_prices(segments, _rows(chosen), capacity, starts=4)
            except ValueError:  # refunds eat up one of them
                known[places] = None
            say(min(0.85, 0.3 + 0.01 * len(known)), f"{len(known)} menus tried")
        return known[places]

    def earns(places: tuple[int, ...]) -> float:
        menu = brings(places)
        return -math.inf if menu is None else menu.margin_usd

    for start in (tuple(len(choices[n]) - 1 for n in names), tuple(0 for _ in names)):
        places = start
        for _ in range(_PASSES):
            before = places
            for k, name in enumerate(names):
                options = [(*places[:k], i, *places[k + 1 :]) for i in range(len(choices[name]))]
                places = max(options, key=earns)
            if places == before:
                break
        chosen = [choices[name][i] for name, i in zip(names, places, strict=True)]
        if brings(places) is not None and (best is None or earns(places) > best[0]):
            menu = best_prices(segments, _rows(chosen), capacity)
            best = (menu.margin_usd, chosen, menu)
    assert best is not None, "every variant brings something"
    return best[1], best[2]


def _risks(
    segments: Sequence[Segment], chosen: Sequence[Variant], menu: Menu, capacity: float
) -> list[Risk]:
    """The menu's prices where demand or calibration is not what was assumed."""
    offers = _rows(chosen)
    worlds: list[tuple[str, Sequence[Segment], Sequence[Sequence[Offer]]]] = []

    def changed(**factors: float) -> list[Segment]:
        return [
            replace(item, **{key: getattr(item, key) * by for key, by in factors.items()})
            for item in segments
        ]

    for what, other in (
        ("answers are worth 20 % less", changed(value=0.8)),
        ("answers are worth 20 % more", changed(value=1.2)),
        ("clients mind prices 25 % more", changed(scale=0.8)),
        ("clients mind prices 20 % less", changed(scale=1.25)),
        ("wrong answers hurt twice as much", changed(harm=2.0)),
        ("clients wait half as gladly", changed(wait=2.0)),
    ):
        worlds.append((what, other, offers))
    for points in (0.02, 0.05):
        worse = [[misjudged(offer, points) for offer in row] for row in offers]
        worlds.append((f"{100 * points:.0f} points more of the sold are wrong", segments, worse))
    found = []
    for what, people, rows in worlds:
        ours = at_prices(people, rows, menu.prices)
        best = best_prices(people, rows, capacity, starts=4)
        found.append(Risk(what, 1000 * ours.margin_usd, 1000 * best.margin_usd))
    return found


def _frontier(
    segments: Sequence[Segment], chosen: Sequence[Variant], capacity: float
) -> list[tuple[float, float, float]]:
    """Margin against the clients' surplus, from a monopolist's menu to the one that counts both alike."""
    found = []
    for weight in WELFARE:
        menu = best_prices(segments, _rows(chosen), capacity, welfare=weight, starts=4)
        found.append((weight, 1000 * menu.margin_usd, 1000 * menu.surplus_usd))
    return found


def _rows(chosen: Sequence[Variant]) -> list[list[Offer]]:
    return [list(row) for row in zip(*(item.offers for item in chosen), strict=True)]


def _capacity(run: Played) -> float:
    """GPU-seconds per arriving query that the fleet has at its planned busy share (pricing.month.busy)."""
    pools, queries = run.priced.result.pools, run.priced.result.queries
    fleet = float(pools["fleet_gpu_seconds"].sum())
    return run.resolved.scenario.pricing.month.busy * fleet / size(queries)


def _with_segments(base: Played, run: Played) -> Resolved:
    """The base's scenario with the segments of the scenario that is compared with it."""
    pricing = base.resolved.scenario.pricing.model_copy(
        update={"segments": run.resolved.scenario.pricing.segments}
    )
    scenario = base.resolved.scenario.model_copy(update={"pricing": pricing})
    return replace(base.resolved, loaded=replace(base.resolved.loaded, scenario=scenario))


def _lacking(segments: bool) -> str:
    if segments:
        return "no tier has a price that brings anything: add price: {per_answer: 0.02 USD} to one."
    return (
        "the best menu needs to know who buys: add pricing: {segments: {all: {value: 0.05 USD, "
        "harm: 0.10 USD, wait: 1 USD/h, scale: 0.01 USD}}}."
    )
