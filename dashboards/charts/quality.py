"""Quality and latency together, and whether stated confidence is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from dashboards.charts.base import Chart, colour, inline, unit
from sim.metrics import answered, latencies
from sim.records import Table, measured, select


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
        alt.Chart(inline(values))
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=alt.X("claimed:Q", title="stated confidence", axis=axis, scale=unit()),
            y=alt.Y("right:Q", title="share that was right", axis=axis, scale=unit()),
            size=alt.Size("n:Q", legend=None),
            color=colour("tier", names),
            shape=alt.Shape("tier:N", legend=None),
            tooltip=["tier:N", "n:Q", alt.Tooltip("right:Q", format=".1%")],
        )
    )
    diagonal = alt.Chart(inline([{"a": 0.0}, {"a": 1.0}])).mark_line(strokeDash=[4, 4])
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
        alt.Chart(inline(values))
        .mark_rect()
        .encode(
            x=alt.X("from:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
            x2="to:Q",
            y=alt.Y("tier:N", title=None, sort=list(names), axis=alt.Axis(labelOverlap=False)),
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
            height=130 + 40 * len(names),
            description="Joint quality and latency: accuracy of queries by tier and latency.",
        )
    )


def accuracy_by_compute(queries: Table, names: Sequence[str], bins: int = 10) -> Chart:
    """Accuracy of answered queries against the GPU-seconds that they took, in steps of equal counts."""
    table = measured(queries)
    values = []
    for tier in names:
        mine = select(table, (table["tier"] == tier) & answered(table) & (table["gpu_seconds"] > 0))
        spent = mine["gpu_seconds"]
        if not spent.size:
            continue
        order = np.argsort(spent, kind="stable")
        for part in np.array_split(order, min(bins, max(1, spent.size // 20))):
            if part.size:
                right = float(mine["correct"][part].mean())
                half = 1.96 * (right * (1 - right) / part.size) ** 0.5
                values.append(
                    {
                        "tier": tier,
                        "gpu": float(np.median(spent[part])),
                        "accuracy": right,
                        "low": max(0.0, right - half),
                        "high": min(1.0, right + half),
                        "n": int(part.size),
                    }
                )
    base = alt.Chart(inline(values)).encode(
        x=alt.X("gpu:Q", title="GPU-seconds of a query", scale=alt.Scale(type="log")),
        color=colour("tier", names),
    )
    spread = base.mark_rule().encode(y=alt.Y("low:Q", title="accuracy", scale=unit()), y2="high:Q")
    points = base.mark_line(point=True).encode(
        y=alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"), scale=unit()),
        tooltip=["tier:N", "n:Q", alt.Tooltip("accuracy:Q", format=".1%")],
    )
    return alt.layer(spread, points).properties(
        height=300,
        description="Accuracy against compute, by tier: the more a query took, the harder it was.",
    )


def by_difficulty(queries: Table, names: Sequence[str], bands: int = 5) -> Chart:
    """Accuracy and GPU-seconds by band of latent difficulty: easy questions left, hard ones right."""
    table = measured(queries)
    table = select(table, answered(table) & np.isfinite(table["difficulty"]))
    values = []
    if table["difficulty"].size:
        edges = np.quantile(table["difficulty"], np.linspace(0, 1, bands + 1))
        index = np.clip(np.searchsorted(edges, table["difficulty"], side="right") - 1, 0, bands - 1)
        for tier in names:
            for band in range(bands):
                inside = (table["tier"] == tier) & (index == band)
                n = int(inside.sum())
                if n:
                    low, high = edges[band], edges[band + 1]
                    values.append(
                        {
                            "tier": tier,
                            "band": f"{bands - band}: {low:.0%} to {high:.0%}",
                            "accuracy": float(table["correct"][inside].mean()),
                            "gpu": float(table["gpu_seconds"][inside].mean()),
                            "n": n,
                        }
                    )
    return (
        alt.Chart(inline(values))
        .mark_rect()
        .encode(
            x=alt.X("band:N", title="band of difficulty (pass rate of one try), 1 is easiest"),
            y=alt.Y("tier:N", title=None, sort=list(names), axis=alt.Axis(labelOverlap=False)),
            color=alt.Color(
                "accuracy:Q",
                title="accuracy",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                legend=alt.Legend(format="%"),
            ),
            tooltip=[
                "tier:N",
                "n:Q",
                alt.Tooltip("accuracy:Q", format=".1%"),
                alt.Tooltip("gpu:Q", format=".3g", title="GPU-seconds"),
            ],
        )
        .properties(
            height=130 + 40 * len(names),
            description="Accuracy by band of difficulty and tier.",
        )
    )


def marginals(queries: Table, names: Sequence[str], bins: int = 24) -> Chart:
    """The marginals of `joint`: how many queries by latency, those that were right and those not."""
    table = measured(queries)
    times = latencies(table)["e2e"]
    finite = np.isfinite(times) & (times > 0)
    values = []
    if finite.any():
        low, high = float(times[finite].min()), float(times[finite].max())
        edges = np.geomspace(low, max(high, low * 1.001), bins + 1)
        for right, word in ((True, "right"), (False, "wrong")):
            counts, _ = np.histogram(times[finite & (table["correct"] == right)], edges)
            values += [
                {"from": float(edges[i]), "to": float(edges[i + 1]), "n": int(n), "answer": word}
                for i, n in enumerate(counts)
                if n
            ]
    return (
        alt.Chart(inline(values))
        .mark_bar()
        .encode(
            x=alt.X("from:Q", title="end-to-end latency (s)", scale=alt.Scale(type="log")),
            x2="to:Q",
            y=alt.Y("n:Q", title="queries", stack="zero"),
            color=colour("answer", ["right", "wrong"]),
            tooltip=["answer:N", "n:Q"],
        )
        .properties(height=140, description="Queries by latency, right and wrong answers stacked.")
    )
