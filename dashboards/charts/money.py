"""Where the money goes, by tier, and who pays for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dashboards.charts.base import Chart, colour, inline


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
        alt.Chart(inline(values))
        .mark_bar()
        .encode(
            x=alt.X("usd:Q", title="USD in the measured span", stack="zero"),
            y=alt.Y("tier:N", title=None, axis=alt.Axis(labelOverlap=False)),
            color=colour("part", [word for _, word in parts] + ["idle GPUs"]),
            tooltip=["tier:N", "part:N", alt.Tooltip("usd:Q", format="$.4g")],
        )
        .properties(height=150 + 40 * (len(tiers) + 1), description="Money by tier, stacked.")
    )
