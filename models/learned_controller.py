"""The learned controller in service: it turns a query's vote into stages, and prices them by the fleet's load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from models.controller import STAGED, Features, Plan
from models.learned import Learned
from models.mix import hints

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
        numbers = rounds([n for n in self.learned.stages if n <= most], self.rounds)
        decide = partial(self._decide, known, features, numbers)
        params = {"decide": decide, "stages": tuple(self.learned.stages[i] for i in numbers)}
        return Plan(
            STAGED, params, tier.max_tokens, tier.max_expansions, tier.deadline_s, tier.max_gpu_s
        )

    def _decide(
        self,
        known: list[float],
        features: Features,
        numbers: tuple[int, ...],
        stage: int,
        seen: list[float],
    ) -> float | None:
        """None to go on. A negative stage asks for the confidence alone: the search was cut there."""
        row = [*known, *seen]
        if stage < 0:
            return self.learned.confidence(numbers[-1 - stage], row)
        if stage < len(numbers) - 1:
            pressure = features.load() if self.gain and features.load is not None else 0.0
            rate = self.rate * (1.0 + self.gain * pressure)
            if self.learned.goes_on(numbers[stage], row, rate):
                return None
        return self.learned.confidence(numbers[stage], row)


def rounds(stages: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of the stages by their number, evenly spread and always with the last.

    One trajectory alone says little, so that with few rounds the first is the second stage or a later one.
    """
    count = len(stages)
    if count <= most:
        return tuple(range(count))
    step = count / most
    return tuple(sorted({round(step * (i + 1)) - 1 for i in range(most)}))
