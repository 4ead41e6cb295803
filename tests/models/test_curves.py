"""One operation's curve: exact where measured, monotone, physical outside, and learned from its neighbours."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.curves import chosen, isotonic, nearest, ragged, smooth_floor, through

BANDWIDTH, RATE = 4e12, 8e14


def floor(m: float) -> float:
    return smooth_floor(2 * 4096 * 4096, 2 * m * 4096 * 4096, BANDWIDTH, RATE)


@settings(max_examples=60, deadline=None)
@given(factors=st.lists(st.floats(1.0, 3.0), min_size=2, max_size=8), m=st.floats(0.5, 1e5))
def test_a_curve_is_monotone_whatever_was_measured(factors: list[float], m: float) -> None:
    rows = np.array([2.0**i for i in range(len(factors))])
    curve = through(
        floor, rows, np.array([f * floor(r) for f, r in zip(factors, rows, strict=True)])
    )
    assert curve.seconds(m) <= curve.seconds(m * 1.1) * (1 + 1e-12)


def test_measured_points_come_back_to_the_digit_and_repeated_ones_as_their_median() -> None:
    rows = np.array([1, 8, 8, 8, 64, 512])
    times = np.array([20, 21, 25, 22, 24, 60]) * 1e-6
    curve = through(floor, rows, times)
    assert [curve.seconds(m) for m in (1, 8, 64, 512)] == times[[0, 3, 4, 5]].tolist()
    assert (curve.inside(64), curve.inside(513), curve.shift) == (True, False, 0.0)


def test_outside_the_points_the_utilisation_of_the_last_is_held() -> None:
    curve = through(floor, np.array([16, 256]), 1.3 * np.array([floor(16), floor(256)]))
    assert curve.seconds(1) == pytest.approx(1.3 * floor(1))
    assert curve.seconds(10_000) == pytest.approx(1.3 * floor(10_000))
    assert curve.seconds(0) == 0.0


def test_isotonic_projection_says_how_far_it_moved_the_points() -> None:
    rows, times = np.arange(1.0, 6.0), np.array([1.0, 2.0, 1.9, 3.0, 4.0])
    smooth, shift = isotonic(rows, times)
    assert all(a <= b for a, b in pairwise(smooth))
    assert smooth[1] == smooth[2] == pytest.approx((2.0 * 1.9) ** 0.5)
    assert shift == pytest.approx(0.0, abs=1e-12)  # the median: two of five moved
    assert isotonic(rows, np.array([3.0, 2.0, 1.0, 0.5, 0.4]))[1] > 0.1


def test_rows_that_fill_no_tile_are_a_curve_of_their_own() -> None:
    rows = np.array([1, 7, 16, 17, 48, 49, 4096, 4097])
    assert ragged(rows).tolist() == [False, False, False, True, False, True, False, True]
    assert rows[chosen(rows, whole_tiles=True)].tolist() == [1, 7, 16, 48, 4096]
    assert rows[chosen(rows, whole_tiles=False)].tolist() == [1, 7, 16, 17, 49, 4097]
    even = np.array([1, 16, 64])
    assert chosen(even, whole_tiles=False).all()  # nothing ragged was measured


def test_the_nearest_size_speaks_for_one_that_was_not_measured() -> None:
    sizes = np.array([[1024.0, 1024], [1024, 1024], [4096, 1024]])
    rows, logs = nearest((1100.0, 1000.0), sizes, np.array([1, 64, 1]), np.array([0.1, 0.2, 0.9]))
    assert (rows.tolist(), logs.tolist()) == ([1, 64], [0.1, 0.2])
