"""Tables become charts: pure functions from columns to altair.Chart, few marks, units on every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt
import numpy as np

from sim.metrics import latencies
from sim.records import Table, measured, select

Chart: TypeAlias = Any  # an altair chart: its own types do not survive layering

POINTS = 240
"""Marks per line at most, so that a million-query run draws as fast as a small one."""

# Okabe and Ito, Color Universal Design, 2008: distinguishable with every common colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


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
        for rank in _thin(finite.size):
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
    base = alt.Chart(_data(lines)).mark_line(clip=True)
    curve = base.encode(
        x=alt.X("e2e:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
        y=alt.Y("share:Q", title="share of offered queries", axis=alt.Axis(format="%")),
        color=_colour("tier", names),
        tooltip=[
            "tier:N",
            alt.Tooltip("e2e:Q", format=".3g"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    marks = (
        alt.Chart(_data(rules))
        .mark_point(shape="diamond", size=110, filled=True, stroke="black")
        .encode(x="e2e:Q", y="share:Q", color=_colour("tier", names), tooltip=["objective:N"])
    )
    return alt.layer(curve, marks).properties(
        height=300,
        description="Cumulative distribution of end-to-end latency by tier; diamonds are objectives.",
    )


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
    for time_s in times[_thin(times.size, POINTS // 2)]:
        here = select(rows, rows["time_s"] == time_s)
        total = float(here["pages_total"].sum())
        for column, kind in kinds:
            share = float(here[column].sum()) / total if total else 0.0
            values.append({"time": float(time_s), "kind": kind, "share": share})
    line = (
        alt.Chart(_data(values))
        .mark_line()
        .encode(
            x=alt.X("time:Q", title="simulated time (s)"),
            y=alt.Y("share:Q", title="share of KV pages", axis=alt.Axis(format="%")),
            color=_colour("kind", [kind for _, kind in kinds]),
            strokeDash=alt.StrokeDash("kind:N", legend=None),
            tooltip=["kind:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )
    full = alt.Chart(_data([{"full": 1.0}])).mark_rule(strokeDash=[4, 4])
    return alt.layer(line, full.encode(y="full:Q")).properties(
        height=260, description=f"KV memory of {pool} over time; the dashed rule is a full pool."
    )


def reliability(tiers: Sequence[Mapping[str, Any]]) -> Chart:
    """What answers claimed against how many were right, one point a bin; on the diagonal it is true."""
    values = [
        {"tier": tier["tier"], "claimed": row["confidence"], "right": row["correct"], "n": row["n"]}
        for tier in tiers
        for row in tier["calibration"]["bins"]
        if row["n"]
    ]
    names = [tier["tier"] for tier in tiers]
    axis = alt.Axis(format="%")
    points = (
        alt.Chart(_data(values))
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=alt.X("claimed:Q", title="stated confidence", axis=axis, scale=_unit()),
            y=alt.Y("right:Q", title="share that was right", axis=axis, scale=_unit()),
            size=alt.Size("n:Q", title="answers"),
            color=_colour("tier", names),
            shape=alt.Shape("tier:N", legend=None),
            tooltip=["tier:N", "n:Q", alt.Tooltip("right:Q", format=".1%")],
        )
    )
    diagonal = alt.Chart(_data([{"a": 0.0}, {"a": 1.0}])).mark_line(strokeDash=[4, 4])
    return alt.layer(diagonal.encode(x="a:Q", y="a:Q"), points).properties(
        height=300,
        description="Reliability diagram: stated confidence against share right, by tier.",
    )


def joint(queries: Table, names: Sequence[str], bins: int = 12) -> Chart:
    """Accuracy of queries by tier and latency: each cell a step of equal ratio, with its count."""
    table = measured(queries)
    times = latencies(table)["e2e"]
    finite = times[np.isfinite(times) & (times > 0)]
    values: list[dict[str, Any]] = []
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        edges = np.geomspace(low, max(high, low * 1.001), bins + 1)
        for tier in names:
            for i in range(bins):
                upper = times <= edges[i + 1] if i == bins - 1 else times < edges[i + 1]
                inside = (table["tier"] == tier) & (times >= edges[i]) & upper
                n = int(inside.sum())
                if n:
                    right = float(table["correct"][inside].mean())
                    values.append(
                        {
                            "tier": tier,
                            "from": float(edges[i]),
                            "to": float(edges[i + 1]),
                            "n": n,
                            "accuracy": right,
                        }
                    )
    return (
        alt.Chart(_data(values))
        .mark_rect()
        .encode(
            x=alt.X("from:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
            x2="to:Q",
            y=alt.Y("tier:N", title=None, sort=list(names)),
            color=alt.Color(
                "accuracy:Q",
                title="accuracy",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                legend=alt.Legend(format="%"),
            ),
            opacity=alt.Opacity("n:Q", legend=None, scale=alt.Scale(range=[0.35, 1.0])),
            tooltip=["tier:N", "n:Q", alt.Tooltip("accuracy:Q", format=".1%")],
        )
        .properties(
            height=60 + 44 * len(names),
            description="Joint quality and latency: accuracy of queries by tier and latency.",
        )
    )


def money(tiers: Sequence[Mapping[str, Any]], idle_usd: float | None) -> Chart:
    """Where each tier's money goes, in USD over the measured span: kept margin, cost, refunds, credits."""
    parts = (
        ("cost_usd", "GPU cost"),
        ("refund_usd", "refunds"),
        ("credit_usd", "late credits"),
        ("margin_usd", "margin"),
    )
    values = [
        {"tier": tier["tier"], "part": word, "usd": tier[key]}
        for tier in tiers
        for key, word in parts
        if tier.get(key) is not None and math.isfinite(tier[key])
    ]
    if idle_usd is not None and math.isfinite(idle_usd):
        values.append({"tier": "(idle)", "part": "idle GPUs", "usd": idle_usd})
    return (
        alt.Chart(_data(values))
        .mark_bar()
        .encode(
            x=alt.X("usd:Q", title="USD in the measured span", stack="zero"),
            y=alt.Y("tier:N", title=None),
            color=_colour("part", [word for _, word in parts] + ["idle GPUs"]),
            tooltip=["tier:N", "part:N", alt.Tooltip("usd:Q", format="$.4g")],
        )
        .properties(height=60 + 44 * (len(tiers) + 1), description="Money by tier, stacked.")
    )


def _colour(field: str, names: Sequence[str]) -> alt.Color:
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=colours)
    legend = alt.Legend(orient="bottom", labelLimit=220)
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def _unit() -> alt.Scale:
    return alt.Scale(domain=[0, 1])


def _thin(n: int, most: int = POINTS) -> Any:
    """Indices of at most `most` of n sorted values, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)) if n else np.array([], int)


def _data(values: list[dict[str, Any]]) -> Any:
    return alt.Data(values=values)  # type: ignore[no-untyped-call]
