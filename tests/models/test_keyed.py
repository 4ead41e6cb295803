"""Keyed randomness: known values, uniformity, independence of purposes and of order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.keyed import (
    GOLDEN,
    chains,
    child_key,
    mix,
    mix_array,
    normal,
    root_key,
    root_keys,
    stream_key,
    uniform,
    uniform_array,
)

KEYS = st.integers(0, 2**64 - 1)


def test_mix_along_the_golden_sequence_is_splitmix64() -> None:
    # The first outputs of splitmix64 seeded with 1234567, as its reference implementation prints them.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [mix(1234567 + (i + 1) * GOLDEN) for i in range(3)] == expected
    assert [child_key(1234567, i) for i in range(3)] == expected


@given(KEYS)
def test_the_array_form_of_mix_agrees_with_the_scalar(key: int) -> None:
    assert int(mix_array(np.array([key], dtype=np.uint64))[0]) == mix(key)


@given(KEYS, st.integers(0, 2**20))
def test_a_uniform_lies_strictly_inside_zero_and_one(key: int, purpose: int) -> None:
    assert 0.0 < uniform(key, purpose) < 1.0


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_the_extreme_bits_still_give_a_finite_normal(bits: int) -> None:
    assert mix(0) == 0
    unscrambled = bits  # mix is a bijection: find the key whose bits are extreme
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9)):
        unscrambled = _unshift(unscrambled, shift) * pow(factor, -1, 2**64) % 2**64
    unscrambled = _unshift(unscrambled, 30)
    assert mix(unscrambled) == bits
    assert abs(normal(unscrambled, 0)) < 9


def _unshift(x: int, shift: int) -> int:
    y = x
    for _ in range(64 // shift + 1):
        y = x ^ (y >> shift)
    return y


def test_root_keys_are_root_key_for_each_index_and_streams_differ() -> None:
    keys = root_keys(7, 2, 3, 50)
    assert [int(k) for k in keys] == [root_key(7, 2, 3, i) for i in range(50)]
    others = [root_key(8, 2, 3, 0), root_key(7, 3, 3, 0), root_key(7, 2, 4, 0)]
    assert len({*others, int(keys[0])}) == 4


def test_draws_over_keys_are_uniform_and_purposes_uncorrelated() -> None:
    keys = root_keys(0, 0, 0, 40_000)
    draws = np.array([uniform_array(keys, purpose) for purpose in range(1, 9)])
    assert uniform(int(keys[5]), 3) == draws[2, 5]
    assert min(stats.kstest(row, "uniform").pvalue for row in draws) > 1e-4
    correlation = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(40_000)


def test_siblings_and_their_mother_are_uncorrelated() -> None:
    mothers = [root_key(1, 0, 0, i) for i in range(20_000)]
    rows = [[uniform(k, 1), *(uniform(child_key(k, o), 1) for o in range(4))] for k in mothers]
    correlation = np.corrcoef(np.array(rows).T) - np.eye(5)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)


def test_a_negative_seed_is_refused_with_its_value() -> None:
    with pytest.raises(ValueError, match="must be >= 0, got -1, 0, 0"):
        stream_key(-1, 0, 0)


@given(key=st.integers(0, 2**64 - 1), first=st.integers(0, 1_000), steps=st.integers(1, 5))
def test_keys_scrambled_side_by_side_are_those_of_each_alone(
    key: int, first: int, steps: int
) -> None:
    for lane, chain in enumerate(chains(key, first, steps)):
        expected = [child_key(key, first + lane)]
        while len(expected) < steps:
            expected.append(child_key(expected[-1], 0))
        assert list(chain) == expected
