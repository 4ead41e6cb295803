"""How far the steady state is from measured serving points: constants of engines, errors by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import yaml

from sim.points import REPEATED, TOGETHER
from sim.points_modelled import Modelled, replica
from sim.points_played import played, plays
from sim.renewal import Floats
from sim.steady import Terms, calibrate, tpot, ttft

Key = tuple[str, str, bool, str]
"""(load test, engine, mixture of experts, model): what has constants of its own; model "" stands for any other."""
_FIRST_LINE = "# Constants of engines under load tests, calibrated on public serving points (sim/steady.py says what they mean)."

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
    group = [item for item in group if item.seen is None]
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


def predicted(item: Modelled, terms: Terms) -> tuple[float, float]:
    """TPOT and TTFT of a point in s: of the closed form, or as the batch played it where memory is short."""
    if item.seen is not None:
        return item.seen.tpot_s, item.seen.ttft_s
    return tpot(item.parts, terms), ttft(item.parts, terms)


def errors(
    found: Sequence[Modelled], constants: Callable[[Modelled], Terms]
) -> tuple[Floats, Floats]:
    """Relative errors of TPOT and TTFT of each point."""
    return _relative(found, [predicted(item, constants(item)) for item in found])


def played_errors(
    found: Sequence[Modelled], tell: Callable[[float, str], None] | None = None
) -> tuple[Floats, Floats]:
    """Relative errors of TPOT and TTFT of points that the batch plays; `tell` hears of the share that is done."""
    made = []
    for number, item in enumerate(found):
        if tell is not None:
            tell(number / len(found), f"playing {item.point.model}")
        cost, _, kv_tokens = replica(item.point)
        seen = item.seen or played(item.point, cost, kv_tokens)
        made.append((seen.tpot_s, seen.ttft_s))
    return _relative(found, made)


def playable(found: Sequence[Modelled]) -> list[Modelled]:
    """The points that the batch can play."""
    return [item for item in found if plays(item.point, replica(item.point)[2])]


def _relative(
    found: Sequence[Modelled], made: Sequence[tuple[float, float]]
) -> tuple[Floats, Floats]:
    rates = [rate / item.point.tpot_s - 1 for item, (rate, _) in zip(found, made, strict=True)]
    firsts = [first / item.point.ttft_s - 1 for item, (_, first) in zip(found, made, strict=True)]
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


def load_of(item: Modelled) -> str:
    """What was measured: a load measured twice, or with two versions of an engine, counts as one."""
    return repr(replace(item.point, ttft_s=0.0, tpot_s=0.0, version=""))


def other_half(
    found: Sequence[Modelled], unit: Callable[[Modelled], str] = model_of
) -> tuple[Floats, Floats]:
    """Errors of TPOT and TTFT where each half of the units (models, loads) is predicted with the other's constants.

    Where there is no other half the constants are the expected ones.
    """
    rates, firsts = errors(found, expected)
    for learned, judged in halves(found, unit, kind_of):
        constants = calibrated([found[i] for i in learned])
        items = [found[i] for i in judged]
        rates[judged], firsts[judged] = errors(items, partial(terms_of, constants=constants))
    return rates, firsts


def halves(
    found: Sequence[Modelled], unit: Callable[[Modelled], str], within: Callable[[Modelled], str]
) -> Iterable[tuple[list[int], list[int]]]:
    """(learn on, judge on), twice: every second unit by name, in each group of `within` apart."""
    first: set[str] = set()
    for group in sorted({within(item) for item in found}):
        first |= set(sorted({unit(item) for item in found if within(item) == group})[::2])
    ours, theirs = split(found, lambda item: unit(item) in first)
    return ((ours, theirs), (theirs, ours)) if ours and theirs else ()


def split(
    found: Sequence[Modelled], mine: Callable[[Modelled], bool]
) -> tuple[list[int], list[int]]:
    """The places of points that are `mine`, and of the others."""
    marks = [mine(item) for item in found]
    return [i for i, m in enumerate(marks) if m], [i for i, m in enumerate(marks) if not m]


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(char for char in name.split(" ")[0] if char.isdigit())
    return (int(digits) if name[:1].isdigit() and digits else 0, name)
