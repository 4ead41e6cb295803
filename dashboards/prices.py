"""The price list on a terminal: prices and margins, promises kept and refused, the reserve, who subsidises whom."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from dashboards import words
from pricing.breakdown import Breakdown
from pricing.pricelist import Line, PriceList
from pricing.promises import Judged

_HALF = 16  # characters on each side of the picture of subsidies
_SHOWN = 10  # most groups of one split that are drawn


def price_list(found: PriceList) -> RenderableType:
    """The list as a rich renderable for 100 columns."""
    parts: list[RenderableType] = [
        Text(f"Price list of {words.name(found.scenario, 100)}", style="bold"),
        section("Prices, per answer sold", _lines(found)),
    ]
    if found.promises:
        parts.append(section("Promises, class by class", _promises(found)))
    if found.drift:
        parts.append(section("What the drift of the verifier costs", _drift(found)))
    if found.reserves:
        parts.append(section("Reserve for a month of refunds", _reserves(found)))
    parts.append(section("What it costs", _costs(found.breakdowns)))
    parts.append(section("Who subsidises whom", _subsidies(found.breakdowns)))
    return Group(*parts)


def section(title: str, body: RenderableType) -> Padding:
    """A titled part of a report, after an empty line."""
    return Padding(Group(Text(title, style="bold underline"), body), (1, 0, 0, 0))


def grid(first: str, *columns: str) -> Grid:
    """A table whose first column holds names and whose others hold figures."""
    made = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    made.add_column(first, overflow="fold", min_width=8, max_width=24)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def lines(texts: Iterable[str]) -> Text:
    """Sentences, one a line."""
    return Text("\n".join(texts))


def _lines(found: PriceList) -> RenderableType:
    table = grid("tier", "sold", "price", "kept", "cost", "break-even", "margin/query", "", "")
    for line in found.lines:
        table.add_row(
            Text(words.name(line.tier)),
            f"{line.sold:,} of {line.money.n:,}",
            words.usd(line.price),
            words.share(line.kept),
            words.usd(line.cost),
            words.usd(line.break_even),
            words.usd(line.money.margin_per_query.value),
            words.plus_minus(line.money.margin_per_query),
            _earns(line),
        )
    notes = [
        "Kept: what stays of a charge after refunds and credits. Costs hold unsold queries and idle time."
    ]
    if found.refused:
        before = sum(line.money.margin_usd for line in found.lines)
        after = sum(money.margin_usd for money in found.certified)
        notes.append(
            f"If only certified promises were sold, all tiers together would earn {words.usd(after)}, "
            f"not {words.usd(before)}."
        )
    return Group(table, lines(notes))


def _earns(line: Line) -> str:
    margin = line.money.margin_per_query
    if math.isnan(margin.value):
        return "no price"
    if margin.low > 0 or (math.isnan(margin.low) and margin.value > 0):
        return "earns"
    return "LOSES" if margin.high < 0 or margin.value < 0 else "unclear"


def _promises(found: PriceList) -> RenderableType:
    table = grid("tier, class", "promise", "sample", "", "supported", "of those right", "coverage",
                 "cost/sold")  # fmt: skip
    notes = []
    for item in found.promises:
        best = item.supported
        table.add_row(
            Text(f"{words.name(item.tier, 20)}, {words.name(item.query_class, 20)}"),
            words.share(item.promise),
            f"{item.queries:,}",
            "kept" if item.kept else "REFUSED",
            words.share(best.promise) if best else "nothing",
            f"{words.share(best.precision)} (≥ {words.share(best.bound)})" if best else "-",
            words.share(best.coverage if best else 0.0),
            words.usd(item.cost_per_sold(best)),
        )
        if not item.kept:
            notes.append(refusal(item))
    return Group(table, lines([*notes, _LEGEND]))


_LEGEND = (
    "Supported: what may be promised with 95 % certainty, and what selling it does; where the promise is "
    "refused, the highest below it: confirm that on a fresh sample first."
)


def refusal(item: Judged) -> str:
    """Why a promise is refused, what its sale would do, and the sample that it would take."""
    where = f"{words.name(item.tier)}, {words.name(item.query_class)}"
    text = f"{where}: {words.share(item.promise)} is refused: {item.reason}."
    if not item.queries:
        return text
    if item.as_sold is not None:
        sold = item.as_sold
        text += (
            f" As it is sold, {words.share(sold.precision)} of {sold.sold:,} are right (at least "
            f"{words.share(sold.bound)})."
        )
    if item.needed is not None and item.needed > item.queries:
        return f"{text} It would take about {item.needed:,} calibration queries."
    if item.needed is not None:
        return f"{text} A fresh sample of {item.queries:,} may support it."
    if item.queries < item.at_least:
        return f"{text} It takes at least {item.at_least:,} sold answers, all of them right."
    return f"{text} No sample would do: think longer, or verify better."


def _drift(found: PriceList) -> RenderableType:
    table = grid("tier", "sold, %", "right, %", "wrong/day", "lost/day", "audit sees", "share shows",
                 "lost until")  # fmt: skip
    for row in found.drift:
        table.add_row(
            Text(words.name(row.tier)),
            "→".join(f"{100 * x:.1f}" for x in row.coverage),
            "→".join(f"{100 * x:.1f}" for x in row.precision),
            words.number(round(row.wrong, 1)),
            words.usd(row.lost_usd),
            _after(row.days),
            _after(row.unlabelled_days),
            words.usd(row.until_seen_usd),
        )
    note = (
        "At thresholds calibrated before. Wrong/day: more wrong answers sold; lost/day below 0: the "
        "provider gains what its clients lose. Seen by checking a share of the sold answers "
        "(pricing.drift.audited) or by the share sold alone; lost until the first of both."
    )
    return Group(table, Text(note))


def _after(days: float) -> str:
    if math.isinf(days):
        return "never"
    return f"{words.number(days)} d" if days >= 1 else f"{words.number(24 * days, 2)} h"


def _reserves(found: PriceList) -> RenderableType:
    table = grid("tier", "sold/month", "wrong", "expected", "1 in 100", "reserve", "if independent")
    for tier, correlated, independent in found.reserves:
        table.add_row(
            Text(words.name(tier)),
            f"{correlated.sold:,}",
            words.share(correlated.wrong_share),
            words.usd(correlated.expected_usd),
            words.usd(correlated.at_risk_usd),
            words.usd(correlated.reserve_usd),
            words.usd(independent.reserve_usd),
        )
    rho = found.reserves[0][1].rho
    note = (
        f"At this run's rate of sold answers, with one wrong and one right one more than it had; errors are "
        f"correlated by {rho:g} (pricing.error_correlation, assumed)."
    )
    return Group(table, Text(note))


def _costs(splits: tuple[Breakdown, ...]) -> RenderableType:
    table = grid("", "queries", "cost/query", "per right answer", "per sold answer", "paid/query",
                 "margin/query")  # fmt: skip
    for split in splits:
        table.add_row(Text(f"by {split.by}", style="dim"))
        for group in split.groups[:_SHOWN]:
            table.add_row(
                Text(f"  {words.name(group.label, 20)}"),
                f"{group.n:,}",
                words.usd(group.cost_per_query),
                words.usd(group.cost_per_right),
                words.usd(group.cost_per_sold),
                words.usd(group.paid_usd / group.n),
                words.usd(group.margin_usd / group.n),
            )
    return table


def _subsidies(splits: tuple[Breakdown, ...]) -> RenderableType:
    parts: list[RenderableType] = []
    for split in splits:
        if split.by == "truth" or len(split.groups) < 2:
            continue
        moved = [group.transfer_usd for group in split.groups]
        if any(math.isnan(usd) for usd in moved):
            return Text("Every tier needs a price, and every device a rate, before it can be said.")
        top = max(abs(usd) for usd in moved) or 1.0
        table = Grid(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column(f"by {split.by}", max_width=24, min_width=18)
        table.add_column("is paid for", justify="right", width=_HALF)
        table.add_column("pays for others", width=_HALF)
        table.add_column("per 1,000", justify="right")
        for group in split.groups[:_SHOWN]:
            bar = "█" * round(_HALF * abs(group.transfer_usd) / top)
            left, right = (bar, "") if group.transfer_usd < 0 else ("", bar)
            each = 1000 * group.transfer_usd / group.n
            sign = "+" if each > 0 else ""
            table.add_row(Text(words.name(group.label, 24)), left, right, sign + words.usd(each))
        share = words.share_interval(split.cross_subsidy)
        parts += [table, Text(f"{share} of the revenue moves between them.\n")]
    return Group(*parts) if parts else Text("One tier, one class: nobody to subsidise.")
