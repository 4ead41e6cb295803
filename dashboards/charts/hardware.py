"""What a device does: its roofs with the measured points, and what an expansion costs by branches and prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from dashboards.charts.base import GREY, MARKS, Chart, colour, every, inline, legend, log
from hw.profile import Profile


def roofline(profile: Profile, most: int = 1500) -> Chart:
    """Achieved FLOP/s against FLOP per byte of each measured point, under the device's own roofs."""
    table = profile.columns
    ok = (table["status"] == "ok") & (table["flop"] > 0) & (table["bytes_floor"] > 0)
    ok &= table["t_us_median"] > 0
    index = np.flatnonzero(ok)
    if index.size > most:
        index = index[np.unique(np.linspace(0, index.size - 1, most).astype(int))]
    intensity = table["flop"][index] / table["bytes_floor"][index]
    reached = table["flop"][index] / table["t_us_median"][index] * 1e6
    points = [
        {"op": str(op), "intensity": float(x), "tflops": float(y) / 1e12}
        for op, x, y in zip(table["op"][index], intensity, reached, strict=True)
    ]
    names = list(dict.fromkeys(str(op) for op in table["op"][index]))
    roofs: list[dict[str, Any]] = []
    ceilings = profile.ceilings
    bandwidth = ceilings.get("read_bytes_per_s", ceilings.get("copy_bytes_per_s", 0.0))
    compute = ceilings.get("gemm_flops_bf16", 0.0)
    if points and bandwidth and compute:
        low, high = float(intensity.min()), float(intensity.max()) * 2
        ends = np.geomspace(low, max(high, 4 * compute / bandwidth), 60)
        roofs = [
            {"intensity": float(x), "tflops": float(min(x * bandwidth, compute)) / 1e12}
            for x in ends
        ]
    x = alt.X(
        "intensity:Q",
        title="FLOP per byte",
        scale=log(row["intensity"] for row in points + roofs),
    )
    y = alt.Y(
        "tflops:Q", title="TFLOP/s", scale=log(max(row["tflops"], 1e-9) for row in points + roofs)
    )
    shapes = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")
    scale = alt.Scale(domain=names, range=[shapes[i % len(shapes)] for i in range(len(names))])
    marks = (
        alt.Chart(inline(points))
        .mark_point(size=22, opacity=0.6)
        .encode(
            x=x,
            y=y,
            color=colour("op", names),
            shape=alt.Shape("op:N", scale=scale, title=None, legend=legend()),
            tooltip=[
                "op:N",
                alt.Tooltip("intensity:Q", format=".3g", title="FLOP per byte"),
                alt.Tooltip("tflops:Q", format=".3g", title="TFLOP/s"),
            ],
        )
    )
    roof = alt.Chart(inline(roofs)).mark_line(strokeDash=[6, 4], color=GREY).encode(x=x, y=y)
    return alt.layer(roof, marks).properties(
        height=420, description="Roofline: achieved TFLOP/s by FLOP per byte, dashed are the roofs."
    )


def of_the_floor(operations: Sequence[Mapping[str, Any]]) -> Chart:
    """How near each operation comes to its floor: the median point, and the best."""
    values = [
        {"op": row["op"], "median": row["of_floor_median"], "best": row["of_floor_best"]}
        for row in operations
    ][: MARKS // 3]
    base = alt.Chart(inline(values)).encode(y=alt.Y("op:N", title=None, sort=None, axis=every()))
    axis = alt.Axis(format="%")
    bars = base.mark_bar(color="#0072B2").encode(
        x=alt.X("median:Q", title="share of the floor reached", axis=axis),
        tooltip=[
            "op:N",
            alt.Tooltip("median:Q", format=".1%"),
            alt.Tooltip("best:Q", format=".1%"),
        ],
    )
    best = base.mark_tick(color="#D55E00", thickness=3).encode(x="best:Q")
    return alt.layer(bars, best).properties(
        height=60 + 24 * max(1, len(values)),
        description="Share of the floor that each operation reaches: bars the median, ticks the best.",
    )


def expansion(cells: Sequence[Mapping[str, Any]]) -> Chart:
    """What one token of every branch costs, by branches and shared prefix: a surface as cells.

    Each cell has branches, prefix (tokens), step_s, and per_token_us (step over branches).
    """
    values = list(cells)[:MARKS]
    bright = max((float(row["per_token_us"]) for row in values), default=1.0) / 4
    base = alt.Chart(inline(values)).encode(
        x=alt.X(
            "prefix:O", title="shared prefix (tokens)", axis=alt.Axis(format=",", labelAngle=0)
        ),
        y=alt.Y("branches:O", title="branches", sort="descending"),
        tooltip=[
            "branches:O",
            alt.Tooltip("prefix:O", format=","),
            alt.Tooltip("step_s:Q", format=".3g", title="a step (s)"),
            alt.Tooltip("per_token_us:Q", format=".3g", title="a token of a branch (us)"),
        ],
    )
    cell = base.mark_rect().encode(
        color=alt.Color(
            "per_token_us:Q",
            title="us a token of a branch",
            scale=alt.Scale(scheme="viridis", type="log"),
            legend=alt.Legend(orient="bottom", gradientLength=200, format="~s"),
        )
    )
    number = base.mark_text(fontSize=10).encode(
        text=alt.Text("per_token_us:Q", format=".3~s"),
        color=alt.condition(
            f"datum.per_token_us > {bright}", alt.value("black"), alt.value("white")
        ),
    )
    return alt.layer(cell, number).properties(
        height=420, description="Cost of a token of a branch by branches and shared prefix, in us."
    )
