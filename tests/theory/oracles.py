"""Exact values of queueing systems, each in a few lines, to check simulations against.

Rates are per second and times in seconds, `lam` is an arrival rate, `mu` the rate of one server,
`wait` is time in queue, `response` wait plus service. "GT" is Shortle, Thompson, Gross and
Harris, Fundamentals of Queueing Theory, 5th edition, 2018, cited by chapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats


def mm1_response(lam: float, mu: float) -> float:
    """Mean response of M/M/1. Source: GT, chapter 3."""
    assert lam < mu
    return 1 / (mu - lam)


def mm1_response_quantile(lam: float, mu: float, q: float) -> float:
    """Quantile of the M/M/1 FCFS response, which is exponential. Source: GT, chapter 3."""
    return -math.log1p(-q) * mm1_response(lam, mu)


def mg1_wait(lam: float, mean_service: float, scv: float) -> float:
    """Mean FCFS wait of M/G/1; scv is the service's squared coefficient of variation.

    Source: Pollaczek 1930, Khinchine 1932; GT, chapter 6.
    """
    rho = lam * mean_service
    assert rho < 1
    return rho / (1 - rho) * (1 + scv) / 2 * mean_service


def md1_wait(lam: float, mu: float) -> float:
    """Mean FCFS wait of M/D/1. Source: Erlang 1909; M/G/1 without variance."""
    rho = lam / mu
    assert rho < 1
    return rho / (2 * mu * (1 - rho))


def erlang_b(servers: int, load: float) -> float:
    """Probability that M/G/c/c, offered `load` erlangs, blocks an arrival (for any service law).

    Source: Erlang 1917; insensitivity: Sevastyanov, 1957; the recursion: GT, chapter 3.
    """
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = load * blocked / (c + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival at M/M/c waits. Source: Erlang 1917; GT, chapter 3."""
    rho = load / servers
    assert rho < 1
    blocked = erlang_b(servers, load)
    return blocked / (1 - rho + rho * blocked)


def mmc_wait(lam: float, mu: float, servers: int) -> float:
    """Mean wait of M/M/c. Source: GT, chapter 3."""
    return erlang_c(servers, lam / mu) / (servers * mu - lam)


def mmc_wait_exceeds(lam: float, mu: float, servers: int, t: float) -> float:
    """Probability that the FCFS wait of M/M/c exceeds t seconds. Source: GT, chapter 3."""
    return erlang_c(servers, lam / mu) * math.exp(-(servers * mu - lam) * t)


def birth_death(
    up: Callable[[int], float], down: Callable[[int], float], states: int
) -> np.ndarray:
    """Stationary probabilities of states 0 .. states-1. Source: GT, chapter 3.

    up(n) is the rate from n to n + 1, down(n) the rate from n to n - 1.
    """
    steps = [math.log(up(n)) - math.log(down(n + 1)) for n in range(states - 1)]
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


class Finite(NamedTuple):
    """M/M/c/K: the share of arrivals blocked, and the mean wait of those accepted."""

    blocked: float
    wait: float


def mmck(lam: float, mu: float, servers: int, capacity: int) -> Finite:
    """M/M/c/K with room for `capacity`, those in service included. Source: GT, chapter 3."""
    p = birth_death(lambda _: lam, lambda n: min(n, servers) * mu, capacity + 1)
    queue = np.maximum(np.arange(capacity + 1) - servers, 0)
    return Finite(float(p[-1]), float(p @ queue / (lam * (1 - p[-1]))))


class Impatient(NamedTuple):
    """Erlang A: the shares of arrivals that have to wait, and that leave without service."""

    waits: float
    abandons: float


def erlang_a(lam: float, mu: float, servers: int, theta: float) -> Impatient:
    """M/M/c+M, where each waiting customer leaves at rate theta.

    Source: Palm 1957; Garnett, Mandelbaum and Reiman, Designing a Call Center with Impatient
    Customers, section 2, 2002. The chain is cut where a state has a probability below 1e-30.
    """
    states = servers + 64
    while True:
        p = birth_death(
            lambda _: lam,
            lambda n: min(n, servers) * mu + max(n - servers, 0) * theta,
            states,
        )
        if p[-1] < 1e-30:
            break
        states *= 2
    queue = np.maximum(np.arange(states) - servers, 0)
    return Impatient(float(p[servers:].sum()), float(theta * (p @ queue) / lam))


def mg1_ps_response(rho: float, service: float) -> float:
    """Mean response of a job of the given size in M/G/1-PS, for any service law.

    Source: Sakata, Noguchi and Oizumi 1969; Kleinrock, Queueing Systems II, section 4.4, 1976.
    """
    assert rho < 1
    return service / (1 - rho)


def priority_waits(
    lams: Sequence[float], means: Sequence[float], second_moments: Sequence[float]
) -> list[float]:
    """Mean waits of non-preemptive M/G/1 classes, the most urgent first.

    Source: Cobham, Priority Assignment in Waiting Line Problems, 1954.
    """
    residual = sum(lam * m2 for lam, m2 in zip(lams, second_moments, strict=True)) / 2
    below = np.cumsum([lam * mean for lam, mean in zip(lams, means, strict=True)])
    assert below[-1] < 1
    above = np.concatenate(([0.0], below[:-1]))
    return [float(wait) for wait in residual / ((1 - above) * (1 - below))]


class GeneralArrivals(NamedTuple):
    """GI/M/1: the probability that an arrival waits, and the mean wait."""

    sigma: float
    wait: float


def gamma_m1(lam: float, mu: float, cv: float) -> GeneralArrivals:
    """GI/M/1 with gamma interarrival times of coefficient of variation cv.

    sigma is the root in (0, 1) of sigma = A*(mu (1 - sigma)), A* the Laplace-Stieltjes transform
    of an interarrival time. Source: Kendall 1953; GT, chapter 6.
    """
    assert lam < mu
    shape, scale = 1 / cv**2, cv**2 / lam

    def gap(sigma: float) -> float:
        return (1 + scale * mu * (1 - sigma)) ** -shape - sigma

    sigma = optimize.brentq(gap, 0.0, 1 - 1e-9, xtol=1e-15)
    return GeneralArrivals(sigma, sigma / (mu * (1 - sigma)))


def kingman_bound(lam: float, mu: float, arrival_cv: float, service_cv: float) -> float:
    """An upper bound of the mean GI/G/1 FCFS wait.

    Source: Kingman, Inequalities in the Theory of Queues, 1970.
    """
    rho = lam / mu
    assert rho < 1
    return lam * ((arrival_cv / lam) ** 2 + (service_cv / mu) ** 2) / (2 * (1 - rho))


class Closed(NamedTuple):
    """A closed network: cycles a second, and the mean time of a cycle spent at its stations."""

    throughput: float
    response: float


def mva(customers: int, think_s: float, demands: Sequence[float]) -> Closed:
    """Closed network of single-server stations (seconds of demand a cycle) and a think time.

    Source: Reiser and Lavenberg, Mean-Value Analysis of Closed Multichain Queuing Networks, 1980.
    """
    assert customers >= 1
    service = np.asarray(demands, dtype=float)
    length = np.zeros_like(service)
    throughput, total = 0.0, 0.0
    for n in range(1, customers + 1):
        response = service * (1 + length)
        total = float(response.sum())
        throughput = n / (think_s + total)
        length = throughput * response
    return Closed(throughput, total)


def fork_join_two(lam: float, mu: float) -> float:
    """Mean response of jobs that fork into two M/M/1 FCFS queues and wait for both parts.

    Source: Flatto and Hahn 1984; Nelson and Tantawi, Approximate Analysis of Fork/Join
    Synchronization in Parallel Queues, 1988.
    """
    rho = lam / mu
    return (12 - rho) / 8 * mm1_response(lam, mu)


class Batches(NamedTuple):
    """M^[k]/M/1: mean response of a task, and of the last task of its batch."""

    task: float
    last: float


def batch_m1(batches: float, mu: float, size: int) -> Batches:
    """M^[k]/M/1 FCFS: `batches` a second, each of `size` tasks on one server.

    A task: L = rho (E X^2 + E X) / (2 E X (1 - rho)) and Little. The last one: a batch is an
    M/G/1 customer with an Erlang service of `size` stages. Source: GT, chapter 4.
    """
    rho = batches * size / mu
    assert rho < 1
    tasks = rho * (size**2 + size) / (2 * size * (1 - rho))
    mean_service = size / mu
    last = mg1_wait(batches, mean_service, 1 / size) + mean_service
    return Batches(tasks / (batches * size), last)


def mean_max_exponential(n: int, mu: float) -> float:
    """Mean of the largest of n exponentials.

    Source: Rényi, On the Theory of Order Statistics, 1953.
    """
    return sum(1 / k for k in range(1, n + 1)) / mu


def mean_min_exponential(n: int, mu: float) -> float:
    """Mean of the smallest of n exponentials, exponential of rate n mu. Source: Rényi, 1953."""
    return 1 / (n * mu)


def kv_token_steps(inputs: Sequence[int], outputs: Sequence[int]) -> float:
    """Mean of g = o s + o (o + 1) / 2, the KV tokens a request holds, summed over its o steps.

    `inputs` (s) and `outputs` (o) are the tokens of equally likely requests; in step k of o the
    request holds s + k tokens. Source: arXiv 2605.04595, 2026.
    """
    s, o = np.asarray(inputs, dtype=float), np.asarray(outputs, dtype=float)
    return float(np.mean(o * s + o * (o + 1) / 2))


def kv_occupancy(lam: float, step_s: float, token_steps: float) -> float:
    """Mean KV tokens held when no request ever waits (M/G/inf), steps of `step_s` seconds.

    Source: Little's law on KV tokens; token_steps as of `kv_token_steps`.
    """
    return lam * step_s * token_steps


def kv_limited_throughput(kv_tokens: float, step_s: float, token_steps: float) -> float:
    """Requests a second that a cache of `kv_tokens` can sustain at most.

    Source: arXiv 2605.04595, mu* = M / (b E[g]), 2026.
    """
    return kv_tokens / (step_s * token_steps)


def square_root_servers(load: float, beta: float) -> float:
    """Servers for `load` erlangs by the square-root rule. Source: Halfin and Whitt, 1981."""
    return load + beta * math.sqrt(load)


def halfin_whitt(beta: float) -> float:
    """Limit of the M/M/c waiting probability with c = R + beta sqrt(R) servers as R grows.

    Source: Halfin and Whitt, Heavy-Traffic Limits for Queues with Many Exponential Servers, 1981.
    """
    return float(1 / (1 + beta * stats.norm.cdf(beta) / stats.norm.pdf(beta)))
