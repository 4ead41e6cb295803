"""A replica whose iterations have a simple cost is a textbook queue: M/G/1, processor sharing, M/G/c, M/G/inf.

Every check is a Student-t interval at 99.9 % over 20 independent replications, on fixed seeds, and each
also has to refuse a value that is 10 % off. A replication has two parts: a short one that the replica
plays, job by job, and a long one that a textbook recursion plays on the same kind of samples. Its
estimate is the long mean plus the mean difference of the two on the short part (a control variate). The
replica's error enters in full; its noise hardly does.

Discretisation: a mean service is 400 ticks. With one branch at a time nothing is lost: service is a whole
number of ticks and a job that waits starts where another ends. Else a job that comes in the middle of a
tick waits for its end, half a tick on average (1/800 of a service) and at most b ticks' worth under
processor sharing; both lie far inside the intervals, and far below the 10 % that must be refused.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy
from scipy import stats

from models.latency import StepCost
from sim.batch import Batch, Settings
from sim.kv import KvNode
from sim.replica import Replica
from tests.theory import oracles

REPLICATIONS = 20
LEVEL = 0.999
TICKS = 400  # of a mean service, which is 1 s
TICK = 1.0 / TICKS
WARM_UP = 2_000  # jobs of the long part before it counts: the systems relax within some 100

Draw = Callable[[np.random.Generator, Any], np.ndarray]


def constant(rng: np.random.Generator, shape: Any) -> np.ndarray:
    return np.full(shape, TICKS)


def geometric(rng: np.random.Generator, shape: Any) -> np.ndarray:
    return rng.geometric(1 / TICKS, shape)


# 2,000 equally likely lengths: mean and variance are exact numbers, not those of a lognormal
_LOGNORMAL = np.exp(1.1 * stats.norm.ppf((np.arange(2_000) + 0.5) / 2_000))
GENERAL = np.maximum(1, np.rint(_LOGNORMAL * TICKS / _LOGNORMAL.mean())).astype(int)


def general(rng: np.random.Generator, shape: Any) -> np.ndarray:
    return rng.choice(GENERAL, shape)


SHORT, LONG = 100, 1000  # TICKS on average when two of three are short


def short_or_long(rng: np.random.Generator, shape: Any) -> np.ndarray:
    return np.where(rng.random(shape) < 2 / 3, SHORT, LONG)


class Jobs:
    """Prompts of one token, each with some branches, on one replica; notes when branches end."""

    def __init__(
        self, arrivals: np.ndarray, lengths: np.ndarray, cost: StepCost, servers: int
    ) -> None:
        """`arrivals` in s, of shape (n,); `lengths` in ticks, of shape (n, branches)."""
        self.env = simpy.Environment()
        settings = Settings(num_gpu_blocks=1 << 30, max_num_seqs=servers, block_size=16)
        self.replica = Replica(self.env, Batch(settings, cost))
        self.arrivals, self.lengths = arrivals.tolist(), lengths.tolist()
        self.left = [len(row) for row in self.lengths]
        self.roots: list[Any] = []
        self.finish = np.full(lengths.shape, np.nan)
        self.env.process(self.arrive())
        self.env.run()

    def arrive(self) -> Any:
        for number, at_s in enumerate(self.arrivals):
            yield self.env.timeout(at_s - self.env.now)
            self.replica.do(self.submit, number)

    def submit(self, number: int) -> None:
        root = self.replica.prompt(1, (), self)
        self.roots.append(root)
        for branch, ticks in enumerate(self.lengths[number]):
            self.replica.batch.branch(root, ticks, (number, branch))

    def scheduled(self, replica: Replica) -> None:
        pass

    def started(self, branch: KvNode) -> None:
        pass

    def finished(self, branch: KvNode) -> None:
        number, ordinal = branch.owner
        self.finish[number, ordinal] = self.env.now
        self.left[number] -= 1
        if not self.left[number]:
            self.replica.do(self.replica.batch.drop, self.roots[number])


# -- textbook recursions ---------------------------------------------------------------------------------


def one_server(arrivals: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When each job ends, first come first served, one server (Lindley's recursion, in one sweep)."""
    work = np.cumsum(service)
    return work + np.maximum.accumulate(arrivals - (work - service))


def many_servers(arrivals: np.ndarray, service: np.ndarray, servers: int) -> np.ndarray:
    """When each job ends, first come first served, several servers (Kiefer and Wolfowitz)."""
    free = [0.0] * servers
    ends = np.empty(len(arrivals))
    for i, (at, work) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
        end = ends[i] = max(at, free[0]) + work
        heapq.heapreplace(free, end)
    return ends


def shared_server(arrivals: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When each job ends under processor sharing: by the attained service of an eternal job."""
    ends = np.empty(len(arrivals))
    heap: list[tuple[float, int]] = []
    now = attained = 0.0
    for i, (at, work) in enumerate(
        zip([*arrivals.tolist(), float("inf")], [*service.tolist(), 0.0], strict=True)
    ):
        while heap and now + (heap[0][0] - attained) * len(heap) <= at:
            mark, job = heap[0]
            now += (mark - attained) * len(heap)
            attained = mark
            ends[job] = now
            heapq.heappop(heap)
        if heap:
            attained += (at - now) / len(heap)
        now = at
        heapq.heappush(heap, (attained + work, i))
    return ends


# -- judging ----------------------------------------------------------------------------------------------


def interval(values: Any) -> tuple[float, float]:
    """The Student-t interval of a mean, at LEVEL."""
    values = np.asarray(values)
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def assert_mean_is(values: Any, expected: float) -> None:
    """Accept the expected mean, and refuse those 10 % above and below it."""
    low, high = interval(values)
    assert len(values) >= 20
    assert low <= expected <= high, f"{expected} is not in [{low:.4f}, {high:.4f}]"
    assert high < 1.1 * expected, f"too wide to refuse 10 % more: [{low:.4f}, {high:.4f}]"
    assert low > 0.9 * expected, f"too wide to refuse 10 % less: [{low:.4f}, {high:.4f}]"


def samples(
    seed: int, number: int, rate: float, draw: Draw, long: int, branches: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Poisson arrivals in s and lengths in ticks of one replication."""
    rng = np.random.default_rng([seed, number])
    return np.cumsum(rng.exponential(1 / rate, long)), draw(rng, (long, branches))


def waits(
    seed: int,
    rate: float,
    draw: Draw,
    cost: StepCost,
    servers: int,
    textbook: Callable[[np.ndarray, np.ndarray], np.ndarray],
    long: int,
    short: int,
    slack: float,
) -> tuple[list[float], list[float]]:
    """Mean wait and mean slowdown per replication; a job may differ from the textbook by `slack` s."""
    wait, slowdown = [], []
    for number in range(REPLICATIONS):
        arrivals, lengths = samples(seed, number, rate, draw, long)
        service = lengths[:, 0] * TICK
        ends = textbook(arrivals, service)
        played = Jobs(arrivals[:short], lengths[:short], cost, servers).finish[:, 0]
        few = textbook(arrivals[:short], service[:short])
        error = played - few
        assert abs(error).max() <= slack
        response = ends - arrivals
        wait.append((response - service)[WARM_UP:].mean() + error.mean())
        slowdown.append((response / service)[WARM_UP:].mean() + (error / service[:short]).mean())
    return wait, slowdown


EACH = StepCost.linear(TICK)  # an iteration costs the same however many it serves
SHARED = StepCost.linear(0.0, per_decode=TICK)  # an iteration costs in proportion to its branches
EXACT = 1e-6


# -- one branch at a time -----------------------------------------------------------------------------------


def test_one_branch_at_a_time_with_equal_lengths_is_md1() -> None:
    found, _ = waits(1, 0.8, constant, EACH, 1, one_server, 100_000, 250, EXACT)
    assert_mean_is(found, oracles.md1_wait(0.8, 1))


def test_one_branch_at_a_time_with_geometric_lengths_is_mm1() -> None:
    found, _ = waits(2, 0.7, geometric, EACH, 1, one_server, 150_000, 250, EXACT)
    assert_mean_is(np.add(found, 1.0), oracles.mm1_response(0.7, 1))
    # the geometric law's own variance differs from the exponential's by one part in 400
    assert_mean_is(found, oracles.mg1_wait(0.7, 1, 1 - 1 / TICKS))


def test_one_branch_at_a_time_with_any_lengths_is_mg1() -> None:
    mean = GENERAL.mean() * TICK
    scv = float(GENERAL.var() / GENERAL.mean() ** 2)
    assert 1.5 < scv < 3
    found, _ = waits(3, 0.7, general, EACH, 1, one_server, 200_000, 250, EXACT)
    assert_mean_is(found, oracles.mg1_wait(0.7, mean, scv))


def test_best_of_4_with_one_branch_at_a_time_is_a_batch_arrival_queue() -> None:
    expected = oracles.batch_m1(0.2, 1, 4)
    assert expected == pytest.approx((12.5, 14.0))
    tasks, lasts = [], []
    for number in range(REPLICATIONS):
        arrivals, lengths = samples(4, number, 0.2, geometric, 60_000, branches=4)
        four = np.repeat(arrivals, 4)
        ends = one_server(four, lengths.ravel() * TICK).reshape(-1, 4)
        short = 150
        played = Jobs(arrivals[:short], lengths[:short], EACH, 1).finish
        error = played - ends[:short]
        assert abs(error).max() <= EXACT
        response = ends - arrivals[:, None]
        tasks.append(response[WARM_UP:].mean() + error.mean())
        last = played.max(axis=1) - ends[:short].max(axis=1)
        lasts.append(response[WARM_UP:].max(axis=1).mean() + last.mean())
    assert_mean_is(tasks, expected.task)
    assert_mean_is(lasts, expected.last)


# -- many branches at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [constant, geometric, short_or_long])
def test_iterations_in_proportion_to_the_batch_are_processor_sharing(draw: Draw) -> None:
    rho = 0.6
    # only half a tick of each who is there is lost, once; `slack` allows a crowd of 40, four times
    found, slowdown = waits(5, rho, draw, SHARED, 1 << 20, shared_server, 20_000, 250, 160 * TICK)
    mean = oracles.mg1_ps_response(rho, 1)  # of the mean size, whatever the law of sizes
    assert_mean_is(np.add(found, 1.0), mean)
    if draw is not geometric:  # whose shortest jobs, of some ticks, see the ticks
        assert_mean_is(slowdown, mean)


def test_processor_sharing_slows_short_and_long_jobs_alike() -> None:
    rho = 0.6
    slow: dict[int, list[float]] = {SHORT: [], LONG: []}
    for number in range(REPLICATIONS):
        arrivals, lengths = samples(6, number, rho, short_or_long, 20_000)
        sizes = lengths[:, 0]
        ends = shared_server(arrivals, sizes * TICK)
        few = shared_server(arrivals[:250], sizes[:250] * TICK)
        played = Jobs(arrivals[:250], lengths[:250], SHARED, 1 << 20).finish[:, 0]
        for size, means in slow.items():
            chosen = np.flatnonzero(sizes == size)
            error = (played - few)[chosen[chosen < 250]]
            chosen = chosen[chosen >= WARM_UP]
            means.append(((ends - arrivals)[chosen].mean() + error.mean()) / (size * TICK))
    for size, means in slow.items():
        expected = oracles.mg1_ps_response(rho, size * TICK) / (size * TICK)
        assert expected == pytest.approx(2.5)
        assert_mean_is(means, expected)


def test_iterations_of_constant_cost_are_infinitely_many_servers() -> None:
    load = 4.0
    present, empty, waited = [], [], []
    for number in range(REPLICATIONS):
        arrivals, lengths = samples(7, number, load, short_or_long, 2_200)
        jobs = Jobs(arrivals, lengths, EACH, 1 << 20)
        wait = jobs.finish[:, 0] - arrivals - lengths[:, 0] * TICK
        assert wait.min() > -EXACT
        assert wait.max() < TICK + EXACT
        waited.append(wait.mean())
        # PASTA: arrivals see the stationary number of others, which is Poisson
        ends = np.sort(jobs.finish[:, 0])
        seen = np.arange(len(arrivals)) - np.searchsorted(ends, arrivals, side="right")
        present.append(seen[200:].mean())
        empty.append((seen[200:] <= 3).mean())
    assert_mean_is(present, load)
    assert_mean_is(empty, float(stats.poisson.cdf(3, load)))
    # whoever finds the replica busy waits for the end of a tick, whoever finds it empty does not
    assert_mean_is(waited, TICK / 2 * (1 - np.exp(-load)))


def test_constant_cost_with_max_num_seqs_is_that_many_servers() -> None:
    servers, rate = 4, 2.8
    found, _ = waits(
        8, rate, geometric, EACH, servers,
        lambda arrivals, service: many_servers(arrivals, service, servers), 60_000, 250, 40 * TICK,
    )  # fmt: skip
    assert_mean_is(found, oracles.mmc_wait(rate, 1, servers))


def test_one_of_one_servers_is_the_same_queue_in_both_recursions() -> None:
    arrivals, lengths = samples(9, 0, 0.7, general, 3_000)
    service = lengths[:, 0] * TICK
    expected = one_server(arrivals, service)
    assert many_servers(arrivals, service, 1) == pytest.approx(expected)
    # work is conserved: both disciplines empty the system at the same time
    assert shared_server(arrivals, service).max() == pytest.approx(expected.max())


def test_a_replica_that_serves_one_branch_too_many_is_found_out() -> None:
    found, _ = waits(1, 0.8, constant, EACH, 2, one_server, 100_000, 100, float("inf"))
    with pytest.raises(AssertionError, match="is not in"):
        assert_mean_is(found, oracles.md1_wait(0.8, 1))


@pytest.mark.parametrize("wrong", [0.9, 1.1])
def test_a_textbook_value_that_is_10_percent_off_is_found_out(wrong: float) -> None:
    found, _ = waits(2, 0.7, geometric, EACH, 1, one_server, 150_000, 100, EXACT)
    with pytest.raises(AssertionError, match="is not in"):
        assert_mean_is(found, wrong * oracles.mg1_wait(0.7, 1, 1 - 1 / TICKS))
