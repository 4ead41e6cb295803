"""Rows of profiles that others measured: their operations in our words, with floors on our ceilings."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hw.device import Device
from hw.profile import ProfileError
from hw.transformer import BYTES, Transformer

Row = dict[str, Any]


def linear_row(
    device: Device, op: str, m: int, n: int, k: int, us: float, dtype: str = "bfloat16", **more: Any
) -> Row:
    """One matrix product of m rows with a k x n weight matrix. Floor: the weights, or 2 m n k FLOP."""
    moved, flop = float(n) * k * BYTES[dtype], 2.0 * m * n * k
    rate = device.gemm_flops_fp8 if dtype.startswith("fp8") else device.gemm_flops_bf16
    return _row(device, op, us, moved, flop, rate, m=m, n=n, k=k, dtype=dtype, **more)


def attention_widths(shape: Transformer, split: int = 1) -> tuple[int, int]:
    """What n and k of an attention row are: FLOP / 4 of one (query, KV) pair, KV bytes / 4 of a token.

    That is heads x head size and KV heads x head size on each device; MLA's absorbed form has a latent
    in their place.
    """
    return round(shape.attention_flops(split) / 4), round(shape.kv_layer_bytes(split) / 4)


def decode_row(
    device: Device, sequences: int, tokens: int, n: int, k: int, us: float, **more: Any
) -> Row:
    """Attention of `sequences` decoders that each read `tokens` KV tokens of their own, one layer."""
    read = sequences * tokens
    axes = {"B": sequences, "S": tokens, "sum_s": read, "n": n, "k": k}
    return _row(device, "suffix_attention", us, 4.0 * k * read, 4.0 * n * read,
                device.gemm_flops_bf16, **axes, **more)  # fmt: skip


def prefill_row(
    device: Device, sequences: int, chunk: int, context: int, n: int, k: int, us: float, **more: Any
) -> Row:
    """Causal attention of `sequences` chunks of new tokens, each behind `context` tokens, one layer."""
    pairs = sequences * (chunk * context + chunk * (chunk + 1) / 2)
    moved = 4.0 * k * sequences * (context + chunk) + 4.0 * n * sequences * chunk
    axes = {"B": sequences, "P": context, "m": chunk, "n": n, "k": k}
    return _row(device, "prefill_attention", us, moved, 4.0 * n * pairs,
                device.gemm_flops_bf16, **axes, **more)  # fmt: skip


def mixed_row(
    device: Device, chunk: int, context: int, decoders: int, tokens: int, n: int, k: int,
    us: float, **more: Any,
) -> Row:  # fmt: skip
    """One call for a chunk behind `context` tokens beside decoders that read `tokens` each, one layer."""
    read = decoders * tokens
    pairs = chunk * context + chunk * (chunk + 1) / 2 + read
    moved = 4.0 * k * (context + chunk + read) + 4.0 * n * (chunk + decoders)
    axes = {"B": decoders, "S": tokens, "sum_s": read, "P": context, "m": chunk, "n": n, "k": k}
    return _row(device, "mixed_attention", us, moved, 4.0 * n * pairs,
                device.gemm_flops_bf16, **axes, **more)  # fmt: skip


def light_row(device: Device, op: str, m: int, moved: float, us: float, **more: Any) -> Row:
    """An operation on m rows that computes next to nothing: its floor is the bytes that it moves."""
    return _row(device, op, us, moved, 0.0, device.gemm_flops_bf16, m=m, **more)


def all_reduce_row(device: Device, gpus: int, message: float, us: float, **more: Any) -> Row:
    """An all-reduce of `message` bytes over `gpus` devices (column splits), message bytes in column m.

    Floor: a ring moves 2 (g - 1) / g of the message over each link.
    """
    floor = 2 * (gpus - 1) / gpus * message / device.link_bytes_per_s
    return _times("all_reduce", us, floor, message, 0.0, m=int(message), splits=gpus, **more)


def experts_row(
    device: Device, m: int, mixture: tuple[int, int, int, int], tensor: int, expert: int, us: float,
    dtype: str, variant: str,
) -> Row:  # fmt: skip
    """One whole mixture-of-experts layer on m tokens, its experts split `tensor` x `expert` ways.

    `mixture` is (hidden, inner, chosen, experts). Column n holds the width of an expert's three matrices
    on a device, k the hidden size, splits the expert-parallel ways, P the chosen, S all experts. Floor:
    the weights of the distinct experts that m tokens choose at random.
    """
    hidden, inner, chosen, experts = mixture
    n = round(3 * inner / tensor)
    hit = experts / expert * (1.0 - (1.0 - chosen / experts) ** m)
    weight = {"int4_wo": 0.5, "w4a16_mxfp4": BYTES["mxfp4"]}.get(dtype) or BYTES.get(dtype, 1.0)
    flop = 2.0 * m * chosen / expert * n * hidden
    rate = device.gemm_flops_fp8 if dtype.startswith("fp8") else device.gemm_flops_bf16
    return _row(device, "experts", us, weight * n * hidden * hit, flop, rate, m=m, n=n, k=hidden,
                P=chosen, S=experts, splits=expert, dtype=dtype, variant=variant)  # fmt: skip


def mla_widths(heads: int, latent: int = 512, rope: int = 64) -> tuple[int, int]:
    """attention_widths of MLA's absorbed form."""
    return heads * (2 * latent + rope) // 2, (latent + rope) // 2


def rows_of(path: Path, needed: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
    """The rows of a CSV file that must have the columns `needed`; raises ProfileError."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise ProfileError(
                    f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: "
                    "it is of another format or version."
                )
            yield from reader
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(f"{path} is not a CSV file: {error}.") from error


def figure(row: Mapping[str, str], name: str, path: Path) -> float:
    """The finite figure in a column of a CSV row; raises ProfileError naming the file and column."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ProfileError(f"{path}: column {name} holds {row[name]!r} where a number is due.")
    return value


def whole(row: Mapping[str, str], name: str, path: Path) -> int:
    """The count in a column of a CSV row, at least 0; raises ProfileError."""
    value = figure(row, name, path)
    if value < 0 or value != int(value):
        raise ProfileError(f"{path}: column {name} holds {row[name]!r}, not a count.")
    return int(value)


def _row(
    device: Device, op: str, us: float, moved: float, flop: float, rate: float, **axes: Any
) -> Row:
    floor = max(moved / device.copy_bytes_per_s, flop / rate)
    return _times(op, us, floor, moved, flop, **axes)


def _times(op: str, us: float, floor_s: float, moved: float, flop: float, **axes: Any) -> Row:
    us, floor = _rounded(us), _rounded(max(1e6 * floor_s, 1e-6))
    row = {
        "op": op, "calls": 1, "t_us_median": us, "bytes_floor": moved, "flop": flop,
        "floor_us": floor, "frac_floor": _rounded(floor / us) if us > 0 else 0.0, "status": "ok",
    } | axes  # fmt: skip
    if us <= 0:
        row["status"] = "no time"
    return row


def _rounded(value: float) -> float:
    """Six digits: no clock is better, and tables stay small."""
    return float(f"{value:.6g}")
