"""Distributions of lengths as quantile functions: one uniform in, one number of tokens out.

Drawing by quantile keeps randomness keyed (models/keyed.py) and lets lengths be correlated or truncated
after the draw without disturbing anything else.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any

from models.keyed import normal_quantile

Quantile = Callable[[float], float]

KINDS = ("constant", "lognormal", "uniform", "empirical", "quantiles")


def quantile(spec: Any) -> Quantile:
    """The quantile function (0, 1) -> tokens of a distribution, given as a mapping or an object.

    Kinds: constant{value}, lognormal{median, sigma}, uniform{low, high}, empirical{values, probs}, and
    quantiles{probs, values} (lognormal between the given points, and beyond them); each with an
    optional `min` and `max` that clip. A plain number is a constant. Raises ValueError otherwise.
    """
    if isinstance(spec, (int, float)):
        spec = {"kind": "constant", "value": spec}

    def read(name: str) -> Any:
        return spec.get(name) if isinstance(spec, Mapping) else getattr(spec, name, None)

    draw = _shape(str(read("kind")), read)
    low, high = read("min"), read("max")
    if low is None and high is None:
        return draw
    floor = -math.inf if low is None else float(low)
    ceiling = math.inf if high is None else float(high)
    if not floor <= ceiling:
        raise ValueError(f'"min" ({floor:g}) must be <= "max" ({ceiling:g}) in a distribution.')
    return lambda u: min(max(draw(u), floor), ceiling)


def _shape(kind: str, read: Callable[[str], Any]) -> Quantile:
    if kind not in KINDS:
        raise ValueError(f"Unknown kind of distribution {kind!r}. Known: {', '.join(KINDS)}.")
    if kind in ("empirical", "quantiles"):
        values, probs = _numbers(kind, read, "values"), _numbers(kind, read, "probs")
        if not values or len(values) != len(probs):
            raise ValueError(
                f'A {kind} distribution needs "values" and "probs" of one length >= 1.'
            )
        return _empirical(values, probs) if kind == "empirical" else _between(values, probs)
    if kind == "lognormal":
        median, sigma = _number(kind, read, "median"), _number(kind, read, "sigma")
        if median <= 0:
            raise ValueError('"median" of a lognormal distribution must be > 0.')
        return lambda u: median * math.exp(sigma * normal_quantile(u))
    low, high = ("value", "value") if kind == "constant" else ("low", "high")
    start, end = _number(kind, read, low), _number(kind, read, high)
    if start > end:
        raise ValueError(f'"low" ({start:g}) must be <= "high" ({end:g}).')
    return lambda u: start + (end - start) * u


def _number(kind: str, read: Callable[[str], Any], name: str) -> float:
    return _finite(kind, name, read(name))


def _numbers(kind: str, read: Callable[[str], Any], name: str) -> list[float]:
    return [_finite(kind, name, value) for value in read(name) or ()]


def _finite(kind: str, name: str, value: Any) -> float:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and value >= 0):
        raise ValueError(
            f'"{name}" of a {kind} distribution must be finite and >= 0, got {value!r}.'
        )
    return float(value)


def _empirical(values: list[float], probs: list[float]) -> Quantile:
    pairs = sorted(zip(values, probs, strict=True))
    edges = list(accumulate(p for _, p in pairs))
    total = edges[-1]
    if total <= 0:
        raise ValueError('"probs" of an empirical distribution must have a positive sum.')
    last = len(pairs) - 1
    return lambda u: pairs[min(bisect_right(edges, u * total), last)][0]


def _between(values: list[float], probs: list[float]) -> Quantile:
    rising = all(a < b for a, b in pairwise(probs))
    growing = all(a <= b for a, b in pairwise(values))
    if len(values) < 2 or not (rising and growing and probs[0] > 0 and probs[-1] < 1):
        raise ValueError('"probs" must rise inside (0, 1) and "values" with them, two or more.')
    if values[0] <= 0:
        raise ValueError('"values" of a quantiles distribution must be > 0.')
    z = [normal_quantile(p) for p in probs]
    logs = [math.log(v) for v in values]
    slopes = [(logs[i + 1] - logs[i]) / (z[i + 1] - z[i]) for i in range(len(z) - 1)]
    inner = probs[1:-1]

    def draw(u: float) -> float:
        i = bisect_right(inner, u)
        return math.exp(logs[i] + slopes[i] * (normal_quantile(u) - z[i]))

    return draw
