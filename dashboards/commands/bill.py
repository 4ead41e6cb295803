"""`treeline bill`: what a workload costs a month on nodes of one's own, and when an API would be cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dashboards.bills import bill as shown
from dashboards.commands.price import directories, played, stored
from dashboards.report import jsonable
from dashboards.terminal import stdout
from hw.device import CatalogError
from pricing.contract import price
from pricing.cost import rates
from pricing.elsewhere import elsewhere
from pricing.month import break_even_queries, month_bill
from scenarios.errors import UserError
from scenarios.loader import Loaded

__all__ = ["bill", "directories"]


def bill(
    loaded: Loaded | None,
    run: str | None,
    overrides: Sequence[str],
    against: Sequence[str],
    as_of: str | None,
    *,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> dict[str, Any]:
    """Print the bill of a month; `as_of` defaults to today (UTC). Raises UserError as the parts do."""
    resolved, result = stored(run, overrides) if run else played(loaded, workers, quiet)
    scenario = resolved.scenario
    try:
        priced = price(result, scenario, rates(scenario))
        found = month_bill(scenario, priced)
    except CatalogError as error:
        raise UserError(str(error)) from None
    day = as_of or datetime.now(UTC).date().isoformat()
    others = elsewhere(priced, list(against), day) if against else ()
    volumes = [break_even_queries(scenario, priced, item.one_answer) for item in others]
    if not as_json:
        stdout().print(shown(found, others, volumes))
    document = jsonable(found)
    assert isinstance(document, dict)
    document |= {
        "total_usd": found.total_usd,
        "year_usd": found.year_usd,
        "per_query": found.per_query,
    }
    for item, row in zip(found.nodes, document["nodes"], strict=True):
        row |= {"total_usd": item.total_usd, "gpu_hours": item.gpu_hours}
    document["elsewhere"] = [
        {**jsonable(item), "ours_is_cheaper_from_queries": volume}
        for item, volume in zip(others, volumes, strict=True)
    ]
    return document
