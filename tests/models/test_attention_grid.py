"""The attention grid gives back what was timed, is straight between, and its lines are the grid itself."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.attention_grid import AttentionGrid, GridError

CHUNKS, CONTEXTS, DECODERS, TOKENS = (16, 64), (0, 128, 1024), (1, 8, 64), (16, 256, 4096)


def law(chunk: float, context: float, decoders: float, tokens: float) -> float:
    """Linear along each axis, and dearer per read token beside a chunk."""
    alone = 10.0 + 2.0 * decoders + 0.01 * decoders * tokens if decoders else 0.0
    if not chunk:
        return alone
    return 20.0 + chunk + 0.02 * chunk * context + 1.7 * alone


def timed() -> dict[tuple[int, int, int, int], float]:
    """A full grid as the profiler writes it: no context without a chunk, none read without decoders."""
    points = {}
    for chunk, n in product((0, *CHUNKS), (0, *DECODERS)):
        for context, v in product(CONTEXTS if chunk else (0,), TOKENS if n else (0,)):
            if chunk or n:
                points[chunk, context, n, v] = law(chunk, context, n, v)
    return points


def test_every_timed_point_comes_back_as_it_was_timed():
    grid = AttentionGrid(timed())
    for point, seconds in timed().items():
        assert grid.seconds(*point) == pytest.approx(seconds, rel=1e-12)


@given(st.integers(16, 64), st.integers(0, 2000), st.integers(1, 200), st.integers(16, 9000))
def test_a_law_that_is_straight_along_each_axis_is_met_everywhere_and_beyond(c, k, n, v):
    assert AttentionGrid(timed()).seconds(c, k, n, v) == pytest.approx(law(c, k, n, v), rel=1e-9)


def test_an_empty_step_takes_no_time_and_the_shortest_chunk_stands_for_shorter_ones():
    grid = AttentionGrid(timed())
    assert grid.seconds(0, 0, 0, 0) == 0.0
    assert grid.seconds(3, 0, 8, 256) == grid.seconds(16, 0, 8, 256)


def test_a_corner_that_did_not_fit_goes_on_along_the_number_of_decoders():
    points = {p: s for p, s in timed().items() if not (p[0] and p[2] == 64)}
    grid = AttentionGrid(points)
    rise = law(64, 0, 8, 256) - law(64, 0, 1, 256)
    assert grid.seconds(64, 0, 64, 256) == pytest.approx(law(64, 0, 8, 256) + rise * 56 / 7)


@given(st.integers(1, 64), st.sampled_from([0, 16, 40, 64]), st.integers(16, 6000))
def test_the_lines_of_a_batch_are_what_its_decoders_add_to_the_grid(b, c, v):
    grid = AttentionGrid(timed())
    seconds, slope, upto = grid.decode_lines(b, c, layers=32).at(b * v)
    expected = 32 * (grid.seconds(c, 0, b, v) - grid.seconds(c, 0, 0, 0))
    assert seconds == pytest.approx(expected, rel=1e-9)
    assert upto > b * v
    step = min(1.0, upto - b * v)
    further = grid.decode_lines(b, c, layers=32).at(b * v + 0.5 * step)[0]
    assert further == pytest.approx(seconds + 0.5 * step * slope, rel=1e-9)


def test_a_grid_without_decoders_is_refused():
    points = {p: s for p, s in timed().items() if not p[2]}
    with pytest.raises(GridError, match="decoders"):
        AttentionGrid(points)
