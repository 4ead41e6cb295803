"""What changes from a base to a what-if: relative differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt

from dashboards.charts.base import Chart, colour, inline
from sim.compare import Difference

STATES = ("lower", "higher", "not clear", "no interval", "unchanged")


def changes(differences: Sequence[Difference]) -> Chart:
    """Each figure as a multiple of the base, with its 95 % interval, on a logarithmic axis.

    Figures that are not positive in both runs are left out: they have no ratio.
    """
    values = []
    for row in differences:
        base, ratio = row.base, row.other / row.base if row.base > 0 else math.nan
        if not math.isfinite(ratio) or ratio <= 0:
            continue
        low, high = ((base + end) / base for end in (row.change.low, row.change.high))
        if not (math.isfinite(low) and math.isfinite(high)):
            low = high = ratio
        values.append(
            {
                "figure": row.name,
                "ratio": ratio,
                "low": max(low, ratio / 10),
                "high": high,
                "state": row.state,
            }
        )
    base_chart = alt.Chart(inline(values)).encode(
        y=alt.Y(
            "figure:N", title=None, sort=None, axis=alt.Axis(labelLimit=220, labelOverlap=False)
        ),
        color=colour("state", STATES, columns=5),
    )
    axis = alt.Axis(format="~g", tickCount=6)
    spread = base_chart.mark_rule(size=2).encode(
        x=alt.X("low:Q", title="times the base", axis=axis, scale=alt.Scale(type="log")),
        x2="high:Q",
    )
    points = base_chart.mark_point(filled=True, size=70).encode(
        x="ratio:Q",
        shape=alt.Shape("state:N", legend=None, scale=alt.Scale(domain=list(STATES))),
        tooltip=[
            "figure:N",
            alt.Tooltip("ratio:Q", format=".3g", title="times the base"),
            "state:N",
        ],
    )
    one = alt.Chart(inline([{"one": 1.0}])).mark_rule(strokeDash=[4, 4]).encode(x="one:Q")
    return alt.layer(one, spread, points).properties(
        height=24 * max(1, len(values)) + 110,
        description="Figures as multiples of the base with 95 % intervals; a bar across 1 is not clear, a point "
        "without a bar has no interval.",
    )
