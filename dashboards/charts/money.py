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


def waterfall(tier: Mapping[str, Any]) -> Chart:
    """From revenue to margin of one tier in USD, step by step: what is taken away and what is left."""
    steps = [("revenue", float(tier["revenue_usd"]))]
    steps += [
        (word, -float(tier[key]))
        for key, word in (
            ("refund_usd", "refunds"),
            ("credit_usd", "late credits"),
            ("cost_usd", "GPU time"),
            ("idle_usd", "share of idle"),
        )
    ]
    values, level = [], 0.0
    for word, usd in steps:
        if math.isfinite(usd):
            kind = "comes in" if word == "revenue" else "goes out"
            values.append(
                {"step": word, "from": level, "to": level + usd, "usd": usd, "kind": kind}
            )
            level += usd
    kind = "margin" if level >= 0 else "loss"
    values.append({"step": "margin", "from": 0.0, "to": level, "usd": level, "kind": kind})
    kinds = ("comes in", "goes out", "margin", "loss")
    bars = (
        alt.Chart(inline(values))
        .mark_bar()
        .encode(
            x=alt.X("from:Q", title="USD, of the measured queries", axis=few()),
            x2="to:Q",
            y=alt.Y("step:N", title=None, sort=None, axis=every()),
            color=colour("kind", kinds, columns=4),
            tooltip=["step:N", alt.Tooltip("usd:Q", title="USD", format="$,.4r")],
        )
    )
    return bars.properties(
        height=260, description="Revenue to margin of one tier, step by step, in USD."
    )


def transfers(groups: Sequence[Any]) -> Chart:
    """Who pays for whom: each group's margin less what its queries would have at the mean, USD."""
    sides = ("pays for others", "others pay for it")
    values = [
        {
            "group": group.label,
            "usd": group.transfer_usd,
            "side": sides[0] if group.transfer_usd >= 0 else sides[1],
            "n": group.n,
        }
        for group in groups
        if math.isfinite(group.transfer_usd)
    ][:MARKS]
    return (
        alt.Chart(inline(values))
        .mark_bar()
        .encode(
            x=alt.X("usd:Q", title="USD that move, of the measured queries", axis=few()),
            y=alt.Y("group:N", title=None, sort=None, axis=every()),
            color=colour("side", sides),
            tooltip=["group:N", "n:Q", alt.Tooltip("usd:Q", title="USD", format="$,.4r")],
        )
        .properties(
            height=130 + 36 * len(values),
            description="Cross-subsidy: groups right of nought pay for those left of it.",
        )
    )
