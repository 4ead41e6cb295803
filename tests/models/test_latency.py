"""Step cost: physical, never under the floor, exact where profiled; KV pages as a real engine counts them."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.device import CatalogError, device
from hw.floors import floors
from hw.profile import make_profile, roofline
from hw.transformer import Transformer, linear_work, transformer, transformers
from models.latency import (
    CAPTURE_SIZES,
    CapacityError,
    LatencyError,
    StepCost,
    kv_pages,
    step_cost,
)

H200 = device("h200-sxm-141gb")
LLAMA = transformer("llama-3.1-8b")
COST = step_cost(LLAMA, H200)
COSTS = {
    name: step_cost(shape, H200, tensor_parallel=8 if name == "deepseek-r1" else 1)
    for name, shape in transformers().items()
}


def slower(factor: float, shape: Transformer = LLAMA, **more: Any) -> Any:
    """A measured profile that reaches 1 / factor of the roofline everywhere."""
    base = roofline(H200, shape)
    names = list(base.columns)
    rows = [
        dict(zip(names, values, strict=True)) for values in zip(*base.columns.values(), strict=True)
    ]
    for row in rows:
        row["t_us_median"] = factor * row["floor_us"]
        row["frac_floor"] = 1 / factor
    return make_profile(H200.name, "measured", "my GPU", rows, ceilings=base.ceilings, **more)


def test_the_linear_cost_is_linear() -> None:
    cost = StepCost.linear(1.0, per_decode=0.1, per_prefill=0.01, kv=2.0, saturation=4, copy=3.0)
    assert cost.base_s(3, 7) == pytest.approx(1.37)
    assert (cost.kv_s, cost.copy_s, cost.gpus) == (2.0, 3.0, 1)
    assert (cost.context_s(2), cost.context_s(8)) == (2.0, 4.0)


def test_a_cost_is_memoised() -> None:
    asked = []
    cost = StepCost(
        step=lambda b, c: float(asked.append((b, c)) or b), kv_s=0, saturation=1, copy_s=0
    )
    assert [cost.base_s(2, 1), cost.base_s(2, 1), cost.base_s(3, 1)] == [2.0, 2.0, 3.0]
    assert asked == [(2, 1), (3, 1)]


def test_a_cost_can_be_sent_to_a_worker() -> None:
    copy = pickle.loads(pickle.dumps(COST))
    assert copy.base_s(17, 300) == COST.base_s(17, 300)


@pytest.mark.parametrize("name", sorted(COSTS))
@settings(max_examples=60, deadline=None)
@given(b=st.integers(0, 1024), c=st.integers(0, 65536), more=st.integers(1, 300))
def test_a_step_never_gets_cheaper_by_adding_tokens(name: str, b: int, c: int, more: int) -> None:
    cost = COSTS[name]
    b = max(b, 1 if c == 0 else 0)
    here = cost.base_s(b, c)
    assert 0 < here < math.inf
    assert cost.base_s(b + more, c) >= here
    assert cost.base_s(b, c + more) >= here


@pytest.mark.parametrize("name", sorted(COSTS))
@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 1024), c=st.sampled_from([0, 1, 37, 512, 8000, 65536]))
def test_a_step_never_undercuts_its_floor(name: str, b: int, c: int) -> None:
    split = COSTS[name].gpus
    ops = floors(transformer(name), H200, branches=b, prefill=c, tensor_parallel=split)
    linear = {work.name for work in linear_work(transformer(name), split)}
    assert COSTS[name].base_s(b, c) >= sum(op.seconds for op in ops if op.name in linear)


def test_a_step_is_continuous_in_prefill_to_a_token() -> None:
    for c in range(1, 20_000, 97):
        assert COST.base_s(32, c + 1) - COST.base_s(32, c) < 1e-4


def test_a_decode_step_of_one_branch_is_the_weights_and_known_overheads() -> None:
    weights = LLAMA.weights_read_bytes() / H200.copy_bytes_per_s
    overhead = COST.base_s(1, 0) - weights
    assert H200.step_gap_s < overhead < H200.step_gap_s + 0.5e-3


def test_decode_batches_are_padded_to_graph_sizes_and_mixed_batches_are_not() -> None:
    assert CAPTURE_SIZES[:5] == (1, 2, 4, 8, 16)
    assert CAPTURE_SIZES[-1] == 512
    assert len(CAPTURE_SIZES) == 51
    # Inside a bucket only the sampled rows differ; at its edge all layers jump by 16 tokens.
    inside = [COST.base_s(b + 1, 0) - COST.base_s(b, 0) for b in range(337, 352)]
    edge = COST.base_s(353, 0) - COST.base_s(352, 0)
    assert 0 < min(inside) <= max(inside) < 2e-6
    assert edge > 100 * max(inside)
    assert all(COST.base_s(b, 4000) < COST.base_s(b + 1, 4000) for b in range(337, 352))


def test_reading_kv_costs_its_bytes_and_saturates_at_the_ridge() -> None:
    assert pytest.approx(131_072 / 4.3e12) == COST.kv_s
    assert COST.copy_s == pytest.approx(2 * COST.kv_s)
    assert {name: round(COSTS[name].saturation) for name in ("llama-3.1-8b", "qwen2.5-32b")} == {
        "llama-3.1-8b": 46, "qwen2.5-32b": 37,
    }  # fmt: skip
    # The attention terms together are the published attention floors: 18.7 and 507 us a layer.
    shared = COST.kv_s * (8192 * max(1, 64 / COST.saturation) + 64 * 128)
    assert 1e6 * shared / 32 == pytest.approx(18.7, abs=0.05)
    assert 1e6 * COST.kv_s * 64 * 8320 / 32 == pytest.approx(507, abs=1)


def test_a_prefill_chunk_pays_compute_for_its_context() -> None:
    assert COST.context_s(1) == COST.kv_s
    flops = 4 * 32 * 128 * 32 * 8192
    assert COST.context_s(8192) == pytest.approx(flops / H200.gemm_flops_bf16)


def test_latent_attention_is_compute_bound_from_the_first_branch_and_expands_for_long_chunks() -> (
    None
):
    one = step_cost(transformer("deepseek-r1"), H200)
    assert one.saturation == pytest.approx(1.0)
    assert one.kv_s == pytest.approx(61 * 2 * 128 * 1088 / H200.gemm_flops_bf16)
    absorbed = one.kv_s * 4096
    expanded = 61 * (2 * 128 * 320 * 4096) / H200.gemm_flops_bf16
    assert expanded < one.context_s(4096) < 0.5 * absorbed
    assert one.context_s(8) == pytest.approx(8 * one.kv_s)
    steps = [one.context_s(c) for c in range(1, 600)]
    assert all(a <= b for a, b in pairwise(steps))


def test_splitting_a_model_makes_its_step_faster_but_not_twice() -> None:
    shape = transformer("llama-3.1-70b")
    two, four = (step_cost(shape, H200, tensor_parallel=n) for n in (2, 4))
    assert (two.gpus, four.gpus) == (2, 4)
    assert 0.5 * two.base_s(32, 0) < four.base_s(32, 0) < two.base_s(32, 0)
    assert four.kv_s == pytest.approx(two.kv_s / 2)
    assert four.saturation == pytest.approx(two.saturation)


def test_a_measured_profile_comes_through_the_same_door() -> None:
    slow = step_cost(LLAMA, H200, slower(1.25, meta={"error": "held-out median 2.1 %"}))
    assert (slow.label, slow.source_kind) == ("my GPU", "measured")
    assert slow.error == "held-out median 2.1 %"
    # A floor has no start-up time to learn, so that between its few contexts the line is a little off.
    assert slow.kv_s == pytest.approx(1.25 * COST.kv_s, rel=0.04)
    assert slow.saturation == pytest.approx(COST.saturation, rel=0.04)
    assert slow.copy_s == pytest.approx(1.25 * COST.copy_s)
    # Of gaps only those of kernels that nobody measured are left: activation and rotary.
    gaps = H200.step_gap_s + 2 * LLAMA.layers * H200.launch_s
    for b, c in ((1, 0), (64, 0), (5, 65536)):
        floors_s = sum(
            w.floor_s(H200, b + (c > 0) if w.sampled else b + c) for w in linear_work(LLAMA)
        )
        assert slow.base_s(b, c) - gaps == pytest.approx(1.25 * floors_s, rel=0.1)


def test_a_noisy_profile_still_gives_a_monotone_cost_that_meets_its_points() -> None:
    def row(m: int, slow: float) -> dict[str, Any]:
        (work,) = (w for w in linear_work(LLAMA) if w.name == "gate_up")
        floor = 1e6 * work.floor_s(H200, m)
        return {
            "op": "gate_up", "m": m, "n": work.n, "k": work.k, "status": "ok",
            "t_us_median": slow * floor, "floor_us": floor, "frac_floor": 1 / slow,
        }  # fmt: skip

    noisy = [row(1, 1.9), row(16, 1.1), row(64, 1.4), row(256, 1.0), row(4096, 1.2)]
    profile = make_profile(H200.name, "measured", "noisy", noisy, ceilings={})
    cost = step_cost(LLAMA, H200, profile)
    steps = [cost.base_s(0, c) for c in range(1, 6000, 3)]
    assert all(a <= b for a, b in pairwise(steps))
    # One launch a layer is in the measured time; activation is one of the four kernels beside, rotary is not.
    launches = H200.launch_s * LLAMA.layers * (-1 + 1)
    extra = cost.base_s(0, 4096) - COST.base_s(0, 4096)
    assert extra - launches == pytest.approx(0.2 * noisy[-1]["floor_us"] * 1e-6, rel=1e-6)
    assert cost.kv_s == COST.kv_s  # attention was not profiled: its floor


def test_the_roofline_is_labelled_and_a_profile_of_another_device_is_refused() -> None:
    assert "not measured" in COST.label
    assert (COST.source_kind, COST.error) == ("roofline", None)
    with pytest.raises(
        LatencyError, match="made on h100-sxm-80gb, the pool runs on h200-sxm-141gb"
    ):
        step_cost(LLAMA, H200, roofline(device("h100-sxm-80gb"), LLAMA))


def test_kv_pages_are_those_that_a_real_engine_counted() -> None:
    # vLLM 0.19.0, Llama-3.1-8B on one RTX 4090, max_num_batched_tokens 2048: 2,588 blocks of 16.
    card = replace(H200, name="rtx-4090", memory_bytes=25_250_627_584)
    assert kv_pages(LLAMA, card, 1, 0.9, 16, 2048, 256) == pytest.approx(2588, rel=0.01)


def test_an_h200_holds_about_0_85_million_tokens_of_llama_8b() -> None:
    sheet = replace(H200, memory_bytes=141e9)
    assert 16 * kv_pages(LLAMA, sheet) == pytest.approx(0.84e6, rel=0.02)
    assert kv_pages(LLAMA, H200) > kv_pages(LLAMA, sheet)
    assert kv_pages(LLAMA, H200, block_size=32) == kv_pages(LLAMA, H200) // 2


def test_weights_that_do_not_fit_say_how_many_gpus_would() -> None:
    shape = transformer("llama-3.1-70b")
    with pytest.raises(CapacityError, match=r"141\.1 GB.*tensor_parallel: 2 would fit"):
        kv_pages(shape, H200)
    assert kv_pages(shape, H200, 2) > 10_000
    with pytest.raises(CapacityError, match="tensor_parallel: 8 would fit"):
        kv_pages(transformer("deepseek-r1"), H200, 1)
    tiny = replace(H200, memory_bytes=1e9)
    with pytest.raises(CapacityError, match="choose a larger device or a smaller model"):
        kv_pages(shape, tiny)
    with pytest.raises(CatalogError, match="cannot share equally"):
        kv_pages(shape, H200, 3)
