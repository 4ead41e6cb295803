"""Points become cases: input sets cut from the arena, the operation on them, its floor, what it must have written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hw import ops
from hw.bench import Bench, Case, aligned
from hw.device import Device
from hw.floors import Op, attention_op, floors, fork_op, merge_op
from hw.grid import LINEAR, Point
from hw.kvtree import Ints, Step
from hw.reference import HEAD_DIM
from hw.transformer import Transformer, linear_work

Tables = tuple[Ints, Ints, int]
"""tables [branches, pages], lengths [branches], pages of the pool."""


def case(bench: Bench, shape: Transformer, point: Point) -> Case:
    """The case of one point; raises hw.bench.TooBig where the arena cannot hold its data."""
    from hw.whole import whole

    makers: Mapping[str, Callable[[Bench, Transformer, Point], Case]] = {
        **dict.fromkeys(LINEAR, _matmul),
        **dict.fromkeys(("prefix_attention", "suffix_attention", "attention", "naive_attention"), _attention),
        **dict.fromkeys(("layer", "decode_step", "expansion"), whole),
        **dict.fromkeys(("sample", "sample_top_p"), _sample),
        "norm": _norm, "activation": _activation, "embedding": _embedding, "merge": _merge,
        "prefill_attention": _prefill, "kv_append": _append, "fork_copy": _fork, "prune": _prune,
    }  # fmt: skip
    return makers[point.op](bench, shape, point)


def one_layer(shape: Transformer) -> Transformer:
    """The same model with a single layer: floors of one call."""
    return replace(shape, layers=1)


def kernel_shape(bench: Bench, shape: Transformer, page: int) -> ops.Shape:
    """What the kernels are compiled for; a CPU takes all query rows of a segment at once anyway."""
    return ops.Shape(page or 16, shape.heads // shape.kv_heads, shape.kv_heads)


def tree(point: Point, seed: int, grown: int = 0) -> Tables:
    """Branches after a fork: full pages of the prefix shared, the rest and each suffix on scattered pages of their own.

    Every table has room for `grown` more tokens. Without sharing (`private_pages`) each branch holds all its pages.
    """
    rng = np.random.default_rng(seed)
    page, b, private = point.page, point.branches, point.variant == "private_pages"
    suffixes = np.full(b, point.suffix)
    if point.ragged:
        suffixes = rng.integers(0, 2 * point.suffix + 1, b)
    lengths = (point.prefix + suffixes).astype(np.int32)
    shared = 0 if private else point.prefix // page
    held = -(-(lengths + grown) // page) - shared
    pages = int(shared + held.sum())
    ids = rng.permutation(pages).astype(np.int32)
    tables = np.full((b, shared + max(1, int(held.max()))), -1, np.int32)
    tables[:, :shared] = ids[:shared]
    mine = np.arange(tables.shape[1] - shared) < held[:, None]
    tables[:, shared:][mine] = ids[shared:]
    return tables, lengths, max(1, pages)


def planned(bench: Bench, k: ops.Kernels, tables: Ints, lengths: Ints, *, shared: bool) -> Step:
    """The work lists of a step on this backend; `shared` False reads every branch's context on its own."""
    ctas = 2 * int(bench.backend.facts.get("multiprocessors", 1))
    least = 2 if shared else len(lengths) + 1
    return ops.plan_step(k, tables, lengths, ctas=max(ctas, 8), min_branches=max(2, least))


def pool_shape(k: ops.Kernels, pages: int) -> tuple[int, ...]:
    """One layer of KV."""
    return (pages, 2, k.shape.kv_heads, k.shape.page, HEAD_DIM)


def _attention(bench: Bench, shape: Transformer, point: Point) -> Case:
    one, b = one_layer(shape), point.branches
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    tables, lengths, pages = tree(point, point.seed)
    whole = int(lengths.sum())
    own = whole - b * point.prefix
    naive = attention_op("naive_attention", one, bench.device, whole, whole)
    step = planned(bench, k, tables, lengths, shared=point.op != "naive_attention")
    queries = bench.take((b, shape.heads, HEAD_DIM))
    room = ops.scratch(k, int(step.parts[-1]))
    merged = bench.room(queries.shape)
    prefix = attention_op("prefix_attention", one, bench.device, point.prefix, b * point.prefix)
    suffix = attention_op("suffix_attention", one, bench.device, own, own)
    both = (prefix, suffix, merge_op(one, bench.device, b))
    op = {
        "prefix_attention": prefix, "suffix_attention": suffix, "naive_attention": naive,
        "attention": total("attention", both),
    }[point.op]  # fmt: skip
    pools = bench.sets(pool_shape(k, pages), op.seconds, aligned(queries.shape))
    if point.op == "prefix_attention":
        parts = _written(bench, step, step.prefix, room)
        return Case(lambda i: ops.attend_prefix(k, queries, pools[i], step, room), len(pools), op,
                    parts, op.bytes)  # fmt: skip
    if point.op == "suffix_attention":
        return Case(lambda i: ops.attend_suffix(k, queries, pools[i], step, room), len(pools), op,
                    room, op.bytes)  # fmt: skip
    return Case(lambda i: ops.attention(k, queries, pools[i], step, room, merged), len(pools), op,
                (merged,), op.bytes)  # fmt: skip


def _written(bench: Bench, step: Step, items: Any, room: tuple[Any, Any]) -> tuple[Any, ...]:
    """The partial results that the prefix phase alone writes: of the parts, those in front of each branch's own."""
    host = items.get() if hasattr(items, "get") else items
    slots = int(host[:, 6].max()) + 1 if len(host) else 0
    parts = step.parts.get() if hasattr(step.parts, "get") else step.parts
    if len(parts) < 2 or slots == 0:
        return ()
    first = int(parts[0])
    return (room[0][first : first + slots], room[1][first : first + slots])


def _merge(bench: Bench, shape: Transformer, point: Point) -> Case:
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    b, n, xp = point.branches, point.parts, bench.backend.xp
    nothing = xp.zeros((0, 8), np.int32)
    order, pages, parts = (np.arange(m, dtype=np.int32) for m in (b, 0, b + 1))
    step = Step(bench.array(order), bench.array(pages), nothing, nothing, bench.array(parts * n))
    rng = np.random.default_rng(point.seed)
    rooms = []
    for _ in range(8):
        outputs, sums = ops.scratch(k, b * n)
        outputs[...] = bench.array(rng.standard_normal(outputs.shape[1:], np.float32))
        sums[...] = bench.array(rng.standard_normal(sums.shape, np.float32))
        rooms.append((outputs, sums))
    merged = bench.room((b, shape.heads, HEAD_DIM))
    two = merge_op(one_layer(shape), bench.device, b)
    op = Op("merge", 0.0, two.bytes * n / 2, two.seconds * n / 2)
    return Case(lambda i: ops.merge(k, step, rooms[i], merged), len(rooms), op, (merged,), op.bytes)


def _append(bench: Bench, shape: Transformer, point: Point) -> Case:
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    b = point.branches
    tables, lengths, pages = tree(point, point.seed, grown=1)
    tables_, lengths_ = bench.array(tables), bench.array(lengths)
    keys, kept = new = bench.take((2, b, shape.kv_heads, HEAD_DIM))
    op = _work(bench, shape, "kv_append", b)
    pools = bench.sets(pool_shape(k, pages), op.seconds, aligned(new.shape))
    return Case(lambda i: ops.append(k, pools[i], keys, kept, tables_, lengths_, False), len(pools),
                op, (), op.bytes)  # fmt: skip


def _fork(bench: Bench, shape: Transformer, point: Point) -> Case:
    """A parent of `prefix` whole pages and a tail of `rows` tokens; `branches` children copy it, in all layers."""
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    b, page, whole = point.branches, point.page, point.prefix // point.page
    pages = whole + 1 + b
    ids = np.random.default_rng(point.seed).permutation(pages).astype(np.int32)
    tables = np.full((1 + b, whole + 1), -1, np.int32)
    tables[0] = ids[: whole + 1]
    lengths = np.zeros(1 + b, np.int32)
    lengths[0] = whole * page + point.rows
    tables_, lengths_, refs = (bench.array(a) for a in (tables, lengths, np.ones(pages, np.int32)))
    parents, children = np.zeros(b, np.int32), np.arange(1, b + 1, dtype=np.int32)
    p, c, fresh = (bench.array(a) for a in (parents, children, ids[whole + 1 :]))
    op = fork_op(shape, bench.device, float(b * point.rows))
    pools = bench.sets((point.layers, *pool_shape(k, pages)), op.seconds)

    def run(i: int) -> None:
        ops.fork(k, pools[i], tables_, lengths_, refs, p, c, fresh)

    return Case(run, len(pools), op, (tables_[1:],), op.bytes)


def _prune(bench: Bench, shape: Transformer, point: Point) -> Case:
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    b = point.branches
    tables, lengths, pages = tree(point, point.seed)
    refs = np.bincount(tables[tables >= 0], minlength=pages).astype(np.int32)
    kept = [bench.array(a) for a in (lengths, refs)]
    tables_, lengths_, refs_ = (bench.array(a) for a in (tables, lengths, refs))
    rows = bench.array(np.arange(b, dtype=np.int32))
    free, count = bench.room((pages,), np.int32), bench.room((1,), np.int32)
    flags = bench.room((-(-pages // 8),), np.uint64)
    held = int((tables >= 0).sum())
    op = floors(shape, bench.device, branches=1, pruned_pages=held)[-1]

    def reset() -> None:
        lengths_[...] = kept[0]
        refs_[...] = kept[1]
        count[...] = 0

    def run(_: int) -> None:
        ops.prune(k, tables_, lengths_, refs_, rows, free, count, flags)

    return Case(run, 1, op, (), op.bytes, reset)


def _sample(bench: Bench, shape: Transformer, point: Point) -> Case:
    k = bench.backend.kernels(kernel_shape(bench, shape, point.page))
    op = _work(bench, shape, "sample", point.rows)
    # Two bf16 of the arena side by side are one float32 that is normal too: its upper half decides.
    halves = bench.sets((point.rows, 2 * shape.vocab), op.seconds)
    logits = [half.view(np.float32) for half in halves]
    key = bench.array(np.array([1, 2, 3], np.uint32))
    tokens = bench.room((point.rows,), np.int32)
    top_p = 0.95 if point.op == "sample_top_p" else 1.0
    return Case(
        lambda i: ops.sample(k, logits[i], inverse_temperature=1.25, top_p=top_p, key=key, tokens=tokens),
        len(logits), op, (tokens,), op.bytes,
    )  # fmt: skip


def _matmul(bench: Bench, shape: Transformer, point: Point) -> Case:
    work = next(w for w in linear_work(shape) if w.name == point.op)
    op = _work(bench, shape, point.op, point.rows)
    rows, out = bench.take((point.rows, work.k)), bench.room((point.rows, work.n))
    weights = bench.tensors(bench.sets((work.n, work.k), op.seconds, aligned(rows.shape)))
    x, y = bench.tensors([rows, out])
    matmul = bench.backend.linear.matmul
    return Case(lambda i: matmul(x, weights[i], y), len(weights), op, (out,), op.bytes)


def _norm(bench: Bench, shape: Transformer, point: Point) -> Case:
    op = _work(bench, shape, "norm", point.rows)
    size = (point.rows, shape.hidden)
    residuals = bench.sets(size, op.seconds, aligned(size[1:]))
    # The stream grows by its residual with each run: it is a copy, so that the arena stays as it is.
    streams = bench.tensors([residual.copy() for residual in residuals])
    added, out = bench.tensors(residuals), bench.room(size)
    w, y = bench.tensors([bench.take(size[1:]), out])
    norm = bench.backend.linear.norm
    return Case(lambda i: norm(streams[i], added[i], w, y), len(added), op, (out,), op.bytes)


def _activation(bench: Bench, shape: Transformer, point: Point) -> Case:
    moved = 2.0 * 3 * shape.ffn * point.rows
    op = Op("activation", 0.0, moved, moved / bench.device.copy_bytes_per_s)
    both = bench.tensors(bench.sets((point.rows, 2 * shape.ffn), op.seconds))
    out = bench.room((point.rows, shape.ffn))
    (y,) = bench.tensors([out])
    gate = bench.backend.linear.gate
    return Case(lambda i: gate(both[i], y), len(both), op, (out,), op.bytes)


def _embedding(bench: Bench, shape: Transformer, point: Point) -> Case:
    op = _work(bench, shape, "embedding", point.rows)
    (table,) = bench.tensors([bench.take((shape.vocab, shape.hidden))])
    rng = np.random.default_rng(point.seed)
    tokens = bench.tensors([
        bench.array(rng.integers(0, shape.vocab, point.rows).astype(np.int32)) for _ in range(8)
    ])  # fmt: skip
    out = bench.room((point.rows, shape.hidden))
    (y,) = bench.tensors([out])
    embed = bench.backend.linear.embed
    return Case(lambda i: embed(table, tokens[i], y), len(tokens), op, (out,), op.bytes)


def _prefill(bench: Bench, shape: Transformer, point: Point) -> Case:
    """`branches` sequences read `rows` new tokens each behind a context of `prefix`: causal, as a verifier would."""
    b, new, context = point.branches, point.rows, point.prefix
    op = prefill_op(one_layer(shape), bench.device, b, new, context)
    queries = bench.take((b, new, shape.heads, HEAD_DIM))
    out = bench.room(queries.shape)
    both = (2, b, context + new, shape.kv_heads, HEAD_DIM)
    kv = [bench.tensors([a[0], a[1]]) for a in bench.sets(both, op.seconds, aligned(queries.shape))]
    q, y = bench.tensors([queries, out])
    prefill = bench.backend.linear.prefill
    return Case(lambda i: prefill(q, kv[i][0], kv[i][1], y), len(kv), op, (out,), op.bytes)


def prefill_op(shape: Transformer, device: Device, sequences: int, new: int, context: int) -> Op:
    """Floor of causal attention of `new` tokens of each sequence behind `context` others: KV, queries and outputs."""
    pairs = sequences * (new * context + new * (new + 1) / 2)
    op = attention_op("prefill_attention", shape, device, sequences * (context + new), pairs)
    moved = op.bytes + 4.0 * shape.layers * shape.heads * HEAD_DIM * sequences * new
    return replace(op, bytes=moved, seconds=max(op.seconds, moved / device.copy_bytes_per_s))


def _work(bench: Bench, shape: Transformer, name: str, rows: int) -> Op:
    """The floor of one call of a linear operation."""
    work = next(w for w in linear_work(shape) if w.name == name)
    moved = work.weight_bytes(rows) + work.bytes_per_row * rows
    n = work.calls
    return Op(name, work.flops_per_row * rows / n, moved / n, work.floor_s(bench.device, rows) / n)


def total(name: str, parts: Sequence[Op], calls: int = 1) -> Op:
    """Operations one after the other as one."""
    flops, moved = sum(op.flops for op in parts), sum(op.bytes for op in parts)
    return Op(name, flops, moved, sum(op.seconds for op in parts), calls)
