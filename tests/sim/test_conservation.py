"""Nothing is lost: pages, queries, seconds and queueing's own identities, checked at every event."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.batch import Batch, Settings
from sim.fleet import least_loaded
from sim.kv import DECODING, KvNode, PageTree, Query
from sim.query import Thinking
from sim.replica import Replica
from tests.sim.driving import House, questions

pytestmark = pytest.mark.reaches_in

MODEL = {"preset": "math-500", "step_tokens": {"kind": "uniform", "low": 3, "high": 120}}
SEARCHES: tuple[tuple[str, dict[str, int]], ...] = (
    ("beam", {"width": 2, "expand": 3}),
    ("best_of_n", {"n": 4}),
    ("direct", {}),
    ("self_consistency", {"n": 3}),
)


class Books:
    """What one replica has, counted a second time from nothing but its nodes and its clock."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.batch: Batch = replica.batch
        self.tree: PageTree = replica.batch.tree
        self.queries: list[Query] = []
        self.allocated = 0
        self.boundaries = 0
        self.clock_s = 0.0  # up to here everything below is integrated
        self.busy_s = self.active_s = self.present_s = 0.0
        self.left_s: dict[Query, float] = {}
        take = self.tree.take
        begin, drop, prompt = self.batch.begin, self.batch.drop, self.batch.prompt

        def counted_take(pages: int) -> None:
            self.allocated += pages
            take(pages)

        def checked_begin() -> Any:
            self.check_pages()
            return begin()

        def noted_drop(node: KvNode) -> None:
            drop(node)
            if node is node.query.root:
                self.left_s[node.query] = replica.env.now

        def noted_prompt(*arguments: Any) -> KvNode:
            root = prompt(*arguments)
            self.queries.append(root.query)
            return root

        changed: Any = self.batch
        changed.begin, changed.drop, changed.prompt = checked_begin, noted_drop, noted_prompt
        changed = self.tree
        changed.take = counted_take

    def check_pages(self) -> None:
        """Count every page in the trees, between two ticks, and compare with the pool's books."""
        tree, batch = self.tree, self.batch
        pinned = cached = 0
        for nodes in (tree.prefixes.values(), *(query.nodes for query in self.queries)):
            for node in nodes:
                if node.dropped:
                    continue
                pages = node.pages
                if node.state == DECODING:
                    written = node.cohort.written + batch.tick - node.cohort.joined
                    pages = tree.pages_of(node, node.tail + written)
                if node.decoders or node.fills or node.state == DECODING:
                    pinned += pages
                else:
                    cached += pages
        count = tree.count()
        assert (count.pinned, count.cached) == (pinned, cached)
        assert pinned + cached + count.free == count.total == tree.total
        assert min(pinned, cached, count.free) >= 0
        assert self.allocated >= pinned + cached
        self.boundaries += 1

    def check_seconds(self) -> None:
        """Compare what queries owe with the time that the replica was busy."""
        batch = self.batch
        for query in self.queries:
            if not query.gone:
                batch.charge(query)
        owed = math.fsum(query.gpu_s for query in self.queries)
        assert owed == pytest.approx(batch.busy_s, rel=1e-9, abs=1e-12)

    def pass_time(self, now: float, present: int) -> None:
        """Integrate up to `now` what has been so since the last event."""
        step = now - self.clock_s
        self.busy_s += step * self.was_busy
        self.active_s += step * self.was_active
        self.present_s += step * self.was_present
        self.clock_s = now
        self.remember(present)

    def remember(self, present: int) -> None:
        """Take down the state that lasts until the next event."""
        self.was_busy = self.replica._stretch is not None
        self.was_active = self.batch.active_searches
        self.was_present = present


def waiting(batch: Batch) -> int:
    """Queries that have branches in the batch of which none was ever admitted."""
    return sum(query.queued and not query.active for _, query in batch._new)


def what_it_dropped_is_gone(query: Thinking) -> None:
    """A subtree that the search gave up holds nothing once its replica has come to a boundary."""
    assert query.judge is not None
    for node in query.session._gone:
        for kv, replica in ((node.kv, query.replica), (node.verifier_kv, query.judge)):
            assert kv is None or kv.dropped or replica._pending


def watch(house: House) -> list[Books]:
    """Step the clock to the end of everything, and check every law at every event."""
    books = [Books(replica) for replica in house.replicas]
    for book in books:
        book.remember(0)
    thinker, judge = books
    while house.env.peek() < float("inf"):
        house.env.step()
        queries = house.queries
        finished = [q for q in queries if q.finish_s == q.finish_s]
        present = len(queries) - len(finished)
        assert thinker.replica.searches == present
        # arrived = finished + running + waiting: by the batch's own counters, those that stand
        # outside it until the next tick boundary added
        leaving = sum(q.root is not None and not q.root.query.gone for q in finished)
        entering = sum(q.root is None for q in queries)
        inside = thinker.batch.active_searches + waiting(thinker.batch)
        assert len(queries) == len(finished) + inside - leaving + entering
        for q in queries:
            if q.finish_s != q.finish_s:
                what_it_dropped_is_gone(q)
        for book in books:
            count = book.tree.count()
            assert min(count.pinned, count.cached, count.free) >= 0
            book.pass_time(house.env.now, present)
        thinker.check_seconds()
        judge.check_seconds()
    return books


def house_of(
    policy: Settings, judge: Settings, seed: int, count: int, gap_s: float, shared: int
) -> House:
    """A house to which queries of all searches come as a Poisson stream, some with one prefix."""
    house = House(policy, judge)
    gaps = np.random.default_rng(seed).exponential(gap_s, count)
    for number, world in enumerate(questions(MODEL, seed, count)):
        algorithm, parameters = SEARCHES[number % len(SEARCHES)]
        block = policy.block_size
        room = (world.root.tokens - 1) // block * block
        held = min(shared // block * block, room)
        prefix = ((("system", held), held),) if held and number % 3 else ()
        budget = 900 if number % 5 == 4 else None
        at_s = float(gaps[: number + 1].sum())
        house.ask(world, algorithm, at_s, budget, prefix, **parameters)
    return house


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    pages=st.sampled_from([1_100, 1_500, 20_000]),
    block=st.sampled_from([4, 16]),
    seqs=st.sampled_from([1, 6, 64]),
    budget=st.sampled_from([32, 256, 8192]),
    searches=st.sampled_from([None, 2]),
    sharing=st.sampled_from(["tree", "tree", "per_branch"]),
    fork=st.sampled_from(["copy_tail", "recompute_tail"]),
    attention=st.sampled_from(["shared", "shared", "naive"]),
    gap_s=st.sampled_from([0.0, 0.05, 2.0]),
    shared=st.sampled_from([0, 64]),
)
def test_pages_queries_and_seconds_are_conserved_at_every_event(
    seed: int, pages: int, block: int, seqs: int, budget: int, searches: int | None,
    sharing: Any, fork: Any, attention: Any, gap_s: float, shared: int,
) -> None:  # fmt: skip
    engine = Settings(pages, block, seqs, budget, searches, sharing, fork, attention)
    house = house_of(engine, engine, seed, 8, gap_s, shared)
    for book in watch(house):
        everything_was_given_back(book)
    assert all(q.session.answer is not None for q in house.queries)


def everything_was_given_back(book: Books) -> None:
    batch, tree = book.batch, book.tree
    count = tree.count()
    assert count.pinned == 0
    assert count.free + count.cached == count.total
    assert count.cached == sum(node.pages for node in tree.prefixes.values())
    # so every page that was ever taken is free again or holds a prefix
    assert book.allocated > count.cached or not book.queries
    assert all(query.gone for query in book.queries)
    assert (batch.active_searches, batch.decoders, batch.waiting_branches) == (0, 0, 0)
    assert batch.charged_s == pytest.approx(batch.busy_s, rel=1e-9)
    # the clock itself was busy exactly as long as the batch says
    assert book.busy_s == pytest.approx(batch.busy_s, rel=1e-9, abs=1e-12)
    assert book.boundaries > 0 or not book.queries


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("searches", [None, 3])
def test_littles_law_and_the_utilisation_law_hold_exactly_over_a_busy_run(
    seed: int, searches: int | None
) -> None:
    engine = Settings(1_200, 16, 32, 512, searches)
    house = house_of(engine, engine, seed, 40, 0.3, 0)
    thinker, judge = watch(house)
    total_s = house.env.now
    count = len(house.queries)
    rate = count / total_s

    # L = lambda W, of everyone who has come and not gone, by the steps of the clock and by query
    sojourn = math.fsum(q.finish_s - q.arrival_s for q in house.queries) / count
    assert thinker.present_s / total_s == pytest.approx(rate * sojourn, rel=1e-9)
    assert thinker.present_s / total_s > 1, "the run was not busy"

    # the same of those that hold memory: from the first admission until the tree is dropped
    held = math.fsum(thinker.left_s[q.root.query] - q.scheduled_s for q in house.queries) / count
    assert thinker.active_s / total_s == pytest.approx(rate * held, rel=1e-9)
    assert thinker.active_s < thinker.present_s

    # U = lambda S: the busy share of the clock is the arrival rate times the attributed seconds
    for q in house.queries:
        q.settle()
    for book, seconds in (
        (thinker, [q.policy_s for q in house.queries]),
        (judge, [q.judge_s for q in house.queries]),
    ):
        service = math.fsum(seconds) / count
        busy = book.busy_s / total_s
        assert busy == pytest.approx(rate * service, rel=1e-9)
        assert 0.01 < busy < 1

    # and of branches in the batch: the integral of their number is the time that they decoded
    assert thinker.replica.running_s <= thinker.batch.busy_s * engine.max_num_seqs
    assert max(q.verify_s for q in house.queries) > 0


def test_the_page_check_sees_a_single_page_that_leaks() -> None:
    engine = Settings(1_100)
    house = house_of(engine, engine, 1, 4, 0.0, 0)
    book = Books(house.replica)
    house.env.run(until=0.5)
    book.check_pages()  # holds: see `checked_begin`
    book.tree.free -= 1
    with pytest.raises(AssertionError):
        book.check_pages()


def test_what_queries_owe_is_compared_sharply_enough_to_see_one_part_in_a_million() -> None:
    engine = Settings(1_100)
    house = house_of(engine, engine, 1, 4, 0.0, 0)
    book = watch(house)[0]
    book.batch.busy_s *= 1 + 1e-6
    with pytest.raises(AssertionError):
        book.check_seconds()


def test_a_search_counts_as_load_from_its_arrival_and_not_from_the_next_tick() -> None:
    engine = Settings(1_100)
    house = House(engine, engine)
    other = Replica(house.env, Batch(engine, house.replica.batch.cost), "thinker", 1)
    for number, world in enumerate(questions(MODEL, 2, 3)):
        house.ask(world, "direct", at_s=0.0 if number == 0 else 0.001)
    house.env.run(until=0.002)  # the second and the third wait for the end of the first tick
    assert all(isinstance(q, Thinking) for q in house.queries)
    assert house.replica.searches == 3
    assert least_loaded([house.replica, other], 0, 0) is other
