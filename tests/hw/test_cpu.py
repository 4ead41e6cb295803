"""The CPU's operations are the kernels': the same checks as on a GPU, for both engines and both ways to store KV."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw import cpu, ops, reference
from hw.kvtree import Step
from tests.hw.kernel_checks import (
    check_append,
    check_attention,
    check_fork_and_prune,
    check_samples,
)
from tests.hw.trees import grow

ENGINES = [
    pytest.param(
        "torch",
        marks=pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    ),
    "numpy",
]
TOLERANCE = {np.uint16: 5e-3, np.float32: 2e-6}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize(("page", "group"), [(16, 4), (64, 7), (8, 1)])
def test_tree_attention_is_dense_attention(engine, dtype, page, group):
    k = cpu.kernels(ops.Shape(page, group, 2), dtype, engine)
    for seed in range(2):
        tree = grow(seed, page, branches=10, most=80)
        check_attention(k, tree, seed, TOLERANCE[dtype], ctas=(4, 64)[seed % 2], min_keys=64)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_range_of_keys_may_start_in_the_middle_of_a_page_or_hold_none(engine):
    k = cpu.kernels(ops.Shape(16, 4, 2, row_tile=16), np.float32, engine)
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((9, 2, 2, 16, 128)).astype(np.float32)
    queries = rng.standard_normal((3, 8, 128)).astype(np.float32)
    lists = (
        [2, 0, 1],
        [8, 3, 5, 0, 7, 2, 1],
        [[0, 3, 0, 0, 5, 77, 0, 0], [1, 2, 0, 1, 3, 3, 1, 0]],
        [[2, 5, 7, 20, 1, 0, 0, 0], [0, 6, 2, 2, 2, 0, 0, 0]],
        [0, 3, 5, 7],
    )
    step = Step(*(np.array(a, np.int32) for a in lists))
    merged = np.full_like(queries, np.nan)
    ops.attention(k, queries, pool, step, ops.scratch(k, 7), merged)
    assert np.allclose(merged, reference.tree_attention(queries, pool, step), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize(("page", "kv_heads"), [(16, 2), (64, 1)])
def test_append_fork_and_prune_are_their_twins_bit_for_bit(dtype, page, kv_heads):
    k = cpu.kernels(ops.Shape(page, 4, kv_heads), dtype, "numpy")
    for seed in range(3):
        check_append(k, seed)
        check_fork_and_prune(k, seed)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("logits_bf16", [False, True])
def test_samples_are_the_twins(top_p, logits_bf16):
    k = cpu.kernels(ops.Shape(16, 4, 2, logits_bf16=logits_bf16), computes="numpy")
    check_samples(k, 5, 1003, top_p, seed=4)
    check_samples(k, 5, 1003, top_p, seed=4, spread=0.01)


@given(
    st.integers(1, 200_000), st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**31)
)
def test_the_noise_is_the_references_in_float32(vocabulary, row, seed, step):
    vocabulary = min(vocabulary, 3000) if vocabulary % 17 else vocabulary
    key = np.array([seed & 0xFFFFFFFF, seed >> 32, step], np.uint32)
    exact = reference.gumbels(vocabulary, row, step, seed)
    assert np.allclose(cpu._gumbels(vocabulary, row, key), exact, rtol=1e-4, atol=1e-4)


def test_a_dtype_that_no_kernel_stores_is_refused():
    with pytest.raises(ValueError, match=r"uint16 \(bf16 bits\) or float32, got float64"):
        cpu.kernels(ops.Shape(16, 4, 2), np.float64)
