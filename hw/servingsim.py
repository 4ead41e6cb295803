"""LLMServingSim's profile folder: layers that hooks in a running vLLM timed, as one of our profiles.

The folder holds dense.csv (layer, tokens), per_sequence.csv (LM head and sampler by sequences),
attention.csv (chunk x its context x decoders x their context) and meta.yaml, in microseconds a call.
Source: LLMServingSim 2.0, profiler 1.0.0 (MIT), 2026-08-17.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hw.device import Device
from hw.imported import (
    Row,
    attention_widths,
    figure,
    light_row,
    linear_row,
    mixed_row,
    rows_of,
    whole,
)
from hw.profile import Profile, ProfileError, make_profile
from hw.transformer import Transformer, Work, linear_work, transformer_named

SOURCE = "LLMServingSim 2.0 profile folder (KAIST CASYS, MIT licence)"
_FILES = ("dense.csv", "attention.csv", "per_sequence.csv", "meta.yaml")
# layer -> our operation. A layer of ours that the folder lacks takes its floor.
_LAYERS = {
    "embedding": "embedding", "layernorm": "norm", "final_layernorm": "final_norm",
    "qkv_proj": "qkv", "qk_norm": "qk_norm", "rotary_emb": "rotary", "o_proj": "o", "gate_up_proj": "gate_up",
    "act_fn": "activation", "down_proj": "down", "lm_head": "lm_head", "sampler": "sample",
}  # fmt: skip


def is_servingsim(path: Path) -> bool:
    """Whether a path is such a folder, or holds one called profile."""
    return all((_folder(path) / name).is_file() for name in _FILES)


def read_servingsim(path: Path, device: Device, shape: Transformer | None = None) -> Profile:
    """The profile in an LLMServingSim folder, for a model of the catalogue or the shape given.

    Times are of one call (one layer). meta holds the engine's settings while profiling and `skew`: how
    far the time of a batch of unequal contexts lies between that of its mean and that of its longest
    context (alpha), by decoders and by whether a prefill chunk runs beside; `graph`: what a whole step
    saves in a replayed CUDA graph, where that was timed (step.csv). Raises ProfileError,
    CatalogError for a model that is not in the catalogue.
    """
    path = _folder(path)
    meta = _meta(path / "meta.yaml")
    shape = shape or transformer_named(str(meta.get("model", "")), str(meta.get("variant", "")))
    split = max(int(degree) for degree in meta.get("tp_degrees") or [1])
    variant = f"vllm-{meta.get('vllm_version', 'unknown')}"
    common = {"model_shape": f"{shape.name}/tp{split}", "variant": variant,
              "samples": int(meta.get("measurement_iterations") or 0), "l2_state": "warm"}  # fmt: skip
    rows = [row | common for row in _rows(path, device, shape, split)]
    return make_profile(
        device.name,
        "imported",
        f"{SOURCE}: {meta.get('gpu', 'an unnamed GPU')}, vLLM {meta.get('vllm_version', '?')}, "
        f"{shape.name}, measured {str(meta.get('profiled_at', 'at an unknown date'))[:10]}",
        rows,
        ceilings={},
        meta={
            "source": SOURCE,
            "licence": "MIT",
            "as_of": str(meta.get("profiled_at", ""))[:10],
            "model": shape.name,
            "engine": meta.get("engine_effective") or {},
            "skew": _skew(path / "skew_fit.csv"),
            "graph": _graph(path / "step.csv"),
        },
    )


def _folder(path: Path) -> Path:
    return path / "profile" if (path / "profile").is_dir() else path


def _meta(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(f"{path} is not YAML: {error}.") from error
    if not isinstance(found, dict):
        raise ProfileError(f"{path} must be a mapping: model, gpu, vllm_version, tp_degrees.")
    return found


def _rows(path: Path, device: Device, shape: Transformer, split: int) -> Iterator[Row]:
    works = {work.name: work for work in linear_work(shape, split)}
    for name, rows in (("dense.csv", "tokens"), ("per_sequence.csv", "sequences")):
        file = path / name
        for given in rows_of(file, ("layer", rows, "time_us")):
            op = _LAYERS.get(given["layer"])
            if op is None:
                raise ProfileError(
                    f"{file}: layer {given['layer']!r} is not known; known: {', '.join(_LAYERS)}."
                )
            m, us = whole(given, rows, file), figure(given, "time_us", file)
            yield _layer(device, shape, split, works, op, m, us)
    file, (n, k) = path / "attention.csv", attention_widths(shape, split)
    axes = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    for given in rows_of(file, (*axes, "time_us")):
        chunk, context, decoders, tokens = (whole(given, name, file) for name in axes)
        us = figure(given, "time_us", file)
        yield mixed_row(device, chunk, context, decoders, tokens, n, k, us, dtype="bfloat16")


def _layer(
    device: Device, shape: Transformer, split: int, works: Mapping[str, Work],
    op: str, m: int, us: float,
) -> Row:  # fmt: skip
    work = works.get(op)
    if work is not None and work.n:
        return linear_row(device, op, m, work.n, work.k, us, work.dtype)
    if work is not None:
        return light_row(device, op, m, work.bytes_per_row / work.calls * m, us)
    ffn, heads = shape.ffn / split, shape.heads / split
    width = {
        "final_norm": 2 * shape.hidden,
        "activation": 3 * ffn,
        "qk_norm": 2 * (heads + shape.kv_heads / split) * shape.head_dim,
        "rotary": 2 * (heads + shape.kv_heads / split) * shape.head_dim,
    }[op]
    return light_row(device, op, m, 2.0 * width * m, us)


def _skew(path: Path) -> list[dict[str, Any]]:
    """Mean alpha, weighted with samples, by decoders (at most) and by prefill beside or not."""
    if not path.is_file():
        return []
    sums: dict[tuple[bool, int], list[float]] = {}
    for row in rows_of(path, ("pc", "n_label", "alpha", "n_samples")):
        decoders = row["n_label"].removeprefix("n<=")
        if not decoders.isdigit():
            continue
        weight = figure(row, "n_samples", path)
        found = sums.setdefault((row["pc"] != "0", int(decoders)), [0.0, 0.0])
        found[0] += weight
        found[1] += weight * figure(row, "alpha", path)
    return [
        {"prefill": prefill, "decoders_up_to": decoders, "alpha": round(total / weight, 4)}
        for (prefill, decoders), (weight, total) in sorted(sums.items())
        if weight > 0
    ]


def _graph(path: Path) -> list[dict[str, Any]]:
    """Mean microseconds that a step saves by its graph (full, piecewise), by tokens."""
    if not path.is_file():
        return []
    sums: dict[tuple[str, int], list[float]] = {}
    for row in rows_of(path, ("branch", "num_tokens", "saved_us")):
        if row["branch"] in ("full", "piecewise"):
            tokens = whole(row, "num_tokens", path)
            sums.setdefault((row["branch"], tokens), []).append(figure(row, "saved_us", path))
    return [
        {"branch": branch, "tokens": tokens, "saved_us": round(sum(us) / len(us), 3)}
        for (branch, tokens), us in sorted(sums.items())
    ]
