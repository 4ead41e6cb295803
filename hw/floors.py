"""Floors: the FLOPs, bytes and least seconds of every operation of one expansion, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hw.device import Device
from hw.transformer import Transformer, linear_work

Attention = Literal["shared", "naive"]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a step, all its calls on one device together. Units: FLOP, bytes, s."""

    name: str
    flops: float
    bytes: float
    seconds: float
    calls: int = 1


def floors(
    shape: Transformer,
    device: Device,
    *,
    branches: int,
    prefix: float = 0.0,
    suffix: float = 0.0,
    attention: Attention = "shared",
    prefill: int = 0,
    forks: int = 0,
    fork_tail: float = 0.0,
    pruned_pages: int = 0,
    tensor_parallel: int = 1,
) -> tuple[Op, ...]:
    """Floors of a step in which `branches` branches share `prefix` tokens and own `suffix` each.

    `prefill` tokens run beside them (their attention is not included); `forks` children copy a tail
    of `fork_tail` tokens; `pruned_pages` page references are given back. An operation takes at least
    max(bytes / copy bandwidth, FLOP / GEMM rate) of the device's ceilings, the all-reduce bytes over
    the link plus its latency.
    """
    tokens, sampled = branches + prefill, branches + (1 if prefill else 0)
    found = []
    for work in linear_work(shape, tensor_parallel):
        rows = sampled if work.sampled else tokens
        moved = work.weight_bytes(rows) + work.bytes_per_row * rows if rows else 0.0
        flops = work.flops_per_row * rows
        found.append(Op(work.name, flops, moved, work.floor_s(device, rows), work.calls))
    total = suffix * branches
    if attention == "naive":
        read = branches * prefix + total
        found.append(attention_op("naive_attention", shape, device, read, read, tensor_parallel))
    else:
        found.append(
            attention_op(
                "prefix_attention", shape, device, prefix, prefix * branches, tensor_parallel
            )
        )
        found.append(attention_op("suffix_attention", shape, device, total, total, tensor_parallel))
        found.append(merge_op(shape, device, branches, tensor_parallel))
    if forks:
        found.append(fork_op(shape, device, forks * fork_tail, tensor_parallel))
    if pruned_pages:
        # A reference count (4 B) is read and written, a page id (4 B) pushed, for each page.
        moved = 12.0 * pruned_pages
        found.append(Op("prune", 0.0, moved, moved / device.copy_bytes_per_s))
    return tuple(found)


def attention_op(
    name: str,
    shape: Transformer,
    device: Device,
    read: float,
    pairs: float,
    tensor_parallel: int = 1,
) -> Op:
    """Attention that reads `read` KV tokens and computes `pairs` of (query token, KV token).

    Prefix: read = P, pairs = B P. Suffix: both are the sum of suffixes. Naive: both are the sum of
    whole contexts. Source: bytes 4 h d read, FLOP 4 H d pairs a layer; MLA absorbed: 2 (latent + rope)
    bytes, 2 H (2 latent + rope) FLOP.
    """
    layers = shape.layers - shape.windowed_layers
    moved = layers * shape.kv_layer_bytes(tensor_parallel) * read
    flops = layers * shape.attention_flops(tensor_parallel) * pairs
    seconds = max(moved / device.copy_bytes_per_s, flops / device.gemm_flops_bf16)
    return Op(name, flops, moved, seconds, layers)


def merge_op(shape: Transformer, device: Device, branches: int, tensor_parallel: int = 1) -> Op:
    """Merging the prefix and suffix halves of attention: two fp32 partials and their log-sums, once
    written and once read, for each branch and head. Source: (s + 1) B H (4 d + 4) 2 bytes, s = 1."""
    layers = shape.layers - shape.windowed_layers
    width = shape.kv_lora or shape.head_dim
    moved = layers * 2.0 * branches * shape.heads / tensor_parallel * (4 * width + 4) * 2
    return Op("merge", 0.0, moved, moved / device.copy_bytes_per_s, layers)


def fork_op(shape: Transformer, device: Device, tokens: float, tensor_parallel: int = 1) -> Op:
    """Copying the KV of `tokens` tokens to fresh pages: each byte is read and written."""
    moved = 2.0 * shape.kv_bytes_per_token(tensor_parallel) * tokens
    return Op("fork_copy", 0.0, moved, moved / device.copy_bytes_per_s)
