"""Other people's tree attention, on the very same tree: what our kernels are compared with in the same run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from hw import ops
from hw.bench import Bench, TooBig, aligned
from hw.cases import kernel_shape, planned, pool_shape, tree
from hw.grid import Point
from hw.kvtree import Ints, Step
from hw.reference import HEAD_DIM
from hw.transformer import Transformer

Run = Callable[[int], None]
_BUILDS, _BUILD_S = "TREELINE_FLASHINFER_BUILDS", 180.0
_SHAPES = 256  # that a compiled peer may meet in one process
_SHARED = 0.4  # of the arena: what the copies of a peer without pages may take


class Absent(Exception):
    """A peer that cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Forest:
    """One tree in several layers: B branches over a shared prefix, each with a suffix of its own.

    queries [B, heads, 128], pools: one layer each, tables [B, pages], lengths [B]; step reads the prefix once, apart
    reads each branch on its own; private: the same lengths on pages that nobody shares (None where they do not fit).
    """

    bench: Bench
    point: Point
    k: ops.Kernels
    queries: Any
    pools: list[Any]
    tables: Ints
    lengths: Ints
    step: Step
    apart: Step

    @property
    def cuda(self) -> bool:
        """Whether it lies on a GPU."""
        return self.bench.backend.kind == "cuda"


def forest(bench: Bench, shape: Transformer, point: Point) -> Forest:
    """The tree of a point (op `attention`), its prefix whole pages; raises hw.bench.TooBig."""
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    tables, lengths, pages = tree(point, point.seed)
    queries = bench.take((point.branches, shape.heads, HEAD_DIM))
    pools = bench.sets(pool_shape(k, pages), _floor_s(bench, shape, point), aligned(queries.shape))
    shared, apart = (planned(bench, k, tables, lengths, shared=way) for way in (True, False))
    return Forest(bench, point, k, queries, pools, tables, lengths, shared, apart)


def ours(f: Forest, *, shared: bool = True) -> tuple[Run, Any]:
    """Our kernels: the shared prefix read once, or (naive) once for each branch from the pages that it shares."""
    step = f.step if shared else f.apart
    room = ops.scratch(f.k, int(step.parts[-1]))
    out = f.bench.room(f.queries.shape)
    return lambda i: ops.attention(f.k, f.queries, f.pools[i], step, room, out), out


def torch_naive(f: Forest) -> tuple[Run, Any]:
    """torch's scaled dot product attention, each branch on a contiguous copy of its whole context."""
    torch, tensor = _torch(f), f.bench.backend.linear.tensor
    b, whole = f.point.branches, int(f.lengths[0])
    size = 2 * b * whole * f.k.shape.kv_heads * HEAD_DIM
    copies = _copies(f, size)
    kv = [tuple(tensor(a) for a in _gathered(f, f.pools[i])) for i in range(copies)]
    q = tensor(f.queries).unsqueeze(2)
    out = f.bench.room(f.queries.shape)
    result = tensor(out).unsqueeze(2)
    attend = torch.nn.functional.scaled_dot_product_attention

    def run(i: int) -> None:
        k, v = kv[i % copies]
        with torch.inference_mode():
            result.copy_(attend(q, k, v, enable_gqa=True))

    return run, out


def torch_cascade(f: Forest) -> tuple[Run, Any]:
    """Prefix once with all query rows packed, suffixes in a batch, both by torch's flash attention; merged by their sums.

    Source: the recipe of Hydragen (arXiv 2402.05099), section 3.1.
    """
    torch, tensor = _torch(f), f.bench.backend.linear.tensor
    b, hk, g = f.point.branches, f.k.shape.kv_heads, f.k.shape.group
    prefix = f.point.prefix
    parts = []
    for pool in f.pools:
        keys, kept = _gathered(f, pool)
        first = [a[:1, :, :prefix].copy() for a in (keys, kept)]
        parts.append(
            [tensor(a) for a in (*first, *(a[:, :, prefix:].copy() for a in (keys, kept)))]
        )
    flash = _flash(f, torch)
    q = tensor(f.queries).view(b, hk, g, HEAD_DIM)
    out = f.bench.room(f.queries.shape)
    result = tensor(out).view(b, hk, g, HEAD_DIM)

    def merge(o1: Any, l1: Any, o2: Any, l2: Any) -> Any:
        # o1 [1, hk, b g, 128] of packed rows; o2 [b, hk, g, 128].
        o1 = o1.view(hk, b, g, HEAD_DIM).transpose(0, 1).float()
        l1 = l1.view(hk, b, g).transpose(0, 1)
        share = torch.sigmoid(l1 - l2).unsqueeze(-1)
        return (share * o1 + (1 - share) * o2.float()).to(result.dtype)

    merged = _compiled(torch, merge) if f.cuda else merge

    def run(i: int) -> None:
        k1, v1, k2, v2 = parts[i]
        with torch.inference_mode():
            packed = q.transpose(0, 1).reshape(1, hk, b * g, HEAD_DIM)
            result.copy_(merged(*flash(packed, k1, v1), *flash(q, k2, v2)))

    return run, out


def flex_attention(f: Forest) -> tuple[Run, Any]:
    """torch's FlexAttention: the branches as rows of one sequence, a mask that hides the others' suffixes.

    Blocks of the mask that are hidden as a whole are not read; compiled on a GPU.
    """
    torch, tensor = _torch(f), f.bench.backend.linear.tensor
    flex: Any = import_module("torch.nn.attention.flex_attention")
    b, prefix, suffix = f.point.branches, f.point.prefix, f.point.suffix
    kv = []
    for pool in f.pools:
        both = [tensor(a) for a in _gathered(f, pool)]
        own = [
            a[:, :, prefix:].transpose(0, 1).reshape(1, a.shape[1], b * suffix, HEAD_DIM)
            for a in both
        ]
        kv.append(
            [
                torch.cat((a[:1, :, :prefix], mine), 2).contiguous()
                for a, mine in zip(both, own, strict=True)
            ]
        )
    out = f.bench.room(f.queries.shape)
    q, result = tensor(f.queries).transpose(0, 1).unsqueeze(0), tensor(out)
    device = q.device

    def seen(batch: Any, head: Any, row: Any, key: Any) -> Any:
        return (key < prefix) | ((key - prefix) // suffix == row)

    mask = flex.create_block_mask(seen, None, None, b, prefix + b * suffix, device=device)
    attend = _compiled(torch, flex.flex_attention) if f.cuda else flex.flex_attention

    def run(i: int) -> None:
        k, v = kv[i]
        with torch.inference_mode():
            result.copy_(attend(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1))

    return run, out


def flashinfer_cascade(f: Forest) -> tuple[Run, Any]:
    """FlashInfer's two-level cascade on our very pages, where the package is installed."""
    torch, infer, tensor = (
        _flashinfer(f),
        import_module("flashinfer"),
        f.bench.backend.linear.tensor,
    )
    b, page = f.point.branches, f.point.page
    shared = f.point.prefix // page
    own = f.tables.shape[1] - shared
    last = int((f.lengths[0] - 1) % page) + 1

    def on(values: Any) -> Any:
        return torch.tensor(np.asarray(values), dtype=torch.int32, device="cuda")

    wrapper = infer.MultiLevelCascadeAttentionWrapper(2, _workspace(torch), "HND")
    for inner in getattr(wrapper, "_batch_prefill_wrappers", ()):
        inner._backend = (
            "fa2"  # for Hopper it would choose kernels that take twenty minutes to compile
        )
    wrapper.plan(
        [on([0, b]), on(range(b + 1))],
        [on([0, shared]), on(np.arange(b + 1) * own)],
        [on(f.tables[0, :shared]), on(f.tables[:, shared:].reshape(-1))],
        [on([page]), on(np.full(b, last))],
        f.k.shape.heads, f.k.shape.kv_heads, HEAD_DIM, page, q_data_type=torch.bfloat16,
    )  # fmt: skip
    return _wrapped(f, wrapper, tensor)


def flashinfer_decode(f: Forest) -> tuple[Run, Any]:
    """FlashInfer's batched decode on our very pages: every branch reads its whole context, the prefix from shared pages."""
    torch, infer, tensor = (
        _flashinfer(f),
        import_module("flashinfer"),
        f.bench.backend.linear.tensor,
    )
    b, page = f.point.branches, f.point.page

    def on(values: Any) -> Any:
        return torch.tensor(np.asarray(values), dtype=torch.int32, device="cuda")

    wrapper = infer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(torch), "HND", use_tensor_cores=True
    )
    last = int((f.lengths[0] - 1) % page) + 1
    wrapper.plan(
        on(np.arange(b + 1) * f.tables.shape[1]), on(f.tables.reshape(-1)), on(np.full(b, last)),
        f.k.shape.heads, f.k.shape.kv_heads, HEAD_DIM, page, q_data_type=torch.bfloat16,
    )  # fmt: skip
    return _wrapped(f, wrapper, tensor)


PEERS: dict[str, Callable[[Forest], tuple[Run, Any]]] = {
    "torch_naive": torch_naive,
    "torch_cascade": torch_cascade,
    "flex_attention": flex_attention,
    "flashinfer_cascade": flashinfer_cascade,
    "flashinfer_decode": flashinfer_decode,
}


def _torch(f: Forest) -> Any:
    if f.bench.backend.linear.name != "torch":
        raise Absent("torch is not installed")
    return import_module("torch")


def _compiled(torch: Any, function: Any) -> Any:
    """Compiled for each shape: beyond its limit of recompilations torch would silently run the slow original."""
    settings: Any = import_module("torch._dynamo").config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, _SHAPES)
    return torch.compile(function, dynamic=False)


def _flashinfer(f: Forest) -> Any:
    if not f.cuda:
        raise Absent("FlashInfer needs an NVIDIA GPU")
    try:
        import_module("flashinfer")
    except ImportError as error:
        raise Absent(f"FlashInfer is not installed ({error})") from None
    if reason := _unbuilt():
        raise Absent(reason)
    return _torch(f)


@cache
def _unbuilt() -> str:
    """Why FlashInfer's kernels are not there, which it compiles at their first use: tried once in a process of its own.

    What it built lies on disk for this one. A compilation cannot be interrupted; a process can.
    """
    if _BUILDS in os.environ:
        return ""
    words, beside = [sys.executable, "-m", "hw.peers"], os.environ | {_BUILDS: "1"}
    try:
        done = subprocess.run(words, env=beside, capture_output=True, text=True, timeout=_BUILD_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"FlashInfer's kernels were not built within {_BUILD_S:.0f} s"
    last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
    return f"FlashInfer does not run here: {last}" if done.returncode else ""


def _workspace(torch: Any) -> Any:
    return torch.empty(128 << 20, dtype=torch.uint8, device="cuda")


def _wrapped(f: Forest, wrapper: Any, tensor: Callable[[Any], Any]) -> tuple[Run, Any]:
    pools, q = [tensor(pool) for pool in f.pools], tensor(f.queries)
    out = f.bench.room(f.queries.shape)
    result = tensor(out)
    return lambda i: result.copy_(wrapper.run(q, pools[i])), out


def _flash(f: Forest, torch: Any) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Attention without a mask that returns its natural log-sum-exp [batch, heads, rows] too."""
    aten = torch.ops.aten
    if f.cuda:
        return lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)[
            :2
        ]
    return lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)


def _gathered(f: Forest, pool: Any) -> list[Any]:
    """Contiguous keys and values [B, hk, tokens, 128] of every branch's whole context."""
    xp = f.bench.backend.xp
    tables = xp.asarray(f.tables)
    found = []
    for side in (0, 1):
        paged = pool[:, side][tables]  # [B, pages, hk, page, 128]
        flat = paged.transpose(0, 2, 1, 3, 4).reshape(
            len(f.tables), f.k.shape.kv_heads, -1, HEAD_DIM
        )
        found.append(xp.ascontiguousarray(flat[:, :, : int(f.lengths[0])]))
    return found


def _copies(f: Forest, elements: int) -> int:
    """How many layers' contiguous copies fit; raises TooBig where not even one does."""
    fit = int(_SHARED * f.bench.arena.shape[0] // elements)
    if not fit:
        raise TooBig(f"copies of {2e-9 * elements:.3g} GB a layer do not fit")
    return min(fit, len(f.pools))


def _floor_s(bench: Bench, shape: Transformer, point: Point) -> float:
    moved = 4.0 * shape.kv_heads * HEAD_DIM * (point.prefix + point.branches * point.suffix)
    computed = 4.0 * shape.heads * HEAD_DIM * point.branches * (point.prefix + point.suffix)
    return max(moved / bench.device.copy_bytes_per_s, computed / bench.device.gemm_flops_bf16)


def _build() -> None:
    """Uses FlashInfer on a little tree, so that its kernels are compiled and lie on disk."""
    from hw.backend import backend
    from hw.bench import bench
    from hw.device import device
    from hw.transformer import transformer

    on = backend("cuda")
    ready = bench(replace(on, arena_bytes=3e8), device("h200-sxm-141gb"))
    shape = transformer("llama-3.1-8b")
    little = forest(ready, shape, Point("attention", shape.name, 16, 8, 512, 100))
    for name in ("flashinfer_cascade", "flashinfer_decode"):
        PEERS[name](little)[0](0)
        on.wait()


def relative_error(got: Any, expected: Any) -> float:
    """Relative L2 distance of two arrays of bf16 bits."""
    from hw.reference import bf16_values

    a, b = (bf16_values(x.get() if hasattr(x, "get") else x).astype(float) for x in (got, expected))
    return math.sqrt(float(((a - b) ** 2).sum()) / float((b**2).sum()))


if __name__ == "__main__":
    _build()
