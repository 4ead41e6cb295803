"""The mini-engine on a real GPU: paged, forked and replayed as graphs, it computes what a dense model computes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the mini-engine needs torch (extra: gpu)")

from hw.cuda import GpuError  # noqa: E402
from hw.engine import Limits  # noqa: E402
from hw.engine_step import Tick, ints  # noqa: E402
from hw.transformer import Transformer  # noqa: E402
from tests.hw.test_engine import PAGE, Watched, close, piece, prompt  # noqa: E402

pytestmark = pytest.mark.gpu
SHAPES = [
    Transformer("small-g4", 3, 512, 8, 2, 128, 1024, 1003),
    Transformer("small-g7", 3, 512, 14, 2, 128, 1024, 1003),
]
TOLERANCE = 0.05  # of bf16 through three layers, against the same weights without pages


def engine_on_gpu(shape: Transformer, **settings: object) -> Watched:
    try:
        return Watched(shape, Limits(200, PAGE, max_rows=40), device="cuda", **settings)
    except GpuError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("still", [True, False])
def test_forks_of_a_chunked_prompt_are_dense_attention(shape: Transformer, still: bool) -> None:
    engine = engine_on_gpu(shape, still=still)
    ids, trunk = prompt(150), ints(range(10))
    engine.run(Tick(pieces=[piece(ids[:64], 0, trunk)], taken=trunk))
    engine.run(Tick(pieces=[piece(ids[64:149], 64, trunk)]))
    rows = 17
    own = [ints([*range(9), *range(10 + 3 * r, 13 + 3 * r)]) for r in range(rows)]
    paths = [[int(ids[149])] for _ in own]
    for number in range(30):
        at = 149 + number
        result = engine.run(
            Tick(
                ints([path[-1] for path in paths]),
                ints([at] * rows),
                [table[: at // PAGE + 1] for table in own],
                sampled=ints(range(rows)),
                copies=ints([[9, table[9], 5] for table in own] if not number else []).reshape(
                    -1, 3
                ),
                taken=ints(np.concatenate([table[9:] for table in own]) if not number else []),
            )
        )
        if number % 9 == 0 and not still:
            for row in (0, 8, 16):
                close(engine, row, [*ids[:149].tolist(), *paths[row]], TOLERANCE)
        for path, token in zip(paths, result.tokens.tolist(), strict=True):
            path.append(token)
    assert len({tuple(path) for path in paths}) == rows
    free = sorted(set(range(200)) - {*range(10), *np.concatenate(own).tolist()}, reverse=True)
    assert engine.free_stack().tolist() == free


def test_graphs_sample_the_very_tokens_that_single_launches_do() -> None:
    found = []
    for still in (True, False):
        engine = engine_on_gpu(SHAPES[0], still=still)
        ids, trunk = prompt(40), ints([0, 1, 2])
        engine.run(Tick(pieces=[piece(ids[:39], 0, trunk)], taken=trunk))
        tokens = [int(ids[39])]
        for at in range(39, 47):
            tick = Tick(ints(tokens[-1:]), ints([at]), [trunk[: at // PAGE + 1]], sampled=ints([0]))
            tokens.append(int(engine.run(tick).tokens[0]))
        found.append(tokens)
    assert found[0] == found[1]
