"""Attention: measured points exactly, monotone in both loads, compiled into straight pieces within 0.1 %."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.device import device
from hw.imported import attention_widths, decode_row, prefill_row
from hw.profile import load, make_profile
from hw.shipped import default_profile, find_profile, shipped
from hw.transformer import transformer
from models.attention import Attention, Grid, attend, compiled, decode_grid
from models.latency import StepCost, step_cost
from models.measured import Measured, measured

H200 = device("h200-sxm-141gb")
LLAMA = transformer("llama-3.1-8b")
N, K = attention_widths(LLAMA)


@cache
def public() -> Measured:
    path = default_profile(H200.name)
    assert path is not None
    return measured(load(path))


@cache
def learned() -> tuple[Grid, Attention]:
    grid = decode_grid(public(), H200, LLAMA, 1)
    assert grid is not None
    return grid, attend(public(), H200, LLAMA, 1)


@cache
def cost() -> StepCost:
    return step_cost(LLAMA, H200, load(find_profile(f"{H200.name}-aiconfigurator")))


def test_the_devices_of_the_big_scenarios_have_imported_tables() -> None:
    assert {f"{name}-aiconfigurator" for name in ("h200-sxm-141gb", "h100-sxm-80gb")} <= set(
        shipped()
    )
    assert default_profile("a100-sxm-80gb") is None


def test_measured_decode_attention_comes_back_at_its_points() -> None:
    rows = public().rows("suffix_attention")
    size = np.array([name.rpartition("/")[2] for name in rows["model_shape"].tolist()])
    own = (rows["n"] == N) & (rows["k"] == K) & (size == "128")
    grid, _ = learned()
    fitted = grid.seconds(rows["B"][own], rows["sum_s"][own])
    error = np.abs(fitted / (1e-6 * rows["t_us_median"][own]) - 1)
    assert float(np.median(error)) < 1e-6
    assert float(np.mean(error < 0.01)) > 0.95  # the rest was moved to be monotone


@settings(max_examples=80, deadline=None)
@given(b=st.sampled_from([1, 3, 8, 20, 64, 100, 256, 500]), tokens=st.floats(1, 120_000))
def test_straight_pieces_are_within_a_thousandth_of_the_model(b: int, tokens: float) -> None:
    grid, attention = learned()
    assert attention.decode is not None
    at = b in attention.decode.branches
    table = attention.decode if at else compiled(grid, LLAMA.layers, (1, b, 2 * b))
    exact = float(np.interp(b * tokens, b * table.tokens, table.pieces(b)))
    assert table.lines(b).at(b * tokens)[0] == pytest.approx(exact, rel=1e-3)
    model = LLAMA.layers * float(grid.seconds(np.array(b), np.array(b * tokens)))
    # Where monotony did not move it, the piece is the model.
    if model >= exact * (1 - 1e-3):
        assert exact == pytest.approx(model, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(b=st.integers(1, 1200), tokens=st.floats(1, 1e5), more=st.floats(1.001, 3.0))
def test_reading_more_never_costs_less(b: int, tokens: float, more: float) -> None:
    _, attention = learned()
    here = attention.lines(b, 0).at(b * tokens)[0]
    assert 0 < here <= attention.lines(b, 0).at(b * tokens * more)[0] * (1 + 1e-9)
    assert here <= attention.lines(b + 7, 0).at((b + 7) * tokens)[0] * (1 + 2e-3)


def test_pieces_go_on_straight_beyond_the_last_and_meet_where_they_touch() -> None:
    lines = learned()[1].lines(64, 0)
    assert 5 < len(lines.starts) < 60
    for i, (start, following) in enumerate(pairwise(lines.starts)):
        end = lines.values[i] + lines.slopes[i] * (following - start)
        assert end == pytest.approx(lines.values[i + 1], rel=1e-9)
    value, slope, upto = lines.at(1e12)
    assert (value > 0, slope > 0, upto) == (True, True, float("inf"))


def test_a_long_context_reads_at_the_speed_that_the_gpu_has() -> None:
    _, attention = learned()
    bandwidth = LLAMA.kv_bytes_per_token() / attention.kv_s
    assert 0.9 * H200.read_bytes_per_s < bandwidth < H200.hbm_bytes_per_s


def profile(*rows: dict[str, Any]) -> Measured:
    return measured(make_profile(H200.name, "measured", "mine", rows, ceilings={}))


def test_decoders_measured_on_private_pages_tell_of_contexts_that_no_suffix_reaches() -> None:
    def us(b: int, tokens: int) -> float:
        return 10 + 2.5e6 * 4 * K * b * tokens / H200.copy_bytes_per_s

    short = [decode_row(H200, b, s, N, K, us(b, s)) for b in (1, 8, 64) for s in (16, 128, 1024)]
    naive = [
        decode_row(H200, b, p + 128, N, K, factor * us(b, p + 128))
        | {"op": "naive_attention", "P": p, "S": 128, "sum_s": b * 128, "variant": variant}
        for b in (1, 8)
        for p in (4096, 32768)
        for variant, factor in (("private_pages", 1.5), ("shared_pages", 0.1))
    ]
    grid = decode_grid(profile(*short, *naive), H200, LLAMA, 1)
    assert grid is not None
    assert grid.inside(8, 8 * 32_000)
    found = float(grid.seconds(np.array(8), np.array(8 * (32768 + 128))))
    assert found == pytest.approx(1.5e-6 * us(8, 32768 + 128), rel=1e-5)
    assert float(grid.seconds(np.array(8), np.array(8 * 128))) == pytest.approx(
        1e-6 * us(8, 128), rel=1e-5
    )


def test_a_shape_that_was_not_measured_takes_the_utilisation_of_the_nearest() -> None:
    rows = [
        decode_row(H200, b, s, N, K, us=10 + 1.5e6 * 4 * K * b * s / H200.copy_bytes_per_s)
        for b in (1, 8, 64) for s in (128, 1024, 8192)
    ]  # fmt: skip
    wide = transformer("llama-3.1-70b")  # twice the query heads, as many KV heads
    ours, theirs = (decode_grid(profile(*rows), H200, shape, 1) for shape in (LLAMA, wide))
    assert ours is not None
    assert theirs is not None
    read = np.array(64 * 8192)
    assert float(theirs.seconds(np.array(64), read)) == pytest.approx(
        float(ours.seconds(np.array(64), read)), rel=0.1
    )


def test_a_prefill_chunk_costs_what_was_measured_and_context_what_a_busy_device_takes() -> None:
    def seconds(chunk: int) -> float:
        return 12e-6 + 2.0 * 2 * N * chunk * (chunk + 1) / H200.gemm_flops_bf16

    rows = [
        prefill_row(H200, 1, m, 0, N, K, 1e6 * seconds(m)) for m in (16, 256, 1024, 4096, 16384)
    ]
    attention = attend(profile(*rows), H200, LLAMA, 1)
    for m in (4096, 16384):
        whole = attention.chunk_fixed_s(m) + attention.context_s(m) * m / 2
        assert whole == pytest.approx(LLAMA.layers * seconds(m), rel=0.01)
    pair_s = LLAMA.layers * LLAMA.attention_flops() / H200.gemm_flops_bf16
    assert attention.context_s(4096) == pytest.approx(2 * pair_s * 4096, rel=0.02)


def test_chunks_that_were_measured_behind_a_context_say_what_context_costs() -> None:
    rows = [
        prefill_row(H200, 1, m, p, N, K, 10 + 0.01 * m + 0.03 * p * max(1, m / 128))
        for m in (16, 128, 512, 2048) for p in (0, 1024, 16384)
    ]  # fmt: skip
    attention = attend(profile(*rows), H200, LLAMA, 1)
    assert attention.context_s(16) == pytest.approx(LLAMA.layers * 0.03e-6, rel=0.01)
    assert attention.context_s(512) == pytest.approx(LLAMA.layers * 0.12e-6, rel=0.01)


def test_a_step_on_imported_tables_is_near_what_engines_reach_and_never_cheaper_with_more() -> None:
    found = cost()
    assert (found.source_kind, found.gpus) == ("imported", 1)
    assert found.error is not None
    # Llama-3.1-8B, bf16, one H200: weights of 15 GB in 3.5 ms, and some milliseconds of overheads.
    step = found.base_s(16, 0) + found.reading(16, 0, 16 * 1024)[0]
    assert 4e-3 < step < 7e-3
    for b, c in ((1, 0), (64, 0), (64, 2048), (0, 4096)):
        assert found.base_s(b + 9, c) >= found.base_s(b, c)
        assert found.base_s(b, c + 99) >= found.base_s(b, c)


def test_the_domain_is_what_was_measured() -> None:
    domain = cost().domain
    assert domain is not None
    assert domain.holds(64, 1000)
    assert not domain.holds(64, 200_000)
    assert not domain.holds(4000, 1000)
    assert step_cost(LLAMA, H200).domain is None  # a roofline measured nothing
