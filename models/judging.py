"""How good a controller is: cost against accuracy beside fixed plans and oracles, on questions it never saw.

Everything is played on the same answers, so differences are paired. A curve is a set of (GPU-seconds a
query, accuracy) points, one for each price of GPU time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.batch_rollout import best, vote
from models.evidence import seen
from models.learned import GO_ON, RATES, STAGES, STOP, Learned
from models.mix import Drawn
from models.staged import Prices, Staged
from models.switch import BEAMS, asked_rows, size

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PRICES: Final = tuple(np.geomspace(RATES[0] * 1.5, RATES[1] / 1.5, 17).tolist())
BANDS: Final = 16  # of the pass rate, in which an oracle looks up what a plan does
STEP_BANDS: Final = 3  # of the number of steps


@dataclass(frozen=True, slots=True)
class Played:
    """What a way to decide did on every question: right or not, GPU-seconds, trajectories; shape (questions,)."""

    name: str
    right: Bools
    gpu_s: Floats
    trajectories: npt.NDArray[np.int64]
    confidence: Floats

    @property
    def point(self) -> tuple[float, float]:
        """Mean GPU-seconds and accuracy."""
        return float(self.gpu_s.mean()), float(self.right.mean())


def fixed_plans(drawn: Drawn, prices: Prices) -> list[Played]:
    """Every plan without a controller: majority, best-of-n and weighted votes of each number of trajectories, beams."""
    found = []
    spent = np.cumsum(drawn.tokens, axis=1)
    for n in filter(None, STAGES):
        wrong, score = drawn.wrong[:, :n], drawn.score[:, :n]
        tokens = spent[:, n - 1]
        sharp = seen(wrong, score, drawn.tokens[:, :n]).wrong
        for name, chosen, scored in (
            (f"self_consistency {n}", vote(wrong, np.ones(wrong.shape))[0], False),
            (f"best_of_n {n}", best(wrong, score)[0], True),
            (f"weighted_vote {n}", vote(wrong, score)[0], True),
            (f"sharp vote {n}", sharp, True),
        ):
            found.append(_played(name, chosen == 0, prices.trajectories(tokens, scored), n))
    for beam, (width, expand) in enumerate(BEAMS):
        gpu_s = prices.trajectories(drawn.beam_tokens[:, beam])
        right = drawn.beam_wrong[:, beam] == 0
        found.append(_played(f"beam {width}x{expand}", right, gpu_s, width * expand))
    return found


@dataclass(frozen=True, slots=True)
class Weighed:
    """A controller on questions: its chances of every stage and beam, which no price of GPU time changes."""

    controller: Learned
    table: Staged
    chance: list[Floats]  # of each stage, (questions,); -inf where there is no answer yet
    beams: list[Floats]  # of each stage, (questions, len(BEAMS))


def weigh(controller: Learned, table: Staged, beams: bool = True) -> Weighed:
    """Ask the forests once for all prices; without `beams` the controller may only vote."""
    stages = range(len(STAGES))
    chance = [controller.confidences(s, table.rows[s]) for s in stages]
    chance[0] = np.full(len(table.drawn), -np.inf)
    most = STAGES[-1] if beams else 0
    after = [controller.beam_chances(s, table.rows[s], most) for s in stages]
    return Weighed(controller, table, chance, after)


def learned(
    weighed: Weighed, rates: Sequence[float] = PRICES, name: str = "learned"
) -> list[Played]:
    """The learned controller at each price of a mean trajectory."""
    return [play(weighed, rate, name) for rate in rates]


def play(weighed: Weighed, rate: float, name: str = "learned") -> Played:
    """Let the controller decide after every stage of every question; a class that falls back keeps its fixed plan."""
    controller, table = weighed.controller, weighed.table
    n = len(table.drawn)
    alive = np.arange(n)
    right, gpu_s = np.zeros(n, dtype=np.bool_), np.zeros(n)
    grown, confidence = np.zeros(n, dtype=np.int64), np.zeros(n)
    for stage, number in enumerate(STAGES):
        gpu_s[alive] += table.spent[stage][alive]
        known = (
            table.rows[stage][alive],
            rate,
            weighed.chance[stage][alive],
            weighed.beams[stage][alive],
        )
        decision = controller.decisions(stage, *known)
        ends = alive[decision == STOP]
        right[ends] = table.right(stage)[ends]
        grown[ends] = number
        confidence[ends] = weighed.chance[stage][ends]
        for beam in range(len(BEAMS)):
            leaves = alive[decision == beam]
            if len(leaves):
                gpu_s[leaves] += table.beam_s[leaves, beam]
                grown[leaves] = number + size(beam)
                right[leaves], confidence[leaves] = _believed(weighed, stage, beam, leaves)
        alive = alive[decision == GO_ON]
        if not len(alive):
            break
    for fallen in controller.falls_back:
        mine = np.flatnonzero(table.drawn.klass == controller.classes.index(fallen))
        plan = controller.best_fixed(fallen, rate, STAGES[-1])
        label = "x".join(map(str, plan.params.values()))
        plans = fixed_plans(table.drawn.of(mine), table.prices) if len(mine) else []
        for fixed in plans:
            if fixed.name == f"{plan.algorithm} {label}":
                right[mine], gpu_s[mine], grown[mine] = fixed.right, fixed.gpu_s, fixed.trajectories
                confidence[mine] = plan.right
    return Played(f"{name} at {rate:.3g}", right, gpu_s, grown, confidence)


def _believed(weighed: Weighed, stage: int, beam: int, places: Ints) -> tuple[Bools, Floats]:
    """Whether the answer that is believed after a beam is right, and the chance of it that is stated."""
    table, switch = weighed.table, weighed.controller.switch
    assert switch is not None
    numbers, came = table.found(stage, beam, places)
    rows = np.concatenate([asked_rows(table.rows[stage][places], STAGES[stage], beam), numbers], 1)
    lead, end = switch.lead.many(rows), switch.beam.many(rows)
    return np.where(end > lead, came, table.right(stage)[places]), np.maximum(end, lead)


def random_stops(table: Staged, like: Played, seed: int = 0) -> Played:
    """Grow votes as wide as the controller's searches, but on other questions of the mix: no judgement."""
    order = np.random.default_rng(seed).permutation(len(like.right))
    stage = np.searchsorted(STAGES, np.minimum(like.trajectories[order], STAGES[-1]))
    spent = np.cumsum(np.stack(table.spent), axis=0)
    rows = np.arange(len(order))
    right = np.stack([table.right(s) for s in range(len(STAGES))])[stage, rows]
    none = np.full(len(order), np.nan)
    return Played("random", right, spent[stage, rows], np.array(STAGES)[stage], none)


def bands(train: Drawn, drawn: Drawn, *names: tuple[str, int]) -> tuple[Ints, Ints]:
    """The cell of every question, of `drawn` and of `train`: its class and the band of each of these columns."""
    cell, known = drawn.klass, train.klass
    for name, count in names:
        values = getattr(train, name)
        edges = np.quantile(values, np.linspace(0, 1, count + 1)[1:-1])
        cell = cell * count + np.searchsorted(edges, getattr(drawn, name))
        known = known * count + np.searchsorted(edges, values)
    return cell, known


def pick_plan(
    cells: tuple[Ints, Ints],
    plans: Sequence[Played],
    trained: Sequence[Played],
    rate_s: float,
    name: str,
) -> Played:
    """Pick the plan with the best value less cost in a question's cell, at a price of a GPU-second in right answers.

    `trained` are the same plans on the training questions, from which it is known what they do in each cell.
    With class, pass rate and steps that is the oracle O1; with class and hint, a controller that never stops.
    """
    cell, known = cells
    size = int(max(cell.max(), known.max())) + 1
    count = np.maximum(np.bincount(known, minlength=size), 1)
    worth = np.stack(
        [np.bincount(known, plan.right - rate_s * plan.gpu_s, size) / count for plan in trained]
    )
    chosen = worth.argmax(axis=0)[cell]
    rows = np.arange(len(cell))
    return Played(
        name,
        np.stack([plan.right for plan in plans])[chosen, rows],
        np.stack([plan.gpu_s for plan in plans])[chosen, rows],
        np.stack([plan.trajectories for plan in plans])[chosen, rows],
        np.full(len(rows), np.nan),
    )


def exact_verifier(drawn: Drawn, prices: Prices, most: int) -> Played:
    """O3: sees at once whether an answer is right, and stops at the first that is, or after `most`."""
    right = drawn.wrong[:, :most] == 0
    found = right.any(axis=1)
    grown = np.where(found, right.argmax(axis=1) + 1, most)
    tokens = np.cumsum(drawn.tokens[:, :most], axis=1)[np.arange(len(drawn)), grown - 1]
    return Played(
        f"O3: verifies exactly, up to {most}", found, prices.trajectories(tokens, False), grown,
        np.full(len(grown), np.nan),
    )  # fmt: skip


def clairvoyant(drawn: Drawn, prices: Prices, most: int) -> Played:
    """O4: knows the outcome of every trajectory, and grows only the first right one, if there is one."""
    right = drawn.wrong[:, :most] == 0
    found = right.any(axis=1)
    tokens = drawn.tokens[np.arange(len(drawn)), np.where(found, right.argmax(axis=1), 0)]
    return Played(
        f"O4: clairvoyant, up to {most}", found, prices.trajectories(tokens, False),
        np.ones(len(found), dtype=np.int64), np.full(len(found), np.nan),
    )  # fmt: skip


def cost_at(curve: Sequence[Played], accuracy: float, rows: Any = slice(None)) -> float:
    """GPU-seconds a query at which a curve reaches an accuracy, by interpolation; inf where it does not."""
    some = (replace(p, right=p.right[rows], gpu_s=p.gpu_s[rows]) for p in curve)
    points = [p.point for p in best_of(list(some))]
    costs, reached = (np.array(column) for column in zip(*points, strict=True))
    if accuracy > reached[-1]:
        return math.inf
    return float(np.interp(accuracy, reached, costs))


def best_of(plans: Sequence[Played]) -> list[Played]:
    """The plans that no cheaper one reaches or beats, cheapest first."""
    found: list[Played] = []
    for plan in sorted(plans, key=lambda plan: plan.point):
        if not found or plan.point[1] > found[-1].point[1]:
            found.append(plan)
    return found


def area(curve: Sequence[Played], low: float, high: float) -> float:
    """Mean accuracy between two costs, the cost on a logarithmic axis; the curve is a step held to the right."""
    points = [p.point for p in best_of(curve)]
    at = np.geomspace(low, high, 400)
    costs, reached = (np.array(column) for column in zip(*points, strict=True))
    place = np.searchsorted(costs, at, side="right") - 1
    held = np.interp(np.log(at), np.log(costs), reached)
    return float(np.where(place >= 0, held, reached[0]).mean())


def bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], float], n: int, times: int = 200, seed: int = 0
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantile of a statistic over resampled questions (paired: rows are shared)."""
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(0, n, n)) for _ in range(times)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _played(name: str, right: npt.NDArray[Any], gpu_s: Floats, n: int) -> Played:
    count = len(right)
    return Played(name, right, gpu_s, np.full(count, n, dtype=np.int64), np.full(count, np.nan))
