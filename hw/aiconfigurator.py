"""NVIDIA AIConfigurator's measured tables (package aiconfigurator-core), as one of our profiles.

The package keeps, for each system and engine, Parquet tables of milliseconds a call: matrix products by
(m, n, k), attention by heads, batch and context, all-reduce by message, mixtures of experts by tokens.
We take those rows that steps of a transformer are made of. Source: aiconfigurator-core (NVIDIA,
Apache-2.0). Its method: 3 warm-ups, mean of 6 graph replays, warm L2.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hw.device import Device
from hw.imported import (
    Row,
    all_reduce_row,
    decode_row,
    experts_row,
    linear_row,
    mla_widths,
    prefill_row,
)
from hw.profile import Profile, ProfileError, make_profile

SOURCE = "NVIDIA aiconfigurator-core measured tables (Apache-2.0)"
ENGINES = ("vllm", "sglang", "trtllm")
BEST = "best"
"""Not an engine: of each point the fastest of all engines, what a well tuned engine reaches."""
SYSTEMS = {"h200-sxm-141gb": "h200_sxm", "h100-sxm-80gb": "h100_sxm", "b200-sxm-180gb": "b200_sxm",
           "a100-sxm-80gb": "a100_sxm", "l40s-48gb": "l40s"}  # fmt: skip
# Rows that stay: padded batches up to 16 tokens and at the sizes of CUDA graphs, ragged ones at the probes one
# past a tile, between which a step's time follows from its neighbours (error: docs/cost-model.md).
_M = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 768, 1024, 1280, 1536, 1792,
      2048, 2560, 3072, 4096, 8192, 16384, 32768, 17, 33, 65, 97, 129, 161, 193, 225, 257, 513, 769, 1025,
      1281, 1537, 1793, 2049, 2561, 3073, 4097)  # fmt: skip
# Narrower matrices are routers; wider ones behave like these.
_SIZES = (512, 1024, 1536, 2048, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 12288, 16384)
# One row in so many that is not kept, or else would be, is held out of every fit: what the fit is judged by.
_HELD_OFF, _HELD_ON = 60, 25
_DTYPES = ("bfloat16", "fp8", "fp8_block")
# (heads, KV heads, head size) of a device: GQA with groups of 4, 5, 8 (and 64 wide: gpt-oss), 16 (Qwen3-235B)
# and 6 (MiniMax), split 1 to 8 ways. Groups of 7 lie between.
_HEADS = frozenset(
    (group * kv, kv, size)
    for size, groups in ((128, (4, 5, 6, 8, 16)), (64, (8,)))
    for group in groups
    for kv in (1, 2, 4, 8)
)
# (hidden, inner, chosen, experts) of the mixtures that we keep: gpt-oss-120b, Qwen3-235B, MiniMax-M2.5,
# DeepSeek-V3/R1, Kimi-K2.5, Qwen3.5-397B, GLM-5. Source: their config.json, 2026-11-23.
_MIXTURES = ((2880, 2880, 4, 128), (4096, 1536, 8, 128), (3072, 1536, 8, 256), (7168, 2048, 8, 256),
             (7168, 2048, 8, 384), (4096, 1024, 10, 512), (6144, 2048, 8, 256))  # fmt: skip
_EXPERT_DTYPES = ("fp8", "fp8_block", "w4a16_mxfp4", "int4_wo")
_ROUTING = "power_law_1.2"


def tables(path: Path | None = None) -> Path:
    """The folder of systems in a given path or in the installed package.

    Raises ProfileError, and ModuleNotFoundError where no path is given and the package is missing.
    """
    if path is None:
        spec = importlib.util.find_spec("aiconfigurator_core")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                "aiconfigurator-core is not installed", name="aiconfigurator_core"
            )
        path = Path(next(iter(spec.submodule_search_locations)))
    for folder in (path, path / "systems", path / "aiconfigurator_core" / "systems"):
        if (folder / "data").is_dir() and any(folder.glob("*.yaml")):
            return folder
    raise ProfileError(f"{path} has no systems/data: it is not aiconfigurator-core.")


def is_aiconfigurator(path: Path) -> bool:
    """Whether a path is an unpacked aiconfigurator-core."""
    try:
        return tables(path).is_dir()
    except ProfileError:
        return False


def read_aiconfigurator(
    path: Path | None, device: Device, engine: str = BEST, *, every_row: bool = False
) -> Profile:
    """The newest measured tables of an engine (or BEST of all) on a device of SYSTEMS, knees or `every_row`.

    Operations: `gemm` (dtype, m, n, k), `suffix_attention` (decode), `prefill_attention`, `all_reduce`
    (graph), `experts` (one whole mixture layer). Times are of one call in one layer. Raises ProfileError.
    """
    if engine not in (*ENGINES, BEST):
        raise ProfileError(
            f"engine {engine!r} has no tables; there are {', '.join(ENGINES)}, or {BEST} of all."
        )
    if device.name not in SYSTEMS:
        raise ProfileError(
            f"aiconfigurator has no system for {device.name}; there are {', '.join(SYSTEMS)}."
        )
    data = tables(path) / "data" / SYSTEMS[device.name]
    used: dict[str, str] = {}
    fastest: dict[tuple[Any, ...], Row] = {}
    for name in ENGINES if engine == BEST else (engine,):
        for row in _all_rows(data, device, name, every_row, used):
            key = tuple(row.get(axis) for axis in _AXES)
            if key not in fastest or row["t_us_median"] < fastest[key]["t_us_median"]:
                fastest[key] = row
    if not fastest:
        raise ProfileError(f"{data} has no tables of {engine}.")
    by = (
        f"the fastest of {', '.join(ENGINES)} at each point" if engine == BEST else f"with {engine}"
    )
    return make_profile(
        device.name,
        "imported",
        f"measured by NVIDIA aiconfigurator on {device.name}, {by} (imported)",
        fastest.values(),
        ceilings={},
        meta={"source": SOURCE, "licence": "Apache-2.0", "engine": engine,
              "as_of": datetime.now(UTC).date().isoformat(),
              "package": f"aiconfigurator-core {_release(tables(path))}",
              "tables": ", ".join(f"{table} {found}" for table, found in sorted(used.items())),
              "method": "3 warm-ups, mean of 6 graph replays, warm L2, locked clocks"},
    )  # fmt: skip


def _drawn(axes: tuple[Any, ...], one_in: int) -> bool:
    """Whether a point is held out: a function of what the point is, the same for every engine."""
    return zlib.crc32(repr(axes).encode()) % one_in == 0


_AXES = ("op", "model_shape", "dtype", "B", "P", "S", "m", "n", "k", "splits")


def _all_rows(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    for part in (_gemm, _decode, _prefill, _latent, _all_reduce, _experts):
        for row in part(data, device, engine, every_row, used):
            axes = tuple(row.get(axis, 0) for axis in _AXES)
            held = row["op"] != "gemm" and not every_row and _drawn(axes, _HELD_ON)
            yield {"is_holdout": int(held)} | row | {"samples": 6, "l2_state": "warm"}


def _release(systems: Path) -> str:
    """The package's version, from its metadata beside it."""
    for found in systems.parent.parent.glob("aiconfigurator_core-*.dist-info"):
        return found.name.removesuffix(".dist-info").partition("-")[2]
    try:
        return version("aiconfigurator-core")
    except PackageNotFoundError:
        return "of unknown version"


def _table(
    data: Path, folder: str, engine: str, name: str, columns: Sequence[str], used: dict[str, str]
) -> Iterator[tuple[Any, ...]]:
    """Rows of the newest version of a table, in the columns asked for; none where there is no table."""
    found = sorted((data / folder / engine).glob(f"*/{name}.parquet"), key=_age)
    if found:
        used[f"{engine} {name.removesuffix('_perf')}"] = found[-1].parent.name
        yield from _rows(found[-1], columns)


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=list(columns), use_threads=False).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise ProfileError(f"cannot read {file}: {error}.") from error
    if missing := [column for column in columns if column not in table]:
        raise ProfileError(f"{file} lacks {', '.join(missing)}: it is of another version.")
    yield from zip(*(table[column] for column in columns), strict=True)


def _age(file: Path) -> tuple[tuple[int, str], ...]:
    """Versions in order: 0.5.9 before 0.5.14, 1.3.0rc10 before 1.3.0rc20."""
    parts = file.parent.name.replace("rc", ".").replace("post", "").split(".")
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _gemm(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    names = ("gemm_dtype", "kernel_source", "m", "n", "k", "latency")
    for dtype, kernel, m, n, k, ms in _table(data, "gemm", engine, "gemm_perf", names, used):
        if dtype not in _DTYPES or not (every_row or (min(n, k) >= 512 and max(n, k) <= 16384)):
            continue
        kept = every_row or (m in _M and n in _SIZES and k in _SIZES)
        held = not kept and _drawn((dtype, m, n, k), _HELD_OFF)
        if kept or held:
            yield linear_row(device, "gemm", m, n, k, 1e3 * ms, dtype,
                             variant=f"{engine} {kernel}", is_holdout=int(held))  # fmt: skip


def _attention(
    data: Path, engine: str, phase: str, every_row: bool, used: dict[str, str]
) -> Iterator[tuple[Any, ...]]:
    names = ("kernel_source", "batch_size", "isl", "step", "num_heads", "num_key_value_heads",
             "head_dim", "window_size", "attn_dtype", "kv_cache_dtype", "latency")  # fmt: skip
    for row in _table(data, "attention", engine, f"{phase}_attention_perf", names, used):
        kernel, b, isl, step, heads, kv_heads, size, window, dtype, kv_dtype, ms = row
        wanted = every_row or (heads, kv_heads, size) in _HEADS
        if wanted and (window, dtype, kv_dtype) == (0, "bfloat16", "bfloat16"):
            named = {
                "variant": f"{engine} {kernel}",
                "model_shape": f"gqa/{heads}/{kv_heads}/{size}",
            }
            yield b, isl, step, heads * size, kv_heads * size, 1e3 * ms, named


def _decode(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    for b, isl, step, n, k, us, named in _attention(data, engine, "generation", every_row, used):
        yield decode_row(device, b, isl + step, n, k, us, dtype="bfloat16", **named)


def _prefill(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    for b, isl, step, n, k, us, named in _attention(data, engine, "context", every_row, used):
        yield prefill_row(device, b, isl, step, n, k, us, dtype="bfloat16", **named)


def _latent(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    """MLA in its absorbed form: decode of DeepSeek's latent (512 + 64)."""
    del every_row
    names = ("kernel_source", "batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "latency")
    table = _table(data, "mla", engine, "generation_mla_perf", names, used)
    for kernel, b, isl, step, heads, dtype, ms in table:
        if dtype == "bfloat16":
            n, k = mla_widths(heads)
            yield decode_row(device, b, isl + step, n, k, 1e3 * ms, dtype="bfloat16",
                             variant=f"{engine} {kernel}", model_shape=f"mla/{heads}")  # fmt: skip


def _all_reduce(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    del every_row
    names = ("kernel_source", "num_gpus", "message_size", "latency")
    table = _table(data, "comm", engine, "custom_allreduce_perf", names, used)
    for kernel, gpus, message, ms in table:
        if not str(kernel).endswith("_eager"):
            # The tables count elements of two bytes.
            yield all_reduce_row(
                device, gpus, 2.0 * message, 1e3 * ms, variant=f"{engine} {kernel}"
            )


def _experts(
    data: Path, device: Device, engine: str, every_row: bool, used: dict[str, str]
) -> Iterator[Row]:
    names = ("kernel_source", "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk",
             "num_experts", "moe_tp_size", "moe_ep_size", "distribution", "latency")  # fmt: skip
    found: dict[tuple[Any, ...], Row] = {}  # every version: each measured other mixtures
    for file in sorted((data / "moe" / engine).glob("*/moe_perf.parquet"), key=_age):
        for row in _rows(file, names):
            kernel, dtype, m, hidden, inner, chosen, experts, tp, ep, routing, ms = row
            mixture = (hidden, inner, chosen, experts)
            wanted = every_row or (
                mixture in _MIXTURES and dtype in _EXPERT_DTYPES and tp * ep <= 8
            )
            if routing == _ROUTING and wanted:
                variant = f"{engine} {kernel}"
                taken = experts_row(device, m, mixture, tp, ep, 1e3 * ms, dtype, variant)
                found[(dtype, m, *mixture, tp, ep)] = taken
                used[f"{engine} moe"] = file.parent.name
    yield from found.values()
