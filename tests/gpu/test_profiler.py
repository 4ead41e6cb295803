"""The profiler and the contest on a real GPU: every operation is timed through a graph, and every peer that is here agrees."""

from __future__ import annotations

import numpy as np
import pytest

from hw import contest, cuda, peers
from hw.backend import backend
from hw.bench import bench, checked
from hw.cases import case
from hw.device import device
from hw.grid import QUICK, Point, grid
from hw.profiler import ceilings
from hw.timing import Budget
from hw.transformer import transformer

pytestmark = pytest.mark.gpu
SHAPE = transformer("llama-3.1-8b")
BUDGET = Budget(0.0, 3, 5, 1)


@pytest.fixture(scope="module")
def ready():
    try:
        return bench(backend("cuda"), device("h200-sxm-141gb"))
    except cuda.GpuError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("op", sorted({point.op for point in grid([SHAPE], QUICK)}))
def test_an_operation_writes_what_it_should_and_is_timed_within_reason(ready, op):
    """No faster than the H200's data sheet allows but for what stays in cache, and not a thousand times slower."""
    point = next(p for p in grid([SHAPE], QUICK) if p.op == op and p.branches in (0, 4, 16))
    made = case(ready, SHAPE, point)
    assert checked(made) == ""
    found = ready.backend.clock.time(made.run, made.units, BUDGET, made.reset)
    assert 0 < found.least <= found.median
    assert found.median > 0.2 * made.op.seconds


def test_the_roofs_are_those_of_a_gpu(ready):
    roofs, launch = ceilings(ready, BUDGET)
    assert 2e11 < roofs["copy_bytes_per_s"] < 2e13
    assert roofs["read_bytes_per_s"] > 0.7 * roofs["copy_bytes_per_s"]
    assert 2e13 < roofs["gemm_flops_bf16"] < 1e16
    assert 1e-7 < launch["graph_s"] < 1e-4


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_a_peer_computes_the_same_attention_on_the_same_tree(ready, name):
    forest = peers.forest(ready, SHAPE, Point("attention", SHAPE.name, 16, 8, 512, 100))
    try:
        run, got = peers.PEERS[name](forest)
    except peers.Absent as error:
        pytest.skip(str(error))
    ours, expected = peers.ours(forest)
    ours(0)
    run(0)
    ready.backend.wait()
    assert peers.relative_error(got, expected) < contest.AGREES


def test_replays_of_a_graph_take_longer_for_more_bytes(ready):
    linear, half = ready.backend.linear, 1 << 27
    times = []
    for size in (half, 2 * half):
        tensors = ready.tensors([ready.take((size,)), ready.backend.xp.empty(size, np.uint16)])
        run = lambda _, pair=tensors: linear.copy(*pair)  # noqa: E731
        times.append(ready.backend.clock.time(run, 2, BUDGET).median)
    assert 1.6 < times[1] / times[0] < 2.4
