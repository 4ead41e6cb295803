"""The kernels' work on a CPU, behind the same launch interface: NumPy moves, torch (NumPy without it) computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hw.ops import Kernels, Launch, Shape
from hw.reference import EMPTY_LSE, HEAD_DIM, LEVELS, QUANTUM, bf16_bits, bf16_values

Engine = Literal["torch", "numpy"]
Array = npt.NDArray[Any]
Attend = Callable[[Array, Array, Array], tuple[Array, Array]]
"""attend(queries [n, hk, rows, 128], keys, values [n, hk, tokens, 128]) -> float32 outputs, log2 sums [n, hk, rows]."""

LOG2E = 1.4426950408889634
_GATHER_BYTES = 1 << 25  # private suffixes are gathered in slices of about this size
_NOISE_BLOCKS = (
    1 << 14
)  # Philox blocks at a time: four words each, so that the arrays stay in a core's cache


def engine() -> Engine:
    """What computes here: torch where it is installed, else NumPy."""
    from importlib.util import find_spec

    return "torch" if find_spec("torch") is not None else "numpy"


def kernels(shape: Shape, dtype: Any = np.uint16, computes: Engine | None = None) -> Kernels:
    """The operations of hw/ops.py on this CPU; dtype: uint16 (bf16 bits, as on a GPU) or float32 (exact)."""
    if dtype not in (np.uint16, np.float32):
        raise ValueError(f"dtype must be uint16 (bf16 bits) or float32, got {np.dtype(dtype).name}")
    return Kernels(shape, launcher(shape, computes or engine()), np, dtype)


def launcher(shape: Shape, computes: Engine) -> Launch:
    """Runs whole grids at once; what a launch says about blocks, threads and shared memory has no meaning here."""
    attend = _torch_attend() if computes == "torch" else _numpy_attend
    runs: dict[str, Callable[..., None]] = {
        "prefix_attention": lambda *a: _prefix(shape, attend, *a),
        "suffix_attention": lambda *a: _suffix(shape, attend, *a),
        "merge_parts": _merge,
        "append_tokens": lambda *a: _append(shape, *a),
        "fork_branches": lambda *a: _fork(shape, *a),
        "release_pages": lambda *a: _release(shape, *a),
        "reclaim_pages": _reclaim,
        "sample_tokens": _sample,
    }

    def launch(
        name: str, grid: tuple[int, ...], threads: int, shared: int, arguments: tuple[Any, ...]
    ) -> None:
        runs[name](*arguments)

    return launch


def values(array: Array) -> Array:
    """float32 of an array that holds float32 or bf16 bits."""
    return bf16_values(array) if array.dtype == np.uint16 else array


def stored(result: Array, dtype: Any) -> Array:
    """float32 as the dtype that an array holds."""
    return bf16_bits(result) if dtype == np.uint16 else result


def _numpy_attend(queries: Array, keys: Array, kept: Array) -> tuple[Array, Array]:
    scores = values(queries) @ values(keys).swapaxes(-1, -2)
    scores *= np.float32(HEAD_DIM**-0.5)
    top = scores.max(-1, keepdims=True)
    np.exp(np.subtract(scores, top, out=scores), out=scores)
    total = scores.sum(-1, keepdims=True)
    return (scores @ values(kept)) / total, ((top + np.log(total)) * LOG2E)[..., 0]


def _torch_attend() -> Attend:
    import torch

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def tensor(array: Array) -> Any:
        if array.dtype == np.uint16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def attend(queries: Array, keys: Array, kept: Array) -> tuple[Array, Array]:
        with torch.inference_mode():
            out, sums = fused(tensor(queries), tensor(keys), tensor(kept), 0.0, False)
            return out.float().numpy(), sums.numpy() * LOG2E

    return attend


def _gather(pool: Array, pages: Array, side: int) -> Array:
    """Keys (side 0) or values (1) [n, hk, pages * page, 128] of the page lists [n, pages], copied once."""
    hk, page = pool.shape[2:4]
    at = (pages[:, None, :].astype(np.int64) * 2 + side) * hk + np.arange(hk)[:, None]
    found: Array = np.take(pool.reshape(-1, page * HEAD_DIM), at, axis=0)
    return found.reshape(len(pages), hk, -1, HEAD_DIM)


def _prefix(
    shape: Shape, attend: Attend, queries: Array, pool: Array, order: Array, pages: Array,
    items: Array, parts: Array, heads: Any, hk: Any, scale: Any, outputs: Array, sums: Array,
) -> None:  # fmt: skip
    page, group = shape.page, shape.group
    for first, branches, row0, pages_at, begin, end, slot, _ in items.tolist():
        if row0:
            continue  # the item of row 0 takes all rows
        rows = order[first : first + branches]
        at = parts[rows] + slot
        if begin == end:
            outputs[at], sums[at] = 0.0, EMPTY_LSE
            continue
        packed = queries[rows].reshape(branches, hk, group, HEAD_DIM).swapaxes(0, 1)
        listed = pages[None, pages_at + begin // page : pages_at - (-end // page)]
        tokens = slice(begin % page, begin % page + end - begin)
        out, sum_ = attend(
            np.ascontiguousarray(packed).reshape(1, hk, -1, HEAD_DIM),
            _gather(pool, listed, 0)[:, :, tokens],
            _gather(pool, listed, 1)[:, :, tokens],
        )
        outputs[at] = out.reshape(hk, branches, group, HEAD_DIM).swapaxes(0, 1).reshape(
            branches, heads, HEAD_DIM
        )  # fmt: skip
        sums[at] = sum_.reshape(hk, branches, group).swapaxes(0, 1).reshape(branches, heads)


def _suffix(
    shape: Shape, attend: Attend, queries: Array, pool: Array, pages: Array, items: Array,
    parts: Array, heads: Any, hk: Any, scale: Any, outputs: Array, sums: Array,
) -> None:  # fmt: skip
    page, group = shape.page, shape.group
    spans, kind = np.unique(items[:, 2:4], axis=0, return_inverse=True)
    for number, (begin, end) in enumerate(spans.tolist()):
        alike = items[kind.reshape(-1) == number]
        at = parts[alike[:, 0]] + alike[:, 4]
        if begin == end:
            outputs[at], sums[at] = 0.0, EMPTY_LSE
            continue
        listed = np.arange(begin // page, -(-end // page))
        lists = pages[alike[:, 1:2] + listed]
        tokens = slice(begin % page, begin % page + end - begin)
        most = max(1, _GATHER_BYTES // (len(listed) * page * int(hk) * HEAD_DIM * 4))
        for low in range(0, len(alike), most):
            some = slice(low, low + most)
            out, sum_ = attend(
                queries[alike[some, 0]].reshape(-1, hk, group, HEAD_DIM),
                _gather(pool, lists[some], 0)[:, :, tokens],
                _gather(pool, lists[some], 1)[:, :, tokens],
            )
            outputs[at[some]] = out.reshape(-1, heads, HEAD_DIM)
            sums[at[some]] = sum_.reshape(-1, heads)


def _merge(
    outputs: Array, sums: Array, parts: Array, branches: Any, heads: Any, merged: Array
) -> None:
    counts = np.diff(parts)
    for count in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == count)
        if not count:
            merged[rows] = 0
            continue
        each = parts[rows][:, None] + np.arange(count)
        sum_ = sums[each]
        weight = np.exp2(sum_ - sum_.max(1, keepdims=True))
        weight[sum_ <= EMPTY_LSE / 2] = 0.0
        total = weight.sum(1)
        out = np.einsum("bph,bphd->bhd", weight, outputs[each])
        out /= np.where(total > 0, total, 1.0)[..., None]
        merged[rows] = stored(out, merged.dtype)


def _append(
    shape: Shape, pool: Array, keys: Array, kept: Array, tables: Array, lengths: Array,
    stride: Any, hk: Any, advance: Any,
) -> None:  # fmt: skip
    targets = tables[np.arange(len(lengths)), lengths // shape.page]
    live = np.flatnonzero(targets >= 0)
    at, offset = targets[live], lengths[live] % shape.page
    pool[at, 0, :, offset] = keys[live]
    pool[at, 1, :, offset] = kept[live]
    if advance:
        lengths[live] += 1


def _fork(
    shape: Shape, pools: Array, tables: Array, lengths: Array, refs: Array, parents: Array,
    children: Array, fresh: Array, stride: Any, pages: Any, hk: Any,
) -> None:  # fmt: skip
    for parent, child, new in zip(parents.tolist(), children.tolist(), fresh.tolist(), strict=True):
        whole, rest = divmod(int(lengths[parent]), shape.page)
        tables[child, :whole] = tables[parent, :whole]
        np.add.at(refs, tables[parent, :whole], 1)
        lengths[child] = lengths[parent]
        if rest:
            pools[:, new, :, :, :rest] = pools[:, tables[parent, whole], :, :, :rest]
            tables[child, whole], refs[new] = new, 1


def _release(
    shape: Shape, tables: Array, lengths: Array, refs: Array, rows: Array, flags: Array, stride: Any
) -> None:
    held = -(-lengths[rows] // shape.page)
    if not held.any():
        return
    mine = tables[rows, : int(held.max())]
    let_go = np.bincount(mine[np.arange(mine.shape[1]) < held[:, None]], minlength=len(refs))
    before = refs > 0
    refs -= let_go.astype(np.int32)
    flags.view(np.uint8)[: len(refs)][before & (refs == 0)] = 1
    lengths[rows] = 0


def _reclaim(flags: Array, free: Array, free_count: Array, words: Any) -> None:
    freed = np.flatnonzero(flags.view(np.uint8))
    at = int(free_count[0])
    free[at : at + len(freed)] = freed
    free_count[0] = at + len(freed)
    flags[:] = 0


def _sample(
    logits: Array, vocabulary: Any, inverse_temperature: Any, top_p: Any, key: Array, tokens: Array
) -> None:
    for row in range(len(tokens)):
        x = values(logits[row])
        below = (x.max() - x) * np.float32(inverse_temperature)
        scores = _gumbels(int(vocabulary), row, key)
        scores -= below
        if top_p < 1:
            level = np.minimum(below * np.float32(QUANTUM), np.float32(LEVELS - 1)).astype(np.int64)
            reached = np.cumsum(np.bincount(level, np.exp(-below.astype(np.float64)), LEVELS))
            last = int(np.searchsorted(reached, float(top_p) * reached[-1]))
            scores[level > min(last, LEVELS - 1)] = -np.inf
        tokens[row] = scores.argmax()


def _gumbels(vocabulary: int, row: int, key: Array) -> Array:
    """hw.reference.gumbels in float32 and in slices that fit a cache."""
    out = np.empty(-(-vocabulary // 4) * 4, np.float32)
    for low in range(0, len(out) // 4, _NOISE_BLOCKS):
        blocks = np.arange(low, min(low + _NOISE_BLOCKS, len(out) // 4), dtype=np.uint64)
        words = _philox(blocks, row, key)
        uniform = ((words >> 9).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
        out[4 * low : 4 * low + uniform.size] = -np.log(-np.log(uniform)).reshape(-1)
    return out[:vocabulary]


def _philox(blocks: Array, row: int, key: Array) -> Array:
    """hw.reference.philox for the counters (block, row, step, 0): words [blocks, 4], arrays made once."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1 = blocks, np.full_like(blocks, row)
    c2, c3 = np.full_like(blocks, int(key[2])), np.zeros_like(blocks)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c1 ^= p1 >> shift
        c3 ^= p0 >> shift
        c0, c1, c2, c3 = c1 ^ np.uint64(k0), p1 & low, c3 ^ np.uint64(k1), p0 & low
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), -1).astype(np.uint32)
