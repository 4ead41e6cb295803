"""The learned controller in service: it turns a query's vote into stages, and prices them by the fleet's load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from models.controller import STAGED, Features, Plan, plan
from models.learned import GO_ON, STOP, Learned
from models.mix import hints
from models.search_staged import Leave
from models.switch import BEAMS, asked

VOTES: Final = ("best_of_n", "weighted_vote", "adaptive_vote")  # searches whose width it may decide


@dataclass(frozen=True, slots=True)
class LearnedController:
    """Decides, stage by stage, how many trajectories a vote is worth, up to what the tier's search allows.

    A stage is a round trip: `rounds` bounds how many there are, so that a query that needs all of them is not
    late for it. `rate` is the price of a mean trajectory in right answers when nothing waits; under load it is
    multiplied by 1 + `gain` x pressure, where the pressure is what `Features.load` says. A tier without a
    vote and a class that it was not fitted on get what the tier's search says.
    """

    learned: Learned
    rate: float
    informativeness: float
    gain: float = 0.0
    rounds: int = 4

    def plan(self, features: Features) -> Plan:
        """Return the staged vote of one query, or its tier's own plan."""
        tier = features.tier
        if tier.algorithm not in VOTES:
            return tier
        hint = float(hints(np.array([features.key], dtype=np.uint64), self.informativeness)[0])
        known = self.learned.before(features.preset, hint)
        if known is None:
            return tier
        most = int(tier.params["n"])
        if features.preset in self.learned.falls_back:
            fixed = self.learned.best_fixed(features.preset, self.rate, most)
            chosen = plan(fixed.algorithm, **fixed.params)
            return replace(tier, algorithm=chosen.algorithm, params=chosen.params)
        numbers = rounds([n for n in self.learned.stages if n <= most], self.rounds)
        if self.learned.switch is None:  # then there is nothing to decide before the first
            numbers = tuple(i for i in numbers if self.learned.stages[i])
        ask = _Ask(self, features, known, most, numbers)
        params = {"decide": ask.decide, "stages": tuple(self.learned.stages[i] for i in numbers)}
        return Plan(
            STAGED, params, tier.max_tokens, tier.max_expansions, tier.deadline_s, tier.max_gpu_s
        )


@dataclass(frozen=True, slots=True)
class _Ask:
    """What one query's search asks after its stages: `numbers` are their places among the learned ones."""

    controller: LearnedController
    features: Features
    known: list[float]
    most: int
    numbers: tuple[int, ...]

    def decide(self, stage: int, seen: list[float] | None) -> float | Leave | None:
        """None to go on. A negative stage asks for the confidence alone: the search was cut there."""
        learned, load = self.controller.learned, self.features.load
        if stage < 0:
            assert seen is not None
            return learned.confidence(self.numbers[-1 - stage], [*self.known, *seen])
        row = [
            *self.known,
            *(seen if seen is not None else learned.nothing_seen(self.features.preset)),
        ]
        number = self.numbers[stage]
        if stage < len(self.numbers) - 1:
            gain = self.controller.gain
            pressure = load() if gain and load is not None else 0.0
            choice = learned.decide(
                number, row, self.controller.rate * (1.0 + gain * pressure), self.most
            )
            if choice == GO_ON:
                return None
            if choice != STOP:
                width, expand = BEAMS[choice]
                before = [*row, *asked(learned.stages[number], choice)]
                return Leave(width, expand, partial(self._judge, before))
        return learned.confidence(number, row)

    def _judge(self, before: list[float], found: list[float]) -> tuple[float, float]:
        switch = self.controller.learned.switch
        assert switch is not None
        row = [*before, *found]
        return switch.lead.one(row), switch.beam.one(row)


def rounds(stages: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of the stages by their number, evenly spread and always with the last; a stage of nothing is free.

    One trajectory alone says little, so that with few rounds the first is the second stage or a later one.
    """
    first = 1 if stages and not stages[0] else 0
    count = len(stages) - first
    if count <= most:
        return tuple(range(len(stages)))
    step = count / most
    spread = sorted({round(step * (i + 1)) - 1 + first for i in range(most)})
    return (*range(first), *spread)
