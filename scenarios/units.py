"""Human units to SI numbers and back: 800ms, 12/s, 141GB, 3.50 USD/h, 30%, 4000 tokens.

A bare number where a unit is due is an error that shows the fix. Decimal prefixes are powers of 1000
(GB = 1e9 bytes), binary ones powers of 1024 (GiB), as the International System of Units has them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from scenarios.errors import UserError

Quantity = Literal[
    "time", "rate", "bytes", "bandwidth", "flops", "money", "money_rate", "share", "tokens", "count"
]

_NUMBER: Final = r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_SPLIT: Final = re.compile(rf"\s*({_NUMBER})\s*(.*?)\s*", re.ASCII | re.DOTALL)
_DECIMAL: Final = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY: Final = {"Ki": 1024.0, "Mi": 1024.0**2, "Gi": 1024.0**3, "Ti": 1024.0**4}
_BYTES: Final = {f"{p}B": scale for p, scale in {**_DECIMAL, **_BINARY}.items()}


@dataclass(frozen=True, slots=True)
class _Kind:
    """One quantity: its units (first ones preferred by `show`), and what a bare number means."""

    what: str
    units: dict[str, float]
    shown: tuple[str, ...]
    bare: bool  # a number without a unit is fine
    fix: tuple[str, ...]  # units offered when one is missing
    space: str = ""
    example: str = ""


def _kinds() -> dict[str, _Kind]:
    time = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    rate = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600, "/d": 1 / 86400}
    flops = {f"{p}FLOP/s": s for p, s in _DECIMAL.items()}
    flops |= {f"{p}FLOPS": s for p, s in _DECIMAL.items()}
    return {
        "time": _Kind(
            "a time",
            time,
            ("d", "h", "min", "s", "ms", "us"),
            False,
            ("ms", "s"),
            "",
            "800ms, 5min",
        ),
        "rate": _Kind(
            "a rate", rate, ("/s", "/min", "/h"), False, ("/s", "/min"), "", "12/s, 3/min"
        ),
        "bytes": _Kind(
            "a size in bytes",
            _BYTES,
            ("TB", "GB", "MB", "KB", "B"),
            False,
            ("GB", "MB"),
            "",
            "141GB",
        ),
        "bandwidth": _Kind(
            "a bandwidth",
            {f"{unit}/s": scale for unit, scale in _BYTES.items()},
            ("TB/s", "GB/s", "MB/s", "B/s"),
            False,
            ("GB/s", "TB/s"),
            "",
            "4.8TB/s",
        ),
        "flops": _Kind(
            "a compute rate",
            flops,
            ("TFLOP/s", "GFLOP/s", "FLOP/s"),
            False,
            ("TFLOP/s",),
            " ",
            "989 TFLOP/s",
        ),
        "money": _Kind(
            "an amount of money", {"USD": 1.0}, ("USD",), False, ("USD",), " ", "0.02 USD"
        ),
        "money_rate": _Kind(
            "a price per hour", {"USD/h": 1.0}, ("USD/h",), False, ("USD/h",), " ", "3.50 USD/h"
        ),
        "share": _Kind("a share", {"%": 0.01}, ("%",), True, ("%",), "", "30% or 0.3"),
        "tokens": _Kind(
            "a number of tokens",
            {"tokens": 1.0, "token": 1.0},
            ("tokens",),
            True,
            ("tokens",),
            " ",
            "4000 tokens",
        ),
        "count": _Kind(
            "a count",
            {"trajectories": 1.0, "trajectory": 1.0},
            ("trajectories",),
            True,
            ("trajectories",),
            " ",
            "4 trajectories",
        ),
    }


_KINDS: Final = _kinds()


class UnitError(UserError, ValueError):
    """A value that is not the quantity it should be; `hint` is the fix."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}"


def parse(value: object, quantity: Quantity) -> float:
    """The SI number of a value as people write it: seconds, per second, bytes, USD, fraction, tokens.

    Never negative, NaN or infinite; a `money_rate` stays in USD per hour. Raises UnitError with the fix.
    """
    kind = _KINDS[quantity]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnitError(f"{quoted(value)} is not {kind.what}", f"write for example {kind.example}")
    if not isinstance(value, str):
        number, unit = _finite(value, kind), ""
    else:
        match = _SPLIT.fullmatch(value)
        if match is None:
            raise UnitError(f"{quoted(value)} is not {kind.what}", _way_out(value, kind))
        number, unit = _finite(match[1].replace("_", ""), kind), match[2]
    if number < 0:
        raise UnitError(f"{quoted(value)} is negative", f"{kind.what} is 0 or more")
    if not unit and kind.bare:
        return _bounded_share(number, value) if quantity == "share" else number
    if not unit:
        fixes = " or ".join(f"{_short(value)}{kind.space}{unit}" for unit in kind.fix)
        raise UnitError(f"{quoted(value)} has no unit, and {kind.what} needs one", f"write {fixes}")
    scale = kind.units.get(unit)
    if scale is None:
        raise UnitError(f"{quoted(unit)} is not a unit of {kind.what}", _units(unit, number, kind))
    # dividing by 60 or 100 is exact where multiplying by 1/60 or 0.01 is not
    amount = number * scale if scale >= 1 else number / round(1 / scale)
    return _bounded_share(amount, value) if quantity == "share" else amount


def multiple(value: object) -> float:
    """A factor as a number or in percent, any size: 2.0 and 200% are both 2. Raises UnitError."""
    kind = _KINDS["share"]
    if isinstance(value, str) and value.rstrip().endswith("%"):
        match = _SPLIT.fullmatch(value)
        if match is not None and match[2] == "%":
            value = _finite(match[1].replace("_", ""), kind) / 100
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnitError(f"{quoted(value)} is not a multiple", "write for example 100% or 2.0")
    if (number := _finite(value, kind)) < 0:
        raise UnitError(f"{quoted(value)} is negative", "a multiple is 0 or more")
    return number


def show(value: float, quantity: Quantity) -> str:
    """The value in the largest unit that says it in three decimals: 0.8 s is 800ms, 600 s is 10min.

    `parse(show(value, q), q)` is `value` to nine digits for every finite value that is not negative.
    """
    kind = _KINDS[quantity]
    if not math.isfinite(value):
        return str(value)
    if quantity == "count" or quantity == "tokens":
        return f"{value:.10g} {_plural(value, kind.shown[0])}"
    for unit in kind.shown:
        amount = value / kind.units[unit]
        if amount >= 1 and math.isclose(amount, round(amount, 3), rel_tol=1e-12):
            return f"{amount:.10g}{kind.space}{unit}"
    unit = next((u for u in kind.shown if value >= kind.units[u]), kind.shown[-1])
    if value == 0:
        unit = {"time": "s", "rate": "/s"}.get(quantity, kind.shown[-1])
    return f"{value / kind.units[unit]:.10g}{kind.space}{unit}"


def _plural(value: float, unit: str) -> str:
    return {"tokens": "token", "trajectories": "trajectory"}[unit] if value == 1 else unit


def _finite(number: str | float, kind: _Kind) -> float:
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise UnitError(
            f"{quoted(number)} is not a finite number", f"write for example {kind.example}"
        )
    return result


def _bounded_share(share: float, value: object) -> float:
    if share <= 1 + 1e-12:
        return min(share, 1.0)
    hint = "a share is at most 100%"
    if not isinstance(value, str) and share <= 100:
        hint = f"write {share:g}%"
    raise UnitError(f"{quoted(value)} is more than the whole", hint)


def _way_out(value: str, kind: _Kind) -> str:
    dollars = re.fullmatch(rf"\s*(?:\$|USD)\s*({_NUMBER})\s*(/h)?\s*", value, re.ASCII)
    if dollars and "USD" in "".join(kind.units):
        return f"write {dollars[1]} {kind.shown[0]}"
    return f"write for example {kind.example}"


_ALSO: Final = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "msec": "ms", "minute": "min",
    "minutes": "min", "mins": "min", "m": "min", "hour": "h", "hours": "h", "hr": "h", "hrs": "h",
    "day": "d", "days": "d", "per second": "/s", "/sec": "/s", "/second": "/s", "rps": "/s",
    "qps": "/s", "hz": "/s", "/minute": "/min", "/m": "/min", "/hour": "/h", "/day": "/d",
    "gb": "GB", "mb": "MB", "tb": "TB", "kb": "KB", "g": "GB", "$": "USD", "usd": "USD",
    "dollar": "USD", "dollars": "USD", "usd/hour": "USD/h", "usd/hr": "USD/h", "$/h": "USD/h",
    "percent": "%", "pct": "%", "tok": "tokens", "trajectorys": "trajectories",
}  # fmt: skip


def _units(unit: str, number: float, kind: _Kind) -> str:
    known = {name.lower(): name for name in kind.units}
    better = known.get(unit.lower()) or _ALSO.get(unit.lower())
    if better in kind.units:
        return f"did you mean {number:g}{kind.space}{better}?"
    return f"units: {', '.join(kind.units)}; for example {kind.example}"


def _short(value: object) -> str:
    text = str(value).strip()
    return text if len(text) <= 40 else f"{text[:37]}..."


def quoted(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(_short(value)) if isinstance(value, str) else _short(value)
