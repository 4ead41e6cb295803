"""The kernels' own source, run on a CPU with every thread a fiber, against dense attention and the twins.

A wrong wait, page, part or mask is found here, and a missing barrier too: warps run ahead of one another in six orders.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hw import ops
from hw.reference import bf16_bits
from tests.hw import host_cuda
from tests.hw.kernel_checks import (
    check_append,
    check_attention,
    check_fork_and_prune,
    check_samples,
)
from tests.hw.trees import Grown

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None,
    reason="running kernel source on the host needs Linux and g++",
)


def on_host(folder, *args, late=True, **settings) -> ops.Kernels:
    shape = ops.Shape(*args, **settings)
    return ops.Kernels(shape, host_cuda.launcher(shape, folder, late=late), np)


@pytest.mark.parametrize(
    ("page", "group", "late", "settings"),
    [
        (16, 5, False, {"row_tile": 32, "stages": 3}),
        (64, 8, True, {"row_tile": 32, "key_tile": 32}),
    ],
)
def test_attention_is_dense_attention(tmp_path, page, group, late, settings):
    k = on_host(tmp_path, page, group, 2, late=late, **settings)
    check_attention(k, nested(page), seed=1, ctas=2, min_keys=64)


def nested(page: int) -> Grown:
    """A root of many key tiles, below it ragged children, one with full pages and two children; apart, 3 tokens."""
    tree = Grown(page, 2, np.random.default_rng(page), pages=60, rows=10)
    tree.root()
    tree.write(0, 200)
    first, second, _ = tree.fork(0, 3)
    tree.write(first, 5)
    tree.write(second, 71)
    tree.write(tree.fork(second, 2)[0], 40)
    tree.write(tree.root(), 3)
    return tree


def test_append_fork_and_prune_are_their_twins(tmp_path):
    k = on_host(tmp_path, 16, 4, 2)
    check_append(k, 0)
    check_fork_and_prune(k, 0)


def test_samples_are_the_twins(tmp_path):
    k = on_host(tmp_path, 16, 4, 2)
    for top_p in (1.0, 0.9):
        check_samples(k, 2, 5003, top_p, seed=4)
        check_samples(k, 4, 1003, top_p, seed=4, spread=0.01)


# What leaving out a barrier (by its number in the file) cannot break. suffix 3: every copy has landed by the last turn.
# sample 6: what is overwritten is equal; 7, 8: a barrier that follows does as much. They stay, for who changes the code.
REDUNDANT = {"suffix": [3], "sample": [6, 7, 8]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix", "suffix", "merge", "append", "fork", "prune", "sample"])
def test_no_order_of_warps_breaks_a_kernel_and_without_any_of_its_barriers_one_does(tmp_path, name):
    command = [sys.executable, "-W", "ignore", "-m", "tests.hw.race_hunt", name, str(tmp_path)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    here = Path(__file__).resolve().parents[2]
    hunt = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert hunt.returncode == 0, hunt.stderr
    intact, *without = json.loads(hunt.stdout)
    assert intact == []
    missed = [number for number, failing in enumerate(without) if not failing]
    assert missed == REDUNDANT.get(name, [])


def far_pool(page: int, kv_heads: int, pages: int) -> np.ndarray:
    """A layer of KV of many gigabytes of which only the pages that are touched take memory."""
    shape = (pages, 2, kv_heads, page, 128)
    size = 2 * int(np.prod(shape, dtype=np.int64))
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; Python names it from 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return np.frombuffer(mmap.mmap(-1, size, flags), np.uint16).reshape(shape)


@pytest.mark.slow
def test_pages_beyond_four_and_eight_gigabytes_are_read_and_written_where_they_lie(tmp_path):
    k = on_host(tmp_path, 16, 4, 8, row_tile=16, key_tile=16)
    pages = 140_000  # of 64 KiB: 9.2 GB
    pool = far_pool(16, 8, pages)
    far = np.array([pages - 1, 70_000, 3, pages - 2], np.int32)
    rng = np.random.default_rng(0)
    near = bf16_bits(rng.standard_normal((4, *pool.shape[1:])))
    pool[far] = near
    queries = bf16_bits(rng.standard_normal((2, 32, 128)))
    lengths = np.array([40, 37], np.int32)
    results = []
    for ids, where in ((far, pool), (np.arange(4, dtype=np.int32), near)):
        tables = ids[[[0, 1, 2], [0, 1, 3]]]
        step = ops.plan_step(k, tables, lengths, min_keys=64)
        assert len(step.prefix)
        merged = np.zeros(queries.shape, np.uint16)
        room = ops.scratch(k, int(step.parts[-1]))
        ops.attention(k, queries, where, step, room, merged)
        results.append(merged)
    assert results[0].any()
    assert (results[0] == results[1]).all()

    keys, values = bf16_bits(rng.standard_normal((2, 2, 8, 128)))
    tables = far[[[0, 1, 2], [0, 1, 3]]]
    ops.append(k, pool, keys, values, tables, lengths.copy(), False)
    for branch, page in ((0, far[2]), (1, far[3])):
        assert (pool[page, 0, :, lengths[branch] % 16] == keys[branch]).all()
        assert (pool[page, 1, :, lengths[branch] % 16] == values[branch]).all()
    copied = np.array([69_999], np.int32)
    state = [np.full((3, 3), -1, np.int32), np.zeros(3, np.int32), np.zeros(pages, np.int32)]
    state[0][:2], state[1][:2] = tables, lengths
    ops.fork(k, pool[None], *state, *(np.array([n], np.int32) for n in (0, 2)), copied)
    assert (pool[69_999, :, :, :8] == pool[far[2], :, :, :8]).all()
    assert not pool[69_999, :, :, 8:].any()
