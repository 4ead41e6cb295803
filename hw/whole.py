"""Whole layers, decode steps and expansions, really run: what the parts' composed cost is checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hw import ops
from hw.bench import Bench, Case, aligned
from hw.cases import kernel_shape, planned, pool_shape, prefill_op, total, tree
from hw.floors import Op, floors
from hw.grid import Point
from hw.reference import HEAD_DIM
from hw.transformer import Transformer, linear_work

_LINEAR = ("norm", "qkv", "o", "gate_up", "down")
KEPT = 4  # an expansion prunes all but one branch in so many


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model of random weights and room for one pass of `rows` tokens: tensors of the backend's dense operations.

    layers: (qkv, o, gate_up, down) each; stream and delta [rows, hidden]; qkv, mixed (attention's output), both, gated.
    """

    shape: Transformer
    layers: list[tuple[Any, ...]]
    head: Any
    norm: Any
    stream: Any
    delta: Any
    normed: Any
    qkv: Any
    mixed: Any
    both: Any
    gated: Any
    logits: Any
    arrays: dict[str, Any]
    end: int  # of its weights in the arena


def whole(bench: Bench, shape: Transformer, point: Point) -> Case:
    """The case of `layer`, `decode_step` or `expansion`."""
    step = _Step(bench, shape, point)
    if point.op == "expansion":
        return _expansion(bench, step, point)
    head = point.op == "decode_step"
    parts = _decode_floor(bench, shape, point, head=head)
    op = total(point.op, parts, point.layers)
    outputs = (step.tokens,) if head else (step.merged,)
    return Case(lambda _: step.run(head=head), 1, op, outputs, op.bytes)


def decoder(
    bench: Bench, shape: Transformer, layers: int, rows: int, sampled: int, at: int
) -> Decoder:
    """A decoder whose weights are cut from the arena from element `at` on; raises hw.bench.TooBig."""
    works = {work.name: work for work in linear_work(shape)}
    tensor = bench.backend.linear.tensor

    def weights(name: str) -> Any:
        nonlocal at
        size = (works[name].n, works[name].k)
        at += aligned(size)
        return tensor(bench.take(size, at - aligned(size)))

    norm = tensor(bench.take((shape.hidden,), at))
    built = [tuple(weights(name) for name in _LINEAR[1:]) for _ in range(layers)]
    head = weights("lm_head")
    heads = shape.heads + 2 * shape.kv_heads
    arrays = {
        name: bench.room((rows, width))
        for name, width in (
            ("stream", shape.hidden), ("delta", shape.hidden), ("normed", shape.hidden),
            ("qkv", heads * HEAD_DIM), ("mixed", shape.heads * HEAD_DIM), ("both", 2 * shape.ffn),
            ("gated", shape.ffn),
        )
    } | {"logits": bench.room((sampled, works["lm_head"].n))}  # fmt: skip
    arrays["stream"][...] = bench.take(arrays["stream"].shape, at)
    room = {name: tensor(array) for name, array in arrays.items()}
    return Decoder(shape, built, head, norm, **room, arrays=arrays, end=at)


def forward(bench: Bench, d: Decoder, attend: Callable[[int], None], *, head: bool) -> None:
    """One pass through all layers: d.stream in, d.logits out; attend(layer) turns d.qkv into d.mixed."""
    linear = bench.backend.linear
    for number, (qkv, o, gate_up, down) in enumerate(d.layers):
        linear.norm(d.stream, d.delta, d.norm, d.normed)
        linear.matmul(d.normed, qkv, d.qkv)
        attend(number)
        linear.matmul(d.mixed, o, d.delta)
        linear.norm(d.stream, d.delta, d.norm, d.normed)
        linear.matmul(d.normed, gate_up, d.both)
        linear.gate(d.both, d.gated)
        linear.matmul(d.gated, down, d.delta)
    if head:
        linear.matmul(d.normed[: d.logits.shape[0]], d.head, d.logits)


class _Step:
    """A decode step of all branches, over page tables that have room for the token it appends."""

    def __init__(self, bench: Bench, shape: Transformer, point: Point) -> None:
        self.bench, self.point = bench, point
        b = point.branches
        self.k = bench.backend.kernels(
            replace(kernel_shape(bench, shape, point.page), logits_bf16=True)
        )
        self.host_tables, self.host_lengths, pages = tree(point, point.seed, grown=1)
        self.pages = pages + 1  # the last one: a parent's tail, which its children copy
        self.tables, self.lengths = map(bench.array, (self.host_tables, self.host_lengths))
        self.plan = planned(bench, self.k, self.host_tables, self.host_lengths + 1, shared=True)
        self.room = ops.scratch(self.k, int(self.plan.parts[-1]))
        one = pool_shape(self.k, self.pages)
        self.pools = bench.take((point.layers, *one))
        at = aligned(self.pools.shape)
        # Behind the pools, which a step writes to; nothing else is written, so the rest may overlap.
        self.table = bench.backend.linear.tensor(bench.take((shape.vocab, shape.hidden), at))
        self.model = decoder(bench, shape, point.layers, b, b, at)
        q, kv = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
        self.cuts = (slice(0, q), slice(q, q + kv), slice(q + kv, q + 2 * kv))
        self.taken = [bench.room((b, n // HEAD_DIM, HEAD_DIM)) for n in (q, kv, kv)]
        self.views = bench.tensors([a.reshape(b, -1) for a in self.taken])
        self.merged = bench.room((b, shape.heads, HEAD_DIM))
        self.merged_view = bench.backend.linear.tensor(self.merged.reshape(b, -1))
        self.key = bench.array(np.array([1, 2, 3], np.uint32))
        self.tokens = bench.array(np.arange(b, dtype=np.int32))
        self.ids = bench.backend.linear.tensor(bench.array(np.arange(b, dtype=np.int32)))

    def attend(self, layer: int) -> None:
        copy = self.bench.backend.linear.copy
        for cut, view in zip(self.cuts, self.views, strict=True):
            copy(self.model.qkv[:, cut], view)  # where rotary embedding would be applied
        q, keys, kept = self.taken
        ops.append(self.k, self.pools[layer], keys, kept, self.tables, self.lengths, False)
        ops.attention(self.k, q, self.pools[layer], self.plan, self.room, self.merged)
        copy(self.merged_view, self.model.mixed)

    def run(self, *, head: bool) -> None:
        if head:
            self.bench.backend.linear.embed(self.table, self.ids, self.model.stream)
        forward(self.bench, self.model, self.attend, head=head)
        if head:
            ops.sample(self.k, self.model.arrays["logits"], inverse_temperature=1.0, top_p=1.0,
                       key=self.key, tokens=self.tokens)  # fmt: skip


def _expansion(bench: Bench, step: _Step, point: Point) -> Case:
    """Fork one parent into all branches, decode a token each, score `rows` tokens each, prune all but one in KEPT.

    The verifier has the policy's shape and a score head.
    """
    linear, shape = bench.backend.linear, step.model.shape
    b, new, tail = point.branches, point.rows, point.prefix + point.suffix
    whole, rest = divmod(tail, point.page)
    assert whole * point.page == point.prefix and rest, "an expansion's parent ends within a page"
    parent = step.host_tables[:1].copy()
    parent[0, whole] = step.pages - 1
    refs = np.zeros(step.pages, np.int32)
    refs[parent[0, : whole + 1]] = 1
    kept = [bench.array(np.append(np.zeros(b), tail).astype(np.int32)), bench.array(refs)]
    lengths, counts = (array.copy() for array in kept)
    step.lengths = lengths[:b]
    tables = bench.array(np.vstack([step.host_tables, parent]))
    step.tables = tables[:b]
    children, parents = np.arange(b, dtype=np.int32), np.full(b, b, np.int32)
    fork = [bench.array(a) for a in (parents, children, step.host_tables[:, whole].copy())]
    gone = bench.array(np.arange(b - max(1, b // KEPT), dtype=np.int32))
    free, count = bench.room((step.pages,), np.int32), bench.room((1,), np.int32)
    flags = bench.room((-(-step.pages // 8),), np.uint64)
    judge = decoder(
        bench, replace(shape, score_head=True), point.layers, b * new, b, step.model.end
    )
    context = bench.take((2, b, tail + new, shape.kv_heads, HEAD_DIM), aligned(step.pools.shape))
    keys, values = bench.tensors([context[0], context[1]])
    heads = (b, new, shape.heads, HEAD_DIM)
    q, out = (bench.room(heads) for _ in range(2))
    q_, out_ = bench.tensors([q, out])
    q_rows, out_rows = bench.tensors([a.reshape(b * new, -1) for a in (q, out)])

    def score(_: int) -> None:
        linear.copy(judge.qkv[:, step.cuts[0]], q_rows)
        linear.prefill(q_, keys, values, out_)
        linear.copy(out_rows, judge.mixed)

    def reset() -> None:
        lengths[...] = kept[0]
        counts[...] = kept[1]
        count[...] = 0

    def run(_: int) -> None:
        ops.fork(step.k, step.pools, tables, lengths, counts, fork[0], fork[1], fork[2])
        step.run(head=True)
        forward(bench, judge, score, head=True)
        ops.prune(step.k, tables, lengths, counts, gone, free, count, flags)

    decode = _decode_floor(bench, shape, point, head=True)
    scored = _score_floor(bench, shape, point)
    held = len(gone) * (whole + 1)
    built = replace(shape, layers=point.layers)
    every = floors(built, bench.device, branches=b, forks=b, fork_tail=rest, pruned_pages=held)
    moved = [op for op in every if op.name in ("fork_copy", "prune")]
    op = total("expansion", [*decode, *scored, *moved], point.layers)
    return Case(run, 1, op, (step.tokens, judge.arrays["logits"]), op.bytes, reset)


def _decode_floor(bench: Bench, shape: Transformer, point: Point, *, head: bool) -> list[Op]:
    """Floors of a decode step through point.layers layers, with or without embedding, head and sampler."""
    built = replace(shape, layers=point.layers)
    found = floors(
        built, bench.device, branches=point.branches, prefix=point.prefix, suffix=point.suffix
    )
    ends = ("embedding", "lm_head", "sample")
    return [op for op in found if head or op.name not in ends]


def _score_floor(bench: Bench, shape: Transformer, point: Point) -> list[Op]:
    """Floors of the verifier's pass: point.rows new tokens for each branch behind its whole context."""
    built = replace(shape, layers=point.layers, score_head=True)
    b, new = point.branches, point.rows
    found = floors(built, bench.device, branches=b * new)
    kept = [op for op in found if op.name in _LINEAR]
    attention = prefill_op(built, bench.device, b, new, point.prefix + point.suffix)
    # The head reads one row of each branch.
    lm_head = next(op for op in floors(built, bench.device, branches=b) if op.name == "lm_head")
    return [*kept, attention, lm_head]
