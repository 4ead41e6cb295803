"""Held-out error: small where a profile is smooth, large where it is not, and never of points that were fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.device import device
from hw.imported import all_reduce_row, decode_row, linear_row
from hw.profile import Profile, make_profile
from hw.transformer import linear_work, transformer
from models.heldout import heldout

H200 = device("h200-sxm-141gb")


def profile(noise: float = 0.0, held: bool = False, **more: Any) -> Profile:
    """GEMMs on a grid of sizes, decode attention and an all-reduce, smooth but for noise."""
    rng = np.random.default_rng(1)
    rows = []

    def wobble() -> float:
        return float(np.exp(noise * rng.standard_normal()))

    for n in (1024, 1536, 2048, 3072, 4096):
        for k in (1024, 1536, 2048, 3072, 4096):
            for m in (1, 8, 16, 64, 256, 1024, 4096):
                flop, moved = 2.0 * m * n * k / 7e14, 2.0 * n * k / 4e12
                us = 1e6 * (4e-6 + float(np.hypot(flop, moved))) * (1 + 0.05 * np.log2(n / 1024))
                out = int(held and (n, k, m) in ((2048, 2048, 64), (3072, 1536, 256)))
                rows.append(linear_row(H200, "gemm", m, n, k, us * wobble(), is_holdout=out))
    for b in (1, 4, 16, 64, 256):
        for s in (64, 256, 1024, 4096, 16384):
            us = 10 + 0.2 * b + 1e6 * 4 * 1024 * b * s / 4.2e12
            out = int(held and (b, s) == (16, 1024))
            rows.append(decode_row(H200, b, s, 4096, 1024, us * wobble(), is_holdout=out))
    for message in (2**i for i in range(10, 24)):
        rows.append(all_reduce_row(H200, 8, message, (5 + message / 2e5) * wobble()))
    return make_profile(H200.name, "measured", "mine", rows, ceilings={}, **more)


def test_a_smooth_profile_is_known_everywhere() -> None:
    found = heldout(profile(), H200)
    assert "random fifth" in found.left_out
    assert {"gemm", "suffix_attention", "all_reduce", "matrices of unseen sizes"} <= {
        error.op for error in found.errors
    }
    assert found.median < 0.01
    assert found.p90 < 0.10
    assert found.shift == 0.0
    assert "median" in found.words()


def test_noise_is_found_and_not_explained_away() -> None:
    quiet, loud = heldout(profile(), H200), heldout(profile(noise=0.2), H200)
    assert loud.median > max(0.05, 5 * quiet.median)
    assert loud.shift > 0.0


def test_a_frozen_holdout_is_what_errors_are_taken_on() -> None:
    found = heldout(profile(held=True), H200)
    assert found.left_out == "its frozen holdout"
    assert {error.op: error.points for error in found.errors} == {"gemm": 2, "suffix_attention": 1}
    assert found.p90 < 0.05


def test_a_held_out_point_that_is_wild_is_seen_as_an_error() -> None:
    wild = profile(held=True)
    at = (wild.columns["is_holdout"] == 1) & (wild.columns["op"] == "suffix_attention")
    wild.columns["t_us_median"][at] *= 3.0
    (error,) = (e for e in heldout(wild, H200).errors if e.op == "suffix_attention")
    assert error.signed == pytest.approx(-2 / 3, abs=0.03)


def test_a_decode_step_is_composed_of_its_parts_and_held_beside_the_measured_one() -> None:
    shape = transformer("llama-3.1-8b")
    layers, b, p, s = 4, 16, 1024, 128
    rows = []
    for work in linear_work(shape):
        if not work.n:
            continue
        for m in (1, 16, 64, 256):
            us = 1e6 * (4e-6 + 1.2 * work.floor_s(H200, m) / work.calls)
            rows.append(
                linear_row(H200, work.name, m, work.n, work.k, us)
                | {"model_shape": "llama-3.1-8b/tp1"}
            )
    cost_s = sum(
        1.2 * work.floor_s(H200, b) / work.calls * (layers if work.calls > 1 else 1)
        for work in linear_work(shape)
    )
    read_s = layers * shape.kv_layer_bytes() * (p + b * s) / H200.copy_bytes_per_s
    whole = rows[0] | {
        "op": "decode_step", "calls": layers, "B": b, "P": p, "S": s, "m": 0, "n": 0, "k": 0,
        "t_us_median": 1e6 * (cost_s + read_s), "t_us_p10": 0.9e6 * (cost_s + read_s),
        "t_us_p90": 1.2e6 * (cost_s + read_s), "is_holdout": 0,
    }  # fmt: skip
    found = heldout(make_profile(H200.name, "measured", "mine", [*rows, whole], ceilings={}), H200)
    (error,) = (e for e in found.errors if e.composed)
    assert (error.op, error.points) == ("decode_step, composed", 1)
    assert abs(error.signed) < 0.15
    assert error.noise == pytest.approx(0.3)
