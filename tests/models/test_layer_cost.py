"""A step from timed layers is their sum, padded where the engine pads, and less what a graph saves."""

from __future__ import annotations

from itertools import product

import pytest

from hw.device import device
from hw.imported import light_row, mixed_row
from hw.profile import make_profile
from hw.servingsim import read_servingsim
from hw.transformer import transformer
from models.layer_cost import LayerTimes
from tests.data import DATA, needs

H200 = device("h200-sxm-141gb")
SHAPE = transformer("llama-3.1-8b")
KERNELS = 324


def profile(**meta):
    """Norms that take 1 us and 0.01 us a token, a head of 5 us a sequence, attention from read tokens."""
    rows = [light_row(H200, "norm", m, 1.0, 1 + 0.01 * m) for m in (1, 100, 2000)]
    rows += [light_row(H200, "lm_head", m, 1.0, 5.0 * m) for m in (1, 64)]
    for chunk, n in product((0, 16, 256), (0, 1, 64)):
        for context, v in product((0, 512) if chunk else (0,), (16, 1024) if n else (0,)):
            if chunk or n:
                us = 2 + 0.001 * n * v + 0.01 * chunk + 1e-4 * chunk * context
                rows.append(mixed_row(H200, chunk, context, n, v, 4096, 1024, us))
    return make_profile(H200.name, "imported", "made up", rows, ceilings={}, meta=meta)


def norms(tokens: int) -> float:
    """Microseconds of all norms of a step."""
    return 2 * 32 * (1 + 0.01 * tokens)


def test_an_eager_step_is_the_sum_of_its_layers_with_the_head_over_sequences():
    times = LayerTimes(profile(), SHAPE, graph=False)
    assert times.step(33, 0) * 1e6 == pytest.approx(norms(33) + 5 * 33)


def test_a_graph_pads_the_body_not_the_head_and_saves_a_little_on_each_kernel():
    times = LayerTimes(profile(), SHAPE)
    assert times.step(250, 0) * 1e6 == pytest.approx(norms(256) + 5 * 250 - 1.7 * KERNELS)
    mixed = times.step(250, 30) + times.context_s(30) * 15  # half of the chunk is its own context
    assert mixed * 1e6 == pytest.approx(norms(288) + 5 * 251 - 1.5 * KERNELS + 32 * (2 + 0.01 * 30))
    eager = LayerTimes(profile(), SHAPE, graph=False)
    assert times.step(300, 300) == eager.step(300, 300)  # over the largest graph nothing is saved


def test_what_a_graph_saves_is_taken_from_the_profile_where_it_was_timed():
    saved = [
        {"branch": "full", "tokens": n, "saved_us": us} for n, us in ((8, 100.0), (264, 356.0))
    ]
    times = LayerTimes(profile(graph=saved), SHAPE)
    assert times.step(250, 0) * 1e6 == pytest.approx(norms(256) + 5 * 250 - 348)
    assert times.step(500, 0) * 1e6 == pytest.approx(norms(512) + 5 * 500 - 356)


def test_what_decoders_read_comes_as_lines_and_a_chunk_pays_for_its_context():
    times = LayerTimes(profile(), SHAPE, graph=False)
    assert times.lines(8, 0).at(8 * 500)[0] * 1e6 == pytest.approx(32 * (2 + 0.001 * 4000))
    assert times.context_s(256) * 1e6 == pytest.approx(32 * 1e-4 * 256)
    # a chunk of 256 after 512 tokens: its own layers, and what the law adds for context + chunk / 2
    whole = times.step(0, 256) + times.context_s(256) * (512 + 128)
    attention = 32 * (2 + 0.01 * 256 + 1e-4 * 256 * 512)
    assert whole * 1e6 == pytest.approx(norms(256) + 5 + attention)


def test_the_gap_and_the_all_reduces_of_a_step_are_added():
    bare = LayerTimes(profile(), SHAPE, graph=False)
    more = LayerTimes(
        profile(), SHAPE, graph=False, gap_s=1e-3, reduce_s=lambda tokens: 1e-6 * tokens
    )
    assert more.step(16, 0) - bare.step(16, 0) == pytest.approx(1e-3 + 16e-6)


@needs("vllm_rtx4090")
def test_the_layers_of_a_real_gpu_add_up_to_what_its_weights_take_to_read():
    found = read_servingsim(DATA / "vllm_rtx4090", device("rtx-4090-24gb"))
    times = LayerTimes(found, SHAPE)
    # 15 GB of weights at 1,008 GB/s: no step of one token is faster, and none should be much slower
    floor_s = SHAPE.weights_read_bytes() / 1008e9
    assert floor_s < times.step(1, 0) < 1.15 * floor_s
