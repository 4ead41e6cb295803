"""Quality and latency together, and whether stated confidence is true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from dashboards.charts.base import (
    GREY,
    MARKS,
    Chart,
    colour,
    every,
    inline,
    legend,
    log,
    percent,
    unit,
)
from dashboards.charts.latency import METRICS
from sim.metrics import answered, latencies
from sim.records import Table, measured, select


def reliability(tiers: Sequence[Mapping[str, Any]]) -> Chart:
    """What answers claimed against how many were right, one point a bin; on the diagonal it is true."""
    values = [
        {"tier": tier["tier"], "claimed": row["confidence"], "right": row["correct"], "n": row["n"]}
        for tier in tiers
        for row in tier["calibration"]["bins"]
        if row["n"]
    ][:MARKS]
    names = [tier["tier"] for tier in tiers]
    shapes = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")
    scale = alt.Scale(domain=names, range=[shapes[i % len(shapes)] for i in range(len(names))])
    x = alt.X("claimed:Q", title="stated confidence", axis=percent(), scale=unit())
    y = alt.Y("right:Q", title="share that was right", axis=percent(), scale=unit())
    points = (
        alt.Chart(inline(values))
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=x,
            y=y,
            size=alt.Size("n:Q", title="answers", scale=alt.Scale(range=[25, 260]), legend=None),
            color=colour("tier", names),
            shape=alt.Shape("tier:N", title=None, scale=scale, legend=legend()),
            tooltip=[
                "tier:N",
                alt.Tooltip("n:Q", title="answers", format=","),
                alt.Tooltip("claimed:Q", title="stated", format=".1%"),
                alt.Tooltip("right:Q", format=".1%"),
            ],
        )
    )
    diagonal = alt.Chart(inline([{"a": 0.0}, {"a": 1.0}])).mark_line(strokeDash=[4, 4], color=GREY)
    return alt.layer(diagonal.encode(x="a:Q", y="a:Q"), points).properties(
        height=340,
        description="Reliability diagram by tier: stated confidence against the share that was right. "
        "Points below the diagonal claim too much.",
    )


def joint(queries: Table, names: Sequence[str], bins: int = 10) -> Chart:
    """Accuracy of queries by tier and latency: cells of equal ratio in s, each with its count."""
    table = measured(queries)
    times = latencies(table)["e2e"]
    finite = np.isfinite(times) & (times > 0)
    values: list[dict[str, Any]] = []
    if finite.any():
        low, high = float(times[finite].min()), float(times[finite].max())
        edges = np.geomspace(low, max(high, low * 1.001), bins + 1)
        cell = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, bins - 1)
        for tier in names[: MARKS // 2 // bins]:
            own = finite & (table["tier"] == tier)
            n = np.bincount(cell[own], minlength=bins)
            right = np.bincount(cell[own], table["correct"][own], bins)
            for i in np.flatnonzero(n).tolist():
                values.append(
                    {
                        "tier": tier,
                        "from": float(edges[i]),
                        "to": float(edges[i + 1]),
                        "middle": math.sqrt(float(edges[i] * edges[i + 1])),
                        "n": int(n[i]),
                        "accuracy": float(right[i] / n[i]),
                    }
                )
    scale = log(value for row in values for value in (row["from"], row["to"]))
    title, y = METRICS["e2e"], alt.Y("tier:N", title=None, sort=list(names), axis=every())
    base = alt.Chart(inline(values))
    accuracy = alt.Color(
        "accuracy:Q",
        title="accuracy",
        scale=alt.Scale(scheme="viridis", domain=[0, 1]),
        legend=alt.Legend(format="%", orient="bottom", gradientLength=160, gradientThickness=8),
    )
    seen = [
        "tier:N",
        alt.Tooltip("from:Q", title="from (s)", format=".3g"),
        alt.Tooltip("to:Q", title="to (s)", format=".3g"),
        alt.Tooltip("n:Q", title="queries", format=","),
        alt.Tooltip("accuracy:Q", format=".1%"),
    ]
    cells = base.mark_rect(stroke=GREY, strokeWidth=0.5).encode(
        x=alt.X("from:Q", title=title, scale=scale, axis=alt.Axis(grid=False)),
        x2="to:Q",
        y=y,
        color=accuracy,
        tooltip=seen,
    )
    dark = alt.condition("datum.accuracy > 0.6", alt.value("black"), alt.value("white"))
    counts = base.mark_text(fontSize=10).encode(
        x=alt.X("middle:Q", title=title, scale=scale),
        y=y,
        text=alt.Text("n:Q", format="~s"),
        color=dark,
        tooltip=seen,
    )
    return alt.layer(cells, counts).properties(
        height=130 + 36 * len(names),
        description="Accuracy of answered queries by tier and end-to-end latency, with their counts.",
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
    ends: list[float] = []
    if finite.any():
        low, high = float(times[finite].min()), float(times[finite].max())
        edges = np.geomspace(low, max(high, low * 1.001), bins + 1)
        ends = [low, high]
        for right, word in ((True, "right"), (False, "wrong")):
            counts, _ = np.histogram(times[finite & (table["correct"] == right)], edges)
            values += [
                {"from": float(edges[i]), "to": float(edges[i + 1]), "n": int(n), "answer": word}
                for i, n in enumerate(counts)
                if n
            ]
    return (
        alt.Chart(inline(values))
        .mark_bar(orient="vertical")
        .encode(
            x=alt.X("from:Q", title="end-to-end latency (s)", scale=log(ends)),
            x2="to:Q",
            y=alt.Y("n:Q", title="queries", stack="zero"),
            color=colour("answer", ["right", "wrong"]),
            tooltip=["answer:N", "n:Q"],
        )
        .properties(height=240, description="Queries by latency, right and wrong answers stacked.")
    )
