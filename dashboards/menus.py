"""Menus on a terminal: regimes of pricing side by side, the shadow price, the risks, and margin against welfare."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from dashboards import words
from dashboards.prices import grid, lines, section
from pricing.optimise import Optimised, Regime

_BAR = 24  # characters of the frontier's longest bar


def optimised(found: Optimised) -> RenderableType:
    """The comparison as a rich renderable for 100 columns."""
    parts: list[RenderableType] = [
        Text(f"Menus of {words.name(found.scenario, 100)}", style="bold"),
        section(
            "The same queries, priced in several ways (USD per 1,000 queries)", _regimes(found)
        ),
    ]
    parts += [section(regime.name, _sold(regime)) for regime in found.regimes]
    parts.append(section("If the world is not as assumed (USD per 1,000 queries)", _risks(found)))
    parts.append(section("Margin against what clients gain", _frontier(found)))
    return Group(*parts)


def _regimes(found: Optimised) -> RenderableType:
    table = grid(
        "pricing", "served", "revenue", "margin", "", "clients gain", "moves easy-hard", "GPU-s"
    )
    table.columns[0].max_width = 30
    for regime in found.regimes:
        table.add_row(
            Text(words.name(regime.name)),
            words.share(regime.served),
            words.usd(regime.revenue.value),
            words.usd(regime.margin.value),
            words.plus_minus(regime.margin),
            words.usd(regime.surplus),
            words.share_interval(regime.cross_subsidy),
            words.number(regime.gpu_s),
        )
    if found.shadow_usd > 0:
        limit = (
            f"The best menu uses all {words.number(found.capacity)} GPU-seconds a query that the fleet has; "
            f"one more GPU-hour would earn {words.usd(3600 * found.shadow_usd)}."
        )
    else:
        limit = (
            f"The fleet has {words.number(found.capacity)} GPU-seconds a query (pricing.month.busy): "
            "it does not bind the best menu."
        )
    legend = (
        "Each segment chooses by its worth, or buys nothing. Moves: share of the revenue that moves between "
        "quarters of difficulty. GPU-s: per query that arrives. Costs hold idle time."
    )
    return Group(table, lines([limit, legend]))


def _sold(regime: Regime) -> RenderableType:
    table = grid(
        "tier", "promise", "price/sold", "today x", "bought by", "coverage", "right of sold"
    )
    for item in regime.sold:
        where = f" ({words.name(item.label, 20)})" if regime.name == "best menu" else ""
        table.add_row(
            Text(words.name(item.tier, 22) + (where if len(item.tier + where) < 24 else "")),
            "-" if item.promise is None else words.share(item.promise),
            words.usd(item.price),
            words.number(item.factor),
            words.share(item.bought),
            words.share_interval(item.coverage),
            words.share_interval(item.precision),
        )
    return table


def _risks(found: Optimised) -> RenderableType:
    table = grid("", "this menu", "best there", "given away")
    table.columns[0].max_width = 40
    for risk in found.risks:
        gap = 1 - risk.margin / risk.best if risk.best > 0 else math.nan
        row = (words.usd(risk.margin), words.usd(risk.best), words.share(max(0.0, gap)))
        table.add_row(risk.what, *row)
    return table


def _frontier(found: Optimised) -> RenderableType:
    table = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("weight of clients", "margin", "clients gain", "together"):
        table.add_column(column, justify="right")
    table.add_column("")
    top = max(margin + surplus for _, margin, surplus in found.frontier)
    for weight, margin, surplus in found.frontier:
        ours = max(0, round(_BAR * margin / top)) if top > 0 else 0
        theirs = max(0, round(_BAR * surplus / top)) if top > 0 else 0
        table.add_row(
            f"{weight:g}",
            words.usd(margin),
            words.usd(surplus),
            words.usd(margin + surplus),
            Text("█" * ours + "░" * theirs),
        )
    return Group(table, Text("█ margin, ░ what clients gain over buying nothing.", style="dim"))
