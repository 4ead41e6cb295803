"""A closed loop on the simulator's own batch: each client sends its next request when its last is answered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.latency import StepCost
from sim.batch import Batch, Settings
from sim.kv import KvNode


@dataclass(frozen=True, slots=True)
class Loop:
    """What the clients do: all send at once, then each again and again, `rounds` requests a client.

    Lengths are whole tokens drawn evenly from `shortest` times the longest to the longest.
    """

    clients: int
    input_tokens: int  # the longest
    output_tokens: int
    shortest: float = 1.0
    rounds: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw on average, in s, and how often a request was preempted."""

    ttft_s: float
    tpot_s: float
    preemptions: int


def with_host(cost: StepCost, gap_s: float, each_s: float) -> StepCost:
    """The cost with `gap_s` between two steps in place of its own, and `each_s` more a decoding sequence, in s."""
    return replace(cost, step=_Hosted(cost, gap_s, each_s), gap_s=gap_s, _memo={})


def play(loop: Loop, settings: Settings, cost: StepCost, start_s: float = 0.0) -> Seen:
    """Play all requests; `start_s` is the server's time around each before and after the engine.

    Raises DoesNotFitError for a request that needs more KV than there is.
    """
    rng = np.random.default_rng(loop.seed)
    total = loop.clients * loop.rounds
    asked, answered = (
        rng.integers(max(1, int(loop.shortest * most)), most + 1, total).tolist()
        for most in (loop.input_tokens, loop.output_tokens)
    )
    batch = Batch(settings, cost)
    clock = 0.0
    sent: dict[KvNode, tuple[float, int, KvNode]] = {}  # when, tokens of the answer, the prompt
    first: dict[KvNode, float] = {}
    ttft, tpot = np.zeros(total), np.zeros(total)

    def send(number: int) -> None:
        prompt = batch.prompt(asked[number])
        sent[batch.branch(prompt, answered[number])] = clock, answered[number], prompt

    for number in range(loop.clients):
        send(number)
    number, done = loop.clients, 0
    while stretch := batch.begin():
        seconds = stretch.seconds(stretch.ticks)
        finished = batch.advance(stretch.ticks, seconds)
        clock += seconds
        for branch in (*batch.started, *finished):
            first.setdefault(branch, clock)
        for branch in finished:
            began, tokens, prompt = sent.pop(branch)
            at = first.pop(branch)
            ttft[done], tpot[done] = at - began, (clock - at) / max(1, tokens - 1)
            done += 1
            batch.drop(prompt)
            if number < total:
                send(number)
                number += 1
    assert done == total, "a request was lost"
    return Seen(start_s + float(ttft.mean()), float(tpot.mean()), batch.num_preemptions)


@dataclass(frozen=True, slots=True)
class _Hosted:
    """Seconds of (b, c) with other times of the CPU."""

    cost: StepCost
    gap_s: float
    each_s: float

    def __call__(self, b: int, c: int) -> float:
        return self.cost.linear_s(b, c) + self.gap_s + self.each_s * b
