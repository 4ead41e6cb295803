"""Where a controller has not shown its worth on a class, the best fixed plan is used there, and it says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models import judging
from models.judging import Played
from models.learned import RATE, Fixed, Learned
from models.mix import Drawn
from models.staged import Prices, staged

LEAST: Final = 1_000  # training questions of a class, below which its trees are not used
MARGIN: Final = -0.01  # of the utility of the best fixed plan, that a class may lose at most
Z: Final = 1.645  # one-sided 95 %


def guarded(learned: Learned, train: Drawn, check: Drawn, prices: Prices) -> Learned:
    """The controller with the fixed plans of each class, and those classes named on which it uses them.

    A class falls back with fewer than LEAST training questions, or where on `check`, questions that it was not
    fitted on, the one-sided 95 % bound on its utility against the best fixed plan is not above MARGIN.
    """
    plans = judging.fixed_plans(train, prices)
    known = {
        name: _fixed(plans, train.klass == number) for number, name in enumerate(learned.classes)
    }
    told = {}
    played = judging.play(judging.weigh(learned, staged(check, learned.mean_tokens, prices)), RATE)
    held = {plan.name: plan for plan in judging.fixed_plans(check, prices)}
    for number, name in enumerate(learned.classes):
        count, mine = int((train.klass == number).sum()), check.klass == number
        if count < LEAST:
            told[name] = f"{count:,} training questions; {LEAST:,} are the least"
            continue
        best = best_plan(plans, train.klass == number, RATE / learned.unit_gpu_s)
        bound = lead(played, held[best.name], mine, RATE / learned.unit_gpu_s)[1]
        if not bound > MARGIN:
            told[name] = (
                f"on {int(mine.sum()):,} held-out questions its utility may be {100 * bound:+.1f} % of that of "
                f"{best.name}; {100 * MARGIN:+.0f} % is the most it may lose"
            )
    return replace(learned, fixed=known, falls_back=told)


def best_plan(plans: Sequence[Played], rows: npt.NDArray[np.bool_], rate_s: float) -> Played:
    """The plan with the largest value less cost on these questions, at a price of a GPU-second."""
    return max(plans, key=lambda p: float((p.right[rows] - rate_s * p.gpu_s[rows]).mean()))


def lead(
    ours: Played, theirs: Played, rows: npt.NDArray[Any], rate_s: float
) -> tuple[float, float]:
    """How much more utility `ours` has, as a share of that of `theirs`, and its one-sided 95 % bound (paired)."""
    first = ours.right[rows] - rate_s * ours.gpu_s[rows]
    second = theirs.right[rows] - rate_s * theirs.gpu_s[rows]
    more, base = first - second, float(second.mean())
    if len(more) < 2 or base <= 0:
        return -math.inf, -math.inf
    mean, error = float(more.mean()), float(more.std(ddof=1)) / math.sqrt(len(more))
    return mean / base, (mean - Z * error) / base


def _fixed(plans: Sequence[Played], rows: npt.NDArray[np.bool_]) -> tuple[Fixed, ...]:
    """What the plans of the catalogue do on these questions."""
    found = []
    for plan in plans:
        algorithm, _, settings = plan.name.rpartition(" ")
        if algorithm == "sharp vote":
            continue
        params: Mapping[str, int] = (
            dict(zip(("width", "expand"), map(int, settings.split("x")), strict=True))
            if algorithm == "beam"
            else {"n": int(settings)}
        )
        point = (
            (float(plan.right[rows].mean()), float(plan.gpu_s[rows].mean()))
            if rows.any()
            else (0.0, 0.0)
        )
        found.append(Fixed(algorithm, params, *point))
    return tuple(found)
