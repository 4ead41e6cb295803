"""The closed forms against tabulated values, against each other, and against raw Markov chains."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, sparse, stats
from scipy.sparse.linalg import spsolve

from tests.theory import oracles


def close(value, digits):
    """Equal to a value printed with so many digits after the point."""
    return pytest.approx(value, abs=0.5001 * 10.0**-digits)


def test_mm1_has_the_tabulated_mean_and_95th_percentile():
    assert oracles.mm1_response(0.8, 1) == close(5, 9)
    assert oracles.mm1_response_quantile(0.8, 1, 0.95) == close(14.979, 3)


def test_md1_and_mg1_have_the_tabulated_waits():
    assert oracles.md1_wait(0.8, 1) == close(2.0, 9)
    assert oracles.mg1_wait(0.7, 1, 2.301) == close(3.851, 3)


def test_pollaczek_khinchine_contains_md1_and_mm1():
    assert oracles.mg1_wait(0.3, 2, 0) == pytest.approx(oracles.md1_wait(0.3, 0.5))
    assert oracles.mg1_wait(0.3, 2, 1) + 2 == pytest.approx(oracles.mm1_response(0.3, 0.5))


def test_mmc_has_the_tabulated_waits():
    assert oracles.erlang_c(8, 6.4) == close(0.45764, 5)
    assert oracles.mmc_wait(6.4, 1, 8) == close(0.28603, 5)
    assert oracles.mmc_wait_exceeds(6.4, 1, 8, 1) == close(0.0924, 4)


def test_one_server_of_mmc_is_mm1():
    assert oracles.mmc_wait(0.7, 1.1, 1) == pytest.approx(oracles.mg1_wait(0.7, 1 / 1.1, 1))


def test_the_wait_tail_of_mmc_integrates_to_its_mean():
    area, _ = integrate.quad(lambda t: oracles.mmc_wait_exceeds(6.4, 1, 8, t), 0, np.inf)
    assert area == pytest.approx(oracles.mmc_wait(6.4, 1, 8))


def test_erlang_b_has_the_tabulated_blocking_and_its_definition():
    assert oracles.erlang_b(10, 8) == close(0.12166, 5)
    terms = [8.0**k / math.factorial(k) for k in range(11)]
    assert oracles.erlang_b(10, 8) == pytest.approx(terms[-1] / sum(terms))


def test_mmck_has_the_tabulated_blocking_and_wait():
    assert oracles.mmck(3.6, 1, 4, 10).blocked == close(0.06717, 5)
    assert oracles.mmck(3.6, 1, 4, 10).wait == close(0.5071, 4)


def test_mmck_contains_erlang_b_and_tends_to_mmc():
    assert oracles.mmck(8, 1, 10, 10).blocked == pytest.approx(oracles.erlang_b(10, 8))
    assert oracles.mmck(6.4, 1, 8, 400).wait == pytest.approx(oracles.mmc_wait(6.4, 1, 8))


def test_processor_sharing_slows_all_sizes_alike():
    assert oracles.mg1_ps_response(0.7, 1) == close(3.333, 3)
    assert oracles.mg1_ps_response(0.7, 5) / 5 == close(3.333, 3)


def test_priorities_have_the_tabulated_waits_and_conserve_work():
    waits = oracles.priority_waits([0.3, 0.4], [1, 1], [2, 2])
    assert waits == [close(1.0, 9), close(3.333, 3)]
    assert 0.3 * waits[0] + 0.4 * waits[1] == close(1.6333, 4)


def test_the_order_of_priorities_does_not_change_the_work_in_queue():
    classes = [(0.2, 1.0, 1.5), (0.1, 2.0, 9.0), (0.5, 0.4, 0.2)]
    queued = []
    for order in itertools.permutations(classes):
        lams, means, squares = zip(*order, strict=True)
        waits = oracles.priority_waits(lams, means, squares)
        queued.append(sum(math.prod(row) for row in zip(lams, means, waits, strict=True)))
    assert queued == pytest.approx([queued[0]] * 6)


def test_bursty_arrivals_have_the_tabulated_wait_below_kingmans_bound():
    sigma, wait = oracles.gamma_m1(0.7, 1, 2)
    assert sigma == close(0.87116, 5)
    assert wait == close(6.7617, 4)
    assert wait < oracles.kingman_bound(0.7, 1, 2, 1) == close(10.69, 2)


def test_poisson_arrivals_make_gim1_an_mm1():
    sigma, wait = oracles.gamma_m1(0.7, 1, 1)
    assert sigma == pytest.approx(0.7)
    assert wait == pytest.approx(oracles.mm1_response(0.7, 1) - 1)


def test_the_closed_network_has_the_tabulated_throughput_and_response():
    assert oracles.mva(20, 10, [1]).throughput == close(0.99813, 5)
    assert oracles.mva(20, 10, [1]).response == close(10.037, 3)


def test_mean_value_analysis_of_one_station_is_the_machine_repair_chain():
    p = oracles.birth_death(lambda n: (20 - n) / 10, lambda _: 1.0, 21)
    assert oracles.mva(20, 10, [1]).throughput == pytest.approx(1 - p[0])


def test_one_customer_of_a_closed_network_never_queues():
    assert oracles.mva(1, 3, [1, 0.5]) == (pytest.approx(1 / 4.5), pytest.approx(1.5))


def two_queue_chain(lam, mu, states):
    """Mean of max(n1, n2) over the stationary law of two queues with common arrivals."""
    number = np.arange(states * states)
    n1, n2 = number // states, number % states
    moves = []
    for inside, rate, shift in (
        ((n1 < states - 1) & (n2 < states - 1), lam, states + 1),
        (n1 > 0, mu, -states),
        (n2 > 0, mu, -1),
    ):
        source = number[inside]
        moves.append((source, source + shift, np.full(len(source), rate)))
    source, target, rate = (np.concatenate(part) for part in zip(*moves, strict=True))
    flow = sparse.coo_array((rate, (target, source)), shape=(len(number),) * 2).tocsr()
    balance = (flow - sparse.diags_array(np.asarray(flow.sum(axis=0)))).tolil()
    balance[0, :] = 1.0
    p = spsolve(balance.tocsc(), np.eye(1, len(number))[0])
    return float(p @ np.maximum(n1, n2))


def test_fork_join_of_two_queues_has_the_tabulated_response():
    assert oracles.fork_join_two(0.7, 1) == close(4.7083, 4)


def test_fork_join_of_two_queues_solves_its_markov_chain():
    # Little: max(n1, n2) jobs have a part that is not done.
    jobs = two_queue_chain(0.4, 1, 30)
    assert jobs / 0.4 == pytest.approx(oracles.fork_join_two(0.4, 1), rel=1e-6)


def test_batches_of_four_have_the_tabulated_responses():
    assert oracles.batch_m1(0.2, 1, 4) == (close(12.5, 9), close(14.0, 9))


def test_batches_of_one_are_mm1():
    response = oracles.mm1_response(0.7, 1)
    assert oracles.batch_m1(0.7, 1, 1) == (pytest.approx(response), pytest.approx(response))


def test_extremes_of_eight_exponentials_have_the_tabulated_means():
    assert oracles.mean_max_exponential(8, 1) == close(2.71786, 5)
    assert oracles.mean_min_exponential(8, 1) == close(0.125, 9)


def test_erlang_a_has_the_tabulated_waiting_and_abandonment():
    assert oracles.erlang_a(10, 1, 10, 0.5) == (close(0.6197, 4), close(0.1039, 4))


def test_patience_as_long_as_service_makes_erlang_a_an_infinite_server_queue():
    waits, _ = oracles.erlang_a(10, 1, 10, 1)
    assert waits == pytest.approx(stats.poisson.sf(9, 10))


def test_endless_patience_makes_erlang_a_an_erlang_c():
    waits, abandons = oracles.erlang_a(6.4, 1, 8, 1e-6)
    assert waits == pytest.approx(oracles.erlang_c(8, 6.4), rel=1e-4)
    assert abandons == pytest.approx(1e-6 * oracles.mmc_wait(6.4, 1, 8), rel=1e-4)


def test_kv_token_steps_are_the_sum_over_the_life_of_a_request():
    lives = [[s + k for k in range(1, o + 1)] for s, o in ((7, 5), (100, 1), (3, 0))]
    expected = sum(map(sum, lives)) / 3
    assert oracles.kv_token_steps([7, 100, 3], [5, 1, 0]) == pytest.approx(expected)


def test_kv_occupancy_is_what_poisson_requests_hold():
    rng = np.random.default_rng(2026)
    horizon, lam = 60_000, 0.5
    arrivals = rng.integers(0, horizon, rng.poisson(lam * horizon))
    inputs = rng.integers(1, 40, len(arrivals))
    outputs = rng.geometric(0.05, len(arrivals))
    held = np.zeros(horizon)
    for k in range(1, outputs.max() + 1):
        alive = outputs >= k
        np.add.at(held, (arrivals[alive] + k) % horizon, inputs[alive] + k)
    mean_g = 20 * 20 + (20**2 * 1.95 + 20) / 2  # E o = 20, E o^2 = 400 (1 + 0.95), E s = 20
    assert held.mean() == pytest.approx(oracles.kv_occupancy(lam, 1.0, mean_g), rel=0.03)


def test_the_cache_is_full_on_average_at_the_largest_throughput():
    token_steps = oracles.kv_token_steps([50, 80], [100, 160])
    largest = oracles.kv_limited_throughput(20_000, 0.02, token_steps)
    assert oracles.kv_occupancy(largest, 0.02, token_steps) == pytest.approx(20_000)


def test_a_request_of_known_size_has_the_throughput_worked_out_by_hand():
    # 10 + 1, 10 + 2, 10 + 3, 10 + 4 tokens: 50 token-steps; 20,000 / (0.5 s * 50) = 800.
    assert oracles.kv_limited_throughput(20_000, 0.5, oracles.kv_token_steps([10], [4])) == 800


def test_halfin_whitt_has_the_tabulated_limit_and_erlang_c():
    assert oracles.square_root_servers(100, 1) == 110
    assert oracles.erlang_c(110, 100) == close(0.2370, 4)
    assert oracles.halfin_whitt(1) == close(0.2234, 4)


def test_erlang_c_tends_to_halfin_whitt():
    gaps = [oracles.erlang_c(r + round(r**0.5), r) - oracles.halfin_whitt(1) for r in (100, 10_000)]
    assert 0 < gaps[1] < gaps[0] / 5
