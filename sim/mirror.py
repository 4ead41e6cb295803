"""A measured run as a scenario: the same requests on the same engine, played by the simulator as any other.

`mirror` writes the scenario, `play` simulates it. Nothing of the measured times goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hw.device import CatalogError, devices
from hw.transformer import transformer_named
from scenarios.errors import UserError
from scenarios.loader import Loaded
from sim.measured import Engine, Measured, Requests, Timeline
from sim.records import Table
from sim.renewal import Floats
from sim.replication import Calibrators, calibrate_all, replicate
from sim.resolve import Resolved

_PATIENCE = 1.5  # times the measured length that a simulated run may take


@dataclass(frozen=True, slots=True)
class Played:
    """What the simulator made of a measured run's requests, in their order."""

    requests: Requests
    timeline: Timeline
    preemptions: int
    iterations: int
    recomputed_tokens: int  # prefilled beyond every prompt once
    step_source: str  # where the step costs come from


def mirror(
    run: Measured, path: str | Path, *, engine: Loaded | None = None, device: str | None = None
) -> str:
    """The scenario, as YAML text, that plays the run at `path`.

    The fleet is the measured engine; `engine` is a scenario whose policy pool stands for it, for a run that
    does not say how its engine was set. `device` names the device in our catalogue. Raises UserError.
    """
    length_s = float(np.max(run.requests.last_s))
    if engine is not None:
        fleet = _pool_of(engine)
    elif run.engine is not None:
        fleet = {"engine": _pool(run.engine, run.profile, device)}
    else:
        raise UserError(
            f"{path}: does not say how its engine was set. Write a scenario with a policy pool "
            "(model, device, engine) and name it with --engine FILE."
        )
    scenario = {
        "name": "mirror",
        "question": f"How far is the simulator from a real run? ({run.label})",
        "replications": 1,
        "horizon": {"warmup": "0s", "measure": f"{_PATIENCE * length_s + 60:.0f}s"},
        "fleet": fleet,
        "workload": {
            "arrivals": {"kind": "trace", "format": run.format, "path": str(Path(path).absolute())},
            "classes": {"request": {"preset": "chat"}},
        },
        "tiers": {"all": {"search": {"algorithm": "direct"}}},
    }
    return yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True)


def _pool(engine: Engine, profile: Path | None, device: str | None) -> Mapping[str, Any]:
    """A pool set as the engine was. One of vLLM's blocks is its null block, which holds nothing.

    Data-parallel ranks are replicas; which of them served a request is not recorded, vLLM sends it to the one
    with the least to do. Source: vLLM 0.19, v1/core/block_pool.py (`null_block`), v1/engine/core_client.py.
    """
    try:
        model = transformer_named(engine.model).name
    except CatalogError as error:
        raise UserError(f"{error} The run is of {engine.model}.") from None
    latency = (
        {"kind": "auto"}
        if profile is None
        else {"kind": "profile", "profile": str(profile.absolute())}
    )
    return {
        "model": model,
        "device": device or device_named(engine.device),
        "replicas": engine.data_parallel_size,
        "router": "least_loaded",
        "tensor_parallel": engine.tensor_parallel_size,
        "latency": latency,
        "engine": {
            "num_gpu_blocks": max(1, engine.num_gpu_blocks - 1),
            "block_size": engine.block_size,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "async_scheduling": engine.async_scheduling,
            "enable_prefix_caching": engine.enable_prefix_caching,
            "scheduler_reserve_full_isl": engine.scheduler_reserve_full_isl,
            "enforce_eager": engine.enforce_eager,
        },
        "kv": {"attention": "naive", "reclaim": "lru"},
    }


def _pool_of(loaded: Loaded) -> Mapping[str, Any]:
    names = [name for name, pool in loaded.scenario.fleet.items() if pool.role == "policy"]
    if len(names) != 1:
        raise UserError(f"{loaded.where(['fleet'])}: needs one policy pool, it has {len(names)}")
    return {names[0]: loaded.raw["fleet"][names[0]]}


def device_named(name: str) -> str:
    """The catalogue's device that a GPU's own name means (NVIDIA GeForce RTX 4090). Raises UserError."""
    words = set(name.lower().replace("-", " ").split())
    for known in devices():
        number = next((part for part in known.split("-") if any(c.isdigit() for c in part)), "")
        if number in words:
            return known
    raise UserError(
        f"the run was made on {name}, which is not in the catalogue (treeline catalog devices). "
        "Name the nearest one with --device NAME: with a profile only what was not timed depends on it."
    )


def play(
    resolved: Resolved,
    calibrators: Calibrators | None = None,
    progress: Callable[[float], None] | None = None,
) -> Played:
    """Simulate the scenario of a measured run. Raises UserError where a request was never served."""
    known = calibrate_all(resolved) if calibrators is None else calibrators
    result = replicate(resolved, 0, known, progress)
    table = result.queries
    order = np.argsort(table["query_id"])
    first, last = table["first_token_s"][order], table["finish_s"][order]
    lost = int(np.isnan(last).sum())
    if lost:
        raise UserError(
            f"the simulator did not finish {lost} of {len(last)} requests in {_PATIENCE} times the "
            "measured time: the pool is far slower than the engine was, or a request does not fit it"
        )
    inputs, outputs = table["input_tokens"][order], table["output_tokens"][order]
    pool = result.pools
    return Played(
        requests=Requests(table["arrival_s"][order], inputs, outputs, first, last),
        timeline=_over_replicas(result.timeline),
        preemptions=int(table["num_preemptions"].sum()),
        iterations=int(pool["iterations"].sum()),
        recomputed_tokens=int(pool["computed_tokens"].sum() - inputs.sum()),
        step_source=resolved.policy.cost.label,
    )


def _over_replicas(line: Table) -> Timeline:
    """The timeline of all replicas together."""
    time_s, row = np.unique(line["time_s"], return_inverse=True)

    def total(name: str) -> Floats:
        found: Floats = np.zeros(len(time_s))
        np.add.at(found, row, line[name])
        return found

    kv_share = total("pages_pinned") / np.maximum(total("pages_total"), 1)
    return Timeline(time_s, total("running"), total("waiting"), kv_share)
