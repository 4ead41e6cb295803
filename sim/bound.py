"""The replicas a load needs at the very least, on paper, and the constraint that binds in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from models import controller
from models.latency import StepCost
from models.search import shape
from scenarios.schema import Pool, Scenario, Search
from sim.estimate import mean
from sim.metrics import PoolMetrics, answered, pool_table, span_s, tier_table
from sim.records import Result, Table, measured, select, size

_FULL = 0.90  # share of pages pinned from which waiting is blamed on KV memory
_BUSY = 0.90  # load from which a pool without a queue still counts as its own limit
_WAITING = (
    0.25  # share of samples with a queue from which on it binds: what an M/M/1 at half load shows
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a pool is asked for: queries a second and means per query.

    `kv_token_steps` are tokens held times iterations held, over the life of a query;
    `read_token_steps` what its decode steps read of them.
    """

    rate_per_s: float
    prefill_tokens: float
    decode_tokens: float
    kv_token_steps: float = 0.0
    read_token_steps: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """At least `replicas` of a pool for a load; `fleet` is what the scenario has.

    `compute` and `kv` are the two bounds in (fractional) replicas, `batch` the branches of a full
    batch, `gpu_seconds` what a query costs in that batch.
    """

    pool: str
    replicas: int
    fleet: int
    compute: float
    kv: float
    batch: float
    gpu_seconds: float
    reason: str


def token_steps(prompt: float, tokens: float, width: int = 1, kept: int = 1) -> float:
    """KV-token-steps g of a query that grows `tokens` in `width` branches side by side.

    It holds the prompt once and `kept` paths for tokens/width iterations; one chain of o tokens on
    a prompt of s is o s + o (o + 1) / 2. Source: arXiv 2605.04595 (LLM capacity), 2026.
    """
    steps = tokens / width
    return steps * prompt + kept * steps * (steps + 1) / 2


def kv_throughput(kv_tokens: float, step_s: float, token_steps_per_query: float) -> float:
    """Most queries per second that KV memory lets through: M / (b E[g]).

    `kv_tokens` M is the pool of one replica, `step_s` b the time of an iteration. inf without need.
    Source: arXiv 2605.04595 (LLM capacity), 2026.
    """
    need = step_s * token_steps_per_query
    return kv_tokens / need if need > 0 else math.inf


def pool_bound(
    name: str,
    demand: Demand,
    cost: StepCost,
    *,
    kv_tokens: float,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    fleet: int,
) -> Bound:
    """Bound the replicas of one pool from below by the utilisation law and by KV-limited throughput.

    GPU time per query is what it takes in the largest batch that fits on average, queueing aside.
    Source: utilisation law U = X S (Denning and Buzen, Operational Analysis, 1978).
    """
    held = demand.kv_token_steps / demand.decode_tokens if demand.decode_tokens > 0 else 0.0
    fits = kv_tokens / held if held > 0 else math.inf
    batch = max(1.0, min(float(max_num_seqs), fits))
    b = max(1, round(batch))
    read = demand.read_token_steps / demand.decode_tokens if demand.decode_tokens > 0 else 0.0
    step_s = cost.base_s(b, 0) + cost.kv_s * read * b
    chunk = max(1, max_num_batched_tokens - b)
    prefill_s = max(0.0, cost.base_s(b, chunk) - cost.base_s(b, 0)) / chunk
    if demand.decode_tokens <= 0:
        prefill_s = cost.base_s(0, max_num_batched_tokens) / max_num_batched_tokens
    service_s = demand.decode_tokens * step_s / b + demand.prefill_tokens * prefill_s
    compute = demand.rate_per_s * service_s
    kv = demand.rate_per_s / kv_throughput(kv_tokens, step_s, demand.kv_token_steps)
    needed = max(1, math.ceil(max(compute, kv) - 1e-9))
    limit = "KV memory" if fits < max_num_seqs else "max_num_seqs"
    reason = (
        f"{demand.rate_per_s:.3g} queries/s x {service_s * cost.gpus:.3g} GPU-s each "
        f"in a full batch of {b} ({limit} is the limit)"
    )
    return Bound(name, needed, fleet, compute, kv, batch, service_s * cost.gpus, reason)


def width(search: Search) -> tuple[int, int]:
    """Branches that a search grows side by side, and how many paths it keeps between steps."""
    chosen = controller.plan(search.algorithm, None, **search.parameters)
    big = shape(chosen.algorithm, chosen.params)
    return big.side, big.kept


def demand(
    queries: Table, scenario: Scenario, pool: Pool, rate_per_s: float, *, escalated: bool = False
) -> Demand:
    """The mean demand of answered queries on a pool of the scenario (a verifier reads every token).

    `escalated`: it is the pool where they search again.
    """
    prompt, tokens = (
        queries[name].astype(np.float64) for name in ("input_tokens", "output_tokens")
    )
    if pool.role == "verifier":
        judged = queries["scores"] > 0
        return Demand(rate_per_s, mean(np.where(judged, prompt + tokens, 0.0)), 0.0)
    shared, read_once = pool.kv.sharing == "tree", pool.kv.attention == "shared"
    held, read = np.zeros_like(prompt), np.zeros_like(prompt)
    for name, tier in scenario.tiers.items():
        rows = queries["tier"] == name
        again = tier.escalate.search if escalated and tier.escalate is not None else None
        side, kept = width(again or tier.search)
        steps = tokens[rows] / side
        alone = prompt[rows] * tokens[rows] + tokens[rows] * (steps + 1) / 2
        together = steps * prompt[rows] + kept * steps * (steps + 1) / 2
        held[rows] = together if shared else alone
        read[rows] = together if shared and read_once else alone
    return Demand(rate_per_s, mean(prompt), mean(tokens), mean(held), mean(read))


def bounds(result: Result, scenario: Scenario, costs: Mapping[str, StepCost]) -> tuple[Bound, ...]:
    """A bound for every pool of the scenario whose step cost is given, from the queries of a run.

    Queries that were never answered count at the mean of those that were.
    """
    found = []
    second = [name for name, pool in scenario.fleet.items() if pool.role == "policy"][1:]
    offered = measured(result.queries)
    span = span_s(result)
    for name, pool in scenario.fleet.items():
        rows = result.pools["pool"] == name
        if name not in costs or not rows.any():
            continue
        mine = offered
        if pool.role == "policy":
            mine = _seen_at(offered, name)
        served = select(mine, answered(mine))
        if not size(served) or span <= 0:
            continue
        found.append(
            pool_bound(
                name,
                demand(served, scenario, pool, size(mine) / span, escalated=name in second),
                costs[name],
                kv_tokens=float(result.pools["pages_total"][rows][0]) * pool.engine.block_size,
                max_num_seqs=pool.engine.max_num_seqs,
                max_num_batched_tokens=pool.engine.max_num_batched_tokens,
                fleet=pool.replicas,
            )
        )
    return tuple(found)


def _seen_at(offered: Table, pool: str) -> Table:
    """The queries that worked in a policy pool, with the tokens that they generated there."""
    first, last = offered["first_pool"] == pool, offered["policy_pool"] == pool
    before = offered["first_output_tokens"]
    here = np.where(first, before, offered["output_tokens"] - before)
    return select({**offered, "output_tokens": here}, first | last)


def noted(result: Result, scenario: Scenario, costs: Mapping[str, StepCost]) -> Result:
    """The result with `bounds`, `cost_errors` and `cost_outside` (by pool) in its meta, for reports to read."""
    rows = [asdict(bound) for bound in bounds(result, scenario, costs)]
    errors = {name: cost.error for name, cost in costs.items()}
    outside = {name: _outside(result, scenario, name, cost) for name, cost in costs.items()}
    noted_ = {"bounds": rows, "cost_errors": errors, "cost_outside": outside}
    return replace(result, meta={**result.meta, **noted_})


def _outside(result: Result, scenario: Scenario, name: str, cost: StepCost) -> float | None:
    """The share of a pool's sampled batches that lie outside what was measured; None where nothing was."""
    if cost.domain is None:
        return None
    table, page = result.timeline, scenario.fleet[name].engine.block_size
    busy = (table["pool"] == name) & (table["running"] > 0)
    batches = zip(
        table["running"][busy].tolist(), table["pages_pinned"][busy].tolist(), strict=True
    )
    held = [cost.domain.holds(b, page * pages / b) for b, pages in batches]
    return 1.0 - sum(held) / len(held) if held else 0.0


@dataclass(frozen=True, slots=True)
class Binding:
    """What limits a run: kv, max_num_seqs, max_active_searches, compute, verifier, step_time or none.

    `step_time`: an objective is missed though nobody waits; decoding itself is too slow for it.

    `numbers` is the evidence behind the sentence: shares of samples in [0, 1].
    """

    constraint: str
    pool: str
    sentence: str
    numbers: dict[str, float]

    def __str__(self) -> str:
        return self.sentence


def binding(result: Result, scenario: Scenario) -> Binding:
    """Name the constraint that binds, from samples of the queues, the pages and the busy time."""
    pools = {row.pool: row for row in pool_table(result)}
    worst = max(
        (_queue(result, name, pool) for name, pool in scenario.fleet.items() if name in pools),
        key=lambda found: found[1]["waiting"],
        default=("", {"waiting": 0.0}),
    )
    name, numbers = worst
    if numbers["waiting"] >= _WAITING:
        return _blame(name, numbers, scenario.fleet[name])
    return _no_queue(result, scenario, list(pools.values()), numbers)


def _no_queue(
    result: Result, scenario: Scenario, pools: list[PoolMetrics], numbers: dict[str, float]
) -> Binding:
    """Without a queue only a pool near its capacity binds: an engine is busy with one sequence too.

    Its load is what the analytic bound says where the run noted one, else how full its batch is.
    """
    noted = {row["pool"]: max(row["compute"], row["kv"]) / row["fleet"]
             for row in result.meta.get("bounds", ())}  # fmt: skip
    evidence = []
    for row in pools:
        seqs = scenario.fleet[row.pool].engine.max_num_seqs if row.pool in scenario.fleet else 1
        samples = result.timeline["running"][result.timeline["pool"] == row.pool]
        running = mean(samples) if samples.size else 0.0
        load = noted.get(row.pool, running / seqs if row.utilisation >= _BUSY else 0.0)
        evidence.append((load, row, running, seqs))
    if not evidence:
        return Binding("none", "", "none: no pool was observed", numbers)
    load, row, running, seqs = max(evidence, key=lambda item: item[0])
    words = (
        f"busy {row.utilisation:.0%} of the time, {running:.0f} of {seqs} sequences on average, "
        f"{load:.0%} of its capacity on paper"
        if row.pool in noted
        else f"busy {row.utilisation:.0%} of the time, {running:.0f} of {seqs} sequences on average"
    )
    numbers = {**numbers, "busy": row.utilisation, "running": running, "load": load}
    if load >= _BUSY:
        if row.role == "verifier":
            return Binding("verifier", row.pool, f"{row.pool}: the verifier ({words})", numbers)
        what = f"{row.pool}: compute and bandwidth ({words})"
        return Binding("compute", row.pool, what, numbers)
    if any(tier.missed for tier in tier_table(result, scenario)):
        slow = [found for found in evidence if found[1].role == "policy"]
        _, row, running, _ = slow[0] if slow else (load, row, running, seqs)
        numbers = {**numbers, "step_s": _step_s(result, row.pool)}
        what = (
            f"{row.pool}: step time, not capacity: no lasting queue, but one token takes "
            f"{1000 * numbers['step_s']:.3g} ms with {running:.0f} sequences in the batch ({words})"
        )
        return Binding("step_time", row.pool, what, numbers)
    return Binding("none", "", f"none: no lasting queue; {row.pool} is {words}", numbers)


def _step_s(result: Result, pool: str) -> float:
    """The mean time of one iteration of a pool's engines, in s."""
    rows = select(result.pools, result.pools["pool"] == pool)
    iterations = float(rows["iterations"].sum())
    return float(rows["busy_s"].sum()) / iterations if iterations else 0.0


def _queue(result: Result, name: str, pool: Pool) -> tuple[str, dict[str, Any]]:
    """Shares of a pool's samples with a queue, and with what was exhausted while it stood."""
    rows = select(result.timeline, result.timeline["pool"] == name)
    n = size(rows)
    if not n:
        return name, {"waiting": 0.0}
    queue = (rows["waiting"] > 0) | (rows["waiting_queries"] > 0)
    full = queue & (rows["pages_pinned"] >= _FULL * rows["pages_total"]) & (rows["pages_total"] > 0)
    seqs = queue & ~full & (rows["running"] >= pool.engine.max_num_seqs)
    limit = pool.engine.max_active_searches
    searches = queue & ~full & ~seqs & (limit is not None)
    searches &= rows["active_searches"] >= (limit or 0)
    pinned = rows["pages_pinned"] / np.maximum(rows["pages_total"], 1)
    preempted = result.pools["num_preemptions"][result.pools["pool"] == name].sum()
    return name, {
        "waiting": float(queue.mean()),
        "kv": float(full.mean()),
        "max_num_seqs": float(seqs.mean()),
        "max_active_searches": float(searches.mean()),
        "compute": float((queue & ~full & ~seqs & ~searches).mean()),
        "pages_pinned": float(pinned.mean()),
        "preemptions": float(preempted),
    }


def _blame(name: str, numbers: dict[str, float], pool: Pool) -> Binding:
    kinds = ("kv", "max_num_seqs", "max_active_searches", "compute")
    kind = max(kinds, key=lambda item: numbers[item])
    engine = pool.engine
    words = {
        "kv": f"KV memory (pages {numbers['pages_pinned']:.0%} pinned on average, "
        f"{numbers['preemptions']:.0f} preemptions)",
        "max_num_seqs": f"max_num_seqs {engine.max_num_seqs} (the batch is full, memory is not)",
        "max_active_searches": f"max_active_searches {engine.max_active_searches}",
        "compute": "compute and bandwidth (prefill waits for the token budget)",
    }[kind]
    if pool.role == "verifier":
        kind, words = "verifier", f"the verifier: {words}"
    sentence = f"{name}: {words}; a queue stood in {numbers['waiting']:.0%} of the samples"
    return Binding(kind, name, sentence, numbers)
