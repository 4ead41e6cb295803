"""Compiles the kernels in hw/kernels with NVRTC and launches them on an NVIDIA GPU through CuPy, an optional package."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hw.kvtree import Ints, Step, plan
from hw.reference import HEAD_DIM

ROW_BYTES = HEAD_DIM * 2
GROUPS = (1, 4, 5, 7, 8)
PAGES = (16, 64)
SCALE = 1.4426950408889634 / HEAD_DIM**0.5
KERNELS = {
    "prefix_attention": "prefix",
    "suffix_attention": "suffix",
    "merge_parts": "merge",
    "append_tokens": "append",
    "fork_branches": "fork",
    "release_pages": "prune",
    "reclaim_pages": "prune",
    "sample_tokens": "sample",
}

Launch = Callable[[str, tuple[int, ...], int, int, tuple[Any, ...]], None]
"""launch(kernel, grid, threads, bytes of dynamic shared memory, arguments)."""


class GpuError(RuntimeError):
    """No CuPy, no NVIDIA GPU, or one that the kernels do not run on; the message says what to do."""


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


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel takes: registers a thread, bytes of stack a thread (0: nothing spilled)."""

    registers: int
    stack_bytes: int


def source(name: str) -> str:
    """The CUDA C++ of one file of hw/kernels, with what all kernels share in front."""
    folder = Path(__file__).parent / "kernels"
    return "\n".join((folder / f"{part}.cu").read_text("utf-8") for part in ("common", name))


def compile_cubin(name: str, arch: str, shape: Shape) -> bytes:
    """Machine code of one file of hw/kernels for `arch` (sm_90a, sm_80, ...); needs CuPy and NVRTC, but no GPU."""
    _cupy()
    from cupy.cuda import compiler

    program = compiler._NVRTCProgram(source(name), f"{name}.cu", method="cubin")
    compiled = program.compile((f"-arch={arch}", *shape.options()))
    return bytes(compiled[0] if isinstance(compiled, tuple) else compiled)


def resources(cubin: bytes) -> dict[str, Resources]:
    """Registers and stack of each kernel in a cubin, read from its ELF section .nv.info.

    Raises ValueError for anything but a 64-bit little-endian ELF file with that section.
    Source: attribute numbers 0x2f (register count) and 0x11 (frame size), as `cuobjdump -elf` of CUDA 13.0 names them.
    """
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a cubin: a 64-bit little-endian ELF file was expected")
    table, entry, count, names_at = (
        struct.unpack_from("<Q", cubin, 0x28)[0],
        *struct.unpack_from("<3H", cubin, 0x3A),
    )
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry) for i in range(count)]

    def text(start: int) -> str:
        return cubin[start : cubin.index(b"\0", start)].decode()

    sections = {text(headers[names_at][4] + h[0]): h for h in headers}
    if ".nv.info" not in sections or ".symtab" not in sections:
        raise ValueError(
            "a cubin without .nv.info or .symtab: was it compiled with a method other than cubin?"
        )
    symbols = sections[".symtab"]
    strings = headers[symbols[6]][4]

    def symbol(index: int) -> str:
        return text(strings + struct.unpack_from("<I", cubin, symbols[4] + index * 24)[0])

    found: dict[int, dict[str, int]] = {0x2F: {}, 0x11: {}}
    at, end = sections[".nv.info"][4], sections[".nv.info"][4] + sections[".nv.info"][5]
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        if form == 4 and attribute in found:
            index, value = struct.unpack_from("<II", cubin, at + 4)
            found[attribute][symbol(index)] = value
        at += 4 + (size if form == 4 else 0)
    return {name: Resources(n, found[0x11].get(name, 0)) for name, n in found[0x2F].items()}


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise GpuError(
            f"the kernels need CuPy, which does not import here ({error}); install the extra: pip install 'treeline[gpu]'"
        ) from error
    return cupy


def architecture() -> str:
    """The architecture to compile for on the current GPU; raises GpuError where there is none that fits."""
    cupy = _cupy()
    try:
        major, minor = divmod(int(cupy.cuda.Device().compute_capability), 10)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise GpuError(
            f"no NVIDIA GPU answers here ({error}); run this on a machine where nvidia-smi -L lists one"
        ) from error
    if major < 8:
        raise GpuError(
            f"this GPU has compute capability {major}.{minor}; the kernels need 8.0 (A100) or later"
        )
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"


def launcher(shape: Shape) -> Launch:
    """Compiles all kernels for the current GPU and returns what launches them on CuPy's current stream."""
    cupy = _cupy()
    arch = architecture()
    functions: dict[str, Any] = {}
    for file in dict.fromkeys(KERNELS.values()):
        options = (f"-arch={arch}", *shape.options())
        module = cupy.RawModule(code=source(file), options=options, backend="nvrtc")
        for name in (kernel for kernel, where in KERNELS.items() if where == file):
            functions[name] = module.get_function(name)
    for name, needed in shared_bytes(shape).items():
        functions[name].max_dynamic_shared_size_bytes = needed

    def launch(
        name: str, grid: tuple[int, ...], threads: int, shared: int, arguments: tuple[Any, ...]
    ) -> None:
        functions[name](grid, (threads,), arguments, shared_mem=shared)

    return launch


def shared_bytes(shape: Shape) -> dict[str, int]:
    """Bytes of dynamic shared memory of the kernels that take some."""
    return {
        "prefix_attention": (shape.row_tile + 4 * shape.key_tile) * ROW_BYTES,
        "suffix_attention": (16 + 4 * shape.stages * 32) * ROW_BYTES,
    }


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the operations below run on: a shape, what launches its kernels, and the array package (CuPy, or a twin)."""

    shape: Shape
    launch: Launch
    xp: Any


def kernels(shape: Shape) -> Kernels:
    """The kernels on the current GPU; raises GpuError without CuPy or a GPU."""
    return Kernels(shape, launcher(shape), _cupy())


def plan_step(
    k: Kernels,
    tables: Sequence[Sequence[int]] | Ints,
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
    """Tree attention of one layer: queries, merged [branches, heads, 128] and pool as bf16 bits (uint16).

    `room` is scratch for at least step.parts[-1] parts. Raises ValueError for arrays of another shape or type.
    """
    s, branches = k.shape, queries.shape[0]
    _expect("queries", queries, np.uint16, (branches, s.heads, HEAD_DIM))
    _expect("merged", merged, np.uint16, (branches, s.heads, HEAD_DIM))
    _expect("pool", pool, np.uint16, (pool.shape[0], 2, s.kv_heads, s.page, HEAD_DIM))
    _expect("step.parts", step.parts, np.int32, (branches + 1,))
    outputs, sums = room
    _expect("room[0]", outputs, np.float32, (outputs.shape[0], s.heads, HEAD_DIM))
    _expect("room[1]", sums, np.float32, (outputs.shape[0], s.heads))
    heads = (np.int32(s.heads), np.int32(s.kv_heads), np.float32(SCALE))
    shared = shared_bytes(s)
    if len(step.prefix):
        lists = (step.order, step.pages, step.prefix, step.parts)
        k.launch(
            "prefix_attention",
            (len(step.prefix), s.kv_heads),
            s.row_tile * 2,
            shared["prefix_attention"],
            (queries, pool, *lists, *heads, outputs, sums),
        )
    if len(step.suffix):
        k.launch(
            "suffix_attention",
            (len(step.suffix), s.kv_heads),
            128,
            shared["suffix_attention"],
            (queries, pool, step.pages, step.suffix, step.parts, *heads, outputs, sums),
        )
    if branches:
        counts = (np.int32(branches), np.int32(s.heads))
        k.launch(
            "merge_parts",
            (-(-branches * s.heads // 4),),
            128,
            0,
            (outputs, sums, step.parts, *counts, merged),
        )


def append(
    k: Kernels, pool: Any, keys: Any, values: Any, tables: Any, lengths: Any, advance: bool
) -> None:
    """hw.reference.append on the device: keys, values [branches, kv_heads, 128] as bf16 bits."""
    s, branches = k.shape, lengths.shape[0]
    _expect("pool", pool, np.uint16, (pool.shape[0], 2, s.kv_heads, s.page, HEAD_DIM))
    _expect("keys", keys, np.uint16, (branches, s.kv_heads, HEAD_DIM))
    _expect("values", values, np.uint16, (branches, s.kv_heads, HEAD_DIM))
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
    """hw.reference.fork on the device: pools [layers, pages, 2, kv_heads, page, 128] as bf16 bits."""
    s, (layers, pages) = k.shape, pools.shape[:2]
    _expect("pools", pools, np.uint16, (layers, pages, 2, s.kv_heads, s.page, HEAD_DIM))
    _expect_tables(tables, lengths)
    _expect("refs", refs, np.int32, (pages,))
    for name, array in (("parents", parents), ("children", children), ("fresh", fresh)):
        _expect(name, array, np.int32, (parents.shape[0],))
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
