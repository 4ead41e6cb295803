"""Kriging: measured points come back, likeness decides who speaks, and a hole is filled by those that are alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.device import device
from hw.imported import decode_row, experts_row, linear_row, prefill_row
from hw.profile import make_profile
from models.attention import grid_of
from models.kriging import PRODUCTS, Field, kriged, with_lent_attention
from models.measured import Table, measured, where
from models.operations import matrix_residuals, with_lent_tokens

H200 = device("h200-sxm-141gb")


def table(*rows: dict[str, object]) -> Table:
    """Rows of one operation, as the cost model reads them."""
    profile = make_profile(H200.name, "measured", "mine", rows, ceilings={})
    return measured(profile).rows(str(rows[0]["op"]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), shift=st.floats(-3, 3), count=st.integers(1, 60))
def test_a_field_goes_through_its_points_and_a_constant_stays_one(
    seed: int, shift: float, count: int
) -> None:
    rng = np.random.default_rng(seed)
    places, values = rng.uniform(0, 9, (count, 3)), rng.standard_normal(count)
    field = Field((1.0, 0.5, 2.0), 1e-9)
    asked = rng.uniform(-5, 15, (7, 3))
    assert kriged(field, places, values, places) == pytest.approx(values, abs=1e-4)
    assert kriged(field, places, np.full(count, shift), asked) == pytest.approx(shift, abs=1e-6)
    moved = kriged(field, places, values + shift, asked) - kriged(field, places, values, asked)
    assert moved == pytest.approx(shift, abs=1e-6)


def test_what_is_alike_speaks_and_an_axis_that_does_not_count_makes_nothing_unlike() -> None:
    places, values = np.array([[0.0, 0.0], [9.0, 1.0]]), np.array([0.0, 1.0])
    asked = np.array([[0.0, 1.0]])  # as the first on one axis, as the second on the other
    first, second = (kriged(Field(s, 1e-6), places, values, asked)[0] for s in ((1, 0), (0, 1)))
    assert first == pytest.approx(0.0, abs=0.01)
    assert second == pytest.approx(1.0, abs=0.01)


def test_a_matrix_that_nobody_measured_borrows_a_smooth_residual_from_its_neighbours() -> None:
    widths = (1024, 1536, 2048, 3072, 4096)

    def us(m: int, n: int, k: int) -> float:
        floor = 4e-6 + np.hypot(
            2.0 * n * k / H200.copy_bytes_per_s, 2.0 * m * n * k / H200.gemm_flops_bf16
        )
        return float(1e6 * floor * np.exp(residual(m, n, k)))

    def residual(m: int, n: int, k: int) -> float:
        return float(0.3 + 0.1 * np.log(n / 2048) - 0.05 * np.log(k / 2048) + 0.02 * np.log(m))

    sizes = [(n, k) for n in widths for k in widths if (n, k) != (2048, 2048)]
    rows = table(
        *(linear_row(H200, "gemm", m, n, k, us(m, n, k)) for n, k in sizes for m in (1, 64, 4096))
    )
    nobody = np.zeros(len(rows["m"]), bool)
    found = matrix_residuals((2048.0, 2048.0), rows, nobody, H200, True)
    assert found is not None
    assert found[0].tolist() == [1, 64, 4096]
    assert found[1] == pytest.approx([residual(m, 2048, 2048) for m in (1, 64, 4096)], abs=0.02)
    # Far outside, the edge speaks; fewer than eight matrices are no evidence.
    far = matrix_residuals((60_000.0, 2048.0), rows, nobody, H200, True)
    assert far is not None
    assert far[1] == pytest.approx([residual(m, 4096, 2048) for m in (1, 64, 4096)], abs=0.03)
    few = where(rows, np.arange(21))
    assert matrix_residuals((2048.0, 2048.0), few, nobody[:21], H200, True) is None


def test_its_own_points_count_as_they_are_and_others_fill_in_between_alone() -> None:
    rows = table(
        *(linear_row(H200, "gemm", m, n, 1024, 20.0 + m / 50 + n / 1000)
          for n in range(1024, 10_240, 1024) for m in (1, 16, 64, 256, 1024) if n != 4096 or m in (16, 256)),
    )  # fmt: skip
    own = rows["n"] == 4096
    found = matrix_residuals((4096.0, 1024.0), rows, own, H200, True)
    alone = matrix_residuals((4096.0, 1024.0), where(rows, own), own[own], H200, True)
    assert found is not None
    assert alone is not None
    assert found[0].tolist() == [16, 64, 256]
    assert found[1][[0, 2]].tolist() == alone[1].tolist()
    assert PRODUCTS.noise > 0


@pytest.mark.parametrize("causal", [False, True])
def test_a_hole_in_a_shape_is_filled_with_the_knee_that_the_others_show(causal: bool) -> None:
    """Beyond 4,096 tokens in all a kernel splits: a jump that no interpolation of the shape's own rows can see."""
    lengths, many = (256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16)

    def us(b: int, s: int) -> float:
        return 10.0 + 0.002 * b * s + (20.0 if b * s >= 4096 else 0.0)

    def one(b: int, s: int, heads: int) -> dict[str, object]:
        if causal:
            return prefill_row(H200, b, s, 0, 128 * heads, 1024, us(b, s))
        return decode_row(H200, b, s, 512 * heads, 128 * heads, us(b, s))

    missing = (4, 1024)
    rows = table(*(one(b, s, heads) for heads in (8, 9, 10) for b in many for s in lengths
                   if heads != 8 or (b, s) != missing))  # fmt: skip
    widths = rows["flop"] / rows["flop"].min()
    own = where(rows, np.arange(len(widths)) < len(many) * len(lengths) - 1)
    full = with_lent_attention(own, rows, H200, causal=causal)
    assert len(full["B"]) == len(own["B"]) + 1
    lent = where(full, np.arange(len(full["B"])) == len(own["B"]))
    assert (int(lent["B"][0]), int(lent["m" if causal else "S"][0])) == missing
    kv = np.array([missing[0] * missing[1]])
    (alone,) = 1e6 * grid_of(own, H200, causal=causal).seconds(np.array([missing[0]]), kv)
    off, off_alone = (abs(t / us(*missing) - 1) for t in (lent["t_us_median"][0], alone))
    assert off < 0.2
    assert off < 0.6 * off_alone
    # Nobody else: nothing is lent. A context too long to have been measured is no hole.
    assert with_lent_attention(own, own, H200, causal=causal) is own
    short = where(own, ~((own["B"] == 16) & (own["m" if causal else "S"] == 4096)))
    assert len(with_lent_attention(short, rows, H200, causal=causal)["B"]) == len(own["B"])


def test_a_mixture_takes_token_counts_from_its_like() -> None:
    def us(m: int, n: int) -> float:
        return 20.0 + 0.01 * n + m * n / 1e5

    rows = table(*(experts_row(H200, m, (4096, inner, 8, 128), 1, 1, us(m, inner), "fp8", "")
                   for inner in (1024, 1536, 2048) for m in (1, 16, 64, 256, 1024)
                   if inner != 1536 or m != 64))  # fmt: skip
    own = where(rows, rows["n"] == 3 * 1536)
    full = with_lent_tokens(own, rows, H200)
    assert full["m"].tolist() == [1, 16, 256, 1024, 64]
    assert float(full["t_us_median"][-1]) == pytest.approx(us(64, 1536), rel=0.06)
    assert with_lent_tokens(own, own, H200) is own
