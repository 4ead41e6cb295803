"""The kernels' index arithmetic, emulated lane by lane, against the twins: the host code runs here as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from hw import ops, reference
from hw.kvtree import Step
from tests.hw import launch_twin
from tests.hw.kernel_checks import (
    check_append,
    check_attention,
    check_fork_and_prune,
    check_reclaim_in_order,
    check_samples,
)
from tests.hw.trees import grow


def emulated(*args, **settings) -> ops.Kernels:
    shape = ops.Shape(*args, **settings)
    return ops.Kernels(shape, launch_twin.launcher(shape), np)


@pytest.mark.parametrize(
    ("page", "group", "row_tile", "key_tile", "stages"),
    [
        (16, 4, 64, 64, 2),
        (16, 5, 16, 32, 3),
        (64, 7, 32, 64, 2),
        (16, 8, 128, 16, 4),
        (64, 1, 16, 64, 2),
    ],
)
def test_attention_reads_and_writes_where_it_should(page, group, row_tile, key_tile, stages):
    k = emulated(page, group, 2, row_tile=row_tile, key_tile=key_tile, stages=stages)
    check_attention(k, grow(group, page, branches=5, most=90), seed=group, ctas=64, min_keys=64)


def test_a_range_of_keys_may_start_in_the_middle_of_a_page_or_hold_none():
    k = emulated(16, 4, 2, row_tile=16)
    rng = np.random.default_rng(0)
    pool = reference.bf16_bits(rng.standard_normal((9, 2, 2, 16, 128)))
    queries = reference.bf16_bits(rng.standard_normal((3, 8, 128)))
    lists = (
        [2, 0, 1],
        [8, 3, 5, 0, 7, 2, 1],
        [[0, 3, 0, 0, 5, 77, 0, 0], [1, 2, 0, 1, 3, 3, 1, 0]],
        [[2, 5, 7, 20, 1, 0, 0, 0], [0, 6, 2, 2, 2, 0, 0, 0]],
        [0, 3, 5, 7],
    )
    step = Step(*(np.array(a, np.int32) for a in lists))
    room = ops.scratch(k, 7)
    merged = np.zeros(queries.shape, np.uint16)
    ops.attention(k, queries, pool, step, room, merged)
    values = [reference.bf16_values(a).astype(float) for a in (queries, pool)]
    expected, sums = reference.partials(*values, step)
    written = ~np.isnan(expected[:, 0, 0])
    assert written.sum() == 7
    assert np.allclose(room[0][written], expected[written], atol=1e-6)
    assert np.allclose(room[1][written], sums[written], rtol=1e-6)
    whole = reference.tree_attention(*values, step)
    assert np.allclose(reference.bf16_values(merged), whole, atol=1e-2)


@pytest.mark.parametrize(("page", "kv_heads"), [(16, 2), (64, 1)])
def test_append_fork_and_prune_do_what_their_twins_do(page, kv_heads):
    k = emulated(page, 4, kv_heads)
    for seed in range(2):
        check_append(k, seed)
        check_fork_and_prune(k, seed)


def test_reclaimed_pages_keep_their_order_across_rounds_of_the_scan():
    check_reclaim_in_order(emulated(16, 4, 2))


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("logits_bf16", [False, True])
def test_samples_are_the_twins(top_p, logits_bf16):
    k = emulated(16, 4, 2, logits_bf16=logits_bf16)
    check_samples(k, 5, 1003, top_p, seed=4)
    check_samples(k, 5, 1003, top_p, seed=4, spread=0.01)


def test_arrays_of_another_shape_or_type_are_refused_before_a_kernel_reads_them():
    k = emulated(16, 4, 2)
    logits, key = np.zeros((2, 8), np.float64), np.zeros(3, np.uint32)
    with pytest.raises(
        ValueError,
        match=r"logits must be a contiguous float32 array of shape \(2, 8\), got float64",
    ):
        ops.sample(k, logits, inverse_temperature=1, top_p=1, key=key, tokens=np.zeros(2, np.int32))
    tables, lengths = np.zeros((3, 8), np.int32)[:, ::2], np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="tables must be a contiguous int32 array"):
        ops.append(
            k,
            np.zeros((4, 2, 2, 16, 128), np.uint16),
            *np.zeros((2, 3, 2, 128), np.uint16),
            tables,
            lengths,
            True,
        )


def test_more_children_than_a_grid_can_hold_are_refused():
    k = emulated(16, 4, 2)
    many = np.zeros(ops.MOST_CHILDREN + 1, np.int32)
    pools = np.zeros((1, 1, 2, 2, 16, 128), np.uint16)
    state = np.zeros((1, 1), np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="at most 65,535 children a call, got 65,536"):
        ops.fork(k, pools, *state, many, many, many)


def test_no_branch_launches_nothing():
    def launch(*_):
        raise AssertionError("launched")

    shape = ops.Shape(16, 4, 2)
    k = ops.Kernels(shape, launch, np)
    step = ops.plan_step(k, [], [])
    empty = np.zeros((0, 8, 128), np.uint16)
    pool = np.zeros((1, 2, 2, 16, 128), np.uint16)
    ops.attention(k, empty, pool, step, ops.scratch(k, 0), empty)
