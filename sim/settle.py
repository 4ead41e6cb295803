"""Where a pool settles under a load: the batch and the step time at which what comes in is what goes out.

By Little's law (1961) a replica that decodes `rate` tokens a second in steps of `t` seconds runs `rate x t`
sequences, and a step of so many takes `t(b)`: the batch is the fixed point of b = rate x t(b). Prefill takes its
share of every second first. What waits at barriers, bursts and the verifier are left to the simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.latency import StepCost
from sim.bound import Demand

_CHUNK = 2048  # tokens of the prefill chunk whose cost stands for all


@dataclass(frozen=True, slots=True)
class Settled:
    """Sequences in the batch of a replica and seconds of a step.

    `share` is the batch over the largest that fits: what is left is for bursts; 1 where no batch keeps up.
    """

    batch: float
    step_s: float
    share: float

    @property
    def full(self) -> bool:
        """Whether no batch that fits keeps up with what comes in."""
        return self.share >= 1.0


def settle(
    demand: Demand, cost: StepCost, *, replicas: int, kv_tokens: float, max_num_seqs: int
) -> Settled:
    """The batch of one of `replicas` under a demand, at most what `max_num_seqs` and KV tokens allow.

    Source: L = lambda W (Little, Operations Research 9(3), 1961), and step costs of docs/engine.md.
    """
    rate = demand.rate_per_s / replicas
    if demand.decode_tokens <= 0:
        return Settled(0.0, cost.base_s(1, 0), 0.0)
    read = demand.read_token_steps / demand.decode_tokens
    held = demand.kv_token_steps / demand.decode_tokens

    def step_s(b: float) -> float:
        n = max(1, round(b))
        alone = cost.base_s(n, 0)
        prompt_s = max(0.0, cost.base_s(n, _CHUNK) - alone) / _CHUNK * demand.prefill_tokens
        left = 1.0 - rate * prompt_s
        return (alone + cost.reading(n, 0, read * n)[0]) / left if left > 0 else math.inf

    def short(b: float) -> bool:
        return rate * demand.decode_tokens * step_s(b) > b

    low, high = 0.0, max(1.0, min(float(max_num_seqs), kv_tokens / held if held else math.inf))
    if short(high):
        return Settled(high, step_s(high), 1.0)
    most = high
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return Settled(high, step_s(high), high / (most + 1.0))
