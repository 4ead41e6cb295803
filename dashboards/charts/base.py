"""What every chart shares: colours for everyone, few marks, units on every axis, a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import altair as alt
import numpy as np

Chart: TypeAlias = Any  # an altair chart: its own types do not survive layering

POINTS: Final = 240
"""Marks per line at most, so that a million-query run draws as fast as a small one."""

# Okabe and Ito, Color Universal Design, 2008: distinguishable with every common colour blindness.
PALETTE: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


def colour(field: str, names: Sequence[str], title: str | None = None) -> alt.Color:
    """A colour a name, in the palette's order, explained below the chart."""
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=colours)
    legend = alt.Legend(orient="bottom", labelLimit=220, columns=3)
    return alt.Color(f"{field}:N", title=title, scale=scale, legend=legend)


def unit() -> alt.Scale:
    """The scale of a share."""
    return alt.Scale(domain=[0, 1])


def thin(n: int, most: int = POINTS) -> Any:
    """Indices of at most `most` of n sorted values, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)) if n else np.array([], int)


def inline(values: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as inline data of a chart."""
    return alt.Data(values=list(values))  # type: ignore[no-untyped-call]
