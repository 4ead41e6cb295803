"""Results made up for tests: a small fleet, two tiers, books that balance."""

from __future__ import annotations

from typing import Any

import numpy as np

from scenarios.loader import Loaded, loads
from sim.records import Recorder, Result, Table

SCENARIO = """
name: made-up
question: Do careful answers pay?
seed: 7
replications: 3
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, replicas: 2}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb}
workload:
  arrivals: {rate: 3/s}
  classes:
    math: {preset: math-500}
tiers:
  fast: {share: 70%, search: {algorithm: direct}, slo: {e2e_p95: 20s}, price: {per_mtok_out: 2.40 USD}}
  careful:
    share: 30%
    search: {algorithm: beam, width: 4, expand: 4}
    promise: {confidence: 90%}
    slo: {ttft_p95: 2s, e2e_p95: 60s}
    price: {per_answer: 0.02 USD, refund: 100%, late_credit: 10%}
pricing: {device_rates: {h200-sxm-141gb: 3.60 USD/h}}
"""


def loaded(text: str = SCENARIO) -> Loaded:
    """The made-up scenario, loaded."""
    return loads(text, "made-up.yaml")


def query(**changes: Any) -> dict[str, Any]:
    """One answered query of the tier `fast`, with changes by column."""
    row: dict[str, Any] = {
        "replication": 0, "query_id": 0, "measured": True, "arrival_s": 0.0, "class": "math",
        "tier": "fast", "status": "answered", "input_tokens": 100, "output_tokens": 101,
        "answer_tokens": 10, "trajectories": 1, "expansions": 1, "scores": 0,
        "first_scheduled_s": 0.1, "first_token_s": 0.5, "first_answer_token_s": 0.5,
        "finish_s": 2.5, "verify_s": 0.0, "correct": True, "signal": 0.5, "confidence": 0.8,
        "accepted": True, "difficulty": 0.8, "num_preemptions": 0, "peak_kv_pages": 13,
        "gpu_seconds": 0.2, "policy_gpu_seconds": 0.2, "verifier_gpu_seconds": 0.0,
        "policy_pool": "thinker", "replica": 0,
    }  # fmt: skip
    row.update(changes)
    alone = {  # nobody escalates unless the changes say so
        "first_pool": row["policy_pool"],
        "first_gpu_seconds": row["policy_gpu_seconds"],
        "first_output_tokens": row["output_tokens"],
    }
    return alone | row


def result(
    seed: int = 7,
    replications: int = 3,
    n: int = 200,
    slow: float = 1.0,
    name: str = "made-up",
    idle: float = 0.4,
) -> Result:
    """A result of n queries a replication; `slow` stretches every latency, nothing else changes."""
    recorder = Recorder()
    for replication in range(replications):
        _replication(recorder, seed, replication, n, slow, idle)
    queries, timeline, pools = recorder.tables()
    return Result(name, seed, queries, timeline, pools, {"wall_s": 0.5})


def _replication(
    recorder: Recorder, seed: int, replication: int, n: int, slow: float, idle: float
) -> None:
    rng = np.random.default_rng([seed, replication])
    policy = verifier = 0.0
    for index in range(n):
        careful = bool(rng.random() < 0.3)
        arrival, wait = index / 3.0, float(rng.exponential(0.4))
        service = float(rng.lognormal(2.0, 0.5)) * (4 if careful else 1)
        difficulty = float(rng.beta(4, 1))
        signal = float(rng.random())
        used, judged = service * 0.05, service * 0.02 if careful else 0.0
        policy, verifier = policy + used, verifier + judged
        tokens = int(service * 50) + 2
        recorder.add(
            "queries",
            **query(
                replication=replication,
                query_id=index,
                measured=index >= n // 10,
                arrival_s=arrival,
                tier="careful" if careful else "fast",
                output_tokens=tokens,
                trajectories=4 if careful else 1,
                scores=16 if careful else 0,
                first_token_s=arrival + wait * slow,
                first_answer_token_s=arrival + (wait + 0.9 * service) * slow,
                finish_s=arrival + (wait + service) * slow,
                verify_s=0.1 * service if careful else 0.0,
                correct=bool(rng.random() < difficulty),
                signal=signal,
                confidence=difficulty,
                accepted=not careful or difficulty >= 0.9,
                difficulty=difficulty,
                gpu_seconds=used + judged,
                policy_gpu_seconds=used,
                verifier_gpu_seconds=judged,
            ),
        )
    total = n / 3.0 + 20
    for pool, role, work, replicas in (
        ("thinker", "policy", policy, 2),
        ("judge", "verifier", verifier, 1),
    ):
        fleet = work / (1 - idle)
        recorder.add("pools", **pool_row(replication, pool, role, work, fleet, replicas, total))
        for step in range(20):
            recorder.add("timeline", **sample(replication, step * total / 20, pool))


def pool_row(
    replication: int, pool: str, role: str, work: float, fleet: float, replicas: int, total: float
) -> dict[str, Any]:
    """A row of the pools table that attributes `work` of `fleet` GPU-seconds."""
    return {
        "replication": replication, "pool": pool, "role": role, "replicas": replicas, "gpus": 1,
        "device": "h200-sxm-141gb", "span_s": total * 0.8, "busy_s": 0.5 * total * replicas,
        "total_s": total, "busy_gpu_seconds": work, "fleet_gpu_seconds": fleet,
        "attributed_gpu_seconds": work, "idle_gpu_seconds": fleet - work, "iterations": 1000,
        "regimes": 100, "branch_steps": 500, "num_preemptions": 3, "pages_total": 50_000,
        "pages_mean": 9_000.0, "pages_max": 21_000, "prefix_hit_tokens": 1_000,
        "computed_tokens": 9_000, "cost_label": "roofline (not measured on your GPU)",
        "cost_source_kind": "roofline",
    }  # fmt: skip


def sample(replication: int, time_s: float, pool: str, **changes: Any) -> dict[str, Any]:
    """One row of the timeline without a queue, with changes by column."""
    row: dict[str, Any] = {
        "replication": replication, "time_s": time_s, "pool": pool, "replica": 0, "running": 20,
        "waiting": 0, "pages_total": 50_000, "pages_pinned": 10_000, "pages_cached": 5_000,
        "pages_naive": 25_000, "active_searches": 9, "waiting_queries": 0,
    }  # fmt: skip
    row.update(changes)
    return row


def table(kind: str, *rows: dict[str, Any]) -> Table:
    """A table of the given kind from rows by column name."""
    recorder = Recorder()
    for row in rows:
        recorder.add(kind, **row)
    return dict(zip(("queries", "timeline", "pools"), recorder.tables(), strict=True))[kind]
