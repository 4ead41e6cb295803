"""One query's search on a time axis: which branch grew when, how it was judged, and what became of it."""

from __future__ import annotations

import math
from typing import Any, Final

import altair as alt

from dashboards.charts.base import MARKS, Chart, colour, few, inline
from sim.retell import Story

FATES: Final = ("answer", "expanded", "finished", "pruned", "cancelled")
_SHOWN: Final = 600  # branches of a tree; more do not fit a picture


def tree(story: Story) -> Chart:
    """A bar a branch from when it was asked for to its last token, in the order of the tree; ticks are scores."""
    bars: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    steps = story.steps[:_SHOWN]
    lane = {step.name: number for number, step in enumerate(steps)}
    ends = {step.name: step.end_s for step in steps}
    for step in steps:
        begin = step.asked_s
        end = next((t for t in (step.end_s, step.dropped_s) if not math.isnan(t)), begin)
        score = None if math.isnan(step.score) else step.score
        bars.append(
            {
                "lane": lane[step.name],
                "branch": step.name,
                "from": begin,
                "to": end,
                "fate": step.fate,
                "tokens": step.tokens,
                "score": score,
            }
        )
        if step.parent in lane and not math.isnan(ends[step.parent]):
            at, above = ends[step.parent], lane[step.parent]
            links.append({"time": at, "lane": above, "to": lane[step.name], "fate": step.fate})
        if not math.isnan(step.scored_s) and score is not None:
            scores.append({"time": step.scored_s, "lane": lane[step.name], "score": score})
    high = max(1, len(steps))
    x = alt.X("from:Q", title="time since the query arrived (s)", axis=few())
    y = alt.Y("lane:Q", title=None, axis=None, scale=alt.Scale(domain=[-1, high], reverse=True))
    seen = [
        "branch:N",
        "fate:N",
        alt.Tooltip("tokens:Q", format=","),
        alt.Tooltip("score:Q", format=".3f"),
    ]
    bar = (
        alt.Chart(inline(bars))
        .mark_bar(height={"expr": f"max(1.5, min(12, 0.7 * height / {high}))"})
        .encode(x=x, x2="to:Q", y=y, color=colour("fate", FATES, columns=5), tooltip=seen)
    )
    link = (
        alt.Chart(inline(links[: MARKS // 3]))
        .mark_rule(opacity=0.35)
        .encode(x="time:Q", y=y, y2="to:Q", color=colour("fate", FATES, columns=5))
    )
    mark = (
        alt.Chart(inline(scores))
        .mark_point(filled=True, size=26, stroke="black", strokeWidth=0.4)
        .encode(
            x="time:Q",
            y=y,
            fill=alt.Fill(
                "score:Q",
                title="verifier's score",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                legend=alt.Legend(orient="bottom", gradientLength=120),
            ),
            tooltip=[alt.Tooltip("score:Q", format=".3f")],
        )
    )
    return alt.layer(link, bar, mark).properties(
        height=min(900, 150 + 9 * high),
        description="The search of one query: a bar a branch, on a time axis, coloured by its fate.",
    )


def pages(story: Story) -> Chart:
    """KV pages of one query over time: its tree's unique pages, and what its branches hold unshared."""
    values = []
    step = max(1, len(story.pages) * 2 // (MARKS // 2))
    for at, unique, naive in story.pages[::step]:
        values.append({"time": at, "kind": "unique pages of the tree", "pages": unique})
        values.append({"time": at, "kind": "running branches, without sharing", "pages": naive})
    kinds = ("unique pages of the tree", "running branches, without sharing")
    return (
        alt.Chart(inline(values))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("time:Q", title="time since the query arrived (s)", axis=few()),
            y=alt.Y("pages:Q", title="KV pages"),
            color=colour("kind", kinds, columns=2),
            tooltip=["kind:N", alt.Tooltip("pages:Q", format=",")],
        )
        .properties(height=260, description="KV pages of one query over time.")
    )
