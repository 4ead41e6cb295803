"""How long answers take, by tier, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from dashboards.charts.base import Chart, colour, inline, thin
from sim.estimate import percentile
from sim.metrics import answered, latencies
from sim.records import Table, measured, select


def latency_cdf(queries: Table, tiers: Sequence[Mapping[str, Any]]) -> Chart:
    """Share of offered queries answered within a time, one line a tier, objectives as rules.

    `tiers` are the tiers of a run's summary. Times in s on a logarithmic axis; what was never
    answered keeps its line below 100 %.
    """
    table = measured(queries)
    lines: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for tier in tiers:
        rows = select(table, table["tier"] == tier["tier"])
        times = np.sort(latencies(rows)["e2e"])
        n = times.size
        finite = times[np.isfinite(times) & (times > 0)]
        for rank in thin(finite.size):
            lines.append(
                {"tier": tier["tier"], "e2e": float(finite[rank]), "share": (rank + 1) / n}
            )
        for target in tier["targets"]:
            if target["metric"] == "e2e":
                word = "holds" if target["met"] else "MISSED"
                rules.append(
                    {
                        "tier": tier["tier"],
                        "e2e": target["target_s"],
                        "share": target["quantile"],
                        "objective": f"{tier['tier']}: p{100 * target['quantile']:g} within "
                        f"{target['target_s']:g} s, {word}",
                    }
                )
    names = [tier["tier"] for tier in tiers]
    base = alt.Chart(inline(lines)).mark_line(clip=True)
    curve = base.encode(
        x=alt.X("e2e:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
        y=alt.Y("share:Q", title="share of offered queries", axis=alt.Axis(format="%")),
        color=colour("tier", names),
        tooltip=[
            "tier:N",
            alt.Tooltip("e2e:Q", format=".3g"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    marks = (
        alt.Chart(inline(rules))
        .mark_point(shape="diamond", size=110, filled=True, stroke="black")
        .encode(x="e2e:Q", y="share:Q", color=colour("tier", names), tooltip=["objective:N"])
    )
    return alt.layer(curve, marks).properties(
        height=300,
        description="Cumulative distribution of end-to-end latency by tier; diamonds are objectives.",
    )


PARTS = (
    ("queue", "waiting for the batch"),
    ("prefill", "prefill, to the first token"),
    ("verify", "waiting for the verifier"),
    ("grow", "decoding, barriers included"),
)


def time_spent(queries: Table) -> dict[str, Any]:
    """Where each answered query's seconds went: arrays by part of `PARTS`, shape (answered,).

    They add up to its end-to-end latency. Waiting for a preempted branch counts as decoding.
    """
    got = select(queries, answered(queries))
    e2e = got["finish_s"] - got["arrival_s"]
    queue = np.nan_to_num(got["first_scheduled_s"] - got["arrival_s"])
    prefill = np.nan_to_num(got["first_token_s"] - got["first_scheduled_s"])
    verify = np.clip(np.nan_to_num(got["verify_s"]), 0.0, None)
    grow = np.clip(e2e - queue - prefill - verify, 0.0, None)
    return {"queue": queue, "prefill": prefill, "verify": verify, "grow": grow}


def where_time_goes(queries: Table, names: Sequence[str]) -> Chart:
    """Mean seconds of an answered query by tier: queue, prefill, verifier, decoding."""
    table = measured(queries)
    values = []
    for tier in names:
        parts = time_spent(select(table, table["tier"] == tier))
        for order, (part, word) in enumerate(PARTS):
            if parts[part].size:
                mean = float(parts[part].mean())
                values.append({"tier": tier, "part": word, "seconds": mean, "order": order})
    return (
        alt.Chart(inline(values))
        .mark_bar()
        .encode(
            x=alt.X("seconds:Q", title="mean seconds of an answered query (s)", stack="zero"),
            y=alt.Y("tier:N", title=None, sort=list(names), axis=alt.Axis(labelOverlap=False)),
            color=colour("part", [word for _, word in PARTS]),
            order="order:Q",
            tooltip=["tier:N", "part:N", alt.Tooltip("seconds:Q", format=".3g", title="s")],
        )
        .properties(
            height=130 + 40 * len(names),
            description="Where the time of an answered query goes, by tier.",
        )
    )


def over_time(queries: Table, names: Sequence[str], slices: int = 60) -> Chart:
    """Median and p95 of end-to-end latency by time of arrival, one line a tier."""
    table = measured(queries)
    times = latencies(table)["e2e"]
    arrival = table["arrival_s"]
    values = []
    if arrival.size:
        edges = np.linspace(arrival.min(), arrival.max() + 1e-9, slices + 1)
        index = np.clip(np.searchsorted(edges, arrival, side="right") - 1, 0, slices - 1)
        for tier in names:
            mine = table["tier"] == tier
            for number in np.unique(index[mine]):
                here = times[mine & (index == number)]
                middle = float((edges[number] + edges[number + 1]) / 2)
                for q, word in ((0.5, "median"), (0.95, "p95")):
                    value = percentile(here, q)
                    if np.isfinite(value):
                        row = {"tier": tier, "time": middle, "what": word, "e2e": value}
                        values.append(row)
    return (
        alt.Chart(inline(values))
        .mark_line()
        .encode(
            x=alt.X("time:Q", title="time of arrival (s)"),
            y=alt.Y("e2e:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
            color=colour("tier", names),
            strokeDash=alt.StrokeDash("what:N", title=None, legend=alt.Legend(orient="bottom")),
            tooltip=["tier:N", "what:N", alt.Tooltip("e2e:Q", format=".3g", title="s")],
        )
        .properties(height=280, description="Latency by time of arrival: median and p95, by tier.")
    )
