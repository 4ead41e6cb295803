"""How goodput follows the load: the share that meets its objectives, by tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dashboards.charts.base import MARKS, Chart, colour, few, inline


def goodput(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Queries per second that meet every objective, against those offered in all, a line a tier.

    Each row has tier, load (offered in all, 1/s), goodput and offered of the tier (1/s). The dashed
    line of a tier is what it was offered.
    """
    values = list(rows)[: MARKS // 2]
    names = list(dict.fromkeys(str(row["tier"]) for row in values))
    base = alt.Chart(inline(values)).encode(
        x=alt.X("load:Q", title="offered load, all tiers (1/s)", axis=few()),
        color=colour("tier", names),
    )
    good = base.mark_line(point=True).encode(
        y=alt.Y("goodput:Q", title="queries that meet their objectives (1/s)"),
        tooltip=[
            "tier:N",
            "run:N",
            alt.Tooltip("load:Q", format=".3g"),
            alt.Tooltip("goodput:Q", format=".3g"),
            alt.Tooltip("offered:Q", format=".3g"),
            alt.Tooltip("attained:Q", format=".1%"),
        ],
    )
    offered = base.mark_line(strokeDash=[4, 4], opacity=0.6).encode(y="offered:Q")
    return alt.layer(offered, good).properties(
        height=360,
        description="Goodput against offered load, by tier; dashed is what was offered.",
    )
