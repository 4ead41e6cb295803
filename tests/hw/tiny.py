"""A model, a grid and backends small enough to measure in a test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hw import cpu, ops
from hw.backend import Backend, cpu_backend
from hw.device import Device, device
from hw.grid import Axes, grid
from hw.profiler import Plan
from hw.timing import Budget
from hw.transformer import Transformer, from_config
from tests.hw import launch_twin

AXES = Axes(
    branches=(1, 2, 4),
    prefix=(32, 64, 128),
    suffix=(4, 16, 40),
    m=(1, 5),
    new=(3, 8),
    pages=(16, 64),
    holdout=14,
    step_layers=1,
    most_tokens=1000,
)


def model(**changes: object) -> Transformer:
    config = {
        "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 128, "intermediate_size": 384, "vocab_size": 500, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return from_config(config | changes, "tiny")


def plan(only: tuple[str, ...] = (), target: Device | None = None) -> Plan:
    points = tuple(p for p in grid([model()], AXES) if not only or p.op in only)
    return Plan((model(),), points, target or device("cpu"), Budget(0.0, 2, 2, 1), sentinels=3)


def on_cpu(engine: cpu.Engine = "numpy", arena_bytes: float = 2e7) -> Backend:
    return replace(cpu_backend(engine), arena_bytes=arena_bytes)


def on_twin(arena_bytes: float = 8e6) -> Backend:
    """As on a GPU, but for the launch: the kernels' index arithmetic in NumPy, their arguments checked as there."""

    def kernels(shape: ops.Shape) -> ops.Kernels:
        return ops.Kernels(shape, launch_twin.launcher(shape), np)

    return replace(cpu_backend("numpy"), kind="cuda", kernels=kernels, arena_bytes=arena_bytes)
