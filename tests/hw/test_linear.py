"""The dense operations, by torch and by NumPy, against their definitions in float64."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from hw.linear import Linear, numpy_linear, torch_linear
from hw.reference import bf16_bits, bf16_values

MAKERS = [
    pytest.param(
        torch_linear,
        id="torch",
        marks=pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    ),
    pytest.param(numpy_linear, id="numpy"),
]


@pytest.fixture(params=MAKERS)
def linear(request: pytest.FixtureRequest) -> Linear:
    return request.param()


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return bf16_bits(np.random.default_rng(seed).standard_normal(shape))


def exact(array: np.ndarray) -> np.ndarray:
    return bf16_values(array).astype(float)


def near(got: np.ndarray, expected: np.ndarray) -> bool:
    error = np.linalg.norm(exact(got) - expected) / np.linalg.norm(expected)
    return bool(error < 6e-3)


def test_a_matrix_product_is_rows_times_the_transposed_weights(linear: Linear) -> None:
    x, w, out = random(5, 64), random(3000, 64, seed=1), np.zeros((5, 3000), np.uint16)
    linear.matmul(*map(linear.tensor, (x, w, out)))
    assert near(out, exact(x) @ exact(w).T)


def test_a_norm_adds_the_residual_to_the_stream_and_scales_by_the_root_mean_square(linear: Linear):
    rows, more, weight, out = (
        random(4, 96),
        random(4, 96, seed=1),
        random(96, seed=2),
        random(4, 96),
    )
    whole = exact(rows) + exact(more)
    linear.norm(*map(linear.tensor, (rows, more, weight, out)))
    assert near(rows, whole)
    expected = whole / np.sqrt((whole**2).mean(1, keepdims=True) + 1e-5) * exact(weight)
    assert near(out, expected)


def test_a_gate_is_silu_of_the_left_times_the_right(linear: Linear) -> None:
    both, out = random(3, 40), np.zeros((3, 20), np.uint16)
    linear.gate(linear.tensor(both), linear.tensor(out))
    left, right = np.split(exact(both), 2, 1)
    assert near(out, left / (1 + np.exp(-left)) * right)


def test_an_embedding_picks_rows_and_a_copy_copies(linear: Linear) -> None:
    table, tokens = random(9, 16), np.array([8, 0, 3], np.int32)
    out, again = np.zeros((3, 16), np.uint16), np.zeros((3, 8), np.uint16)
    linear.embed(*map(linear.tensor, (table, tokens, out)))
    assert (out == table[tokens]).all()
    linear.copy(linear.tensor(out)[:, 8:], linear.tensor(again))
    assert (again == out[:, 8:]).all()
    linear.read(linear.tensor(table))


@pytest.mark.parametrize(("new", "context"), [(7, 0), (3, 9), (1, 5)])
def test_a_prefill_lets_each_new_token_see_the_context_and_the_new_ones_up_to_itself(
    linear: Linear, new: int, context: int
) -> None:
    whole = context + new
    q, k, v = (
        random(2, new, 4, 128),
        random(2, whole, 2, 128, seed=1),
        random(2, whole, 2, 128, seed=2),
    )
    out = np.zeros(q.shape, np.uint16)
    linear.prefill(*map(linear.tensor, (q, k, v, out)))
    expected = np.zeros(q.shape)
    for b in range(2):
        for i in range(new):
            for h in range(4):
                seen = slice(0, context + i + 1)
                score = exact(k)[b, seen, h // 2] @ exact(q)[b, i, h] / np.sqrt(128)
                weight = np.exp(score - score.max())
                expected[b, i, h] = weight @ exact(v)[b, seen, h // 2] / weight.sum()
    assert near(out, expected)
