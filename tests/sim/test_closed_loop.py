"""A closed loop on the batch: the first token and the pace of one client, of many, and of too many for the memory."""

from __future__ import annotations

import pytest

from models.latency import StepCost
from sim.batch import Settings
from sim.closed_loop import Loop, play, with_host
from sim.steady import Load, Terms, parts, tpot

COST = StepCost.linear(8e-3, per_decode=1e-5, per_prefill=2e-5, kv=1e-8, saturation=1e9)
ROOMY = Settings(num_gpu_blocks=100_000, max_num_seqs=256, attention="naive", reclaim="lru")


def test_one_client_waits_for_its_prompt_alone_and_then_for_a_step_a_token() -> None:
    seen = play(Loop(1, input_tokens=1000, output_tokens=101), ROOMY, COST, start_s=0.03)
    context = COST.context_s(1000) * 1000 / 2
    assert seen.ttft_s == pytest.approx(0.03 + COST.base_s(0, 1000) + context, rel=1e-6)
    assert seen.tpot_s == pytest.approx(COST.base_s(1, 0) + COST.kv_s * 1050, rel=1e-3)
    assert seen.preemptions == 0


def test_many_clients_of_unequal_lengths_see_the_pace_of_the_closed_form() -> None:
    seen = play(Loop(16, input_tokens=1200, output_tokens=480, shortest=0.8), ROOMY, COST)
    found = parts(COST, Load(16, 1080, 432), kv_tokens=1e9)
    ideal = Terms(gap_s=1e-9, each_s=1e-9, prefill=1.0)
    prompt_s = COST.base_s(1, 1080) - COST.base_s(
        1, 0
    )  # beside decoders a prompt pays no base of its own
    assert seen.tpot_s == pytest.approx(tpot(found, ideal) + 15 / 432 * (prompt_s - found.prompt_s), rel=0.05)  # fmt: skip


def test_without_room_for_all_a_first_token_comes_later_and_some_are_preempted() -> None:
    loop = Loop(16, input_tokens=400, output_tokens=400, shortest=0.8, rounds=4)
    tight = Settings(num_gpu_blocks=200, max_num_seqs=256, attention="naive", reclaim="lru")
    free, full = (play(loop, settings, COST) for settings in (ROOMY, tight))
    assert full.preemptions > 0 == free.preemptions
    assert full.ttft_s > 5 * free.ttft_s
    # The device does the same work either way, so that rounds take longer by no more than the batch got smaller.
    assert full.ttft_s + 360 * full.tpot_s > free.ttft_s + 360 * free.tpot_s


def test_the_host_adds_its_time_to_every_step_and_every_sequence() -> None:
    slow = with_host(COST, gap_s=2e-3, each_s=1e-4)
    assert slow.base_s(10, 0) == pytest.approx(COST.base_s(10, 0) + 2e-3 + 1e-3)
    assert slow.linear_s(10, 0) == pytest.approx(COST.base_s(10, 0) + 1e-3)
    assert with_host(slow, 0.0, 0.0).base_s(10, 0) == pytest.approx(COST.base_s(10, 0) + 1e-3)


def test_the_same_seed_plays_the_same_loop() -> None:
    loop = Loop(8, 300, 60, shortest=0.5)
    assert play(loop, ROOMY, COST) == play(loop, ROOMY, COST)
    assert play(loop, ROOMY, COST) != play(Loop(8, 300, 60, shortest=0.5, seed=1), ROOMY, COST)
