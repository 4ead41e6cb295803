"""The engine model against the oracle of vLLM V1's scheduler, which was written from vLLM and not from our law."""

from __future__ import annotations

import random
from typing import Any

import pytest
import simpy

from models.latency import StepCost
from sim.batch import Batch, Settings
from sim.replica import Replica
from tests.reference.vllm_v1 import V1Engine, V1Settings

COST = StepCost.linear(0.02, per_decode=1e-4, per_prefill=8e-5, kv=4e-8)


def step_s(decoders: list[int], chunks: list[tuple[int, int]]) -> float:
    """The same cost for the oracle: there a decoder's context counts the token that it writes."""
    read = sum(decoders) - len(decoders)
    chunked = sum(COST.context_s(tokens) * (context + tokens / 2) for tokens, context in chunks)
    base_s = COST.base_s(len(decoders), sum(tokens for tokens, _ in chunks))
    return base_s + COST.kv_s * read + chunked


class Flat:
    """A request that is one prompt and one answer."""

    def __init__(self, replica: Replica, prompt: int, answer: int) -> None:
        self.replica, self.prompt, self.answer = replica, prompt, answer
        self.first_s = self.last_s = -1.0
        self.root: Any = None

    def start(self) -> None:
        self.root = self.replica.prompt(self.prompt, (), self)
        self.replica.batch.branch(self.root, self.answer, self)

    def scheduled(self, replica: Replica) -> None:
        """Nothing to note."""

    marked = scheduled

    def started(self, branch: Any) -> None:
        self.first_s = self.replica.env.now

    def finished(self, branch: Any) -> None:
        self.last_s = self.replica.env.now
        self.replica.drop([self.root])


def ours(settings: Settings, arrivals: list[tuple[float, int, int]]) -> tuple[list[Flat], Batch]:
    env = simpy.Environment()
    batch = Batch(settings, COST)
    replica = Replica(env, batch)
    requests = []
    for arrival_s, prompt, answer in sorted(arrivals):
        request = Flat(replica, prompt, answer)
        requests.append(request)
        event = env.timeout(arrival_s)
        event.callbacks.append(lambda _, request=request: replica.do(request.start))
    env.run()
    return requests, batch


@pytest.mark.parametrize("seed", range(60))
def test_with_pages_of_one_token_every_request_is_served_at_the_same_instant(seed: int) -> None:
    draw = random.Random(seed)
    arrivals = [(draw.uniform(0, 30), draw.randint(2, 60), draw.randint(1, 40)) for _ in range(60)]
    pages, seqs, budget = draw.choice([110, 200]), draw.choice([3, 8, 50]), draw.choice([50, 300])
    reserve = draw.random() < 0.7
    expected = V1Engine(
        V1Settings(pages, 1, seqs, budget, True, reserve, async_scheduling=False), step_s
    ).play(arrivals)
    settings = Settings(
        pages, 1, seqs, budget, attention="naive", reclaim="lru", scheduler_reserve_full_isl=reserve
    )
    found, batch = ours(settings, arrivals)
    assert [r.first_s for r in found] == pytest.approx([r.first_s for r in expected], rel=1e-9)
    assert [r.last_s for r in found] == pytest.approx([r.last_s for r in expected], rel=1e-9)
    assert batch.num_preemptions == sum(r.num_preemptions for r in expected)
    assert batch.num_preemptions > 0 or pages == 200


@pytest.mark.parametrize("seed", range(20))
def test_async_scheduling_lets_arrivals_wait_as_long_as_vllm_does(seed: int) -> None:
    draw = random.Random(seed)
    arrivals = [(draw.uniform(0, 20), draw.randint(2, 60), draw.randint(1, 40)) for _ in range(60)]
    expected = V1Engine(V1Settings(9000, 16, 500, 300, async_scheduling=True), step_s).play(
        arrivals
    )
    settings = Settings(9000, 16, 500, 300, attention="naive", reclaim="lru", async_scheduling=True)
    found, _ = ours(settings, arrivals)
    assert [r.first_s for r in found] == pytest.approx([r.first_s for r in expected], rel=1e-9)
    assert [r.last_s for r in found] == pytest.approx([r.last_s for r in expected], rel=1e-9)
