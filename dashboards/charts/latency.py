"""How long answers take, by tier, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from dashboards.charts.base import (
    GREY,
    MARKS,
    POINTS,
    Chart,
    colour,
    inline,
    log,
    percent,
    thin,
    unit,
)
from sim.estimate import percentile
from sim.metrics import answered, latencies
from sim.records import Table, measured, select

METRICS = {
    "ttft": "time to first token (s)",
    "ttfat": "time to first token of the answer (s)",
    "e2e": "end-to-end latency (s)",
}
PARTS = (
    ("queue", "waiting for the batch"),
    ("prefill", "prefill, to the first token"),
    ("verify", "waiting for the verifier"),
    ("grow", "decoding, barriers included"),
)
STATES = ("objective holds", "objective MISSED")
_SHORTEST_S = 1e-4  # a logarithmic axis has no nought


def latency_cdf(queries: Table, tiers: Sequence[Mapping[str, Any]], metric: str = "e2e") -> Chart:
    """Share of offered queries within a time, one line a tier; objectives as rules, in words.

    `tiers` are the tiers of a run's summary, `metric` one of `METRICS`. Times in s on a logarithmic
    axis; what was never answered keeps its line below 100 %.
    """
    table = measured(queries)
    times = latencies(table)[metric]
    most = min(POINTS, MARKS * 4 // 5 // max(1, len(tiers)))
    lines: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for tier in tiers:
        own = times[table["tier"] == tier["tier"]]
        own = np.sort(own[~np.isnan(own)])
        finite = np.maximum(own[np.isfinite(own)], _SHORTEST_S)
        for rank in thin(finite.size, most):
            time_s, share = float(finite[rank]), float((rank + 1) / own.size)
            lines.append({"tier": tier["tier"], "time_s": time_s, "share": share})
        for target in tier["targets"]:
            if target["metric"] == metric:
                quantile, time_s = target["quantile"], target["target_s"]
                rules.append(
                    {
                        "tier": tier["tier"],
                        "time_s": time_s,
                        "share": quantile,
                        "state": STATES[0] if target["met"] else STATES[1],
                        "objective": f"p{100 * quantile:g} within {time_s:g} s",
                    }
                )
    names = [tier["tier"] for tier in tiers]
    x = alt.X("time_s:Q", title=METRICS[metric], scale=log(row["time_s"] for row in lines + rules))
    y = alt.Y("share:Q", title="share of offered queries", axis=percent(), scale=unit())
    by_tier = colour("tier", names)
    seen = ["tier:N", alt.Tooltip("time_s:Q", title="time (s)", format=".3g")]
    curve = (
        alt.Chart(inline(lines))
        .mark_line(clip=True)
        .encode(x=x, y=y, color=by_tier, tooltip=[*seen, alt.Tooltip("share:Q", format=".1%")])
    )
    if not rules:
        return curve.properties(height=340, description=_described(metric, "no objective"))
    objectives = alt.Chart(inline(rules)).encode(
        x=x, color=by_tier, tooltip=["tier:N", "objective:N", "state:N"]
    )
    scale = alt.Scale(domain=list(STATES), range=["circle", "cross"])
    shape = alt.Shape("state:N", scale=scale, legend=None)  # words are below, and in the tooltip
    marks = objectives.mark_point(size=130, filled=True, stroke=GREY, opacity=1)
    words = "; ".join(f"{r['tier']}: {r['objective']}, {r['state']}" for r in rules[:20])
    return alt.layer(
        curve, objectives.mark_rule(strokeDash=[5, 4]), marks.encode(y=y, shape=shape)
    ).properties(height=340, description=_described(metric, words))


def _described(metric: str, words: str) -> str:
    return f"Share of offered queries by {METRICS[metric]}, one line a tier. Objectives: {words}."


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
            x=alt.X("time:Q", title="time of arrival (s)", scale=alt.Scale(nice=False)),
            y=alt.Y("e2e:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
            color=colour("tier", names),
            strokeDash=alt.StrokeDash("what:N", title=None, legend=alt.Legend(orient="bottom")),
            tooltip=["tier:N", "what:N", alt.Tooltip("e2e:Q", format=".3g", title="s")],
        )
        .properties(height=360, description="Latency by time of arrival: median and p95, by tier.")
    )
