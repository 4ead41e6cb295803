"""KV memory over time: what is pinned, what is cached, what no sharing would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from dashboards.charts.base import GREY, POINTS, Chart, colour, few, inline, percent, thin
from sim.records import Table, select

KV_KINDS = ("pinned", "cached", "fullest replica", "without sharing")


def kv_over_time(timeline: Table, pool: str) -> Chart:
    """KV pages of a pool over time, as shares of its memory, over simulated time in s.

    Stacked: pinned by running branches and cached for reuse, the mean over replicas and
    replications. Lines: pages held in the fullest replica, and what the running branches would
    hold without sharing. The rule is full memory.
    """
    rows = select(timeline, timeline["pool"] == pool)
    areas: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    if rows["time_s"].size:
        times, index = np.unique(rows["time_s"], return_inverse=True)
        groups = min(POINTS, times.size)
        slot = index * groups // times.size  # neighbouring samples share a mark
        total = np.maximum(np.bincount(slot, rows["pages_total"], groups), 1)
        held = (rows["pages_pinned"] + rows["pages_cached"]) / np.maximum(rows["pages_total"], 1)
        fullest = np.zeros(groups)
        np.maximum.at(fullest, slot, held)
        starts = times[np.searchsorted(np.arange(times.size) * groups // times.size, range(groups))]
        pinned, cached, naive = (
            np.bincount(slot, rows[column], groups) / total
            for column in ("pages_pinned", "pages_cached", "pages_naive")
        )
        for i in range(groups):
            low, high, time_s = float(pinned[i]), float(pinned[i] + cached[i]), float(starts[i])
            areas.append({"time_s": time_s, "kind": "pinned", "from": 0.0, "share": low})
            areas.append({"time_s": time_s, "kind": "cached", "from": low, "share": high})
            lines.append({"time_s": time_s, "kind": KV_KINDS[2], "share": float(fullest[i])})
            lines.append({"time_s": time_s, "kind": KV_KINDS[3], "share": float(naive[i])})
    by_kind = colour("kind", KV_KINDS, columns=2)
    x = alt.X("time_s:Q", title="simulated time (s)", scale=alt.Scale(nice=False), axis=few())
    y = alt.Y("share:Q", title="share of KV memory", axis=percent(), scale=alt.Scale(zero=True))
    area = alt.Chart(inline(areas)).mark_area(opacity=0.75, line=False)
    line = alt.Chart(inline(lines)).mark_line(strokeWidth=1.5)
    full = alt.Chart(inline([{"full": 1.0, "word": "full memory"}]))
    label = full.mark_text(align="left", dx=4, dy=-6, color=GREY)
    seen = ["kind:N", alt.Tooltip("share:Q", format=".1%")]
    return alt.layer(
        area.encode(x=x, y=y, y2="from:Q", color=by_kind, tooltip=["kind:N"]),
        line.encode(x=x, y=y, color=by_kind, tooltip=seen),
        full.mark_rule(strokeDash=[4, 4], color=GREY).encode(y="full:Q"),
        label.encode(x=alt.value(0), y="full:Q", text="word:N"),
    ).properties(
        height=330,
        description=f"KV memory of {pool} over simulated time: pinned and cached pages stacked, the "
        "fullest replica, what no sharing would hold, and full memory.",
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
            x=alt.X("time:Q", title="simulated time (s)", scale=alt.Scale(nice=False), axis=few()),
            y=alt.Y("n:Q", title="sequences"),
            color=colour("kind", [kind for _, kind in kinds]),
            tooltip=["kind:N", alt.Tooltip("n:Q", format=",.0f")],
        )
        .properties(height=300, description=f"Sequences running and waiting in {pool} over time.")
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
        times = np.linspace(0.0, float(table["arrival_s"].max()), slices)
        for tier in names:
            mine = table["tier"] == tier
            pages = table["peak_kv_pages"][mine]
            held = _until(table["first_scheduled_s"][mine], pages, times)
            held = (held - _until(ends[mine], pages, times)) / count
            values += [
                {"time": float(at), "tier": tier, "pages": float(n)}
                for at, n in zip(times, held, strict=True)
            ]
    return (
        alt.Chart(inline(values))
        .mark_area()
        .encode(
            x=alt.X("time:Q", title="simulated time (s)", scale=alt.Scale(nice=False), axis=few()),
            y=alt.Y("pages:Q", title="KV pages in use", stack="zero"),
            color=colour("tier", names),
            tooltip=["tier:N", alt.Tooltip("pages:Q", format=",.0f")],
        )
        .properties(height=330, description="Whose queries hold the KV memory over time, by tier.")
    )


def _until(at: Any, pages: Any, times: Any) -> Any:
    """The sum of the pages of all that happened by each of the times."""
    order = np.argsort(at)
    total = np.concatenate([[0], np.cumsum(pages[order])])
    return total[np.searchsorted(at[order], times, side="right")]
