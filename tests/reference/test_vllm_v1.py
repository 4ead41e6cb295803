"""The oracle of vLLM V1's scheduler does what vLLM is known to do, event by event."""

from __future__ import annotations

import pytest

from tests.reference.vllm_v1 import V1Engine, V1Settings


def second(_: list[int], __: list[tuple[int, int]]) -> float:
    """Every iteration takes one second."""
    return 1.0


def engine(blocks: int, step_s=second, **more) -> V1Engine:
    return V1Engine(V1Settings(blocks, **{"block_size": 4} | more), step_s)


def test_a_prompt_is_prefilled_in_chunks_of_the_budget_and_says_its_first_token_with_the_last():
    seen = []

    def step_s(decoders, chunks):
        seen.append((decoders, chunks))
        return 1.0

    [request] = engine(100, step_s, max_num_batched_tokens=8).play([(0.0, 20, 3)])
    assert seen == [([], [(8, 0)]), ([], [(8, 8)]), ([], [(4, 16)]), ([21], []), ([22], [])]
    assert (request.first_s, request.last_s) == (3.0, 5.0)


def test_running_requests_go_first_and_a_prompt_gets_what_they_leave_of_the_budget():
    seen = []

    def step_s(decoders, chunks):
        seen.append((len(decoders), [tokens for tokens, _ in chunks]))
        return 1.0

    engine(100, step_s, max_num_batched_tokens=8).play([(0.0, 8, 5), (0.5, 10, 2)])
    assert seen[:3] == [(0, [8]), (1, [7]), (1, [3])]


@pytest.mark.parametrize(("reserve", "preemptions"), [(True, 0), (False, 1)])
def test_a_sequence_enters_only_if_all_of_it_fits_unless_its_chunk_may_do(reserve, preemptions):
    # 6 blocks: the first takes 3, the second needs 4 for its prompt and 1 for its first chunk
    world = engine(6, max_num_batched_tokens=16, reserve_full_isl=reserve)
    assert world.play([(0.0, 12, 2), (0.0, 16, 1)])[1].num_preemptions == preemptions


def test_the_request_admitted_last_is_preempted_and_finds_its_blocks_again():
    # 6 blocks; both prompts take 2, both sequences need 4
    first, last = engine(6).play([(0.0, 8, 8), (0.0, 8, 8)])
    assert (first.num_preemptions, last.num_preemptions) == (0, 1)
    # preempted with 12 tokens computed and 13 known; one of three full blocks was taken meanwhile
    assert last.recomputed == 13 - 8
    assert first.last_s == 8.0


def test_without_prefix_caching_all_is_computed_again():
    _, last = engine(6, enable_prefix_caching=False).play([(0.0, 8, 8), (0.0, 8, 8)])
    assert last.recomputed == last.input_tokens + 5


def test_blocks_freed_first_are_taken_first_and_their_content_goes_with_them():
    pool = engine(6).free
    taken = pool.take(6)
    assert taken == [0, 1, 2, 3, 4, 5]

    class Holder:
        number = 7
        blocks = taken[:3]

    pool.release(Holder, cached=3)
    assert pool.hits(7, 3) == [0, 1, 2]
    assert pool.take(1) == [2]  # the tail goes first
    assert pool.hits(7, 3) == [0, 1]
    assert pool.take(1) == [1]
    assert pool.hits(7, 3) == [0]


def test_async_scheduling_lets_an_arrival_wait_for_the_iteration_that_is_scheduled_already():
    arrivals = [(0.0, 4, 9), (2.5, 4, 1)]
    assert engine(100).play(arrivals)[1].first_s == 4.0
    assert engine(100, async_scheduling=True).play(arrivals)[1].first_s == 5.0


@pytest.mark.parametrize("overlap", [False, True])
def test_every_token_is_said_and_every_block_comes_back(overlap):
    world = engine(40, async_scheduling=overlap, max_num_batched_tokens=32)
    arrivals = [(0.3 * i, 5 + 7 * i % 23, 3 + 11 * i % 29) for i in range(30)]
    for request in world.play(arrivals):
        assert request.generated == request.output_tokens
        assert request.arrival_s < request.first_s <= request.last_s
    assert len(world.free.queue) == 40
    assert not world.running
