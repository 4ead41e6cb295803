"""The kernels on a real GPU against their float64 twins: what is emulated elsewhere is measured here for truth."""

from __future__ import annotations

import numpy as np
import pytest

from hw import cuda, ops, reference
from tests.hw.kernel_checks import (
    check_append,
    check_attention,
    check_fork_and_prune,
    check_samples,
    host,
)
from tests.hw.trees import Grown, grow

pytestmark = pytest.mark.gpu
SHAPES = [(page, group) for page in ops.PAGES for group in ops.GROUPS]


@pytest.fixture(scope="module")
def on_gpu():
    """Compiles for a shape once, or skips with the reason why there is nothing to run on."""
    made: dict[ops.Shape, ops.Kernels] = {}

    def kernels(*args: int, **settings: int) -> ops.Kernels:
        shape = ops.Shape(*args, **settings)
        try:
            return made.setdefault(shape, made.get(shape) or cuda.kernels(shape))
        except cuda.GpuError as error:
            pytest.skip(str(error))

    return kernels


@pytest.mark.parametrize(("page", "group"), SHAPES)
def test_attention_over_twenty_random_trees_a_shape_is_within_tolerance(on_gpu, page, group):
    k = on_gpu(page, group, 2)
    for seed in range(20):
        tree = grow(1000 * group + seed, page, branches=16, most=120)
        check_attention(k, tree, seed, ctas=(8, 264)[seed % 2], min_keys=64)


@pytest.mark.parametrize(
    "settings", [{"row_tile": 128}, {"row_tile": 16, "key_tile": 32}, {"stages": 4}]
)
def test_other_tiles_compute_the_same(on_gpu, settings):
    k = on_gpu(16, 4, 2, **settings)
    for seed in range(5):
        check_attention(k, grow(seed, branches=20, most=120), seed, min_keys=64)


@pytest.mark.parametrize("group", [4, 7])
def test_a_long_prefix_cut_into_many_parts_is_within_tolerance(on_gpu, group):
    tree = Grown(16, 8, np.random.default_rng(group), pages=300, rows=40)
    tree.root()
    tree.write(0, 2007)
    for child in tree.fork(0, 33):
        tree.write(child, child)
    check_attention(on_gpu(16, group, 8), tree, seed=1, ctas=264, min_keys=256)


def test_one_long_private_branch_is_cut_over_blocks(on_gpu):
    tree = Grown(64, 2, np.random.default_rng(3), pages=60)
    tree.root()
    tree.write(0, 3001)
    check_attention(on_gpu(64, 5, 2), tree, seed=1, min_keys=64)


def test_the_same_step_twice_gives_the_same_bits(on_gpu):
    k = on_gpu(16, 4, 2)
    tree = grow(5, branches=16, most=120)
    queries = reference.bf16_bits(
        np.random.default_rng(0).standard_normal((tree.live, k.shape.heads, 128))
    )
    arrays = k.xp.asarray(queries), k.xp.asarray(reference.bf16_bits(tree.pool))
    step = ops.plan_step(k, tree.tables[: tree.live], tree.lengths[: tree.live], min_keys=64)
    outputs = []
    for _ in range(3):
        merged = k.xp.zeros(queries.shape, np.uint16)
        ops.attention(k, *arrays, step, ops.scratch(k, int(host(step.parts)[-1])), merged)
        outputs.append(host(merged))
    assert outputs[0].any()
    assert (outputs[0] == outputs[1]).all()
    assert (outputs[0] == outputs[2]).all()


@pytest.mark.parametrize(("page", "kv_heads"), [(16, 8), (64, 4), (16, 1)])
def test_append_fork_and_prune_are_their_twins_bit_for_bit(on_gpu, page, kv_heads):
    k = on_gpu(page, 4, kv_heads)
    for seed in range(10):
        check_append(k, seed)
        check_fork_and_prune(k, seed)


@pytest.mark.parametrize("vocabulary", [5, 1003, 128256, 152064])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5])
@pytest.mark.parametrize("logits_bf16", [False, True])
def test_samples_are_the_twins(on_gpu, vocabulary, top_p, logits_bf16):
    k = on_gpu(16, 4, 8, logits_bf16=logits_bf16)
    check_samples(k, 4, vocabulary, top_p, seed=7)
    check_samples(k, 4, vocabulary, top_p, seed=7, spread=0.01)
