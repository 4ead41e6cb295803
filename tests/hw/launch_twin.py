"""A twin of the launch interface: each kernel's index arithmetic, lane by lane in NumPy, with exact arithmetic.

What it checks is where the kernels read and write (fragments, swizzle, pages, parts, ragged ends), not rounding.
Layouts of ldmatrix and mma.m16n8k16. Source: PTX ISA 9.0, sections 9.7.14.5.8 and 9.7.14.5.15.
"""

from __future__ import annotations

import numpy as np

from hw import ops, reference
from hw.reference import EMPTY_LSE as EMPTY
from hw.reference import LEVELS, QUANTUM

LANES = np.arange(32)


def launcher(shape: ops.Shape, seed: int = 0) -> ops.Launch:
    """Runs the twin of each kernel; blocks go in random order, for no kernel may depend on it."""
    rng = np.random.default_rng(seed)
    allowed = ops.shared_bytes(shape)

    def launch(name, grid, threads, shared, arguments):
        assert shared == allowed.get(name, 0)
        assert all(0 < n < 2**31 for n in grid)
        blocks = [(x, y) for x in range(grid[0]) for y in range(grid[1] if len(grid) > 1 else 1)]
        for at in rng.permutation(len(blocks)):
            TWINS[name](shape, blocks[at], threads, *arguments)

    return launch


def swizzled(row, chunk):
    """In elements of 2 bytes, as all offsets here."""
    return row * 128 + ((chunk ^ (row & 7)) << 3)


def load_matrices(memory, at, transposed=False):
    rows = memory[at[:, None] + np.arange(8)].reshape(4, 8, 8)
    if transposed:
        rows = rows.swapaxes(1, 2)
    lane = LANES[:, None, None]
    return rows[np.arange(4)[None, :, None], lane // 4, 2 * (lane % 4) + np.arange(2)]


def mma(c, a, b0, b1):
    """c [32, 4] += the tile product of a [32, 4, 2] (16 x 16) and b0, b1 [32, 2] (16 x 8)."""
    left, right = np.zeros((16, 16)), np.zeros((16, 8))
    r, k = LANES[:, None] // 4, 2 * (LANES[:, None] % 4) + np.arange(2)
    left[r, k], left[r + 8, k], left[r, k + 8], left[r + 8, k + 8] = a.transpose(1, 0, 2)
    right[k, r], right[k + 8, r] = b0, b1
    product = left @ right
    c[:, :2] += product[r, k]
    c[:, 2:] += product[r + 8, k]


def token_at(pages, key, head, hk, page):
    return (((pages[key // page].astype(np.int64) * 2 * hk) + head) * page + key % page) * 128


class Rows:
    def __init__(self):
        self.out, self.top, self.sum = (
            np.zeros((16, 32, 4)),
            np.full((2, 32), EMPTY),
            np.zeros((2, 32)),
        )

    def attend(self, n, q, memory, keys, values, valid, scale):
        assert valid >= 1
        x = np.zeros((n // 8, 32, 4))
        for k in range(8):
            for j in range(n // 16):
                rows, chunks = (
                    j * 16 + (LANES & 7) + ((LANES >> 4) << 3),
                    k * 2 + ((LANES >> 3) & 1),
                )
                b = load_matrices(memory, keys + swizzled(rows, chunks))
                mma(x[2 * j], q[k], b[:, 0], b[:, 1])
                mma(x[2 * j + 1], q[k], b[:, 2], b[:, 3])
        for j in range(n // 8):
            for e in range(4):
                x[j, j * 8 + (LANES & 3) * 2 + (e & 1) >= valid, e] = EMPTY
        for h in range(2):
            half = slice(2 * h, 2 * h + 2)
            top = np.maximum(self.top[h], x[:, :, half].max((0, 2)))
            for i in (1, 2):
                top = np.maximum(top, top[LANES ^ i])
            fade = np.exp2((self.top[h] - top) * scale)
            self.top[h] = top
            self.out[:, :, half] *= fade[:, None]
            x[:, :, half] = np.exp2((x[:, :, half] - top[:, None]) * scale)
            self.sum[h] = self.sum[h] * fade + x[:, :, half].sum((0, 2))
        for j in range(n // 16):
            p = np.stack(
                [x[2 * j][:, :2], x[2 * j][:, 2:], x[2 * j + 1][:, :2], x[2 * j + 1][:, 2:]], 1
            )
            for m in range(8):
                at = values + swizzled(j * 16 + (LANES & 15), m * 2 + (LANES >> 4))
                b = load_matrices(memory, at, transposed=True)
                mma(self.out[2 * m], p, b[:, 0], b[:, 1])
                mma(self.out[2 * m + 1], p, b[:, 2], b[:, 3])

    def finish(self):
        for i in (1, 2):
            self.sum = self.sum + self.sum[:, LANES ^ i]


def _copy(memory, to, source, start, ok):
    """copy16 of many threads at once: `to`, `start` and `ok` have one entry a copy."""
    chunk = np.arange(8)
    memory[to[:, None] + chunk] = np.where(ok[:, None], source[start[:, None] + chunk], 0.0)


def prefix_attention(shape, block, threads, queries, pool, order, pages, items, parts, heads, hk, scale, outputs, sums):  # fmt: skip
    g, bm, bn = shape.group, shape.row_tile, shape.key_tile
    assert threads == bm * 2
    head = block[1]
    first, branches, row0, pages_at, begin, end, slot, _ = (int(v) for v in items[block[0]])
    rows, tiles = branches * g, -(-(end - begin) // bn)
    flat_q, flat = (reference.bf16_values(a.reshape(-1)).astype(float) for a in (queries, pool))
    memory = np.full(ops.shared_bytes(shape)["prefix_attention"] // 2, np.nan)
    k_at, v_at = bm * 128, bm * 128 + 2 * bn * 128
    i = np.arange(bm * 16)
    r, c = i >> 4, i & 15
    row, ok = row0 + r, row0 + r < rows
    branch = order[np.where(ok, first + row // g, first)]
    start = (branch.astype(np.int64) * heads + head * g + np.where(ok, row % g, 0)) * 128 + c * 8
    _copy(memory, swizzled(r, c), flat_q, start, ok)
    states = [Rows() for _ in range(bm // 16)]
    q = [
        [load_matrices(memory, swizzled(w * 16 + (LANES & 15), k * 2 + (LANES >> 4))) for k in range(8)]
        for w in range(bm // 16)
    ]  # fmt: skip
    i = np.arange(bn * 16)
    r, c = i >> 4, i & 15
    for t in range(tiles):
        key = begin + t * bn + r
        ok = key < end
        start = token_at(pages[pages_at:], np.where(ok, key, begin), head, hk, shape.page) + c * 8
        stage = (t & 1) * bn * 128
        _copy(memory, k_at + stage + swizzled(r, c), flat, start, ok)
        _copy(memory, v_at + stage + swizzled(r, c), flat, start + hk * shape.page * 128, ok)
        for w, state in enumerate(states):
            state.attend(
                bn, q[w], memory, k_at + stage, v_at + stage, end - begin - t * bn, float(scale)
            )
    flat_out, flat_sums = outputs.reshape(-1), sums.reshape(-1)
    for w, state in enumerate(states):
        state.finish()
        for h in range(2):
            for lane in LANES:
                row = row0 + w * 16 + (lane >> 2) + h * 8
                if row >= rows:
                    continue
                at = (int(parts[order[first + row // g]]) + slot) * heads + head * g + row % g
                total = state.sum[h, lane]
                flat_sums[at] = np.log2(total) + state.top[h, lane] * scale if total > 0 else EMPTY
                for n in range(16):
                    to = at * 128 + n * 8 + (lane & 3) * 2
                    flat_out[to : to + 2] = state.out[n, lane, 2 * h : 2 * h + 2] / max(
                        total, 1e-99
                    )


def suffix_attention(shape, block, threads, queries, pool, pages, items, parts, heads, hk, scale, outputs, sums):  # fmt: skip
    assert threads == 128
    g, stages, slab, warps = shape.group, shape.stages, 16, 4
    head = block[1]
    branch, pages_at, begin, end, slot = (int(v) for v in items[block[0]][:5])
    slabs = -(-(end - begin) // slab)
    flat_q, flat = (reference.bf16_values(a.reshape(-1)).astype(float) for a in (queries, pool))
    memory = np.full(ops.shared_bytes(shape)["suffix_attention"] // 2, np.nan)
    i = np.arange(256)
    r, c = i >> 4, i & 15
    start = (branch * heads + head * g + np.where(r < g, r, 0)) * 128 + c * 8
    _copy(memory, swizzled(r, c), flat_q, start, r < g)
    q = [load_matrices(memory, swizzled(LANES & 15, k * 2 + (LANES >> 4))) for k in range(8)]
    each = np.full((warps, g, 128), np.nan)
    tops, totals = np.full((warps, g), np.nan), np.full((warps, g), np.nan)
    for w in range(warps):
        mine = (slabs - w + warps - 1) // warps if slabs > w else 0
        state = Rows()
        for turn in range(mine):
            to = 16 * 128 + w * stages * 2 * slab * 128 + (turn % stages) * 2 * slab * 128
            i = np.arange(slab // 2)[:, None]
            r, c = (i * 2 + (LANES >> 4)).ravel(), (i * 0 + (LANES & 15)).ravel()
            key = begin + (w + turn * warps) * slab + r
            ok = key < end
            start = token_at(pages[pages_at:], np.where(ok, key, begin), head, hk, shape.page)
            start = start + c * 8
            _copy(memory, to + swizzled(r, c), flat, start, ok)
            values = to + slab * 128
            _copy(memory, values + swizzled(r, c), flat, start + hk * shape.page * 128, ok)
            left = end - begin - (w + turn * warps) * slab
            state.attend(slab, q, memory, to, values, left, float(scale))
        state.finish()
        for h in range(2):
            for lane in LANES:
                row = (lane >> 2) + h * 8
                if row < g:
                    tops[w, row], totals[w, row] = state.top[h, lane], state.sum[h, lane]
                    for n in range(16):
                        to = n * 8 + (lane & 3) * 2
                        each[w, row, to : to + 2] = state.out[n, lane, 2 * h : 2 * h + 2]
    top = tops.max(0)
    weight = np.exp2((tops - top) * scale)
    total = (weight * totals).sum(0)
    at = int(parts[branch]) + slot
    mine = slice(head * g, head * g + g)
    some = np.where(total > 0, total, 1.0)
    outputs[at, mine] = (weight[..., None] * each).sum(0) / some[:, None]
    sums[at, mine] = np.where(total > 0, np.log2(some) + top * scale, EMPTY)


def merge_parts(shape, block, threads, outputs, sums, parts, branches, heads, merged):
    flat_out, flat_sums, flat = outputs.reshape(-1), sums.reshape(-1), merged.reshape(-1)
    for warp in range(threads // 32):
        at = block[0] * 4 + warp
        if at >= branches * heads:
            continue
        branch, head = divmod(at, int(heads))
        found = [p * int(heads) + head for p in range(parts[branch], parts[branch + 1])]
        top = max([EMPTY, *(flat_sums[p] for p in found)])
        weights = [np.exp2(flat_sums[p] - top) if flat_sums[p] > EMPTY / 2 else 0 for p in found]
        out = np.zeros(128)
        for p, weight in zip(found, weights, strict=True):
            for lane in range(32):
                to = lane * 4
                out[to : to + 4] += weight * flat_out[p * 128 + to : p * 128 + to + 4]
        total = sum(weights)
        flat[at * 128 : at * 128 + 128] = reference.bf16_bits(out / total if total > 0 else out)


def append_tokens(shape, block, threads, pool, keys, values, tables, lengths, stride, hk, advance):
    branch, length = block[0], int(lengths[block[0]])
    page = int(tables.reshape(-1)[branch * stride + length // shape.page])
    if page < 0:
        return
    flat = pool.reshape(-1)
    for i in range(2 * hk * 16):
        side, head, c = i // (hk * 16), i // 16 % hk, i & 15
        source = (values if side else keys).reshape(-1)
        start = (branch * hk + head) * 128 + c * 8
        to = (((page * 2 + side) * hk + head) * shape.page + length % shape.page) * 128 + c * 8
        flat[to : to + 8] = source[start : start + 8]
    if advance:
        lengths[branch] = length + 1


def fork_branches(shape, block, threads, pools, tables, lengths, refs, parents, children, fresh, stride, page_count, hk):  # fmt: skip
    x, y = block
    parent, child, to_page = int(parents[y]), int(children[y]), int(fresh[y])
    whole, rest = divmod(int(lengths[parent]), shape.page)
    flat, table = pools.reshape(-1), tables.reshape(-1)
    if rest:
        layer, part = divmod(x, 2 * int(hk))
        size = shape.page * 128
        start, to = (
            ((layer * int(page_count) + page) * 2 * int(hk) + part) * size
            for page in (int(table[parent * stride + whole]), to_page)
        )
        flat[to : to + rest * 128] = flat[start : start + rest * 128]
    if x:
        return
    for i in range(whole):
        table[child * stride + i] = table[parent * stride + i]
        refs[table[parent * stride + i]] += 1
    lengths[child] = lengths[parent]
    if rest:
        table[child * stride + whole] = to_page
        refs[to_page] = 1


def release_pages(shape, block, threads, tables, lengths, refs, rows, flags, stride):
    row = int(rows[block[0]])
    for i in range((int(lengths[row]) + shape.page - 1) // shape.page):
        page = tables.reshape(-1)[row * stride + i]
        refs[page] -= 1
        if refs[page] == 0:
            flags.view(np.uint8)[page] = 1
    lengths[row] = 0


def reclaim_pages(shape, block, threads, flags, free, free_count, words):
    base = int(free_count[0])
    for at in range(0, int(words), threads):
        bits = np.zeros(threads, np.uint64)
        bits[: len(flags[at : at + threads])] = flags[at : at + threads]
        mine = np.bitwise_count(bits).astype(int)
        upto = mine.reshape(-1, 32).cumsum(1)
        totals = upto[:, 31]
        before = totals.cumsum() - totals
        to = base + (before[:, None] + upto).ravel() - mine
        for tid in np.flatnonzero(bits):
            where = to[tid]
            for i in range(8):
                if int(bits[tid]) >> (8 * i) & 1:
                    free[where] = (at + tid) * 8 + i
                    where += 1
            flags[at + tid] = 0
        base += int(totals.sum())
    free_count[0] = base


def _find_bin(mass, target):
    upto = np.cumsum(mass)
    (found,) = np.flatnonzero((upto >= target) & (upto - mass < target))
    return int(found), int(upto[found] - mass[found])


def sample_tokens(shape, block, threads, logits, vocabulary, inverse_temperature, top_p, key, tokens):  # fmt: skip
    row = logits[block[0]]
    x = reference.bf16_values(row) if shape.logits_bf16 else row
    x = np.pad(x, (0, -len(x) % 4), constant_values=-np.inf)
    below = (x.max() - x) * inverse_temperature
    level = np.minimum(below * np.float32(QUANTUM), np.float32(LEVELS - 1)).astype(np.uint32)
    cut = LEVELS - 1
    if top_p < 1:
        mass = (np.exp(-below) * np.float32(2**40)).astype(np.uint64).astype(np.int64)
        target = max(1, int(float(top_p) * float(mass.sum())))
        bins = np.bincount(level >> 10, mass, 1024).astype(np.int64)
        high, before = _find_bin(bins, target)
        bins = np.bincount(level & 1023, mass * (level >> 10 == high), 1024).astype(np.int64)
        cut = high << 10 | _find_bin(bins, target - before)[0]
    counter = np.zeros((len(x) // 4, 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 2] = np.arange(len(x) // 4), block[0], key[2]
    words = reference.philox(counter, key[:2]).reshape(-1)
    uniform = ((words >> 9).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)
    score = -np.log(-np.log(uniform)) - below
    bits = score.view(np.uint32)
    rank = np.where(bits >> 31, ~bits, bits | 0x80000000).astype(np.uint64)
    entry = rank << np.uint64(32) | (~np.arange(len(x), dtype=np.uint32)).astype(np.uint64)
    entry[(np.arange(len(x)) >= vocabulary) | (level > cut)] = 0
    tokens[block[0]] = int(~np.uint32(int(entry.max()) & 0xFFFFFFFF))


TWINS = {
    twin.__name__: twin
    for twin in (
        prefix_attention, suffix_attention, merge_parts, append_tokens, fork_branches, release_pages,
        reclaim_pages, sample_tokens,
    )
}  # fmt: skip
