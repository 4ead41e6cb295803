"""Figures become words for people: seconds, USD, shares, intervals and small drawings in plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scenarios.errors import printable
from sim.estimate import Estimate, Floats

_BARS = "▁▂▃▄▅▆▇█"
_NONE = "-"


def name(text: str, longest: int = 40) -> str:
    """A name from a scenario, with control characters escaped, on one line and of bounded length."""
    safe = printable(text).replace("\n", "\\n")
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


def number(value: float, digits: int = 3) -> str:
    """Three significant digits with separators: 0.123, 12.3, 12,300."""
    if math.isnan(value):
        return _NONE
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def seconds(value: float) -> str:
    """Seconds as ms below one second; inf is "never"."""
    if math.isinf(value):
        return "never"
    if math.isnan(value):
        return _NONE
    return f"{number(value * 1e3)} ms" if 0 < abs(value) < 1 else f"{number(value)} s"


def share(value: float) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return _NONE if math.isnan(value) else f"{round(100 * value, 1) + 0.0:.1f} %"


def usd(value: float) -> str:
    """USD: two decimals from one dollar up, three significant digits below."""
    if math.isnan(value):
        return _NONE
    if math.isinf(value):
        return "inf"
    sign, amount = ("-" if value < 0 else ""), abs(value)
    return f"{sign}${amount:,.2f}" if amount >= 1 or amount == 0 else f"{sign}${number(amount)}"


def plus_minus(found: Estimate, scale: float = 1.0) -> str:
    """The half-width of an interval such as "±1.2"; empty where there is none."""
    half = max(found.high - found.value, found.value - found.low)
    return "" if math.isnan(half) else f"±{number(half * scale, 2)}"


def share_interval(found: Estimate) -> str:
    """A share with its interval: "83.1 % ±1.2"."""
    return f"{share(found.value)} {plus_minus(found, 100)}".rstrip()


def change(value: float, unit: str) -> str:
    """A signed difference in its unit; of shares, in percentage points."""
    if math.isnan(value):
        return _NONE
    sign = "+" if value > 0 else ""
    if unit == "share":
        return f"{sign}{100 * value:.1f} pt"
    if unit == "s" and math.isinf(value):
        return "becomes never" if value > 0 else "no longer never"
    return sign + quantity(value, unit)


def quantity(value: float, unit: str) -> str:
    """A figure in one of the units that comparisons use."""
    if unit == "s":
        return seconds(value)
    if unit == "USD":
        return usd(value)
    if unit == "share":
        return share(value)
    return number(value)


def range_of(found: Estimate, unit: str) -> str:
    """The ends of an interval of a change: "[-3.1 s, -1.2 s]"; "-" where there is none."""
    if math.isnan(found.low) or math.isnan(found.high):
        return _NONE
    return f"[{change(found.low, unit)}, {change(found.high, unit)}]"


def histogram(values: Floats, low: float, high: float, bins: int = 16) -> str:
    """How often values fall in `bins` steps of equal ratio from low to high, as a row of bars."""
    kept = values[np.isfinite(values) & (values > 0)]
    if not kept.size or not 0 < low < high:
        return ""
    edges = np.geomspace(low * (1 - 1e-12), high * (1 + 1e-12), bins + 1)
    counts, _ = np.histogram(kept, edges)
    top = max(int(counts.max()), 1)
    return "".join(" " if not n else _BARS[min(7, int(8 * n / top))] for n in counts.tolist())


def sentence_of(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
