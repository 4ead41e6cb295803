"""The bill of the month on a terminal: nodes over the day, commitment, per query, and when an API is cheaper."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from dashboards import words
from dashboards.prices import grid, lines, section
from pricing.elsewhere import Elsewhere
from pricing.month import MonthBill, Nodes

_BARS = " ▁▂▃▄▅▆▇█"
_SIZED = (
    "Whole replicas, filled to pricing.month.busy of their throughput on paper; whole nodes. Whether "
    "objectives hold at the peak is for a run of that hour to say."
)


def bill(
    found: MonthBill, others: Sequence[Elsewhere], volumes: Sequence[float | None]
) -> RenderableType:
    """The bill as a rich renderable; `volumes` are the break-even queries a month of each of `others`."""
    each = found.per_query
    total = (
        f"{words.usd(found.total_usd)} a month, {words.usd(found.year_usd)} a year, for "
        f"{found.queries:,.0f} queries a month: {words.usd(each)} a query, "
        f"{words.usd(each / found.right) if found.right > 0 else 'inf'} a right answer."
    )
    parts: list[RenderableType] = [
        Text(f"Bill of the month of {words.name(found.scenario, 100)}", style="bold"),
        Text(total, style="bold"),
        section("Nodes", _nodes(found)),
        section("A weekday and a Sunday, hour by hour", _days(found)),
    ]
    if others:
        parts.append(section("Bought elsewhere", _elsewhere(found, others, volumes)))
    return Group(*parts)


def _nodes(found: MonthBill) -> RenderableType:
    table = grid("device", "nodes of", "committed at", "rest at", "month", "all on demand",
                 "all committed")  # fmt: skip
    for item in found.nodes:
        table.add_row(
            Text(words.name(item.device, 24)),
            f"{min(item.needed)}-{max(item.needed)} x {item.node_gpus}",
            f"{item.committed} at {item.committed_rate:.2f}/GPU-h",
            f"{item.on_demand_rate:.2f}/GPU-h",
            words.usd(item.total_usd),
            words.usd(item.all_on_demand_usd),
            words.usd(item.all_committed_usd),
        )
    notes = [_SIZED]
    same = [item.device for item in found.nodes if item.committed_rate >= item.on_demand_rate]
    if same:
        notes.append(
            f"No committed rate below the on-demand one is known for {words.sentence_of(same)}: "
            "pricing.month.committed_rates."
        )
    if len(set(found.week)) == 1:
        notes.append(
            "Every hour is taken to be like the run's: arrivals of kind diurnal have a day and a weekend."
        )
    return Group(table, lines(notes))


def _days(found: MonthBill) -> RenderableType:
    texts = []
    for item in found.nodes:
        top = max(item.needed)
        for name, first in (("weekday", 0), ("Sunday", 144)):
            bars = "".join(_bar(n, top) for n in item.needed[first : first + 24])
            texts.append(f"{words.name(item.device, 20):20} {name:8} |{bars}| full: {top} nodes")
        texts.append(f"{'':20} {_share(item)}")
    rates = found.week
    texts.append(
        f"Arrivals {words.number(min(rates))} to {words.number(max(rates))} a second, mean "
        f"{words.number(sum(rates) / len(rates))}."
    )
    return lines(texts)


def _bar(n: int, top: int) -> str:
    return _BARS[max(1, round(8 * n / top))] if n else " "


def _share(item: Nodes) -> str:
    paid = sum(max(n, item.committed) for n in item.needed)
    used = words.share(sum(item.needed) / paid)
    return f"{item.committed} committed around the clock; {used} of the paid node-hours are needed"


def _elsewhere(
    found: MonthBill, others: Sequence[Elsewhere], volumes: Sequence[float | None]
) -> RenderableType:
    table = grid("model", "one answer", "same tokens", "a month of answers", "ours is cheaper from")
    for item, volume in zip(others, volumes, strict=True):
        name = item.model if item.model == item.asked else f"{item.model} ({item.asked})"
        table.add_row(
            Text(words.name(name, 32)),
            words.usd(item.one_answer),
            words.usd(item.same_tokens),
            words.usd(item.one_answer * found.queries),
            "never" if volume is None else f"{volume:,.0f} queries/month",
        )
    note = (
        f"USD a query, standard prices of {others[0].as_of} from genai-prices, each query priced as one request. "
        "One answer: its prompt and one trajectory's tokens; how often it would be right is another model's "
        "affair. Ours is cheaper: than one answer there, at every load above."
    )
    return Group(table, Text(note))
