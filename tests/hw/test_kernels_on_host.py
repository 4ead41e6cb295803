"""The kernels' own source, run on a CPU with every thread a fiber, against dense attention and the twins.

Warps go nearly in step here, so a race between warps is not found; a wrong wait, page, part or mask is.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from hw import ops
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
