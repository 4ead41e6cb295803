"""The best menu as a what-if: its prices, promises and shares in a scenario that extends the one they were found for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dashboards.terminal import plain, quoted
from pricing.optimise import Optimised
from scenarios.arrivals import Gamma, Poisson
from scenarios.errors import UserError
from scenarios.loader import Loaded
from scenarios.prices import Price

_PER_USE = (
    "per_mtok_in", "per_mtok_out", "per_query", "per_trajectory", "per_answer", "per_outcome",
)  # fmt: skip


def check_writable(loaded: Loaded | None, overrides: Sequence[str], place: str) -> None:
    """Raise UserError, before anything runs, where the best menu could not be a what-if in `place`."""
    if loaded is None or overrides or loaded.sweep_cells():
        raise UserError(
            "--write needs one scenario file as it stands: no runs, no --set, no sweep."
        )
    if not isinstance(loaded.scenario.workload.arrivals, Poisson | Gamma):
        raise UserError(
            "--write thins the arrivals to those who buy, which needs arrivals of kind poisson or gamma."
        )
    if os.path.lexists(place):
        raise UserError(f"{plain(place)} exists already. Name another with --write.")
    if not Path(place).parent.is_dir():
        raise UserError(f"{plain(place)} cannot be written: its folder is not there.")


def write_menu(found: Optimised, loaded: Loaded, place: str) -> None:
    """Write the best menu of a scenario; only what differs from it. Raises UserError when unwritable."""
    arrivals = loaded.scenario.workload.arrivals
    assert isinstance(arrivals, Poisson | Gamma)
    best = found.regimes[-1]
    shares = [item.bought / best.served for item in best.sold]
    shares[-1] = 1 - sum(round(share, 9) for share in shares[:-1])
    tiers: dict[str, Any] = dict.fromkeys(loaded.scenario.tiers)
    for item, share in zip(best.sold, shares, strict=True):
        price = loaded.scenario.tiers[item.tier].price
        assert price is not None, "only tiers with a price are sold"
        tiers[item.tier] = {"share": round(share, 9), "price": _price(price, item.factor)}
        if item.promise is not None:
            tiers[item.tier]["promise"] = {"confidence": item.promise}
    document = {
        "extends": os.path.relpath(loaded.name, Path(place).parent or "."),
        "question": "What does the best menu earn when those who buy it are really served?",
        "workload": {"arrivals": {"rate": f"{arrivals.rate * best.served:.9g}/s"}},
        "tiers": tiers,
    }
    head = (
        f"# The best menu that `treeline price {quoted(loaded.name)} --optimise` found: prices, promises, and the\n"
        "# share of each tier among the queries of those who buy anything; the others do not arrive.\n"
    )
    text = head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    try:
        with Path(place).open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
    except OSError as error:
        raise UserError(f"{plain(place)} cannot be written: {error}. Name another.") from None


def _price(price: Price, factor: float) -> dict[str, Any]:
    """A tier's prices times a factor, those that are not nought."""

    def usd(amount: float) -> str:
        return f"{amount * factor:.6g} USD"

    found: dict[str, Any] = {
        key: usd(getattr(price, key)) for key in _PER_USE if getattr(price, key)
    }
    if price.levels:
        found["levels"] = {f"{100 * bound:g}%": usd(amount) for bound, amount in price.steps}
    return found
