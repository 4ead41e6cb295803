"""What a real engine did: each request with its times, and how the engine was set, in one form.

Readers by format: an LLMServingSim 2.0 bundle (a folder with requests.jsonl and meta.json) and the JSON
that `vllm bench serve --save-result --save-detailed` writes. A further format is one more entry of READERS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scenarios.errors import UserError
from sim.renewal import Floats
from sim.trace import Ints
from sim.tracefile import csv_columns, fail, json_int, json_lines, json_number, read_bytes


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of arrival, as columns of shape (n,). Times in s since the first arrival."""

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    first_s: Floats  # the first token was there
    last_s: Floats  # the last one

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def latencies(self) -> dict[str, Floats]:
        """TTFT, TPOT and E2E in s. TPOT holds requests of two tokens and more."""
        several = self.output_tokens > 1
        decode_s = (self.last_s - self.first_s)[several] / (self.output_tokens[several] - 1)
        return {
            "TTFT": self.first_s - self.arrival_s,
            "TPOT": decode_s,
            "E2E": self.last_s - self.arrival_s,
        }


@dataclass(frozen=True, slots=True)
class Engine:
    """How the engine was set, in vLLM's words."""

    model: str
    device: str
    version: str
    num_gpu_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    async_scheduling: bool = False
    enable_prefix_caching: bool = True
    scheduler_reserve_full_isl: bool = True
    enforce_eager: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the engine reported of itself over time, as columns of shape (n,)."""

    time_s: Floats
    running: Floats
    waiting: Floats
    kv_share: Floats  # of all pages, in [0, 1]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a real engine. `left_out` requests failed or never finished."""

    label: str
    format: str
    requests: Requests
    engine: Engine | None = None
    profile: Path | None = None  # what the engine's layers took, where the run comes with it
    timeline: Timeline | None = None
    left_out: int = 0


def is_measured(path: Path) -> bool:
    """Whether one of READERS recognises what is at a path."""
    return any(recognises(path) for recognises, _, _ in READERS.values())


def read_measured(path: str | Path) -> Measured:
    """The run at a path, in whichever format of READERS it is. Raises UserError."""
    where = Path(path)
    if not where.exists():
        raise UserError(f"{where}: there is nothing here; give the path of a measured run")
    for recognises, read, _ in READERS.values():
        if recognises(where):
            return read(where)
    known = "; ".join(f"{name}: {what}" for name, (_, _, what) in READERS.items())
    raise UserError(f"{where}: is no measured run in a format that is known ({known})")


# -- LLMServingSim -----------------------------------------------------------------------------------


def _is_bundle(path: Path) -> bool:
    return (path / "requests.jsonl").is_file() and (path / "meta.json").is_file()


def _bundle(path: Path) -> Measured:
    """An LLMServingSim 2.0 bundle: requests.jsonl, meta.json, perhaps timeseries.csv and profile/.

    Arrivals stand on the wall clock, all else on the engine's monotonic one. Of the two the smallest
    delay between arrival and queueing is taken for zero, which sets the offset (the frontend's delay).
    """
    file = path / "requests.jsonl"
    names = ("queued_ts", "first_token_ts", "last_token_ts")
    rows: list[tuple[float, ...]] = []
    left_out = 0
    for line, record in json_lines(file, read_bytes(file)):
        if any(record.get(name) is None for name in names) or not record.get("output_toks"):
            left_out += 1
            continue
        tokens = (json_int(file, line, record, f"{side}put_toks", 1) for side in ("in", "out"))
        times = (json_number(file, line, record, name) for name in (*names, "arrival_time"))
        rows.append((*tokens, *times))
    if not rows:
        fail(file, 0, "holds no request that was finished", "record the run again")
    table = np.array(rows, dtype=float)
    queued, first, last, arrival = table[:, 2], table[:, 3], table[:, 4], table[:, 5]
    if (first < queued).any() or (last < first).any():
        row = int(np.flatnonzero((first < queued) | (last < first))[0])
        fail(file, row + 1, "its first or last token comes too early", "record the run again")
    arrival = arrival - np.max(arrival - queued)
    requests = _sorted(arrival, table[:, 0], table[:, 1], first, last)
    meta = _json(path / "meta.json")
    engine = _engine(path / "meta.json", meta)
    folder = path / "profile"
    return Measured(
        label=f"vLLM {engine.version}, {engine.model} on {engine.device}, {len(rows)} requests",
        format="llmservingsim",
        requests=requests,
        engine=engine,
        profile=folder if folder.is_dir() else None,
        timeline=_timeline(path / "timeseries.csv"),
        left_out=left_out,
    )


def _engine(path: Path, meta: Mapping[str, Any]) -> Engine:
    """The engine's settings; what a run does not record is the default of its version.

    Source: vLLM release notes: async scheduling by default since 0.14; a resolved configuration of 0.19
    has scheduler_reserve_full_isl, on.
    """
    resolved, given = _mapping(meta, "resolved_config"), _mapping(meta, "engine_kwargs")
    cache, scheduler = _mapping(resolved, "cache_config"), _mapping(resolved, "scheduler_config")
    parallel, model = _mapping(resolved, "parallel_config"), _mapping(resolved, "model_config")
    kv = {**cache, **{k: v for k, v in _mapping(meta, "kv_cache").items() if v is not None}}
    if resolved.get("speculative_config"):
        fail(path, 0, "has a speculative_config", "speculative decoding is not modelled")

    def setting(name: str, default: Any, *places: Mapping[str, Any]) -> Any:
        found = (place[name] for place in places if place.get(name) is not None)
        return next(found, default)

    def count(name: str, default: Any, *places: Mapping[str, Any]) -> int:
        found = setting(name, default, *places)
        if type(found) is not int or found < 1:
            fail(path, 0, f"{name} is {found!r:.40}", "it must be a whole number over 0")
        return found

    def newer(*than: int) -> bool:
        """Whether the engine has what vLLM turned on by default in a version."""
        parts = str(meta.get("vllm_version") or "").split(".")[:2]
        return tuple(int(part) for part in parts if part.isdigit()) >= than

    if kv.get("num_gpu_blocks") is None:
        fail(path, 0, "has no kv_cache.num_gpu_blocks", "it is the first thing to know of a run")
    hardware = _mapping(meta, "hardware")
    return Engine(
        model=str(meta.get("model") or given.get("model") or "an unnamed model"),
        device=str(hardware.get("device_name") or "an unnamed device"),
        version=str(meta.get("vllm_version") or "of unknown version"),
        num_gpu_blocks=count("num_gpu_blocks", None, kv),
        block_size=count("block_size", 16, kv),
        max_num_seqs=count("max_num_seqs", 256, scheduler, given),
        max_num_batched_tokens=count("max_num_batched_tokens", 2048, scheduler, given),
        tensor_parallel_size=count("tensor_parallel_size", 1, parallel, given),
        data_parallel_size=count("data_parallel_size", 1, parallel, given),
        async_scheduling=bool(setting("async_scheduling", newer(0, 14), scheduler, given)),
        enable_prefix_caching=bool(setting("enable_prefix_caching", True, kv, given)),
        scheduler_reserve_full_isl=bool(
            setting("scheduler_reserve_full_isl", newer(0, 19), scheduler)
        ),
        enforce_eager=bool(setting("enforce_eager", False, model, given)),
    )


def _timeline(path: Path) -> Timeline | None:
    if not path.is_file():
        return None
    table = csv_columns(
        path,
        read_bytes(path),
        {"t": "float", "running": "float", "waiting": "float", "kv_cache_pct": "float"},
    )
    return Timeline(table["t"], table["running"], table["waiting"], table["kv_cache_pct"] / 100)


# -- vllm bench serve --------------------------------------------------------------------------------


def _is_vllm_bench(path: Path) -> bool:
    if not path.is_file() or path.suffix != ".json":
        return False
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    return b'"request_throughput"' in head or b'"ttfts"' in head or b'"num_prompts"' in head


def _vllm_bench(path: Path) -> Measured:
    """`vllm bench serve`'s result. E2E is the first token's latency and the gaps between all others.

    Arrivals are its `start_times`; a run at request_rate inf without a concurrency limit needs none.
    """
    found = _json(path)
    columns = {name: found.get(name) for name in ("input_lens", "output_lens", "ttfts", "itls")}
    absent = [name for name, column in columns.items() if not isinstance(column, list)]
    if absent:
        fail(path, 0, f"holds no {', '.join(absent)}", "run vllm bench serve with --save-detailed")
    inputs, outputs, ttfts, itls = (column for column in columns.values() if column is not None)
    starts = found.get("start_times")
    if not isinstance(starts, list):
        unlimited = str(found.get("request_rate")) == "inf" and not found.get("max_concurrency")
        if not unlimited:
            way_out = "a newer vLLM records them; else run it with --request-rate inf alone"
            fail(path, 0, "holds no start_times, so nobody knows when requests arrived", way_out)
        starts = [0.0] * len(inputs)
    if len({len(column) for column in (inputs, outputs, ttfts, itls, starts)}) != 1:
        fail(path, 0, "has columns of different lengths", "record the run again")
    rows = []
    for given, out, ttft, gaps, start in zip(inputs, outputs, ttfts, itls, starts, strict=True):
        if out and ttft and isinstance(gaps, list):
            rows.append((float(start), given, out, start + ttft, start + ttft + math.fsum(gaps)))
    if not rows:
        fail(path, 0, "holds no request that was answered", "record the run again")
    table = np.array(rows, dtype=float)
    model = str(found.get("model_id") or "an unnamed model")
    return Measured(
        label=f"vllm bench serve, {model}, {len(rows)} requests",
        format="vllm-bench",
        requests=_sorted(*table.T),
        left_out=len(inputs) - len(rows),
    )


# -- helpers -----------------------------------------------------------------------------------------


def _sorted(
    arrival: Floats, inputs: Floats, outputs: Floats, first: Floats, last: Floats
) -> Requests:
    order = np.argsort(arrival, kind="stable")
    start = float(arrival[order[0]])
    return Requests(
        arrival[order] - start,
        inputs[order].astype(np.int64),
        outputs[order].astype(np.int64),
        first[order] - start,
        last[order] - start,
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        fail(path, 0, "is not valid JSON", "record the run again")
    if not isinstance(found, dict):
        fail(path, 0, "is not a JSON object", "record the run again")
    return found


def _mapping(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}


Reader = tuple[Callable[[Path], bool], Callable[[Path], Measured], str]
READERS: Final[Mapping[str, Reader]] = {
    "llmservingsim": (_is_bundle, _bundle, "a folder with requests.jsonl and meta.json"),
    "vllm-bench": (_is_vllm_bench, _vllm_bench, "the JSON of vllm bench serve --save-detailed"),
}
