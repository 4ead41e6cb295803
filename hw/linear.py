"""What a vendor's library does well, behind one interface: matrix products, prefill attention, and what lies between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from hw.cpu import stored, values
from hw.reference import HEAD_DIM

EPSILON = 1e-5
"""Of RMSNorm. Source: config.json of Llama-3.1 (rms_norm_eps), 2026-11-23."""

_BLOCK = 1 << 18  # weights


@dataclass(frozen=True, slots=True)
class Linear:
    """The dense operations of a layer on one kind of array (see `tensor`), all bf16 in and out.

    tensor(array): a view of an array of the backend that the others take, made once, outside of what is timed.
    matmul(rows [m, k], weights [n, k], out [m, n]); norm(rows [m, d], residual [m, d], weight [d], out [m, d]) adds
    the residual first; gate(both [m, 2 f], out [m, f]): silu(left half) * right half; embed(table [v, d], tokens
    [m] int32, out [m, d]); copy(source, out); read(array) reads it once and keeps next to nothing;
    prefill(queries [b, s, h, 128], keys, values [b, t, hk, 128], out [b, s, h, 128]): query i of the last s of t
    tokens attends to the tokens up to its own.
    """

    name: str
    tensor: Callable[[Any], Any]
    matmul: Callable[[Any, Any, Any], None]
    norm: Callable[[Any, Any, Any, Any], None]
    gate: Callable[[Any, Any], None]
    embed: Callable[[Any, Any, Any], None]
    copy: Callable[[Any, Any], None]
    read: Callable[[Any], None]
    prefill: Callable[[Any, Any, Any, Any], None]


def torch_linear() -> Linear:
    """Through torch, on a CPU or a GPU, wherever the arrays lie; raises ModuleNotFoundError without torch."""
    torch: Any = import_module("torch")
    f: Any = import_module("torch.nn.functional")
    causal_lower_right: Any = import_module("torch.nn.attention.bias").causal_lower_right

    def tensor(array: Any) -> Any:
        bits = (
            array.dtype == np.uint16
        )  # int16 on the way, which every version of torch and DLPack knows
        array = array.view(np.int16) if bits else array
        there = (
            torch.from_numpy(array) if isinstance(array, np.ndarray) else torch.from_dlpack(array)
        )
        return there.view(torch.bfloat16) if bits else there

    def norm(rows: Any, residual: Any, weight: Any, out: Any) -> None:
        out.copy_(f.rms_norm(rows.add_(residual), (rows.shape[1],), weight, EPSILON))

    def gate(both: Any, out: Any) -> None:
        left, right = both.chunk(2, -1)
        torch.mul(f.silu(left), right, out=out)

    @cache
    def mask(new: int, whole: int) -> Any:
        return torch.ones(new, whole, dtype=torch.bool).tril_(whole - new)

    def prefill(queries: Any, keys: Any, kept: Any, out: Any) -> None:
        q, k, v = (a.transpose(1, 2) for a in (queries, keys, kept))
        new, whole = q.shape[2], k.shape[2]
        if new == whole:
            found = f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            hidden = causal_lower_right(new, whole) if q.is_cuda else mask(new, whole)
            found = f.scaled_dot_product_attention(q, k, v, attn_mask=hidden, enable_gqa=True)
        out.copy_(found.transpose(1, 2))

    def quietly(run: Callable[..., Any]) -> Callable[..., None]:
        def inner(*given: Any) -> None:
            with torch.inference_mode():
                run(*given)

        return inner

    return Linear(
        "torch",
        tensor,
        matmul=quietly(lambda rows, weights, out: torch.mm(rows, weights.t(), out=out)),
        norm=quietly(norm),
        gate=quietly(gate),
        embed=quietly(lambda table, tokens, out: torch.index_select(table, 0, tokens, out=out)),
        copy=quietly(lambda source, out: out.copy_(source)),
        read=quietly(lambda array: array.view(torch.int32).max()),
        prefill=quietly(prefill),
    )


def numpy_linear() -> Linear:
    """Through NumPy in float32, on a CPU that has no torch: slow, and truly so."""

    def put(result: Any, out: Any) -> None:
        out[...] = stored(result, out.dtype)

    def matmul(rows: Any, weights: Any, out: Any) -> None:
        x, step = values(rows), max(1, _BLOCK // weights.shape[1])
        for at in range(0, len(weights), step):  # widened in blocks that fit a cache
            put(x @ values(weights[at : at + step]).T, out[:, at : at + step])

    def norm(rows: Any, residual: Any, weight: Any, out: Any) -> None:
        put(values(rows) + values(residual), rows)
        x = values(rows)
        put(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * values(weight), out)

    def gate(both: Any, out: Any) -> None:
        left, right = np.split(values(both), 2, -1)
        put(left / (1 + np.exp(np.minimum(-left, 80))) * right, out)

    def prefill(queries: Any, keys: Any, kept: Any, out: Any) -> None:
        (b, new, heads), (whole, hk) = queries.shape[:3], keys.shape[1:3]
        group, hidden = heads // hk, ~np.tri(new, whole, whole - new, dtype=bool)
        q = values(queries).reshape(b, new, hk, group, HEAD_DIM).transpose(0, 2, 3, 1, 4)
        k, v = (values(a).transpose(0, 2, 1, 3) for a in (keys, kept))
        for at in np.ndindex(b, hk):  # two plain matrix products each, of all the group's rows
            scores = q[at].reshape(-1, HEAD_DIM) @ k[at].T
            scores *= np.float32(HEAD_DIM**-0.5)
            scores.reshape(group, new, whole)[:, hidden] = -np.inf
            np.exp(np.subtract(scores, scores.max(-1, keepdims=True), out=scores), out=scores)
            found = (scores @ v[at]) / scores.sum(-1, keepdims=True)
            mine = slice(at[1] * group, (at[1] + 1) * group)
            put(found.reshape(group, new, HEAD_DIM).swapaxes(0, 1), out[at[0], :, mine])

    def copy(source: Any, out: Any) -> None:
        out[...] = source

    return Linear(
        "numpy",
        tensor=lambda array: array,
        matmul=matmul,
        norm=norm,
        gate=gate,
        embed=lambda table, tokens, out: copy(table[tokens], out),
        copy=copy,
        read=lambda array: array.view(np.int32).max(),
        prefill=prefill,
    )
