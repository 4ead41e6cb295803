"""Bands of TPOT that hold on models they have not seen: a group's spread times a quantile of what was missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb

import numpy as np

from sim.points import REPEATED
from sim.points_accuracy import expected, halves, kind_of, model_of, predicted, split
from sim.points_modelled import Modelled
from sim.renewal import Floats

NOMINAL = 0.90
AIM = (0.80, 0.95)  # the coverage that a nominal band should have
_LEAN = 5.0  # points that a group's spread leans on all points with
_LEAST_ERROR = 0.02  # in log scale: no point is known better
_MOST_HALVES = 500


@dataclass(frozen=True, slots=True)
class Bands:
    """Bands of TPOT around predictions with expected constants, learned on one half of the models.

    `coverage` is the share of the other half's points inside; `width` the median of half a band's width over
    its prediction.
    """

    learned_on: tuple[str, ...]
    coverage: float
    width: float
    points: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Bands over every split of the models into halves: their mean coverage, its deviation, and widths.

    `aimed` is the share of splits whose coverage lies in AIM.
    """

    splits: int
    coverage: float
    deviation: float
    aimed: float
    width: float
    width_p90: float


def bands(found: Sequence[Modelled]) -> tuple[Bands, ...]:
    """Bands learned on each half of the models, judged on the other; the halves are every second model by name."""
    made = (_judged(found, learned, judged) for learned, judged in halves(found, model_of, kind_of))
    return tuple(made)


def survey(found: Sequence[Modelled]) -> Survey | None:
    """Bands learned on every half of the models there is, or on many drawn ones; None for one model."""
    made = [
        _judged(found, *split(found, partial(_among, half)))
        for half in _every_half(sorted({model_of(item) for item in found}))
    ]
    if not made:
        return None
    coverage = np.array([half.coverage for half in made])
    width = np.array([half.width for half in made])
    aims = (coverage >= AIM[0]) & (coverage <= AIM[1])
    return Survey(len(made), float(coverage.mean()), float(coverage.std()), float(aims.mean()),
                  float(width.mean()), float(np.quantile(width, 0.9)))  # fmt: skip


def _every_half(names: Sequence[str]) -> list[frozenset[str]]:
    sizes = sorted({len(names) // 2, (len(names) + 1) // 2} - {0, len(names)})
    if sum(comb(len(names), size) for size in sizes) <= _MOST_HALVES:
        return [frozenset(half) for size in sizes for half in combinations(names, size)]
    rng = np.random.default_rng(0)
    return [
        frozenset(rng.permutation(names)[: sizes[number % len(sizes)]].tolist())
        for number in range(_MOST_HALVES)
    ]


def _among(names: frozenset[str], item: Modelled) -> bool:
    return model_of(item) in names


def _judged(found: Sequence[Modelled], learned: list[int], judged: list[int]) -> Bands:
    train, test = ([found[i] for i in at] for at in (learned, judged))
    half = _half_widths(train, test)
    inside = np.abs([_miss(item) for item in test]) <= half
    names = tuple(sorted({model_of(item) for item in train}))
    return Bands(names, float(inside.mean()), float(np.median(np.sinh(half))), len(judged))


def _half_widths(train: Sequence[Modelled], test: Sequence[Modelled]) -> Floats:
    """Half of each band in log scale: a group's spread times the quantile of misses over their group's spread.

    The spread of a group (experts or not, prompts repeated or not) leans on that of all where it has few points.
    """
    groups = [_group(item) for item in train]
    miss = np.abs([_miss(item) for item in train])
    size = np.log(miss + _LEAST_ERROR)
    spread = {
        group: float(np.exp((size[at].sum() + _LEAN * size.mean()) / (at.sum() + _LEAN)))
        for group, at in ((group, np.array([g == group for g in groups])) for group in set(groups))
    }
    scaled = miss / [spread[group] for group in groups]
    order = np.argsort(scaled)
    share = np.cumsum(_equal_models(train)[order])
    widest = scaled[order][min(int(np.searchsorted(share, NOMINAL)), len(order) - 1)]
    return np.array(
        [widest * spread.get(_group(item), float(np.exp(size.mean()))) for item in test]
    )


def _group(item: Modelled) -> tuple[bool, bool]:
    return item.experts, item.point.harness == REPEATED


def _miss(item: Modelled) -> float:
    return float(np.log(item.point.tpot_s / predicted(item, expected(item))[0]))


def _equal_models(found: Sequence[Modelled]) -> Floats:
    """Weights that sum to one in which every model counts the same."""
    names = [item.point.model for item in found]
    count = {name: names.count(name) for name in set(names)}
    return np.array([1 / count[name] / len(count) for name in names])
