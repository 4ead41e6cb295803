"""Leaves out each barrier of a kernel file in turn, and says which are missed: `python -m tests.hw.race_hunt FILE FOLDER`.

A process of its own: a kernel without a barrier may write anywhere. Prints JSON: one list of schedules that fail for
each barrier, and first the one with every barrier in place.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from hw import ops
from tests.hw import host_cuda
from tests.hw.kernel_checks import (
    check_append,
    check_attention,
    check_fork_and_prune,
    check_reclaim_in_order,
    check_samples,
)
from tests.hw.trees import Grown

SCHEDULES = range(6)


def grown() -> Grown:
    """Three branches below 150 tokens: several tiles, ragged ends, suffixes of more slabs than warps."""
    tree = Grown(16, 1, np.random.default_rng(5), pages=60, rows=8)
    tree.root()
    tree.write(0, 150)
    for child, more in zip(tree.fork(0, 2), (131, 9), strict=True):
        tree.write(child, more)
    return tree


def holds(name: str, k: ops.Kernels) -> bool:
    """Whether the file's kernels do what they must."""
    try:
        if name in ("prefix", "suffix", "merge"):
            check_attention(k, grown(), seed=1, ctas=1, min_keys=192)
        elif name == "append":
            check_append(k, 0)
        elif name == "sample":
            for top_p in (1.0, 0.7):
                check_samples(k, 2, 5003, top_p, seed=4, spread=1.0)
                check_samples(k, 6, 5003, top_p, seed=4, spread=0.01)
        else:
            check_fork_and_prune(k, 0)
            check_reclaim_in_order(k)
    except AssertionError:
        return False
    return True


def main(name: str, folder: Path) -> list[list[int]]:
    knobs = host_cuda.Knobs()
    # Few rows a tile and two stages: as many barriers as can be passed between warps of one block.
    heads = 1 if name in ("prefix", "suffix", "merge") else 8
    shape = ops.Shape(16, 4, heads, row_tile=32, key_tile=16, stages=2)
    k = ops.Kernels(shape, host_cuda.launcher(shape, folder, late=True, knobs=knobs), np)
    holds(name, k)  # compiled before the first fork
    _, count = host_cuda.numbered(host_cuda.translated(name))
    failed: list[list[int]] = []
    for barrier in range(-1, count):
        failed.append([])
        for schedule in SCHEDULES:
            knobs.schedule, knobs.left_out = schedule, barrier
            child = os.fork()
            if not child:
                os._exit(0 if holds(name, k) else 1)
            if os.waitpid(child, 0)[1]:
                failed[-1].append(schedule)
                if barrier >= 0:
                    break
    return failed


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
