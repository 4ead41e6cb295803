"""Errors are simulated over measured less one, and the KS distance is the one SciPy knows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from sim.accuracy import compare, ks_distance


def test_a_sample_that_is_five_percent_longer_is_off_by_five_percent_everywhere():
    sample = np.linspace(1.0, 3.0, 101)
    found = compare("TTFT", sample, 1.05 * sample)
    assert list(found.error.values()) == pytest.approx([0.05] * 5)
    assert not found.holds
    assert compare("TTFT", sample, 1.01 * sample).holds


def test_a_long_tail_alone_breaks_the_limit_of_the_99th_percentile():
    sample = np.ones(1000)
    tail = sample.copy()
    tail[:15] = 1.2
    found = compare("E2E", sample, tail)
    assert abs(found.error["mean"]) < 0.02
    assert not found.holds


def test_the_ks_distance_is_that_of_two_samples():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=80), rng.normal(0.3, size=57)
    assert ks_distance(one, other) == pytest.approx(ks_2samp(one, other).statistic)
    assert ks_distance(one, one) == 0.0
