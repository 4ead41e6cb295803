"""How far the steady state is from measured serving points: constants, errors by group, bands that hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import yaml

from sim.points import TOGETHER, Modelled
from sim.renewal import Floats
from sim.steady import Parts, Terms, calibrate, tpot, ttft

Key = tuple[str, str, bool]
"""(load test, engine, mixture of experts): what has constants of its own."""
NOMINAL = 0.90
_RIDGE = 5.0
_LEAST_ERROR = 0.02  # in log scale: no point is known better

# What to expect of engines before any calibration. SGLang prefills before it decodes, so that clients who start
# together wait for one another and decode undisturbed. Source: its scheduler's default order.
_TOGETHER_FIRST = Terms(prefill=0.5, burst=1.0)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors, predicted / measured - 1, of one quantity in one group of points."""

    points: int
    median: float  # of the absolute error
    mean: float  # of the absolute error
    p90: float  # of the absolute error
    signed: float  # median


@dataclass(frozen=True, slots=True)
class Bands:
    """Bands of TPOT around predictions without calibrated constants, learned on one half of the models.

    `coverage` is the share of the other half's points inside; `width` the median of half a band's width over
    its prediction.
    """

    learned_on: tuple[str, ...]
    coverage: float
    width: float
    points: int


def expected(item: Modelled) -> Terms:
    """The constants that one expects of a point's engine and load test without calibration."""
    first = (item.point.harness, item.point.engine) == (TOGETHER, "sglang")
    return _TOGETHER_FIRST if first else Terms()


def calibrated(found: Sequence[Modelled]) -> dict[Key, Terms]:
    """Constants of each engine under each load test, dense models and mixtures of experts apart."""
    groups: dict[Key, list[Modelled]] = {}
    for item in found:
        groups.setdefault(key(item), []).append(item)
    return {
        name: calibrate(
            [item.parts for item in group],
            [item.point.tpot_s for item in group],
            [item.point.ttft_s for item in group],
            expected(group[0]),
        )
        for name, group in sorted(groups.items())
    }


def key(item: Modelled) -> Key:
    """The constants that a point's prediction takes."""
    return item.point.harness, item.point.engine, item.experts


@cache
def shipped() -> Mapping[Key, Terms]:
    """The calibrated constants that ship, sim/steady.yaml."""
    text = (Path(__file__).parent / "steady.yaml").read_text(encoding="utf-8")
    return {
        (row["load_test"], row["engine"], row["experts"]): Terms(**row["terms"])
        for row in yaml.safe_load(text)["constants"]
    }


def to_yaml(constants: Mapping[Key, Terms], source: str, points: int) -> str:
    """The text of sim/steady.yaml."""
    rows = [
        {"load_test": load_test, "engine": engine, "experts": experts,
         "terms": {name: float(f"{value:.3g}") for name, value in asdict(terms).items()}}
        for (load_test, engine, experts), terms in constants.items()
    ]  # fmt: skip
    head = {"source": source, "points": points, "made_by": "python tests/steady.py DATA"}
    return yaml.safe_dump(head | {"constants": rows}, sort_keys=False)


def terms_of(item: Modelled, constants: Mapping[Key, Terms]) -> Terms:
    """The constants of a point's engine, load test and kind of model; else what one expects of them."""
    return constants.get(key(item)) or expected(item)


def errors(
    found: Sequence[Modelled], constants: Callable[[Modelled], Terms]
) -> tuple[Floats, Floats]:
    """Relative errors of TPOT and TTFT of each point."""
    rates = [tpot(item.parts, constants(item)) / item.point.tpot_s - 1 for item in found]
    firsts = [ttft(item.parts, constants(item)) / item.point.ttft_s - 1 for item in found]
    return np.array(rates), np.array(firsts)


def summary(relative: Floats) -> Errors:
    """Errors of a group."""
    size = np.abs(relative)
    return Errors(len(relative), float(np.median(size)), float(np.mean(size)),
                  float(np.quantile(size, 0.9)), float(np.median(relative)))  # fmt: skip


def groups(
    found: Sequence[Modelled], by: Callable[[Modelled], str], relative: tuple[Floats, Floats]
) -> dict[str, tuple[Errors, Errors]]:
    """Errors of TPOT and TTFT for each value of `by`, in order."""
    names = [by(item) for item in found]
    listed = sorted(set(names), key=_natural)
    marks = {name: np.array([other == name for other in names]) for name in listed}
    return {
        name: (summary(relative[0][mark]), summary(relative[1][mark]))
        for name, mark in marks.items()
    }


def other_half(found: Sequence[Modelled]) -> tuple[Floats, Floats]:
    """Errors of TPOT and TTFT where each half of the models is predicted with the other's constants."""
    rates, firsts = np.empty(len(found)), np.empty(len(found))
    for learned, judged in _halves(found):
        constants = calibrated([found[i] for i in learned])
        items = [found[i] for i in judged]
        rates[judged], firsts[judged] = errors(items, partial(terms_of, constants=constants))
    return rates, firsts


def bands(found: Sequence[Modelled]) -> tuple[Bands, ...]:
    """Bands learned on each half of the models, judged on the other; dense and mixtures apart."""
    made = []
    for learned, judged in _halves(found):
        inside, width = np.zeros(len(judged), bool), np.empty(len(judged))
        for experts in (False, True):
            train = [found[i] for i in learned if found[i].experts == experts]
            at = [j for j, i in enumerate(judged) if found[i].experts == experts]
            test = [found[judged[j]] for j in at]
            if not test:
                continue
            low, high = _band(train or [found[i] for i in learned], test)
            miss = np.array([_miss(item) for item in test])
            inside[at] = (miss >= low) & (miss <= high)
            width[at] = (np.exp(high) - np.exp(low)) / 2
        names = tuple(sorted({found[i].point.model for i in learned}))
        made.append(Bands(names, float(inside.mean()), float(np.median(width)), len(judged)))
    return tuple(made)


def _band(train: Sequence[Modelled], test: Sequence[Modelled]) -> tuple[Floats, Floats]:
    """Lower and upper bound of log(measured / predicted): quantiles of misses over their expected size."""
    from sklearn.linear_model import Ridge

    miss = np.array([_miss(item) for item in train])
    x = np.array([_features(item.parts) for item in train])
    size = Ridge(alpha=_RIDGE).fit(x, np.log(np.abs(miss) + _LEAST_ERROR))
    scaled = miss / np.exp(size.predict(x))
    weight = _equal_models(train)
    order = np.argsort(scaled)
    share = np.cumsum(weight[order])
    tail = (1 - NOMINAL) / 2
    ends = np.minimum(np.searchsorted(share, [tail, 1 - tail]), len(order) - 1)
    low, high = scaled[order][ends]
    spread = np.exp(size.predict(np.array([_features(item.parts) for item in test])))
    return low * spread, high * spread


def _miss(item: Modelled) -> float:
    return float(np.log(item.point.tpot_s / tpot(item.parts, expected(item))))


def _features(found: Parts) -> tuple[float, float, float, float]:
    """What makes a prediction uncertain: prefill's share, waiting, the batch, the step."""
    prefill = found.share_s / (found.step_s + found.share_s)
    return prefill, float(found.waiting > 0.02), np.log(found.batch), np.log(1e3 * found.step_s)


def _equal_models(found: Sequence[Modelled]) -> Floats:
    """Weights that sum to one in which every model counts the same."""
    names = [item.point.model for item in found]
    count = {name: names.count(name) for name in set(names)}
    return np.array([1 / count[name] / len(count) for name in names])


def _halves(found: Sequence[Modelled]) -> Iterable[tuple[list[int], list[int]]]:
    """(learn on, judge on), twice: every second model by name, dense and mixtures apart."""
    first: set[str] = set()
    for experts in (False, True):
        names = sorted({item.point.model for item in found if item.experts == experts})
        first |= set(names[::2])
    ours = [i for i, item in enumerate(found) if item.point.model in first]
    theirs = [i for i, item in enumerate(found) if item.point.model not in first]
    return ((ours, theirs), (theirs, ours)) if ours and theirs else ()


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(char for char in name.split(" ")[0] if char.isdigit())
    return (int(digits) if name[:1].isdigit() and digits else 0, name)
