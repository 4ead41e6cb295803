"""The real engine on a CPU: what it computes over pages is what a dense model computes over plain tokens."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the mini-engine needs torch (extra: torch)")

from hw.engine import Engine, Limits  # noqa: E402
from hw.engine_model import UnsupportedShapeError, feed_forward, normed, turned, turns  # noqa: E402
from hw.engine_step import Piece, Tick, groups, ints  # noqa: E402
from hw.transformer import Transformer, transformer  # noqa: E402

TINY = Transformer("tiny", 2, 64, 4, 1, 128, 96, 211)
TINY_JUDGE = Transformer("tiny-prm", 2, 64, 4, 2, 128, 96, 211, score_head=True)
PAGE = 16


def dense(engine: Engine, tokens: list[int]) -> torch.Tensor:
    """Last hidden states [tokens, hidden] by plain causal attention, without pages, kernels or batches."""
    s, w = engine.shape, engine.weights
    at = engine.device
    turn = turns(torch.arange(len(tokens), device=at))
    x = w.embedding[torch.tensor(tokens, device=at)]
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=at).tril()
    for layer in w.layers:
        mixed = (normed(x, layer.norm_in) @ layer.qkv.T).view(len(tokens), -1, 128)
        q, k = torch.empty_like(mixed[:, : s.heads]), torch.empty_like(mixed[:, : s.kv_heads])
        turned(mixed[:, : s.heads], turn, q)
        turned(mixed[:, s.heads : s.heads + s.kv_heads], turn, k)
        v = mixed[:, s.heads + s.kv_heads :]
        k, v = (y.repeat_interleave(s.heads // s.kv_heads, 1) for y in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / 128**0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", weights, v).reshape(len(tokens), -1) @ layer.out.T
        x = x + feed_forward(normed(x, layer.norm_mid), layer)
    return normed(x, w.norm)


class Watched(Engine):
    """An engine that keeps the hidden states of its last tick."""

    def forward(self, *given: object) -> torch.Tensor:
        self.seen = super().forward(*given)
        return self.seen


def prompt(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TINY.vocab, count).astype(np.int32)


def piece(tokens: np.ndarray, start: int, table: np.ndarray, kept: int | None = None) -> Piece:
    """A piece whose context and whose own KV lie on the pages of one table; what is beyond `kept` is not kept."""
    at = np.arange(start, start + len(tokens))
    pages = np.append(table, ints([-1]))[np.minimum(at // PAGE, len(table))]
    pages[len(tokens) if kept is None else kept :] = -1
    return Piece(tokens, start, table[: -(-start // PAGE)], pages)


def close(engine: Watched, row: int, tokens: list[int], tolerance: float = 1e-4) -> None:
    expected = dense(engine, tokens)[-1].float()
    error = torch.linalg.norm(engine.seen[row].float() - expected)
    assert error <= tolerance * torch.linalg.norm(expected)


def test_a_prompt_in_two_chunks_then_a_decoder_equal_the_dense_model() -> None:
    engine = Watched(TINY, Limits(8, PAGE), exact=True)
    ids, table = prompt(37), ints([5, 2, 7])
    engine.run(Tick(pieces=[piece(ids[:20], 0, table)], taken=table))
    close(engine, 19, ids[:20].tolist())
    result = engine.run(Tick(pieces=[piece(ids[20:], 20, table)], sampled=ints([16])))
    close(engine, 16, ids.tolist())
    path = [*ids.tolist(), int(result.tokens[0])]
    for _ in range(5):
        tick = Tick(ints(path[-1:]), ints([len(path) - 1]), [table], sampled=ints([0]))
        result = engine.run(tick)
        close(engine, 0, path)
        path.append(int(result.tokens[0]))


def test_forks_share_full_pages_copy_the_tail_and_never_write_into_a_sibling() -> None:
    engine = Watched(TINY, Limits(12, PAGE), exact=True)
    ids = prompt(41)  # 40 tokens of KV before the first write: two full pages, 8 in the third
    trunk = ints([0, 1, 2])
    first = engine.run(
        Tick(
            pieces=[piece(ids, 0, trunk)],
            sampled=ints([40, 40, 40]),
            again=ints([[32 + i, page, i] for page in (3, 4) for i in range(9)]),
            taken=ints([0, 1, 2, 3, 4]),
        )
    )
    tables = [trunk, ints([0, 1, 3]), ints([0, 1, 4])]
    paths = [[*ids.tolist(), int(t)] for t in first.tokens]
    for _ in range(6):
        result = engine.run(
            Tick(
                ints([path[-1] for path in paths]),
                ints([len(path) - 1 for path in paths]),
                tables,
                sampled=ints([0, 1, 2]),
            )
        )
        for row, path in enumerate(paths):
            close(engine, row, path)
            path.append(int(result.tokens[row]))
    assert len({tuple(path) for path in paths}) == 3


def test_decoders_a_chunk_and_scored_siblings_run_in_one_tick() -> None:
    engine = Watched(TINY_JUDGE, Limits(12, PAGE), exact=True)
    ids, steps = prompt(30), [prompt(9, 1), prompt(5, 2), prompt(3, 3)]
    root = ints([0, 1])
    engine.run(Tick(pieces=[piece(ids[:29], 0, root)], taken=root))
    # Step 0 goes on in the trunk's last page; the others recompute its 13 tokens on pages of their own.
    pieces = [
        piece(np.append(ids[29:], steps[0]), 29, ints([0, 1, 2]), 9),
        piece(np.append(ids[16:], steps[1]), 16, ints([0, 3, 4]), 18),
        piece(np.append(ids[16:], steps[2]), 16, ints([0, 5]), 16),
        piece(ids[:7], 0, ints([6])),
    ]
    assert groups(pieces) == [[0], [1, 2], [3]]
    result = engine.run(Tick(pieces=pieces, scored=ints([9, 28, 45]), taken=ints([2, 3, 4, 5, 6])))
    for row, step in zip((9, 28, 45), steps, strict=True):
        close(engine, row, [*ids.tolist(), *step.tolist()])
    close(engine, 52, ids[:7].tolist())
    assert result.scores.shape == (3,)
    assert ((result.scores > 0) & (result.scores < 1)).all()


def test_freed_pages_come_back_from_the_top_of_the_devices_stack() -> None:
    engine = Engine(TINY, Limits(6, PAGE), exact=True)
    assert engine.free_stack().tolist() == [5, 4, 3, 2, 1, 0]
    engine.run(Tick(pieces=[piece(prompt(40), 0, ints([0, 1, 2]))], taken=ints([0, 1, 2])))
    engine.run(Tick(pieces=[piece(prompt(9), 0, ints([1]))], freed=ints([1, 0]), taken=ints([1])))
    assert engine.free_stack().tolist() == [5, 4, 3, 0]
    assert engine.pages_held().tolist() == [1, 2]


@pytest.mark.parametrize("exact", [True, False])
def test_still_ticks_sample_the_very_tokens_that_moving_ones_do(exact: bool) -> None:
    paths = []
    for still in (True, False):
        engine = Watched(TINY, Limits(60, PAGE, max_rows=12), exact=exact, still=still)
        ids = prompt(70)
        trunk = ints([0, 1, 2, 3, 4])
        engine.run(Tick(pieces=[piece(ids[:69], 0, trunk)], taken=trunk))
        rows = 9
        own = [ints([*range(4), 5 + 3 * row, 6 + 3 * row, 7 + 3 * row]) for row in range(rows)]
        fresh = ints([page for table in own for page in table[4:]])
        copies = ints([[4, table[4], 5] for table in own])
        found = [[int(ids[69])] for _ in range(rows)]
        for at in range(69, 69 + 20):
            live = rows if at < 80 else 3
            tick = Tick(
                ints([path[-1] for path in found[:live]]),
                ints([at] * live),
                [table[: at // PAGE + 1] for table in own[:live]],
                sampled=ints(range(live)),
                copies=copies if at == 69 else ints().reshape(0, 3),
                taken=fresh if at == 69 else ints(),
            )
            for path, token in zip(found, engine.run(tick).tokens.tolist(), strict=False):
                path.append(token)
        close(engine, 0, [*ids[:69].tolist(), *found[0][:-1]], 1e-4 if exact else 0.05)
        paths.append(found)
        if still:
            assert engine.still is not None
            assert {size for size, _ in engine.still.made} == {12, 4}
    assert paths[0] == paths[1]
    assert len({tuple(path) for path in paths[0]}) == 9


def test_bf16_is_near_float32() -> None:
    ids, table = prompt(33), ints([0, 1, 2])
    seen = []
    for exact in (True, False):
        engine = Watched(TINY, Limits(3, PAGE), exact=exact)
        if exact:
            weights = engine.weights
        engine.run(Tick(pieces=[piece(ids[:32], 0, table)], taken=table))
        engine.run(Tick(ids[32:], ints([32]), [table], sampled=ints([0])))
        seen.append(engine.seen[0].float())
        assert engine.weights.embedding.dtype == (torch.float32 if exact else torch.bfloat16)
    assert weights is not None
    assert torch.linalg.norm(seen[1] - seen[0]) <= 0.05 * torch.linalg.norm(seen[0])


def test_what_it_cannot_run_is_refused() -> None:
    with pytest.raises(UnsupportedShapeError, match="experts"):
        Engine(transformer("deepseek-r1"), Limits(4))
    engine = Engine(TINY, Limits(4, PAGE, max_rows=1, max_tokens=8), exact=True)
    with pytest.raises(ValueError, match="2 decoders, but the engine was built for 1"):
        engine.run(Tick(ints([1, 1]), ints([0, 0]), [ints([0]), ints([1])]))
    with pytest.raises(ValueError, match="10 tokens in one tick"):
        engine.run(Tick(pieces=[piece(prompt(10), 0, ints([0]))]))
    with pytest.raises(ValueError, match='"pages" must be at least 1'):
        Limits(0)
