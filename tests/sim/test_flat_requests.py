"""Flat requests through the clock: the ends and preemptions of one token at a time, however full the pool."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from models.latency import StepCost
from sim.batch import Settings
from tests.flat import Flat, Served
from tests.reference import slow

COST = StepCost.linear(8e-3, per_decode=1e-4, per_prefill=2e-5, kv=1e-6)
FLAT = Flat(30, 20, 90, 6.0)


def one_token_at_a_time(flat: Flat, settings: Settings) -> tuple[list[float], int]:
    """When each request ends, in s, and how many were preempted, by the reference."""
    known = {key: asdict(settings)[key] for key in ("block_size", "num_gpu_blocks", "max_num_seqs")}
    budget = settings.max_num_batched_tokens
    engine = slow.SlowBatch(slow.Settings(**known, max_num_batched_tokens=budget), COST)
    arrivals = flat.arrivals()
    roots, ends, began = [], [0.0] * flat.count, 0.0
    while True:
        while len(roots) < flat.count and arrivals[len(roots)] <= began + engine.now:
            root = engine.prompt(len(roots), flat.tokens_in)
            engine.branch(root, flat.tokens_out)
            roots.append(root)
        done = engine.step()
        if done is None:
            if len(roots) == flat.count:
                return ends, engine.num_preemptions
            began = arrivals[len(roots)] - engine.now  # idle until the next one comes
            continue
        for branch in done:
            ends[branch.query] = began + engine.now
            engine.drop(roots[branch.query])


@pytest.mark.parametrize(("pages", "preempts"), [(500, False), (34, True)])
def test_flat_requests_end_when_the_reference_ends_them(pages: int, preempts: bool) -> None:
    settings = Settings(pages, 4, 16, 64)
    ends, preemptions = one_token_at_a_time(FLAT, settings)
    served = Served(FLAT, settings, COST)
    assert [served.finish_s[number] for number in range(FLAT.count)] == pytest.approx(ends)
    assert served.replica.batch.num_preemptions == preemptions
    assert (preemptions > 10) == preempts
