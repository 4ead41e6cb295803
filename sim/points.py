"""Serving points, read: TTFT and TPOT that real engines reached under a fixed number of clients.

The reader takes AIConfigurator's silicon samples (CSV). Source: NVIDIA aiconfigurator (Apache-2.0),
silicon_sample.csv.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scenarios.errors import UserError

_NEEDED = ("silicon_data_source", "backend", "model_path", "system", "isl", "osl", "batch_size", "tp_size",
           "silicon_ttft_ms", "silicon_tpot_ms", "gemm_quant_mode", "attention_dp_size", "moe_tp_size",
           "moe_ep_size")  # fmt: skip
# Load tests in the file, told by their source and lengths. `together`: equal lengths, all clients start at once.
# `repeated`: the same with lengths in thousands and prompts that come again, so that an engine with a prefix cache
# computes few of them (in 7 of the public rows of vLLM the prompts alone would fill more than all the time that
# the answers took). `varied`: InferenceMAX, ten requests of each client, lengths drawn from 80 to 100 %.
# Source: file names in the column silicon_data_source; InferenceMAX README, benchmark client (random range ratio
# 0.8, num-prompts 10 x concurrency), read 2026-11-25.
TOGETHER, REPEATED, VARIED = "together", "repeated", "varied"
_THOUSAND = 1000
NODE = 8  # devices
SHORTEST = 0.8  # of the lengths of a varied load


@dataclass(frozen=True, slots=True)
class Point:
    """One measured load. Units: tokens, s."""

    model: str
    engine: str
    version: str
    system: str
    precision: str
    harness: str
    clients: int
    input_tokens: int
    output_tokens: int
    tensor_parallel: int
    expert_parallel: int
    data_parallel: int
    moe_ways: int
    ttft_s: float
    tpot_s: float


def is_points(path: str | Path) -> bool:
    """Whether a path is a CSV file of serving points, or a folder that holds one."""
    return _file(Path(path)) is not None


def read_points(path: str | Path) -> list[Point]:
    """The points of a CSV file, or of the one in a folder; raises UserError naming the row and column."""
    file = _file(Path(path))
    if file is None:
        raise UserError(f"{path} holds no serving points: a CSV file with {', '.join(_NEEDED)}.")
    found = []
    with file.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            try:
                found.append(_point(row))
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{file}:{number}: {error}. Correct the row, or remove it."
                ) from None
    if not found:
        raise UserError(f"{file} holds no points below its header.")
    return found


def _file(path: Path) -> Path | None:
    candidates = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    for file in candidates:
        try:
            with file.open(encoding="utf-8", errors="replace", newline="") as stream:
                header = next(csv.reader(stream), [])
        except OSError:
            continue
        if set(_NEEDED) <= set(header):
            return file
    return None


def _load_test(source: str, input_tokens: int) -> str:
    if "auto-gap-analysis" not in source:
        return VARIED
    return REPEATED if input_tokens % _THOUSAND == 0 else TOGETHER


def _point(row: Mapping[str, str]) -> Point:
    """A row as a point. Raises ValueError, TypeError.

    Rows that share experts among 8 devices may say 64 devices (4: 16): a load of DeepSeek-R1 is in the public file both
    ways, with the same time to the last digit, and the machines of the load test have eight.
    """

    def whole(name: str, default: int | None = None) -> int:
        text = row[name].strip()
        if not text and default is not None:
            return default
        value = int(text)
        if value < 0 or (value == 0 and default is None):
            raise ValueError(f"{name} is {text!r}, it must be a count of at least 1")
        return value or 1

    def seconds(name: str) -> float:
        value = float(row[name]) / 1e3
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} is {row[name]!r}, it must be a positive number of ms")
        return value

    source = row["silicon_data_source"]
    split, parts_of_expert, other_experts = (
        whole("tp_size"),
        whole("moe_tp_size", 1),
        whole("moe_ep_size", 1),
    )
    ways = parts_of_expert * other_experts
    if split == ways > NODE and parts_of_expert == other_experts:
        split = ways = (
            other_experts  # the same devices, counted once for tensors and once for experts
        )
    return Point(
        model=row["model_path"],
        engine=row["backend"],
        version=row.get("backend_version", ""),
        system=row["system"],
        precision=row["gemm_quant_mode"],
        harness=_load_test(source, whole("isl")),
        clients=whole("batch_size"),
        input_tokens=whole("isl"),
        output_tokens=whole("osl"),
        tensor_parallel=split,
        expert_parallel=other_experts,
        data_parallel=whole("attention_dp_size", 1),
        moe_ways=ways,
        ttft_s=seconds("silicon_ttft_ms"),
        tpot_s=seconds("silicon_tpot_ms"),
    )
