"""KV memory over time: what is pinned, what is cached, what no sharing would take."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from dashboards.charts.base import POINTS, Chart, colour, inline, thin
from sim.records import Table, select


def kv_over_time(timeline: Table, pool: str) -> Chart:
    """KV pages of a pool over time, in % of its memory: pinned, cached, and what no sharing would take.

    Means over replicas and replications at each sample, s of simulated time below.
    """
    rows = select(timeline, timeline["pool"] == pool)
    kinds = (
        ("pages_pinned", "pinned (running branches)"),
        ("pages_cached", "cached (reusable)"),
        ("pages_naive", "pinned, without sharing"),
    )
    times = np.unique(rows["time_s"])
    values = []
    for time_s in times[thin(times.size, POINTS // 2)]:
        here = select(rows, rows["time_s"] == time_s)
        total = float(here["pages_total"].sum())
        for column, kind in kinds:
            share = float(here[column].sum()) / total if total else 0.0
            values.append({"time": float(time_s), "kind": kind, "share": share})
    line = (
        alt.Chart(inline(values))
        .mark_line()
        .encode(
            x=alt.X("time:Q", title="simulated time (s)"),
            y=alt.Y("share:Q", title="share of KV pages", axis=alt.Axis(format="%")),
            color=colour("kind", [kind for _, kind in kinds]),
            strokeDash=alt.StrokeDash("kind:N", legend=None),
            tooltip=["kind:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )
    full = alt.Chart(inline([{"full": 1.0}])).mark_rule(strokeDash=[4, 4])
    return alt.layer(line, full.encode(y="full:Q")).properties(
        height=260, description=f"KV memory of {pool} over time; the dashed rule is a full pool."
    )


def load_over_time(timeline: Table, pool: str) -> Chart:
    """Sequences running and waiting in a pool over time: means over replications, s below."""
    here = select(timeline, timeline["pool"] == pool)
    times = np.unique(here["time_s"])
    count = max(1, np.unique(here["replication"]).size)
    kinds = (("running", "running"), ("waiting", "waiting"))
    values = []
    for time_s in times[thin(times.size, POINTS)]:
        at = here["time_s"] == time_s
        for column, kind in kinds:
            n = float(here[column][at].sum()) / count
            values.append({"time": float(time_s), "kind": kind, "n": n})
    return (
        alt.Chart(inline(values))
        .mark_line()
        .encode(
            x=alt.X("time:Q", title="simulated time (s)"),
            y=alt.Y("n:Q", title="sequences in the pool"),
            color=colour("kind", [kind for _, kind in kinds]),
            tooltip=["kind:N", alt.Tooltip("n:Q", format=",.0f")],
        )
        .properties(height=200, description=f"Sequences running and waiting in {pool} over time.")
    )


def pages_by_tier(queries: Table, names: Sequence[str], slices: int = 80) -> Chart:
    """Which tier's queries hold the KV over time: peak pages of the queries that are in flight.

    An upper view: every query counts with its own peak from its first token to its end, mean over
    replications.
    """
    known = np.isfinite(queries["first_scheduled_s"])
    table = select(queries, known)
    values = []
    count = max(1, np.unique(table["replication"]).size)
    if table["arrival_s"].size:
        ends = np.where(np.isfinite(table["finish_s"]), table["finish_s"], np.inf)
        last = float(table["arrival_s"].max())
        for time_s in np.linspace(0.0, last, slices):
            alive = (table["first_scheduled_s"] <= time_s) & (time_s < ends)
            for tier in names:
                pages = table["peak_kv_pages"][alive & (table["tier"] == tier)].sum()
                row = {"time": float(time_s), "tier": tier, "pages": float(pages) / count}
                values.append(row)
    return (
        alt.Chart(inline(values))
        .mark_area()
        .encode(
            x=alt.X("time:Q", title="simulated time (s)"),
            y=alt.Y("pages:Q", title="KV pages (peaks of those in flight)", stack="zero"),
            color=colour("tier", names),
            tooltip=["tier:N", alt.Tooltip("pages:Q", format=",.0f")],
        )
        .properties(height=240, description="Whose queries hold the KV memory over time, by tier.")
    )
