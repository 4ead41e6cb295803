"""`treeline frontier`: for a quality target and a query volume, where the next dollar goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from rich.console import Group
from rich.table import Table

from hw.device import CatalogError, device
from models.scaling import (
    WORTH,
    Choice,
    chinchilla_flops,
    chinchilla_loss,
    frontier,
    optimal_model,
)
from scenarios.errors import UserError

UTILISATION = {"training": 0.40, "inference": 0.30}
"""Share of the dense BF16 peak that training and decoding in batches reach. Source: assumed, 2026-11-25."""


COARSE_SIZES: Final = tuple(10 ** (8 + i / 12) for i in range(61))
COARSE_THINKING: Final = tuple(10 ** (i / 4) for i in range(23))


def quality(text: str) -> float:
    """A quality target as a loss: a number (nats a token), or 70B for a compute-optimal model of that size.

    Raises: UserError for a text that is neither.
    """
    unit = {"M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper())
    try:
        number = float(text[:-1] if unit else text)
    except ValueError:
        number = -1.0
    if number <= 0:
        raise UserError(
            f"{text!r} is no quality: give a loss such as 2.0, or 70B for a model of that size."
        )
    if unit is None:
        return number
    low, high = 10.0, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if optimal_model(10**middle)[0] < number * unit else (low, middle)
        )
    return chinchilla_loss(10**high)


def frontier_of(
    target: float, queries: float, tokens: float, verification: str, device_name: str
) -> dict[str, Any]:
    """The cheapest ways to a quality, in USD, with training alone and with thinking beside them.

    Raises: UserError for a loss that no model reaches, an unknown device or kind of verification.
    """
    if verification not in WORTH:
        raise UserError(f"There is no kind of verification {verification!r}: {', '.join(WORTH)}.")
    if queries <= 0 or tokens <= 0:
        raise UserError("The queries and the tokens of each must be above 0.")
    try:
        chosen = device(device_name)
        ways = frontier(target, queries, tokens, verification)
    except (CatalogError, ValueError) as error:
        raise UserError(str(error)) from None
    rate = chosen.usd_per_hour / 3600
    price = {name: rate / (chosen.flops_bf16 * share) for name, share in UTILISATION.items()}

    def usd(choice: Choice) -> dict[str, float]:
        train, infer = (
            choice.train_flops * price["training"],
            choice.infer_flops * price["inference"],
        )
        return {"train_usd": train, "infer_usd": infer, "usd": train + infer}

    ways.sort(key=lambda choice: usd(choice)["usd"])
    best = ways[0]
    size, _ = optimal_model(chinchilla_flops(target))
    plain = next(c for c in ways if c.thinking == 1.0)
    near = min((c for c in ways if c.thinking == 1.0), key=lambda c: abs(c.parameters / size - 1))
    rows = [
        ("cheapest in all", best),
        ("no thinking, cheapest", plain),
        ("no thinking, Chinchilla", near),
    ]
    return {
        "target_loss": target,
        "queries": queries,
        "tokens_per_query": tokens,
        "verification": verification,
        "device": chosen.name,
        "usd_per_hour": chosen.usd_per_hour,
        "utilisation": UTILISATION,
        "ways": [{"way": name} | asdict(choice) | usd(choice) for name, choice in rows],
        "next_dollar": _next_dollar(ways, best, usd),
        "thinking_stops_paying_at_queries": _break_even(target, tokens, verification, price),
    }


def _break_even(
    target: float, tokens: float, verification: str, price: Mapping[str, float]
) -> float | None:
    """The volume, to half a decade, from which the cheapest way thinks no longer than a plain answer."""
    for half_decade in range(6, 37):
        queries = 10 ** (half_decade / 2)
        best = min(
            frontier(target, queries, tokens, verification, COARSE_SIZES, COARSE_THINKING),
            key=lambda c: c.train_flops * price["training"] + c.infer_flops * price["inference"],
        )
        if best.thinking == 1.0:
            return float(queries)
    return None


def _next_dollar(ways: list[Choice], best: Choice, usd: Any) -> dict[str, Any]:
    """Which side a dollar more is better spent on: the cheapest way with more of each than the best's."""
    sides = {}
    for name, more in (
        ("training", [c for c in ways if c.train_flops > best.train_flops]),
        ("thinking", [c for c in ways if c.thinking > best.thinking]),
    ):
        cheapest = min(more, key=lambda c: usd(c)["usd"], default=None)
        sides[name] = None if cheapest is None else usd(cheapest)["usd"] - usd(best)["usd"]
    spent = usd(best)
    larger = "training" if spent["train_usd"] > spent["infer_usd"] else "inference"
    return {"extra_usd_of_more": sides, "most_is_spent_on": larger}


def picture(found: dict[str, Any]) -> Group:
    """The document of `frontier_of` for people."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in (
        "way",
        "parameters",
        "training tokens",
        "thinking",
        "training",
        "inference",
        "in all",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in found["ways"]:
        table.add_row(
            way["way"],
            _big(way["parameters"]),
            _big(way["train_tokens"]),
            f"x {way['thinking']:,.3g}",
            *(f"{_big(way[key])} USD" for key in ("train_usd", "infer_usd", "usd")),
        )
    spent, until = found["next_dollar"], found["thinking_stops_paying_at_queries"]
    best, plain = found["ways"][0], found["ways"][1]
    saved = 1 - best["usd"] / plain["usd"]
    sentence = (
        f"For a loss of {found['target_loss']:g} and {_big(found['queries'])} queries of "
        f"{found['tokens_per_query']:,.0f} tokens, the cheapest model has {_big(best['parameters'])} "
        f"parameters and thinks {best['thinking']:,.3g} times as long; that saves {saved:.0%} of the best "
        f"way without thinking. Most is spent on {spent['most_is_spent_on']}. "
        + (
            "The next dollar goes into thinking at every volume."
            if until is None
            else f"Below about {_big(until)} queries the next dollar goes into thinking, above into training."
        )
    )
    source = (
        f"{found['device']} at {found['usd_per_hour']:.2f} USD/h; training at {UTILISATION['training']:.0%} "
        f"and inference at {UTILISATION['inference']:.0%} of its BF16 peak (assumed). Loss: Hoffmann et al. "
        "2022; FLOPs: Sardana et al. 2024; thinking for training: Epoch 2023. Orders of magnitude, no quote."
    )
    return Group(sentence, "", table, "", source)


def _big(x: float) -> str:
    for power, unit in ((15, "Q"), (12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if x >= 10**power:
            return f"{x / 10**power:,.3g} {unit}"
    return f"{x:,.3g}"
