"""How far the steady state is from measured serving points: constants, errors by group, bands that hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import yaml

from sim.points import REPEATED, TOGETHER, Modelled
from sim.renewal import Floats
from sim.steady import Terms, calibrate, tpot, ttft

Key = tuple[str, str, bool, str]
"""(load test, engine, mixture of experts, model): what has constants of its own; model "" stands for any other."""
NOMINAL = 0.90
AIM = (0.80, 0.95)  # the coverage that a nominal band should have
_FIRST_LINE = "# Constants of engines under load tests, calibrated on public serving points (sim/steady.py says what they mean)."
_LEAN = 5.0  # points that a group's spread leans on all points with
_LEAST_ERROR = 0.02  # in log scale: no point is known better

# What to expect of engines before any calibration, where it is not Terms(). Answers of one length that started
# together end together, so that about three prompts come back at a time. SGLang prefills before it decodes: such
# clients wait for one another and decode undisturbed. Where prompts come again, an engine that reuses prefixes by
# default computes those of the first of ten rounds. Source: SGLang's default order of scheduling; vLLM V1's and
# TensorRT-LLM's default reuse of prefixes; three prompts: the median of TTFT over one prompt on the public points.
_EXPECTED: Mapping[tuple[str, str], Terms] = {
    (TOGETHER, "sglang"): Terms(prefill=0.5, alone=3.0, burst=1.0),
    (TOGETHER, "trtllm"): Terms(alone=3.0),
    (TOGETHER, "vllm"): Terms(alone=3.0),
    (REPEATED, "trtllm"): Terms(prefill=0.1, alone=1.0, burst=0.1),
    (REPEATED, "vllm"): Terms(prefill=0.1, alone=1.0, burst=0.1),
}


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


def expected(item: Modelled) -> Terms:
    """The constants that one expects of a point's engine and load test without calibration."""
    return _EXPECTED.get((item.point.harness, item.point.engine), Terms())


def calibrated(found: Sequence[Modelled]) -> dict[Key, Terms]:
    """Constants of each engine under each load test, dense models and mixtures of experts apart.

    Where several models were measured so, each has its own too, held by those of all.
    """
    made: dict[Key, Terms] = {}
    for name, group in _grouped(found, lambda item: key(item, "")).items():
        made[name] = _calibrated(group, expected(group[0]))
        apart = _grouped(group, key)
        if len(apart) > 1:
            made |= {own: _calibrated(items, made[name]) for own, items in apart.items()}
    return made


def _calibrated(group: Sequence[Modelled], prior: Terms) -> Terms:
    return calibrate(
        [item.parts for item in group],
        [item.point.tpot_s for item in group],
        [item.point.ttft_s for item in group],
        prior,
    )


def _grouped(found: Sequence[Modelled], by: Callable[[Modelled], Key]) -> dict[Key, list[Modelled]]:
    groups: dict[Key, list[Modelled]] = {}
    for item in found:
        groups.setdefault(by(item), []).append(item)
    return dict(sorted(groups.items()))


def key(item: Modelled, model: str | None = None) -> Key:
    """The constants that a point's prediction takes: its own model's, or those of `model`."""
    of = item.point.model if model is None else model
    return item.point.harness, item.point.engine, item.experts, of


@cache
def shipped() -> Mapping[Key, Terms]:
    """The calibrated constants that ship, sim/steady.yaml."""
    text = (Path(__file__).parent / "steady.yaml").read_text(encoding="utf-8")
    return {
        (row["load_test"], row["engine"], row["experts"], row["model"]): Terms(**row["terms"])
        for row in yaml.safe_load(text)["constants"]
    }


def to_yaml(constants: Mapping[Key, Terms], source: str, points: int) -> str:
    """The text of sim/steady.yaml."""
    rows = [
        {"load_test": load_test, "engine": engine, "experts": experts, "model": model,
         "terms": {name: float(f"{value:.3g}") for name, value in asdict(terms).items()}}
        for (load_test, engine, experts, model), terms in constants.items()
    ]  # fmt: skip
    head = {"source": source, "points": points, "made_by": "python tests/steady.py DATA"}
    document = yaml.safe_dump(
        head | {"constants": rows}, sort_keys=False, default_flow_style=None, width=110
    )
    return f"{_FIRST_LINE}\n\n{document}"


def terms_of(item: Modelled, constants: Mapping[Key, Terms]) -> Terms:
    """The constants of a point's model, else of its engine, load test and kind, else what one expects of them."""
    return constants.get(key(item)) or constants.get(key(item, "")) or expected(item)


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


def model_of(item: Modelled) -> str:
    """The model of a point."""
    return item.point.model


def kind_of(item: Modelled) -> str:
    """Whether a point's model is dense or a mixture (of experts)."""
    return "mixture" if item.experts else "dense"


def other_half(
    found: Sequence[Modelled], unit: Callable[[Modelled], str] = model_of
) -> tuple[Floats, Floats]:
    """Errors of TPOT and TTFT where each half of the units (models, loads) is predicted with the other's constants."""
    rates, firsts = np.empty(len(found)), np.empty(len(found))
    for learned, judged in _halves(found, unit, kind_of):
        constants = calibrated([found[i] for i in learned])
        items = [found[i] for i in judged]
        rates[judged], firsts[judged] = errors(items, partial(terms_of, constants=constants))
    return rates, firsts


def bands(found: Sequence[Modelled]) -> tuple[Bands, ...]:
    """Bands learned on each half of the models, judged on the other; the halves are every second model by name."""
    made = (
        _judged(found, learned, judged) for learned, judged in _halves(found, model_of, kind_of)
    )
    return tuple(made)


def survey(found: Sequence[Modelled]) -> Survey | None:
    """Bands learned on every half of the models there is, each judged on the rest; None for one model."""
    names = sorted({model_of(item) for item in found})
    sizes = {len(names) // 2, (len(names) + 1) // 2} - {0, len(names)}
    halves = [set(half) for size in sorted(sizes) for half in combinations(names, size)]
    made = [
        _judged(found, *_split(found, lambda item, half=half: model_of(item) in half))  # type: ignore[misc]
        for half in halves
    ]
    if not made:
        return None
    coverage, width = (
        np.array([getattr(half, name) for half in made]) for name in ("coverage", "width")
    )
    aims = (coverage >= AIM[0]) & (coverage <= AIM[1])
    return Survey(len(made), float(coverage.mean()), float(coverage.std()), float(aims.mean()),
                  float(width.mean()), float(np.quantile(width, 0.9)))  # fmt: skip


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
    return float(np.log(item.point.tpot_s / tpot(item.parts, expected(item))))


def _equal_models(found: Sequence[Modelled]) -> Floats:
    """Weights that sum to one in which every model counts the same."""
    names = [item.point.model for item in found]
    count = {name: names.count(name) for name in set(names)}
    return np.array([1 / count[name] / len(count) for name in names])


def load_of(item: Modelled) -> str:
    """What was measured: a load measured twice counts as one."""
    return repr(replace(item.point, ttft_s=0.0, tpot_s=0.0))


def _halves(
    found: Sequence[Modelled], unit: Callable[[Modelled], str], within: Callable[[Modelled], str]
) -> Iterable[tuple[list[int], list[int]]]:
    """(learn on, judge on), twice: every second unit by name, in each group of `within` apart."""
    first: set[str] = set()
    for group in sorted({within(item) for item in found}):
        first |= set(sorted({unit(item) for item in found if within(item) == group})[::2])
    ours, theirs = _split(found, lambda item: unit(item) in first)
    return ((ours, theirs), (theirs, ours)) if ours and theirs else ()


def _split(
    found: Sequence[Modelled], mine: Callable[[Modelled], bool]
) -> tuple[list[int], list[int]]:
    marks = [mine(item) for item in found]
    return [i for i, m in enumerate(marks) if m], [i for i, m in enumerate(marks) if not m]


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(char for char in name.split(" ")[0] if char.isdigit())
    return (int(digits) if name[:1].isdigit() and digits else 0, name)
