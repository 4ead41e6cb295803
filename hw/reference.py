"""The kernels' twins in NumPy and float64: what each must compute, written to be read rather than to be fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hw.kvtree import Ints, Step

HEAD_DIM = 128
EMPTY_LSE = -1e30
QUANTUM = 32768.0
LEVELS = 1 << 20

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]


def bf16_bits(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """The bfloat16 bits nearest to finite values (ties to even)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def bf16_values(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def empty_pool(pages: int, kv_heads: int, page: int, dtype: Any = np.float64) -> npt.NDArray[Any]:
    """One layer of KV: [pages][2][kv_heads][page][128], keys at [:, 0], values at [:, 1]."""
    return np.zeros((pages, 2, kv_heads, page, HEAD_DIM), dtype)


def gather(
    pool: npt.NDArray[Any], pages: Sequence[int] | Ints, begin: int, end: int
) -> tuple[Floats, Floats]:
    """Keys and values [end - begin, kv_heads, 128] of the tokens [begin, end) of a page list."""
    page = pool.shape[3]
    at = np.arange(begin, end)
    table = np.asarray(pages, np.int64)[at // page]
    both = pool[table, :, :, at % page].astype(np.float64)
    return both[:, 0], both[:, 1]


def attend(queries: Floats, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Softmax attention of one branch: outputs [heads, 128], log2 of the sum of exponentials [heads].

    queries [heads, 128]; keys, values [tokens, kv_heads, 128]; head h reads kv head h // (heads / kv_heads).
    Without a token the output is 0 and the sum EMPTY_LSE.
    """
    heads = queries.shape[0]
    if keys.shape[0] == 0:
        return np.zeros((heads, HEAD_DIM)), np.full(heads, EMPTY_LSE)
    group = heads // keys.shape[1]
    k, v = keys.repeat(group, 1), values.repeat(group, 1)
    scores = np.einsum("hd,thd->ht", queries, k) * HEAD_DIM**-0.5 * np.log2(np.e)
    top = scores.max(1)
    weights = np.exp2(scores - top[:, None])
    total = weights.sum(1)
    return np.einsum("ht,thd->hd", weights / total[:, None], v), top + np.log2(total)


def merge(outputs: Floats, sums: Floats) -> tuple[Floats, Floats]:
    """One attention from parts over disjoint keys: outputs [parts, heads, 128], sums (log2) [parts, heads]."""
    heads = outputs.shape[1]
    if outputs.shape[0] == 0:
        return np.zeros((heads, HEAD_DIM)), np.full(heads, EMPTY_LSE)
    top = sums.max(0)
    weights = np.where(sums > EMPTY_LSE / 2, np.exp2(sums - top), 0.0)
    total = weights.sum(0)
    some = np.where(total > 0, total, 1.0)
    merged = (weights[..., None] * outputs).sum(0) / some[:, None]
    return merged, np.where(total > 0, top + np.log2(some), EMPTY_LSE)


def tree_attention(queries: npt.NDArray[Any], pool: npt.NDArray[Any], step: Step) -> Floats:
    """Attention of a whole decode step by its work lists: queries and outputs [branches, heads, 128]."""
    outputs, sums = partials(queries, pool, step)
    out = np.zeros(queries.shape)
    for branch in range(queries.shape[0]):
        mine = slice(step.parts[branch], step.parts[branch + 1])
        out[branch] = merge(outputs[mine], sums[mine])[0]
    return out


def partials(
    queries: npt.NDArray[Any], pool: npt.NDArray[Any], step: Step
) -> tuple[Floats, Floats]:
    """Each item's part: outputs [parts, heads, 128] and sums (log2) [parts, heads]; unwritten parts are NaN."""
    heads = queries.shape[1]
    outputs = np.full((int(step.parts[-1]), heads, HEAD_DIM), np.nan)
    sums = np.full((int(step.parts[-1]), heads), np.nan)
    exact = queries.astype(np.float64)
    for first, branches, row0, pages_at, begin, end, slot, _ in step.prefix.tolist():
        if row0:
            continue
        k, v = gather(pool, step.pages[pages_at:], begin, end)
        for branch in step.order[first : first + branches]:
            at = step.parts[branch] + slot
            outputs[at], sums[at] = attend(exact[branch], k, v)
    for branch, pages_at, begin, end, slot, *_ in step.suffix.tolist():
        k, v = gather(pool, step.pages[pages_at:], begin, end)
        at = step.parts[branch] + slot
        outputs[at], sums[at] = attend(exact[branch], k, v)
    return outputs, sums


def append(
    pool: npt.NDArray[Any],
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    tables: Ints,
    lengths: Ints,
    advance: bool,
) -> None:
    """Write one token a branch, in place, behind its lengths[b] tokens; `advance` then counts it (last layer only).

    keys, values [branches, kv_heads, 128]; tables [branches, most pages]; a page below 0 is skipped.
    """
    page = pool.shape[3]
    for b in range(len(lengths)):
        at = int(lengths[b])
        target = int(tables[b, at // page])
        if target >= 0:
            pool[target, 0, :, at % page] = keys[b]
            pool[target, 1, :, at % page] = values[b]
            lengths[b] += int(advance)


def fork(
    pools: npt.NDArray[Any],
    tables: Ints,
    lengths: Ints,
    refs: Ints,
    parents: Ints,
    children: Ints,
    fresh: Ints,
) -> None:
    """Copy-on-write fork, in place: children share the parents' full pages and get a copy of the partial one.

    pools [layers, pages, 2, kv_heads, page, 128]; refs [pages] counts table entries; parents, children: rows of
    tables (no child is a parent in the same call); fresh[c]: the page for child c's copy, unused (-1) if the parent's
    length is a multiple of the page.
    """
    page = pools.shape[4]
    for parent, child, new in zip(parents.tolist(), children.tolist(), fresh.tolist(), strict=True):
        whole, rest = divmod(int(lengths[parent]), page)
        tables[child, :whole] = tables[parent, :whole]
        np.add.at(refs, tables[parent, :whole], 1)
        lengths[child] = lengths[parent]
        if rest:
            pools[:, new, :, :, :rest] = pools[:, tables[parent, whole], :, :, :rest]
            tables[child, whole] = new
            refs[new] = 1


def prune(
    tables: Ints, lengths: Ints, refs: Ints, rows: Ints, free: Ints, free_count: Ints, page: int
) -> None:
    """Drop branches, in place: count their pages down, push those at 0 on the free stack in ascending order.

    free [pages] holds free_count[0] entries; lengths of the dropped rows become 0.
    """
    freed: list[int] = []
    for row in rows.tolist():
        for target in tables[row, : -(-int(lengths[row]) // page)].tolist():
            refs[target] -= 1
            if refs[target] == 0:
                freed.append(target)
        lengths[row] = 0
    at = int(free_count[0])
    free[at : at + len(freed)] = sorted(freed)
    free_count[0] = at + len(freed)


def philox(counter: Words, key: Words) -> Words:
    """Philox4x32-10: counter [..., 4] and key [..., 2] to four random words [..., 4].

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
    """
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k0, k1 = key[..., 0].astype(np.uint64), key[..., 1].astype(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ k1,
            p0 & low,
        ]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack(c, -1).astype(np.uint32)


def gumbels(vocabulary: int, row: int, step: int, seed: int) -> Floats:
    """Standard Gumbel noise of each token [vocabulary], a function of (seed, step, row, token) alone."""
    blocks = -(-vocabulary // 4)
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks)
    counter[:, 1], counter[:, 2] = row, step
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32)
    words = philox(counter, key).reshape(-1)[:vocabulary]
    uniform = ((words >> 9) + 0.5) * 2.0**-23
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def nucleus(logits: npt.NDArray[np.float32], inverse_temperature: float, top_p: float) -> Ints:
    """Tokens [kept] of the least set of the most likely ones that has at least `top_p` of the probability.

    Likelihood is compared in steps of 1/32768 nat below the best token; ties are kept or left together. Tokens
    32 nats and more below the best fall into one last step. top_p >= 1 keeps all.
    """
    below = (logits.max() - logits) * np.float32(inverse_temperature)
    if top_p >= 1:
        return np.arange(len(logits), dtype=np.int32)
    level = np.minimum(below * np.float32(QUANTUM), np.float32(LEVELS - 1)).astype(np.int64)
    mass = np.zeros(LEVELS)
    np.add.at(mass, level, np.exp(-below.astype(np.float64)))
    reached = np.cumsum(mass)
    last = int(np.searchsorted(reached, top_p * reached[-1]))
    return np.flatnonzero(level <= min(last, LEVELS - 1)).astype(np.int32)


def sample(
    logits: npt.NDArray[np.float32],
    *,
    inverse_temperature: float,
    top_p: float,
    step: int,
    seed: int,
) -> Ints:
    """One token a row of logits [rows, vocabulary]: Gumbel-max within the nucleus."""
    tokens = np.zeros(logits.shape[0], np.int32)
    for row in range(logits.shape[0]):
        kept = nucleus(logits[row], inverse_temperature, top_p)
        scores = sampling_scores(logits[row], row, inverse_temperature, step, seed)
        tokens[row] = kept[np.argmax(scores[kept])]
    return tokens


def sampling_scores(
    logits: npt.NDArray[np.float32], row: int, inverse_temperature: float, step: int, seed: int
) -> Floats:
    """What Gumbel-max takes the largest of [vocabulary]: scaled logits less the best one, plus the noise."""
    below = (logits.max() - logits) * np.float32(inverse_temperature)
    scores: Floats = gumbels(len(logits), row, step, seed) - below
    return scores
