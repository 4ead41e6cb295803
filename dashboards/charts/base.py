"""What every chart shares: colours for everyone, few marks, units on every axis, a description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import altair as alt
import numpy as np

Chart: TypeAlias = Any  # an altair chart: its own types do not survive layering

POINTS: Final = 240
"""Marks per line at most, so that a million-query run draws as fast as a small one."""

# Okabe and Ito, Color Universal Design, 2008: distinguishable with every common colour blindness.
PALETTE: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


GREY: Final = "#888888"  # seen on white and on black
MARKS: Final = 5000
"""Marks of a chart at most; many tiers share them."""


def colour(field: str, names: Sequence[str], columns: int = 3) -> alt.Color:
    """A colour a name, in the palette's order, explained below the chart."""
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=colours)
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend(columns))


def legend(columns: int = 3) -> alt.Legend:
    """A legend below the chart that fits a phone."""
    return alt.Legend(orient="bottom", columns=columns, labelLimit=150)


def few() -> alt.Axis:
    """An axis of few ticks."""
    return alt.Axis(tickCount=8)


def percent() -> alt.Axis:
    """An axis of shares."""
    return alt.Axis(format="%", tickCount=5)


def every() -> alt.Axis:
    """An axis that names every row."""
    return alt.Axis(labelOverlap=False, labelLimit=160)


def unit() -> alt.Scale:
    """The scale of a share."""
    return alt.Scale(domain=[0, 1])


def log(values: Iterable[float]) -> alt.Scale:
    """A logarithmic scale that just holds the values; without any it is 0.1 to 10."""
    found = [value for value in values if value > 0] or [0.1, 10.0]
    return alt.Scale(type="log", nice=False, domain=[0.9 * min(found), 1.1 * max(found)])


def thin(n: int, most: int = POINTS) -> Any:
    """Indices of at most `most` of n sorted values, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)) if n else np.array([], int)


def inline(values: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as inline data of a chart."""
    return alt.Data(values=list(values))  # type: ignore[no-untyped-call]
