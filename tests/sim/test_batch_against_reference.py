"""The closed forms of sim/batch.py against one token at a time: same ticks, pages, preemptions, times."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.attention_grid import Lines, Skew
from models.latency import StepCost
from sim.batch import Batch, Settings
from sim.kv import DoesNotFitError
from tests.reference import slow


@dataclass(frozen=True)
class World:
    """A random engine and what arrives at it."""

    seed: int
    queries: int
    block_size: int
    num_gpu_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_active_searches: int | None
    sharing: str
    fork: str
    attention: str
    saturation: float
    longest_prompt: int
    longest_step: int
    prefixes: bool
    reclaim: str = "youngest"
    prefix_caching: bool = True
    reserve_full_isl: bool = False
    timed: bool = False

    def engine(self) -> dict[str, Any]:
        names = (
            "block_size num_gpu_blocks max_num_seqs max_num_batched_tokens max_active_searches "
            "sharing fork attention"
        )
        return {name: getattr(self, name) for name in names.split()}

    def vllm(self, prefix: str = "") -> dict[str, Any]:
        """What vLLM calls otherwise than the reference does."""
        return {
            "reclaim": self.reclaim,
            "enable_prefix_caching": self.prefix_caching,
            "scheduler_reserve_full_isl": self.reserve_full_isl,
        }

    def plain(self) -> dict[str, Any]:
        return {
            "reclaim": self.reclaim,
            "prefix_caching": self.prefix_caching,
            "reserve_full_isl": self.reserve_full_isl,
        }

    def cost(self) -> StepCost:
        cost = StepCost.linear(
            1e-2, per_decode=1e-4, per_prefill=3e-5, kv=1e-6, saturation=self.saturation, copy=1e-7
        )
        return replace(cost, lines=timed_lines, skew=SKEW) if self.timed else cost


SKEW = Skew({False: ((4, 0.2), (64, 0.1)), True: ((64, 0.4),)})


def timed_lines(b: int, c: int) -> Lines:
    """Reading in straight pieces that break every few tokens a decoder, dearer beside a chunk."""
    factor = 1.7 if c else 1.0
    return Lines(
        (0.0, 5.0 * b, 11.0 * b, 40.0 * b),
        (1e-5, 1e-5, 1e-5 + 6e-6 * b * factor, 1e-5 + 64e-6 * b * factor),
        (0.0, 1e-6 * factor, 2e-6 * factor, 1e-6 * factor),
    )


worlds = st.builds(
    World,
    seed=st.integers(0, 2**32),
    queries=st.integers(1, 12),
    block_size=st.sampled_from([1, 2, 4, 16]),
    num_gpu_blocks=st.sampled_from([60, 90, 150, 400, 5000]),
    max_num_seqs=st.sampled_from([1, 2, 5, 40]),
    max_num_batched_tokens=st.sampled_from([1, 7, 16, 64, 1000]),
    max_active_searches=st.sampled_from([None, None, 1, 3]),
    sharing=st.sampled_from(["tree", "tree", "per_branch"]),
    fork=st.sampled_from(["copy_tail", "copy_tail", "recompute_tail"]),
    attention=st.sampled_from(["shared", "naive"]),
    saturation=st.sampled_from([1.0, 2.5, 1e18]),
    longest_prompt=st.sampled_from([1, 20, 60]),
    longest_step=st.sampled_from([1, 9, 30]),
    prefixes=st.booleans(),
    reclaim=st.sampled_from(["youngest", "lru"]),
    prefix_caching=st.sampled_from([True, True, False]),
    reserve_full_isl=st.booleans(),
    timed=st.booleans(),
)


class Script:
    """Random searches played on either engine: every decision depends on the seed and on finishes."""

    def __init__(self, world: World, engine: Any) -> None:
        self.world = world
        self.engine = engine
        self.draw = random.Random(world.seed)
        self.arrivals = sorted(self.draw.randrange(0, 200) for _ in range(world.queries))
        self.plans = [random.Random(world.seed * 31 + q) for q in range(world.queries)]
        self.open: dict[Any, int] = {}  # branch -> query
        self.alive: dict[int, list[Any]] = {}
        self.roots: dict[int, Any] = {}
        self.rounds: dict[int, int] = {}
        self.next = 0
        self.log: list[Any] = []

    def arrive(self, tick: int, idle: bool) -> None:
        while self.next < len(self.arrivals) and (self.arrivals[self.next] <= tick or idle):
            query = self.next
            self.next += 1
            idle = False
            plan = self.plans[query]
            tokens = plan.randint(1, self.world.longest_prompt)
            p = self.world.block_size
            chain, room = [], (tokens - 1) // p
            if self.world.prefixes and self.world.sharing == "tree" and plan.random() < 0.7:
                for depth in range(3):
                    pages = 1 + depth
                    if room >= pages and plan.random() < 0.8 and len(chain) == depth:
                        room -= pages
                        chain.append((f"{plan.randrange(2)}", pages * p))
            root = self.engine.prompt(query, tokens, chain)
            self.roots[query] = root
            self.alive[query] = [root]
            self.rounds[query] = plan.randint(1, 4)
            self.expand(query)

    def expand(self, query: int) -> None:
        plan = self.plans[query]
        nodes = self.alive[query]
        chosen = plan.sample(nodes, min(len(nodes), plan.randint(1, 3)))
        for parent in chosen:
            for _ in range(plan.randint(1, 4)):
                if plan.random() < 0.15:
                    node = self.engine.given(parent, plan.randint(1, self.world.longest_step))
                    branch = self.engine.prefill(node)
                else:
                    branch = self.engine.branch(parent, plan.randint(1, self.world.longest_step))
                    node = self.engine.node(branch)
                self.open[branch] = query
                self.alive[query].append(node)

    def finished(self, branches: list[Any], tick: int) -> None:
        for branch in branches:
            if branch not in self.open:
                continue
            self.log.append((tick, branch.number))
            query = self.open.pop(branch)
            plan = self.plans[query]
            if query in self.open.values():
                if plan.random() < 0.1:  # an asynchronous search cancels a sibling in flight
                    other = [b for b, q in self.open.items() if q == query][0]
                    del self.open[other]
                    self.alive[query].remove(self.engine.node(other))
                    self.engine.drop(self.engine.node(other))
                if query in self.open.values():
                    continue
            self.rounds[query] -= 1
            if self.rounds[query] <= 0:
                self.engine.drop(self.roots[query])
                continue
            nodes = self.alive[query]
            for node in [n for n in nodes if n is not self.roots[query]]:
                if plan.random() < 0.3 and len(nodes) > 1 and not self.below(node, nodes):
                    nodes.remove(node)
                    self.engine.drop(node)
            self.expand(query)

    @staticmethod
    def below(node: Any, nodes: list[Any]) -> bool:
        return any(other.parent is node for other in nodes)


class Fast:
    """Adapts the batch to the reference's interface."""

    def __init__(self, world: World) -> None:
        self.batch = Batch(Settings(**world.engine(), **world.vllm()), world.cost())
        self.given = self.batch.given
        self.prefill = self.batch.prefill
        self.branch = self.batch.branch
        self.drop = self.batch.drop

    def prompt(self, query: int, tokens: int, chain: Any) -> Any:
        return self.batch.prompt(tokens, chain)

    @staticmethod
    def node(branch: Any) -> Any:
        return branch  # one object is both


class Slow(slow.SlowBatch):
    """The reference, with the word for a branch's node that the script uses."""

    @staticmethod
    def node(branch: Any) -> Any:
        return branch.node


def play_slow(world: World) -> tuple[list[Any], Any]:
    engine = Slow(slow.Settings(**world.engine(), **world.plain()), world.cost())
    script = Script(world, engine)
    script.arrive(0, False)
    for _ in range(20_000):
        done = engine.step()
        if done is None:
            if script.next == len(script.arrivals):
                return script.log, engine
            script.arrive(engine.tick, True)
            continue
        if done:
            script.log.append((engine.tick, engine.used_pages(), engine.num_preemptions))
            script.log.append(round(engine.now, 9))
        script.finished(done, engine.tick)
        script.arrive(engine.tick, False)
    raise AssertionError("the reference does not come to an end")


def play_fast(world: World) -> tuple[list[Any], Batch]:
    engine = Fast(world)
    batch = engine.batch
    script = Script(world, engine)
    script.arrive(0, False)
    for _ in range(20_000):
        stretch = batch.begin()
        if stretch is None:
            if script.next == len(script.arrivals):
                return script.log, batch
            script.arrive(batch.tick, True)
            continue
        ticks = stretch.ticks
        if script.next < len(script.arrivals):
            ticks = min(ticks, max(1, script.arrivals[script.next] - batch.tick))
        done = batch.advance(ticks)
        if done:
            count = batch.tree.count()
            pages = (count.pinned, count.cached, count.free)
            script.log.append((batch.tick, pages, batch.num_preemptions))
            script.log.append(round(batch.busy_s, 9))
        script.finished(done, batch.tick)
        script.arrive(batch.tick, False)
    raise AssertionError("the batch does not come to an end")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds)
def test_the_closed_forms_agree_with_one_token_at_a_time(world: World) -> None:
    try:
        expected, reference = play_slow(world)
    except slow.DoesNotFitError:
        with pytest.raises(DoesNotFitError):
            play_fast(world)
        return
    log, batch = play_fast(world)
    assert [x for x in log if not isinstance(x, float)] == [
        x for x in expected if not isinstance(x, float)
    ]
    assert [x for x in log if isinstance(x, float)] == pytest.approx(
        [x for x in expected if isinstance(x, float)], rel=1e-9, abs=1e-9
    )
    assert batch.num_preemptions == reference.num_preemptions
    assert batch.tree.count().pinned == 0
    assert batch.charged_s == pytest.approx(batch.busy_s, rel=1e-9)
