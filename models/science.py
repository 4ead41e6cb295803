"""Published comparisons, run again: target, ours, tolerance, size, standard error, verdict.

An experiment is a function of a scale (1: the default number of questions) that returns rows; EXPERIMENTS
names them. A row is judged by one rule: `within` a tolerance of a target, `at_least` or `at_most` a bound,
or `shown` beside another and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Rule = Literal["within", "at_least", "at_most", "shown"]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `n` is what ours rests on (questions), `se` its standard error."""

    experiment: str
    claim: str
    ours: float
    rule: Rule
    target: float = math.nan
    tolerance: float = 0.0
    n: int = 0
    se: float = math.nan
    source: str = ""

    @property
    def verdict(self) -> str:
        """`holds`, `missed`, `open` (a bound closer than two standard errors), or nothing to judge."""
        if self.rule == "shown":
            return ""
        if self.rule == "within":
            return "holds" if abs(self.ours - self.target) <= self.tolerance + 1e-12 else "missed"
        beyond = self.ours - self.target if self.rule == "at_least" else self.target - self.ours
        if beyond < 0:
            return "missed"
        return "open" if beyond < 2 * self.se else "holds"


Experiment = Callable[[float], list[Row]]


def experiments() -> Mapping[str, Experiment]:
    """Every experiment by name, in the order in which a page shows them."""
    from models import science_search, science_tables, science_verifiers

    return MappingProxyType(
        science_tables.EXPERIMENTS | science_search.EXPERIMENTS | science_verifiers.EXPERIMENTS
    )


def run(
    names: Sequence[str] = (), scale: float = 1.0, tell: Callable[[float, str], None] | None = None
) -> list[Row]:
    """Run the named experiments, all of them by default.

    `scale` multiplies the number of questions; `tell` hears the share done and what runs next. Raises
    KeyError for a name that is none.
    """
    known = experiments()
    chosen = list(names) or list(known)
    rows: list[Row] = []
    for number, name in enumerate(chosen):
        if tell is not None:
            tell(number / len(chosen), name)
        rows += known[name](scale)
    return rows


LEAST: Final = 200  # questions of an experiment, whatever the scale


def size(n: int, scale: float) -> int:
    """How many questions an experiment of `n` takes at this scale."""
    return max(LEAST, round(n * scale))


def mean(values: npt.NDArray[np.bool_] | npt.NDArray[np.float64]) -> tuple[float, float, int]:
    """Mean, its standard error, and how many there are."""
    x = np.asarray(values, dtype=np.float64)
    spread = float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return float(x.mean()), spread, len(x)
