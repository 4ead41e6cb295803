"""Promised confidence as the pages show it: judged class by class, refused where the verifier cannot keep it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from dashboards import data, page, words
from dashboards.page import plain
from dashboards.prices import refusal
from hw.profile import ProfileError
from pricing.promises import Judged, calibrators_of, judge
from scenarios.errors import UserError
from scenarios.loader import loads
from sim.estimate import mean
from sim.records import measured
from sim.resolve import resolve


def judged(run: data.Run, changes: tuple[str, ...] = ()) -> tuple[Judged, ...]:
    """The promises of a run, class by class, under overrides of its prices; judged once for all visitors.

    Raises UserError or ProfileError where the scenario cannot be resolved any more.
    """

    def make() -> tuple[Judged, ...]:
        loaded = loads(run.stored.resolved, "resolved.yaml", changes)
        if not any(t.promise and t.promise.confidence for t in loaded.scenario.tiers.values()):
            return ()
        scenario = resolve(loaded) if changes else page.resolved(run)
        return judge(scenario, page.priced(run, changes), calibrators_of(scenario))

    with st.spinner("Judging promises on fresh questions"):
        return page.once(run, ("judged", changes), make)


def show(run: data.Run, tiers: Sequence[str], changes: tuple[str, ...] = ()) -> tuple[Judged, ...]:
    """Show the promises of some tiers as a table, refused ones in words; return all of them."""
    st.subheader("May the promise be sold?")
    try:
        found = judged(run, changes)
    except (UserError, ProfileError) as error:
        st.info(f"The promises of this run cannot be judged again here: {plain(error)}")
        return ()
    shown = [item for item in found if item.tier in tiers]
    if not shown:
        st.markdown("No tier here promises a confidence. Promise one: promise: {confidence: 90%}")
        return found
    refused = [item for item in shown if not item.kept]
    for item in refused:
        st.error(plain(f"REFUSED: {refusal(item)}", 800))
    if not refused:
        st.success("Every promise is kept, in every class.")
    sold = page.once(run, "sold by class", lambda: _sold(run))
    st.dataframe([_row(item, sold) for item in shown], hide_index=True)
    st.caption(
        "A tier can keep its promise on average and break it in one class. Each class is judged on "
        f"{shown[0].queries:,} fresh questions of its own (pricing.calibration_queries), with 95 % certainty: "
        "sold only where a threshold of the confidence supports the promise."
    )
    return found


def _sold(run: data.Run) -> dict[tuple[str, str], tuple[int, float]]:
    """Accepted answers by tier and class, and the share of them that is right; NaN for none."""
    table = measured(run.stored.result.queries)
    found = {}
    for tier in np.unique(table["tier"]).tolist():
        for name in np.unique(table["class"]).tolist():
            mine = (table["tier"] == tier) & (table["class"] == name) & table["accepted"]
            found[tier, name] = (int(mine.sum()), mean(table["correct"][mine]))
    return found


def _row(item: Judged, sold: dict[tuple[str, str], tuple[int, float]]) -> dict[str, Any]:
    n, right = sold.get((item.tier, item.query_class), (0, math.nan))
    best = item.supported
    return {
        "tier": words.name(item.tier),
        "class": words.name(item.query_class),
        "promise": words.share(item.promise),
        "verdict": "kept" if item.kept else "REFUSED",
        "sample it would take": _sample(item),
        "sold in this run": f"{n:,}",
        "right of those": words.share(right),
        "what may be promised": words.share(best.promise) if best else "nothing",
        "of those right, at least": words.share(best.bound) if best else "-",
        "share sold then": words.share(best.coverage if best else 0.0),
        "cost per sold": words.usd(item.cost_per_sold(best)),
    }


def _sample(item: Judged) -> str:
    if item.kept:
        return "-"
    return f"{item.needed:,}" if item.needed is not None else "none would do"
