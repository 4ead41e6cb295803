"""The steady state: its formulas meet a plain loop over iterations, its constants can be found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.latency import StepCost
from sim.steady import Load, Parts, Terms, calibrate, parts, tpot, ttft

COST = StepCost.linear(8e-3, per_decode=1e-5, per_prefill=2e-5, kv=1e-8, saturation=1e9)
IDEAL = Terms(gap_s=0.0, each_s=0.0, start_s=0.0, alone=1.0, burst=0.0, steps=0.0, queued=0.0)


def measured(clients: int, asked: int, answer: int, rounds: int = 6) -> float:
    """TPOT of a closed loop played iteration by iteration: whole prompts join the batch as they come."""
    left = [answer * (i + 1) // clients for i in range(clients)]  # staggered starts
    clock, tokens, spent, busy = 0.0, 0, 0.0, [True] * clients
    while tokens < rounds * clients * answer:
        fresh = [i for i in range(clients) if not busy[i]][:1]
        b = sum(busy)
        read = b * (asked + answer / 2)
        prompt = COST.base_s(b, asked) - COST.base_s(b, 0) + COST.context_s(asked) * asked / 2
        step = COST.base_s(b, 0) + COST.kv_s * read + (prompt if fresh else 0.0)
        clock += step
        tokens += b
        spent += b * step
        for i in range(clients):
            if busy[i]:
                left[i] -= 1
                if left[i] == 0:
                    busy[i] = False
        for i in fresh:
            busy[i], left[i] = True, answer
    assert clock > 0
    return spent / tokens


@pytest.mark.parametrize(
    ("clients", "asked", "answer"), [(4, 512, 200), (16, 1024, 400), (32, 300, 300)]
)
def test_the_time_between_tokens_is_that_of_a_loop_over_iterations(
    clients: int, asked: int, answer: int
) -> None:
    found = parts(COST, Load(clients, asked, answer), kv_tokens=1e9)
    # The formula's prompt is a share of a full prefill step, base and all; a linear cost lets us take it out.
    prompt_s = COST.base_s(1, asked) - COST.base_s(1, 0) + COST.context_s(asked) * asked / 2
    found = replace(found, share_s=(clients - 1) / answer * prompt_s)
    assert tpot(found, IDEAL) == pytest.approx(measured(clients, asked, answer), rel=0.03)


def test_clients_that_memory_cannot_hold_wait_for_whole_answers() -> None:
    load = Load(clients=64, input_tokens=1000, output_tokens=1000)
    wide, tight = (parts(COST, load, kv_tokens=tokens) for tokens in (1e9, 32 * 1750))
    assert (wide.batch, wide.waiting) == (64, 0)
    assert (tight.batch, tight.waiting) == (32, 1)
    assert tpot(tight, IDEAL) < tpot(wide, IDEAL)
    answer_s = ttft(replace(tight, waiting=0.0), IDEAL) + 1000 * tpot(tight, IDEAL)
    assert ttft(tight, IDEAL) - ttft(replace(tight, waiting=0.0), IDEAL) == pytest.approx(answer_s)


def test_one_request_that_always_waits_adds_the_time_between_two_answers_to_each() -> None:
    found = parts(COST, Load(clients=8, input_tokens=1000, output_tokens=1000), kv_tokens=1e9)
    free, queued = (ttft(found, replace(IDEAL, queued=n)) for n in (0.0, 1.0))
    answer_s = free + 1000 * tpot(found, IDEAL)
    assert queued - free == pytest.approx(
        answer_s / 8
    )  # Little: one waits, 8 / answer arrive a second


def test_fp8_kv_halves_what_reading_costs_and_nothing_else() -> None:
    load = Load(8, 1000, 100)
    full, half = (parts(COST, load, 1e9, scale) for scale in (1.0, 0.5))
    assert full.step_s - half.step_s == pytest.approx(0.5 * COST.kv_s * 8 * 1050)
    assert full.prompt_s == half.prompt_s


def some_parts() -> list[Parts]:
    rng = np.random.default_rng(3)
    return [
        parts(COST, Load(int(c), float(a), float(o)), 1e9)
        for c, a, o in zip(
            rng.choice([1, 4, 16, 64, 256], 60), rng.choice([256, 1024, 4096], 60),
            rng.choice([128, 1024, 8192], 60), strict=True,
        )
    ]  # fmt: skip


def test_calibration_finds_the_constants_that_made_the_points() -> None:
    truth = Terms(
        gap_s=2e-3, each_s=30e-6, decode=1.1, start_s=50e-3, alone=1.5, burst=0.4, steps=3.0
    )
    found = some_parts()
    rates, firsts = [tpot(p, truth) for p in found], [ttft(p, truth) for p in found]
    learned = calibrate(found, rates, firsts, Terms())
    assert learned.gap_s == pytest.approx(truth.gap_s, rel=0.3)  # the prior still holds it a little
    assert learned.decode == pytest.approx(truth.decode, rel=0.05)
    error = [tpot(p, learned) / rate - 1 for p, rate in zip(found, rates, strict=True)]
    first = [ttft(p, learned) / value - 1 for p, value in zip(found, firsts, strict=True)]
    assert max(map(abs, error)) < 0.02
    assert max(map(abs, first)) < 0.05


def test_a_few_wild_points_do_not_move_the_constants_and_no_points_leave_the_prior() -> None:
    truth, found = Terms(gap_s=2e-3), some_parts()
    rates, firsts = [tpot(p, truth) for p in found], [ttft(p, truth) for p in found]
    wild = [rate * (5.0 if i % 12 == 0 else 1.0) for i, rate in enumerate(rates)]
    learned = calibrate(found, wild, firsts, Terms())
    error = [abs(tpot(p, learned) / rate - 1) for p, rate in zip(found, rates, strict=True)]
    assert float(np.median(error)) < 0.03
    assert calibrate([], [], [], Terms()) == Terms()
