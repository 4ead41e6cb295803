"""Flat requests, all of one shape, on one replica: what an engine without search serves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from sim.batch import Batch, Settings
from sim.branch import Cost
from sim.kv import KvNode
from sim.replica import Replica


@dataclass(frozen=True, slots=True)
class Flat:
    """`count` requests that arrive as a Poisson stream of `rate` a second."""

    count: int
    tokens_in: int
    tokens_out: int
    rate: float
    seed: int = 1

    def arrivals(self) -> list[float]:
        """When they arrive, in s."""
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate, self.count)
        at: list[float] = np.cumsum(gaps).tolist()
        return at


class Served:
    """Requests on their way through a replica: submits each, notes its end, forgets it."""

    def __init__(self, flat: Flat, settings: Settings, cost: Cost) -> None:
        """Simulate them all; `loop_s` is the CPU time of the simulation's loop."""
        self.flat = flat
        self.env = simpy.Environment()
        self.replica = Replica(self.env, Batch(settings, cost))
        self.finish_s: dict[int, float] = {}
        self.env.process(self._arrive())
        began = time.process_time()
        self.env.run()
        self.loop_s = time.process_time() - began

    def _arrive(self) -> Any:
        for number, at_s in enumerate(self.flat.arrivals()):
            yield self.env.timeout(at_s - self.env.now)
            self.replica.do(self._submit, number)

    def _submit(self, number: int) -> None:
        batch = self.replica.batch
        root = batch.prompt(self.flat.tokens_in, (), self)
        batch.branch(root, self.flat.tokens_out, (number, root))

    def scheduled(self, replica: Replica) -> None:
        pass

    def started(self, branch: KvNode) -> None:
        pass

    def finished(self, branch: KvNode) -> None:
        number, root = branch.owner
        self.finish_s[number] = self.env.now
        self.replica.drop([root])
