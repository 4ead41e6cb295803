"""Vidur's profiling CSVs: attention, mlp and all_reduce in milliseconds a call, as one of our profiles.

A folder holds any of attention.csv, mlp.csv and all_reduce.csv (as under data/profiling), or a path names
one of the first two. Each row names its model's shape and split. Source: Vidur (microsoft/vidur, MIT), 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hw.device import Device
from hw.imported import (
    Row,
    all_reduce_row,
    attention_widths,
    decode_row,
    figure,
    light_row,
    linear_row,
    prefill_row,
    rows_of,
    whole,
)
from hw.profile import Profile, ProfileError, make_profile
from hw.transformer import Transformer, transformers

SOURCE = "Vidur profiling data (microsoft/vidur, MIT licence)"
_FILES = ("attention.csv", "mlp.csv", "all_reduce.csv")
_LINEAR = {"attn_pre_proj": "qkv", "attn_post_proj": "o", "mlp_up_proj": "gate_up",
           "mlp_down_proj": "down"}  # fmt: skip
# Vidur's light layers -> our operation and the widths (in elements a row) that it moves.
_LIGHT = {"emb": "embedding", "input_layernorm": "norm", "post_attention_layernorm": "norm",
          "attn_rope": "rotary", "mlp_act": "activation", "add": "add"}  # fmt: skip


def is_vidur(path: Path) -> bool:
    """Whether a path is such a folder or file: the first line tells."""
    return any("time_stats." in _first_line(file) for file in _files(path))


def read_vidur(path: Path, device: Device, shape: Transformer | None = None) -> Profile:
    """The profile in Vidur's CSV files; with a shape, only the rows of that very shape.

    Attention of a decoder reads kv_cache_size tokens; a prefill chunk stands behind as many. A
    measurement of 0 ms (below Vidur's resolution) becomes a row without a time. Raises ProfileError.
    """
    rows: list[Row] = []
    for file in _files(path):
        read = {"attention.csv": _attention, "mlp.csv": _linear}.get(file.name, _all_reduce)
        rows.extend(read(file, device, shape))
    if not any(row["status"] == "ok" for row in rows):
        wanted = f" of the shape of {shape.name}" if shape else ""
        raise ProfileError(f"{path} holds no row{wanted}; name a model that was profiled.")
    models = sorted({row.get("model_shape", "").partition("/")[0] for row in rows} - {""})
    return make_profile(
        device.name,
        "imported",
        f"{SOURCE}, read as {device.name}: {', '.join(models) or 'communication only'}",
        rows,
        ceilings={},
        meta={"source": SOURCE, "licence": "MIT", "as_of": "2024", "models": models},
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name in _FILES else []
    return [path / name for name in _FILES if (path / name).is_file()]


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline(100_000)
    except OSError:
        return ""


def _attention(file: Path, device: Device, wanted: Transformer | None) -> Iterator[Row]:
    axes = ("n_embd", "n_q_head", "n_kv_head", "num_tensor_parallel_workers")
    needed = (*axes, "batch_size", "prefill_chunk_size", "kv_cache_size")
    for given in rows_of(file, needed):
        embd, heads, kv_heads, split = (whole(given, name, file) for name in axes)
        shape, name = _shape(embd, heads, kv_heads, split, wanted)
        if shape is None:
            continue
        n, k = attention_widths(shape, split)
        b, chunk, kv = (whole(given, key, file) for key in needed[4:])
        common = {"model_shape": name, "page": int(given.get("block_size") or 0),
                  "variant": given.get("attention_backend", ""), "dtype": "bfloat16"}  # fmt: skip
        for kind in ("prefill", "decode"):
            us = _us(given, f"attn_{kind}", file)
            if us is None or (kind == "prefill") != (chunk > 0):
                continue
            if kind == "prefill":
                yield prefill_row(device, b, chunk, kv, n, k, us, **common)
            else:
                yield decode_row(device, b, kv, n, k, us, **common)


def _linear(file: Path, device: Device, wanted: Transformer | None) -> Iterator[Row]:
    axes = ("n_embd", "n_head", "n_kv_head", "num_tensor_parallel_workers")
    for given in rows_of(file, (*axes, "n_expanded_embd", "num_tokens", "use_gated_mlp")):
        embd, heads, kv_heads, split = (whole(given, name, file) for name in axes)
        shape, name = _shape(embd, heads, kv_heads, split, wanted)
        if shape is None:
            continue
        m, ffn = whole(given, "num_tokens", file), whole(given, "n_expanded_embd", file) // split
        gates = 2 if given["use_gated_mlp"] == "True" else 1
        query, key = heads // split * shape.head_dim, -(-kv_heads // split) * shape.head_dim
        sizes = {"attn_pre_proj": (query + 2 * key, embd), "attn_post_proj": (embd, query),
                 "mlp_up_proj": (gates * ffn, embd), "mlp_down_proj": (embd, ffn)}  # fmt: skip
        widths = {"emb": 2 * embd, "input_layernorm": 2 * embd, "post_attention_layernorm": 2 * embd,
                  "attn_rope": 2 * (query + key), "mlp_act": (gates + 1) * ffn, "add": 3 * embd}  # fmt: skip
        for layer, op in (_LINEAR | _LIGHT).items():
            us = _us(given, layer, file)
            if us is None:
                continue
            if layer in sizes:
                yield linear_row(device, op, m, *sizes[layer], us, model_shape=name)
            else:
                yield light_row(device, op, m, 2.0 * widths[layer] * m, us, model_shape=name,
                                dtype="bfloat16")  # fmt: skip


def _all_reduce(file: Path, device: Device, wanted: Transformer | None) -> Iterator[Row]:
    del wanted  # a message has no model
    for given in rows_of(file, ("num_workers", "size", "rank")):
        us = _us(given, "all_reduce", file)
        if us is not None and given["rank"] == "0":
            gpus, message = whole(given, "num_workers", file), whole(given, "size", file)
            yield all_reduce_row(device, gpus, message, us, variant="vidur")


def _us(row: Mapping[str, str], layer: str, path: Path) -> float | None:
    """The median time in us, None where this row did not measure the layer."""
    name = f"time_stats.{layer}.median"
    return 1e3 * figure(row, name, path) if row.get(name) else None


def _shape(
    embd: int, heads: int, kv_heads: int, split: int, wanted: Transformer | None
) -> tuple[Transformer | None, str]:
    """A transformer with these sizes and the name of its rows; None for one that was not asked for."""
    same = (embd, heads, kv_heads)
    if wanted is not None and same != (wanted.hidden, wanted.heads, wanted.kv_heads):
        return None, ""
    if not (heads and embd) or heads % max(split, 1):
        return None, ""
    known = [s for s in transformers().values() if (s.hidden, s.heads, s.kv_heads) == same]
    name = (wanted or known[0]).name if wanted or known else f"{embd}x{heads}x{kv_heads}"
    base = next(iter(transformers().values()))
    dense = replace(base, name=name, hidden=embd, heads=heads, kv_heads=kv_heads,
                    head_dim=embd // heads, kv_lora=0, windowed_layers=0)  # fmt: skip
    return dense, f"{name}/tp{split}"
