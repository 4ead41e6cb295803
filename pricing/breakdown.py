"""Who costs what and who pays for whom: money by tier, class, difficulty and truth, and its parts add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricing.contract import Priced
from sim.estimate import Estimate, estimate, mean
from sim.metrics import answered
from sim.records import Table, measured, select, size

BANDS: Final = ("hardest quarter", "hard", "easy", "easiest quarter")  # by latent pass rate, rising
NEVER: Final = "never answered"


# What a split looks at, so that nothing else of a long run is copied group by group.
_USED = ("replication", "measured", "arrival_s", "tier", "class", "status", "correct", "accepted", "difficulty",
         "cost_usd", "charge_usd", "refund_usd", "credit_usd")  # fmt: skip
_SPENT = ("replication", "arrival_s", "cost_usd", "charge_usd", "refund_usd", "credit_usd")


@dataclass(frozen=True, slots=True)
class Group:
    """One group of measured queries, USD: what it used, its share of idle time, what it paid.

    `transfer_usd` is its margin less what its number of queries would have at the mean margin: above 0
    it pays for others, below 0 others pay for it; over all groups it adds up to nought. NaN where a
    price or a rate is unknown.
    """

    label: str
    n: int
    cost_usd: float
    idle_usd: float
    paid_usd: float
    right: int
    sold: int
    transfer_usd: float

    @property
    def margin_usd(self) -> float:
        """What it paid less what it used and its share of idle time."""
        return self.paid_usd - self.cost_usd - self.idle_usd

    @property
    def cost_per_query(self) -> float:
        """Cost of a query with its share of idle time."""
        return (self.cost_usd + self.idle_usd) / self.n if self.n else math.nan

    @property
    def cost_per_right(self) -> float:
        """Cost of a right answer with its share of idle time."""
        return (self.cost_usd + self.idle_usd) / self.right if self.right else math.inf

    @property
    def cost_per_sold(self) -> float:
        """Cost of an answer that was charged, with its share of idle time."""
        return (self.cost_usd + self.idle_usd) / self.sold if self.sold else math.inf


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The measured queries split once, and how much of the revenue moves between the parts.

    `cross_subsidy` is the sum of the positive transfers over the revenue; its interval is over
    replications. NaN without prices.
    """

    by: str
    groups: tuple[Group, ...]
    cross_subsidy: Estimate


def breakdowns(priced: Priced) -> tuple[Breakdown, ...]:
    """The measured queries by tier, class, difficulty and truth."""
    return tuple(breakdown(priced, by) for by in LABELS)


def breakdown(priced: Priced, by: str) -> Breakdown:
    """The measured queries split by one of `LABELS`; a group without a query does not appear."""
    queries, overhead = priced.result.queries, priced.bill.overhead
    table = measured({name: queries[name] for name in _USED})
    labels = LABELS[by](table)
    groups = split(table, labels, overhead)
    numbers = np.zeros(
        len(labels), dtype=np.int64
    )  # a group each: no text is copied or compared again
    for number, group in enumerate(groups):
        numbers[labels == group.label] = number
    spent = {name: table[name] for name in _SPENT} | {"group": numbers}
    whole = estimate(lambda rows: cross_subsidy(rows, rows["group"], overhead), spent)
    return Breakdown(by, groups, whole)


def split(table: Table, labels: NDArray[np.str_], overhead: float) -> tuple[Group, ...]:
    """The groups of a table by a label per row, each with its transfer."""
    margins = paid(table) - table["cost_usd"] * overhead
    typical = mean(margins)
    found = []
    for name in _ordered(labels):
        rows = labels == name
        mine = select(table, rows)
        cost = float(mine["cost_usd"].sum())
        got = answered(mine)
        found.append(
            Group(
                label=name,
                n=size(mine),
                cost_usd=cost,
                idle_usd=cost * overhead - cost if cost > 0 else 0.0 * cost,
                paid_usd=float(paid(mine).sum()),
                right=int((got & mine["correct"]).sum()),
                sold=int((mine["charge_usd"] > 0).sum()),
                transfer_usd=float(margins[rows].sum()) - size(mine) * typical,
            )
        )
    return tuple(found)


def cross_subsidy(
    table: Table,
    labels: NDArray[Any],
    overhead: float,
    weight: NDArray[np.float64] | None = None,
) -> float:
    """Share of the revenue that moves from groups that pay for others; NaN without revenue.

    A row counts `weight` times, once without.
    """
    times = np.ones(len(labels)) if weight is None else weight
    revenue = float(times @ table["charge_usd"])
    margins = times * (paid(table) - table["cost_usd"] * overhead)
    typical = float(margins.sum()) / float(times.sum()) if times.any() else math.nan
    moved = 0.0
    for name in np.unique(labels):
        rows = labels == name
        moved += max(0.0, float(margins[rows].sum()) - float(times[rows].sum()) * typical)
    return moved / revenue if revenue > 0 else math.nan


def paid(table: Table) -> NDArray[np.float64]:
    """What each query pays after refunds and credits, USD, shape (rows,)."""
    return np.asarray(table["charge_usd"] - table["refund_usd"] - table["credit_usd"])


def difficulty(table: Table) -> NDArray[np.str_]:
    """The quarter of the latent pass rate that each query is in, shape (rows,)."""
    known = table["difficulty"][~np.isnan(table["difficulty"])]
    edges = np.quantile(known, (0.25, 0.5, 0.75)) if known.size else np.zeros(3)
    band = np.searchsorted(edges, np.nan_to_num(table["difficulty"], nan=0.0), side="right")
    return np.array(BANDS)[band]


def truth(table: Table) -> NDArray[np.str_]:
    """Sold and right, sold and wrong, not sold or never answered, shape (rows,)."""
    names = np.where(
        table["accepted"], np.where(table["correct"], "sold right", "sold wrong"), "not sold"
    )
    return np.where(answered(table), names, NEVER)


def _column(name: str) -> Callable[[Table], NDArray[np.str_]]:
    return lambda table: table[name]


LABELS: Final[dict[str, Callable[[Table], NDArray[np.str_]]]] = {
    "tier": _column("tier"),
    "class": _column("class"),
    "difficulty": difficulty,
    "truth": truth,
}


def _ordered(labels: NDArray[np.str_]) -> Sequence[str]:
    """The labels that occur: difficulty from hard to easy, others by name."""
    found = {str(name) for name in np.unique(labels)}
    return [name for name in BANDS if name in found] or sorted(found)
