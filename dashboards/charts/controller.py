"""What a controller decides and what that is worth: cost against accuracy, and a map by difficulty and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dashboards.charts.base import MARKS, Chart, colour, every, inline, log

KINDS = ("learned", "fixed plans", "oracles")


def cost_accuracy(found: Mapping[str, Any]) -> Chart:
    """Accuracy against GPU-seconds a query, on a logarithmic axis: the controller, fixed plans, oracles."""
    groups = (("curve", KINDS[0]), ("fixed", KINDS[1]), ("oracles", KINDS[2]))
    values = [
        {"kind": kind, "name": row["name"], "gpu": row["gpu_s"], "accuracy": row["accuracy"]}
        for key, kind in groups
        for row in found[key]
    ][:MARKS]
    base = alt.Chart(inline(values)).encode(
        x=alt.X(
            "gpu:Q",
            title="GPU-seconds of a query",
            scale=log(row["gpu"] for row in values),
        ),
        y=alt.Y(
            "accuracy:Q",
            title="accuracy",
            axis=alt.Axis(format="%"),
            scale=alt.Scale(zero=False),
        ),
        color=colour("kind", KINDS),
        tooltip=[
            "name:N",
            alt.Tooltip("gpu:Q", format=".3g", title="GPU-seconds"),
            alt.Tooltip("accuracy:Q", format=".1%"),
        ],
    )
    lines = base.transform_filter("datum.kind != 'oracles'").mark_line()
    marks = base.mark_point(filled=True, size=45).encode(
        shape=alt.Shape("kind:N", legend=None, scale=alt.Scale(domain=list(KINDS)))
    )
    return alt.layer(lines, marks).properties(
        height=420, description="Accuracy against cost: learned controller, fixed plans, oracles."
    )


def decisions(found: Mapping[str, Any]) -> Chart:
    """Mean trajectories by fifth of the difficulty hint and by the price of GPU time."""
    words = ("easiest", "easy", "middle", "hard", "hardest")
    values = [
        {"load": f"{load:g}x", "order": number, "difficulty": word, "n": row[band]}
        for number, (load, row) in enumerate(
            zip(found["map"]["loads"], found["map"]["trajectories"], strict=True)
        )
        for band, word in enumerate(words)
    ]
    top = max((row["n"] for row in values), default=1.0)
    base = alt.Chart(inline(values)).encode(
        x=alt.X("difficulty:N", title="difficulty, by the hint", sort=None),
        y=alt.Y(
            "load:N",
            title="price of GPU time (load)",
            sort=alt.SortField("order"),
            axis=every(),
        ),
        tooltip=["load:N", "difficulty:N", alt.Tooltip("n:Q", format=".1f", title="trajectories")],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "n:Q",
            title="trajectories",
            scale=alt.Scale(scheme="viridis", type="log"),
            legend=alt.Legend(orient="bottom", gradientLength=160),
        )
    )
    numbers = base.mark_text().encode(
        text=alt.Text("n:Q", format=".1f"),
        color=alt.condition(f"datum.n > {top / 3}", alt.value("black"), alt.value("white")),
    )
    return alt.layer(cells, numbers).properties(
        height=380, description="Trajectories grown, by difficulty of the question and load."
    )


def thought(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Chart:
    """Share of a tier's queries by how many trajectories they grew: where the controller stopped."""
    return (
        alt.Chart(inline(list(rows)[:MARKS]))
        .mark_bar()
        .encode(
            x=alt.X("n:O", title="trajectories grown"),
            y=alt.Y("share:Q", title="share of the tier's queries", axis=alt.Axis(format="%")),
            xOffset="tier:N",
            color=colour("tier", names),
            tooltip=["tier:N", "n:O", alt.Tooltip("share:Q", format=".1%"), "queries:Q"],
        )
        .properties(height=320, description="Where queries stopped thinking, by tier.")
    )
