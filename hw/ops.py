"""The operations of one expansion over a paged KV tree, on whatever launches their kernels: a GPU, a CPU, a test's twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw.kvtree import Ints, Step, plan
from hw.reference import HEAD_DIM

ROW_BYTES = HEAD_DIM * 2
GROUPS = (1, 4, 5, 7, 8)
PAGES = (16, 64)
MOST_CHILDREN = 65_535
"""Of one fork. Source: CUDA C++ Programming Guide 13.0, maximum y-dimension of a grid of blocks."""
SCALE = 1.4426950408889634 / HEAD_DIM**0.5

Launch = Callable[[str, tuple[int, ...], int, int, tuple[Any, ...]], None]
"""launch(kernel, grid, threads, bytes of dynamic shared memory, arguments)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernels are compiled for: tokens a page, query heads a kv head, kv heads; tiles of the prefix kernel."""

    page: int
    group: int
    kv_heads: int
    row_tile: int = 64
    key_tile: int = 64
    stages: int = 2
    logits_bf16: bool = False

    def __post_init__(self) -> None:
        if self.page < 1 or not 1 <= self.group <= 16 or self.kv_heads < 1:
            raise ValueError(
                f"page and kv_heads must be >= 1 and group 1 to 16, got {self.page}, {self.kv_heads}, {self.group}"
            )
        if self.row_tile not in (16, 32, 64, 128) or self.key_tile not in (16, 32, 64):
            raise ValueError(
                f"row_tile must be 16, 32, 64 or 128 and key_tile 16, 32 or 64, got {self.row_tile}, {self.key_tile}"
            )
        if self.stages not in (2, 3, 4):
            raise ValueError(f"stages must be 2, 3 or 4, got {self.stages}")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.group * self.kv_heads

    def options(self) -> tuple[str, ...]:
        """The compiler's settings for this shape."""
        return (
            "-std=c++17",
            f"-DPAGE={self.page}",
            f"-DG={self.group}",
            f"-DBM={self.row_tile}",
            f"-DBN={self.key_tile}",
            f"-DSTAGES={self.stages}",
            f"-DLOGITS_BF16={int(self.logits_bf16)}",
        )


def shared_bytes(shape: Shape) -> dict[str, int]:
    """Bytes of dynamic shared memory of the kernels that take some."""
    return {
        "prefix_attention": (shape.row_tile + 4 * shape.key_tile) * ROW_BYTES,
        "suffix_attention": (16 + 4 * shape.stages * 32) * ROW_BYTES,
    }


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the operations below run on: a shape, what launches its kernels, and the array package (CuPy or NumPy).

    `dtype` is what queries, keys and values are stored as: bf16 bits in uint16 or, on a CPU alone, float32.
    """

    shape: Shape
    launch: Launch
    xp: Any
    dtype: Any = np.uint16


def plan_step(
    k: Kernels,
    tables: Sequence[Sequence[int] | Ints] | Ints,
    lengths: Sequence[int] | Ints,
    *,
    ctas: int = 264,
    min_branches: int = 2,
    min_keys: int = 256,
) -> Step:
    """hw.kvtree.plan for these kernels, its arrays on their device. `ctas`: twice the multiprocessors is a good start."""
    s = k.shape
    step = plan(
        tables,
        lengths,
        page=s.page,
        group=s.group,
        kv_heads=s.kv_heads,
        row_tile=s.row_tile,
        ctas=ctas,
        min_branches=min_branches,
        min_keys=min_keys,
    )
    return Step(
        *(k.xp.asarray(a) for a in (step.order, step.pages, step.prefix, step.suffix, step.parts))
    )


def scratch(k: Kernels, parts: int) -> tuple[Any, Any]:
    """Room for `parts` partial results: outputs [parts, heads, 128] and sums [parts, heads], float32."""
    heads = k.shape.heads
    return (
        k.xp.empty((max(parts, 1), heads, HEAD_DIM), np.float32),
        k.xp.empty((max(parts, 1), heads), np.float32),
    )


def attention(
    k: Kernels, queries: Any, pool: Any, step: Step, room: tuple[Any, Any], merged: Any
) -> None:
    """Tree attention of one layer: queries, merged [branches, heads, 128] and one layer's pool, all of k.dtype.

    `room` is scratch for at least step.parts[-1] parts. Raises ValueError for arrays of another shape or type.
    """
    attend_prefix(k, queries, pool, step, room)
    attend_suffix(k, queries, pool, step, room)
    merge(k, step, room, merged)


def attend_prefix(k: Kernels, queries: Any, pool: Any, step: Step, room: tuple[Any, Any]) -> None:
    """The first phase of `attention`: every shared segment once for all the branches below it."""
    s = k.shape
    _expect_attention(k, queries, pool, step, room)
    if len(step.prefix):
        lists = (step.order, step.pages, step.prefix, step.parts)
        k.launch(
            "prefix_attention",
            (len(step.prefix), s.kv_heads),
            s.row_tile * 2,
            shared_bytes(s)["prefix_attention"],
            (
                queries,
                pool,
                *lists,
                np.int32(s.heads),
                np.int32(s.kv_heads),
                np.float32(SCALE),
                *room,
            ),
        )


def attend_suffix(k: Kernels, queries: Any, pool: Any, step: Step, room: tuple[Any, Any]) -> None:
    """The second phase of `attention`: what each branch holds alone."""
    s = k.shape
    _expect_attention(k, queries, pool, step, room)
    if len(step.suffix):
        lists = (step.pages, step.suffix, step.parts)
        k.launch(
            "suffix_attention",
            (len(step.suffix), s.kv_heads),
            128,
            shared_bytes(s)["suffix_attention"],
            (
                queries,
                pool,
                *lists,
                np.int32(s.heads),
                np.int32(s.kv_heads),
                np.float32(SCALE),
                *room,
            ),
        )


def merge(k: Kernels, step: Step, room: tuple[Any, Any], merged: Any) -> None:
    """The last phase of `attention`: each branch's parts become one output."""
    s, branches = k.shape, merged.shape[0]
    _expect("merged", merged, k.dtype, (branches, s.heads, HEAD_DIM))
    _expect("step.parts", step.parts, np.int32, (branches + 1,))
    _expect_room(k, room)
    if branches:
        counts = (np.int32(branches), np.int32(s.heads))
        k.launch(
            "merge_parts",
            (-(-branches * s.heads // 4),),
            128,
            0,
            (*room, step.parts, *counts, merged),
        )


def append(
    k: Kernels, pool: Any, keys: Any, values: Any, tables: Any, lengths: Any, advance: bool
) -> None:
    """hw.reference.append on the device: keys, values [branches, kv_heads, 128] of k.dtype."""
    s, branches = k.shape, lengths.shape[0]
    _expect("pool", pool, k.dtype, (pool.shape[0], 2, s.kv_heads, s.page, HEAD_DIM))
    _expect("keys", keys, k.dtype, (branches, s.kv_heads, HEAD_DIM))
    _expect("values", values, k.dtype, (branches, s.kv_heads, HEAD_DIM))
    _expect_tables(tables, lengths)
    numbers = (np.int32(tables.shape[1]), np.int32(s.kv_heads), np.int32(advance))
    if branches:
        k.launch(
            "append_tokens", (branches,), 256, 0, (pool, keys, values, tables, lengths, *numbers)
        )


def fork(
    k: Kernels,
    pools: Any,
    tables: Any,
    lengths: Any,
    refs: Any,
    parents: Any,
    children: Any,
    fresh: Any,
) -> None:
    """hw.reference.fork on the device: pools [layers, pages, 2, kv_heads, page, 128] of k.dtype."""
    s, (layers, pages) = k.shape, pools.shape[:2]
    _expect("pools", pools, k.dtype, (layers, pages, 2, s.kv_heads, s.page, HEAD_DIM))
    _expect_tables(tables, lengths)
    _expect("refs", refs, np.int32, (pages,))
    for name, array in (("parents", parents), ("children", children), ("fresh", fresh)):
        _expect(name, array, np.int32, (parents.shape[0],))
    if len(parents) > MOST_CHILDREN:
        raise ValueError(f"at most {MOST_CHILDREN:,} children a call, got {len(parents):,}")
    numbers = (np.int32(tables.shape[1]), np.int32(pages), np.int32(s.kv_heads))
    if len(parents):
        k.launch(
            "fork_branches",
            (layers * 2 * s.kv_heads, len(parents)),
            128,
            0,
            (pools, tables, lengths, refs, parents, children, fresh, *numbers),
        )


def prune(
    k: Kernels,
    tables: Any,
    lengths: Any,
    refs: Any,
    rows: Any,
    free: Any,
    free_count: Any,
    flags: Any,
) -> None:
    """hw.reference.prune on the device, rows distinct; flags: zeros, uint64 [ceil(pages / 8)], left at zero."""
    _expect_tables(tables, lengths)
    _expect("refs", refs, np.int32, (refs.shape[0],))
    _expect("rows", rows, np.int32, (rows.shape[0],))
    _expect("free", free, np.int32, (refs.shape[0],))
    _expect("free_count", free_count, np.int32, (1,))
    _expect("flags", flags, np.uint64, (-(-refs.shape[0] // 8),))
    if len(rows):
        stride = np.int32(tables.shape[1])
        k.launch(
            "release_pages", (len(rows),), 128, 0, (tables, lengths, refs, rows, flags, stride)
        )
        k.launch(
            "reclaim_pages", (1,), 1024, 0, (flags, free, free_count, np.int32(flags.shape[0]))
        )


def sample(
    k: Kernels, logits: Any, *, inverse_temperature: float, top_p: float, key: Any, tokens: Any
) -> None:
    """hw.reference.sample on the device: logits [rows, vocabulary], key uint32 [3] (seed low, high, step)."""
    rows, vocabulary = logits.shape
    _expect("logits", logits, np.uint16 if k.shape.logits_bf16 else np.float32, (rows, vocabulary))
    _expect("key", key, np.uint32, (3,))
    _expect("tokens", tokens, np.int32, (rows,))
    numbers = (np.int32(vocabulary), np.float32(inverse_temperature), np.float32(top_p))
    if rows:
        k.launch("sample_tokens", (rows,), 1024, 0, (logits, *numbers, key, tokens))


def _expect_attention(
    k: Kernels, queries: Any, pool: Any, step: Step, room: tuple[Any, Any]
) -> None:
    s, branches = k.shape, queries.shape[0]
    _expect("queries", queries, k.dtype, (branches, s.heads, HEAD_DIM))
    _expect("pool", pool, k.dtype, (pool.shape[0], 2, s.kv_heads, s.page, HEAD_DIM))
    _expect("step.parts", step.parts, np.int32, (branches + 1,))
    _expect_room(k, room)


def _expect_room(k: Kernels, room: tuple[Any, Any]) -> None:
    parts = room[0].shape[0]
    _expect("room[0]", room[0], np.float32, (parts, k.shape.heads, HEAD_DIM))
    _expect("room[1]", room[1], np.float32, (parts, k.shape.heads))


def _expect_tables(tables: Any, lengths: Any) -> None:
    _expect("lengths", lengths, np.int32, (lengths.shape[0],))
    _expect("tables", tables, np.int32, (lengths.shape[0], tables.shape[1]))


def _expect(name: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """A kernel reads memory as it lies: another shape, type or order would be read as garbage, not refused."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous {np.dtype(dtype).name} array of shape {shape}, "
            f"got {array.dtype.name} of shape {array.shape}"
        )
