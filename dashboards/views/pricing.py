"""What answers cost and earn: the menu of prices, re-priced at once; who pays for whom; what errors can cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import streamlit as st

from dashboards import charts, data, page, promised, words
from dashboards.page import dollars, plain
from pricing.breakdown import LABELS, Breakdown, breakdown
from pricing.contract import Priced, price
from pricing.liability import reserve
from pricing.promises import Judged, certified_only
from scenarios.errors import ScenarioError, UserError
from scenarios.loader import loads
from scenarios.schema import Scenario

# column of the menu -> key of the price in the scenario, its unit
_COLUMNS = {
    "per million tokens in": ("per_mtok_in", " USD"),
    "per million tokens out": ("per_mtok_out", " USD"),
    "per query": ("per_query", " USD"),
    "per accepted answer": ("per_answer", " USD"),
    "refund (times)": ("refund", ""),
    "late credit %": ("late_credit", "%"),
}


def main() -> None:
    """Show and change the prices of the run that was chosen."""
    run = page.run("Pricing")
    loaded = loads(run.stored.resolved, "resolved.yaml")
    st.caption(
        "The queries are those of the run; prices act after it, so every change shows at once. "
        "Clients stay whatever you charge: what demand does is in `treeline price --optimise`."
    )
    menu = _menu(loaded.scenario)
    edited = st.data_editor(
        menu, hide_index=True, disabled=["tier"], key=f"menu {run.name} {hash(str(menu))}"
    )
    rate = _rates(run, loaded.scenario)
    try:
        changes = tuple(_changes(menu, edited) + rate)
        scenario = loads(run.stored.resolved, "resolved.yaml", changes).scenario
        before, now = page.priced(run), page.priced(run, changes)
    except ScenarioError as error:
        st.error(plain(error.problems[0].message))
        return
    except UserError as error:
        st.error(plain(error))
        return
    _tiers(now, before)
    left, right = st.columns(2)
    with left:
        st.subheader("From revenue to margin")
        names = [tier.tier for tier in now.tiers]
        tier = page.choose("Tier", "tier", names, names[0])
        money = next(row for row in now.tiers if row.tier == tier)
        st.altair_chart(charts.waterfall(_row(money)))
    with right:
        st.subheader("Who pays for whom")
        by = page.choose("By", "by", list(LABELS))
        found = page.once(run, ("split", changes, by), lambda: breakdown(now, by))
        st.altair_chart(charts.transfers(found.groups))
        if not math.isnan(found.cross_subsidy.value):
            st.markdown(plain(f"{_losses(found)} {_whom(found)}"))
            st.caption(
                f"{words.share_interval(found.cross_subsidy)} of the revenue moves between these "
                "groups: with a price of their own, some would pay less and others more. Transfer: a group's margin "
                "less what as many queries have on average; above nought it pays for others."
            )
    st.dataframe([_group(group) for group in found.groups], hide_index=True)
    found_promises = promised.show(run, names, tuple(rate))
    if any(not item.kept for item in found_promises):
        only = page.once(
            run, ("certified", changes), lambda: _certified(now, scenario, found_promises)
        )
        as_sold = sum(tier.margin_usd for tier in now.tiers)
        st.markdown(
            plain(
                f"If only promises that hold were sold, all tiers together would earn {words.usd(only)}, "
                f"not {words.usd(as_sold)}."
            )
        )
    _liability(now, scenario)


def _losses(found: Breakdown) -> str:
    """Whose queries cost more than they bring, as a sentence: to be paid for by others is not yet a loss."""
    lost = [
        f"{words.name(group.label)} ({words.usd(-group.margin_usd)})"
        for group in found.groups
        if group.margin_usd < 0
    ]
    return f"A loss is made with {words.sentence_of(lost)}." if lost else "Every group earns."


def _whom(found: Breakdown) -> str:
    """Who is paid for and who pays, as a sentence."""
    sides = [
        [
            (abs(group.transfer_usd), group)
            for group in found.groups
            if group.transfer_usd * sign > 0
        ]
        for sign in (-1, 1)
    ]
    if not all(sides):
        return "Nobody pays for anybody."
    taken, given = (
        words.sentence_of(
            [
                f"{words.name(group.label)} ({words.usd(usd)})"
                for usd, group in sorted(side, key=_first)
            ]
        )
        for side in sides
    )
    return f"Paid for by others: {taken}. Pay for them: {given}."


def _first(side: tuple[float, Any]) -> float:
    return -side[0]


def _certified(now: Priced, scenario: Scenario, promises: tuple[Judged, ...]) -> float:
    """What all tiers earn if only promises that may be sold are sold, USD."""
    kept = replace(now.result, queries=certified_only(now, promises))
    return sum(tier.margin_usd for tier in price(kept, scenario).tiers)


def _menu(scenario: Scenario) -> list[dict[str, Any]]:
    rows = []
    for name, tier in scenario.tiers.items():
        row: dict[str, Any] = {"tier": name}
        for column, (key, unit) in _COLUMNS.items():
            value = float(getattr(tier.price, key)) if tier.price is not None else 0.0
            row[column] = value * 100 if unit == "%" else value
        rows.append(row)
    return rows


def _changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """What was edited, as overrides of the scenario."""
    found = []
    for old, new in zip(before, after, strict=True):
        for column, (key, unit) in _COLUMNS.items():
            if new[column] is not None and new[column] != old[column]:
                found.append(f"tiers.{old['tier']}.price.{key}={new[column]:.12g}{unit}")
    return found


def _rates(run: data.Run, scenario: Scenario) -> list[str]:
    """The hourly rate of each device, to be changed."""
    bills = {pool["device"]: pool["rate"] for pool in run.summary["money"]["bill"]["pools"]}
    found = []
    for column, (device, rate) in zip(st.columns(max(1, len(bills))), bills.items(), strict=False):
        if rate is not None and device in {pool.device for pool in scenario.fleet.values()}:
            asked = column.number_input(
                f"{words.name(device)}, USD a GPU-hour", 0.01, 1000.0, float(rate), step=0.1
            )
            if asked != float(rate):
                found.append(f"pricing.device_rates.{device}={asked:.12g} USD/h")
    return found


def _row(tier: Any) -> dict[str, float]:
    keys = ("revenue_usd", "refund_usd", "credit_usd", "cost_usd", "idle_usd")
    return {key: getattr(tier, key) for key in keys}


def _tiers(now: Priced, before: Priced) -> None:
    total, was = (sum(tier.margin_usd for tier in found.tiers) for found in (now, before))
    columns = st.columns(3)
    known = not math.isnan(total - was)
    change = words.usd(total - was) if known and abs(total - was) > 1e-9 else None
    columns[0].metric("margin, all tiers", dollars(words.usd(total)), change)
    columns[1].metric("fleet", dollars(words.usd(now.bill.total_usd)))
    idle = now.bill.idle_usd / now.bill.total_usd if now.bill.total_usd else math.nan
    columns[2].metric("of that idle", words.share(idle))
    st.dataframe(
        [
            {
                "tier": words.name(tier.tier),
                "sold": f"{tier.sold:,} of {tier.n:,}",
                "cost/query": words.usd(tier.cost_per_query.value),
                "per correct": words.usd(tier.cost_per_correct),
                "revenue": words.usd(tier.revenue_usd),
                "refunds": words.usd(tier.refund_usd),
                "late credits": words.usd(tier.credit_usd),
                "margin": words.usd(tier.margin_usd),
                "margin/query": words.usd(tier.margin_per_query.value),
                "if confidence were right": words.usd(tier.margin_claimed),
                "break-even at": _times(tier.break_even),
            }
            for tier in now.tiers
        ],
        hide_index=True,
    )
    st.caption("Break-even: today's prices times this leave neither margin nor loss.")


def _times(value: float) -> str:
    if math.isinf(value):
        return "no price"
    return "-" if math.isnan(value) else f"{words.number(value)} x"


def _group(group: Any) -> dict[str, Any]:
    return {
        "group": words.name(group.label),
        "queries": group.n,
        "cost/query": words.usd(group.cost_per_query),
        "cost per right answer": words.usd(group.cost_per_right),
        "paid": words.usd(group.paid_usd),
        "margin": words.usd(group.margin_usd),
        "transfer": words.usd(group.transfer_usd),
        "transfer per 1,000": words.usd(1000 * group.transfer_usd / group.n),
    }


def _liability(now: Priced, scenario: Scenario) -> None:
    refunding = [
        tier
        for tier in now.tiers
        if (asked := scenario.tiers[tier.tier].price) is not None and asked.refund > 0 and tier.sold
    ]
    if not refunding:
        return
    st.subheader("What wrong answers can cost")
    rho = st.select_slider(
        "How strongly errors come together (correlation)", [0.0, 0.001, 0.01, 0.05, 0.1], 0.01
    )
    queries = now.result.queries
    rows = []
    for tier in refunding:
        mine = (queries["tier"] == tier.tier) & queries["measured"] & (queries["charge_usd"] > 0)
        wrong = float((~queries["correct"][mine]).mean())
        refund = tier.refund_usd / max(1, int((queries["refund_usd"][mine] > 0).sum()))
        month = round(tier.sold * 730 * 3600 / _span(now))
        found = reserve(month, wrong, rho, refund)
        rows.append(
            {
                "tier": words.name(tier.tier),
                "sold in a month at this rate": f"{month:,}",
                "wrong of those": words.share(wrong),
                "refunds expected": words.usd(found.expected_usd),
                "in a bad month (p99)": words.usd(found.at_risk_usd),
                "put aside": words.usd(found.reserve_usd),
            }
        )
    st.dataframe(rows, hide_index=True)
    st.caption(
        "A month of 730 hours at the rate of this run. Errors that share a cause (a drifting "
        "verifier, a common prompt) come together, so a bad month is worse than chance alone."
    )


def _span(now: Priced) -> float:
    pools = now.result.pools
    spans = {int(r): float(s) for r, s in zip(pools["replication"], pools["span_s"], strict=True)}
    return sum(spans.values()) or 1.0


main()
