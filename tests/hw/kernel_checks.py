"""What every kernel must do, on whatever launches it: the NumPy twin of the launcher here, a GPU in tests/gpu."""

from __future__ import annotations

import numpy as np

from hw import ops, reference
from hw.reference import bf16_bits, bf16_values
from tests.hw.trees import Grown, dense, grow

TOLERANCE = 5e-3


def host(array):
    return array.get() if hasattr(array, "get") else array


def as_stored(k: ops.Kernels, array):
    return bf16_bits(array) if k.dtype == np.uint16 else np.asarray(array, np.float32)


def as_read(array):
    return (bf16_values(array) if array.dtype == np.uint16 else array).astype(float)


def check_attention(
    k: ops.Kernels, tree: Grown, seed: int, tolerance: float = TOLERANCE, **planning
) -> None:
    """Tree attention against dense attention in float64: relative L2 within `tolerance`, every output written."""
    xp, live = k.xp, tree.live
    rng = np.random.default_rng(seed)
    queries = as_stored(k, rng.standard_normal((live, k.shape.heads, 128)))
    step = ops.plan_step(k, tree.tables[:live], tree.lengths[:live], **planning)
    room = ops.scratch(k, int(host(step.parts)[-1]))
    merged = xp.asarray(as_stored(k, np.full(queries.shape, np.nan)))
    for array in room:
        array[...] = np.nan
    # What lies behind a branch's last token must not count: poison it.
    pool = np.full(tree.pool.shape, np.nan)
    for row in range(live):
        for at in range(int(tree.lengths[row])):
            page = tree.tables[row, at // tree.page]
            pool[page, :, :, at % tree.page] = tree.pool[page, :, :, at % tree.page]
    stored = as_stored(k, np.where(np.isnan(pool), 1e30, pool))
    ops.attention(k, xp.asarray(queries), xp.asarray(stored), step, room, merged)
    expected = dense(tree, as_read(queries))
    got = as_read(host(merged))
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def check_append(k: ops.Kernels, seed: int) -> None:
    """A token for each branch, in two layers: the first does not count it, the second does; a page below 0 stays out."""
    xp, s = k.xp, k.shape
    tree = grow(seed, s.page, s.kv_heads, most=20)
    live, rng = tree.live, np.random.default_rng(seed)
    keys, values = as_stored(k, rng.standard_normal((2, live, s.kv_heads, 128)))
    tables = np.full((live, 30), -1, np.int32)
    lengths = tree.lengths[:live].copy()
    for b in range(live - 1):
        tables[b, lengths[b] // s.page] = b
    expected = np.zeros((live, 2, s.kv_heads, s.page, 128), k.dtype)
    expected_lengths = lengths.copy()
    pool, counts = xp.asarray(expected.copy()), xp.asarray(lengths)
    for advance in (False, True):
        reference.append(expected, keys, values, tables, expected_lengths, advance)
        arrays = (xp.asarray(a) for a in (keys, values, tables))
        ops.append(k, pool, *arrays, counts, advance)
        assert (host(pool) == expected).all()
        assert (host(counts) == expected_lengths).all()


def check_fork_and_prune(k: ops.Kernels, seed: int) -> None:
    """Forks of three parents in one call over two layers, then prunes of half the branches: bit for bit the twins."""
    xp, s = k.xp, k.shape
    tree = grow(seed, s.page, s.kv_heads, branches=8, most=90)
    rng = np.random.default_rng(seed)
    pools = rng.integers(0, 2**16, (2, *tree.pool.shape), np.uint16).astype(k.dtype)
    parents = rng.integers(0, tree.live, 6).astype(np.int32)
    children = (tree.live + rng.permutation(6)).astype(np.int32)
    fresh = np.array(
        [tree.take() if tree.lengths[p] % s.page else -1 for p in parents], dtype=np.int32
    )
    tree.refs[fresh[fresh >= 0]] = 0
    names = [pools, tree.tables, tree.lengths, tree.refs]
    there = [xp.asarray(a.copy()) for a in names]
    forks = (parents, children, fresh)
    reference.fork(*names, *forks)
    ops.fork(k, *there, *(xp.asarray(a) for a in forks))
    for mine, theirs in zip(names, there, strict=True):
        assert (mine == host(theirs)).all()

    rows = rng.permutation(tree.live + 6)[: (tree.live + 6) // 2].astype(np.int32)
    stack = [tree.free, tree.free_count]
    there_stack = [xp.asarray(a.copy()) for a in stack]
    flags = xp.zeros(-(-tree.pages // 8), np.uint64)
    reference.prune(tree.tables, tree.lengths, tree.refs, rows, *stack, s.page)
    ops.prune(k, *there[1:], xp.asarray(rows), *there_stack, flags)
    count = int(tree.free_count[0])
    assert int(host(there_stack[1])[0]) == count
    assert (host(there_stack[0])[:count] == tree.free[:count]).all()
    assert (host(there[3]) == tree.refs).all()
    assert (host(there[2]) == tree.lengths).all()
    assert not host(flags).any()


def check_reclaim_in_order(k: ops.Kernels) -> None:
    """20,000 of 30,000 pages freed at once, over several rounds of the scan, go on the stack in ascending order."""
    xp, pages, rng = k.xp, 30_000, np.random.default_rng(1)
    held = rng.permutation(pages)[:20_000].astype(np.int32).reshape(10, -1)
    lengths, refs = np.full(10, 2000 * k.shape.page, np.int32), np.zeros(pages, np.int32)
    refs[held] = 1
    free, count = xp.full(pages, -1, np.int32), xp.asarray(np.array([3], np.int32))
    flags, rows = xp.zeros(pages // 8, np.uint64), xp.arange(10, dtype=np.int32)
    state = (xp.asarray(a) for a in (held, lengths, refs))
    ops.prune(k, *state, rows, free, count, flags)
    assert int(host(count)[0]) == 20_003
    assert (host(free)[3:20_003] == np.sort(held.ravel())).all()


def check_samples(
    k: ops.Kernels, rows: int, vocabulary: int, top_p: float, seed: int, spread: float = 3.0
) -> None:
    """The twin's tokens, or at a near tie (of scores, or of mass with top_p) one that is as good."""
    xp, rng = k.xp, np.random.default_rng(seed)
    logits = (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)
    given = bf16_bits(logits) if k.shape.logits_bf16 else logits
    logits = bf16_values(given) if k.shape.logits_bf16 else logits
    inverse, share = np.float32(1 / 0.8), float(np.float32(top_p))
    whole_seed, step = 2**33 + seed, 5
    key = np.array([whole_seed & 0xFFFFFFFF, whole_seed >> 32, step], np.uint32)
    tokens = xp.full(rows, -1, np.int32)
    ops.sample(
        k,
        xp.asarray(given),
        inverse_temperature=float(inverse),
        top_p=share,
        key=xp.asarray(key),
        tokens=tokens,
    )
    for row, token in enumerate(host(tokens).tolist()):
        wide = reference.nucleus(logits[row], float(inverse), share + 1e-4 if share < 1 else 1.0)
        slim = reference.nucleus(logits[row], float(inverse), share - 1e-4 if share < 1 else 1.0)
        scores = reference.sampling_scores(logits[row], row, float(inverse), step, whole_seed)
        assert token in wide
        assert scores[token] >= scores[slim].max() - 1e-3
