"""Where the money goes, by tier, and who pays for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dashboards.charts.base import MARKS, Chart, colour, every, few, inline

MONEY = (
    ("cost_usd", "GPU time"),
    ("idle_usd", "share of idle"),
    ("refund_usd", "refunds"),
    ("credit_usd", "late credits"),
    ("margin_usd", "margin"),
)


def money(tiers: Sequence[Mapping[str, Any]]) -> Chart:
    """What becomes of each tier's revenue, in USD: the parts add up to it; a loss is left of nought.

    `tiers` is the money of a run's summary, with `margin_usd`; what is no finite number is left out.
    """
    values = [
        {"tier": tier["tier"], "part": word, "usd": tier[key], "order": order}
        for tier in tiers
        for order, (key, word) in enumerate(MONEY)
        if tier.get(key) is not None and math.isfinite(tier[key])
    ][:MARKS]
    return (
        alt.Chart(inline(values))
        .mark_bar()
        .encode(
            x=alt.X("usd:Q", title="USD, of the measured queries", stack="zero", axis=few()),
            y=alt.Y("tier:N", title=None, sort=[tier["tier"] for tier in tiers], axis=every()),
            color=colour("part", [word for _, word in MONEY], columns=3),
            order=alt.Order("order:O"),
            tooltip=["tier:N", "part:N", alt.Tooltip("usd:Q", title="USD", format="$,.4r")],
        )
        .properties(
            height=130 + 36 * len(tiers),
            description="Revenue by tier, in USD: GPU time, share of idle time, refunds, late credits "
            "and margin.",
        )
    )
