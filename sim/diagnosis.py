"""Which term of the engine model explains what is left: simulate with one term changed at a time.

A term that is off moves TTFT, TPOT and E2E in its own proportions. Each term is changed by a known step;
how the errors answer tells how far it would have to move to explain them best, and how much of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.latency import StepCost
from sim.resolve import Resolved

QUANTITIES: Final = tuple(
    (metric, statistic)
    for metric in ("TTFT", "TPOT", "E2E")
    for statistic in ("mean", "p50", "p90")
)
"""The errors that a term has to explain, (metric, statistic)."""

Errors = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Term:
    """One named term, how it is changed, and what would explain the errors best."""

    name: str
    change: str  # what was changed, in words
    answer: Mapping[str, float]  # change of the mean error of each metric
    needed: float  # steps of that change that explain the errors best
    explains: float  # share of the squared errors that these steps would remove, in [0, 1]


def changes(resolved: Resolved) -> dict[str, tuple[str, Resolved]]:
    """Every term with one change of it: name -> (what in words, the world with it)."""
    cost, settings = resolved.policy.cost, resolved.policy.settings
    fewer = max(1, round(settings.num_gpu_blocks * 0.95))
    found = {
        "KV blocks": (
            f"5 % fewer ({fewer:,})",
            _with(resolved, settings=replace(settings, num_gpu_blocks=fewer)),
        ),
        "CPU gap": ("1 ms more a step", _with(resolved, cost=scaled(cost, gap_s=1e-3))),
        "prefill": ("5 % dearer", _with(resolved, cost=scaled(cost, prefill=1.05))),
        "decode": ("5 % dearer", _with(resolved, cost=scaled(cost, decode=1.05))),
        "KV reads": ("5 % dearer", _with(resolved, cost=scaled(cost, reads=1.05))),
    }
    if cost.skew is not None:
        found["skew"] = ("none", _with(resolved, cost=replace(cost, skew=None)))
    return found


def _with(resolved: Resolved, **changed: object) -> Resolved:
    return replace(resolved, policy=replace(resolved.policy, **changed))  # type: ignore[arg-type]


def scaled(
    cost: StepCost,
    *,
    decode: float = 1.0,
    prefill: float = 1.0,
    reads: float = 1.0,
    gap_s: float = 0.0,
) -> StepCost:
    """A step cost with some of its terms multiplied, and `gap_s` added to every step.

    `decode` multiplies what a step of decoders costs without reading KV, `prefill` what a chunk adds
    to it and its context, `reads` what decoders read.
    """
    step, lines, context = cost.step, cost.lines, cost.context_s

    def stepped(b: int, c: int) -> float:
        alone = step(b, 0) if b else 0.0
        return decode * alone + prefill * (step(b, c) - alone) + gap_s

    return replace(
        cost,
        step=stepped,
        kv_s=reads * cost.kv_s,
        lines=None if lines is None else lambda b, c: lines(b, c).times(reads),
        chunk_s=lambda c: prefill * context(c),
        _memo={},
    )


def diagnose(
    errors: Errors,
    worlds: Mapping[str, tuple[str, Resolved]],
    errors_of: Callable[[Resolved], Errors],
) -> Sequence[Term]:
    """Each term with what it would explain of `errors`, the best first."""
    base = np.array([errors[q] for q in QUANTITIES])
    left = float(base @ base)
    terms = []
    for name, (change, world) in worlds.items():
        changed = errors_of(world)
        step = np.array([changed[q] for q in QUANTITIES]) - base
        size = float(step @ step)
        needed = -float(step @ base) / size if size else 0.0
        remaining = base + needed * step
        explains = 1 - float(remaining @ remaining) / left if left else 0.0
        answer = {m: changed[m, "mean"] - errors[m, "mean"] for m in ("TTFT", "TPOT", "E2E")}
        terms.append(Term(name, change, answer, needed, explains))
    return sorted(terms, key=lambda term: -term.explains)
