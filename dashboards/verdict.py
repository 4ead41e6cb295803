"""What a run says in sentences: which objective is missed by how much, what binds, what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dashboards import words
from scenarios.schema import Scenario
from sim.bound import Binding, Bound
from sim.metrics import Target, TierMetrics
from sim.records import Result


def bounds_of(result: Result) -> list[Bound]:
    """The analytic bounds that the run noted in `meta["bounds"]` (each Bound as a dict)."""
    return [Bound(**row) for row in result.meta.get("bounds", ())]


def verdict(tiers: Iterable[TierMetrics]) -> list[str]:
    """One sentence per missed objective, or one that says that all hold."""
    tiers = list(tiers)
    lines = [f"MISSED: {_miss(tier, target)}" for tier in tiers for target in tier.missed]
    judged = [tier for tier in tiers if tier.targets]
    if not judged:
        return ["NO OBJECTIVE: no tier has an slo; nothing to hold or miss."]
    if not lines:
        few = [words.name(t.tier) for t in judged if not t.n]
        empty = f" ({words.sentence_of(few)}: no query to judge by)" if few else ""
        return [f"ALL HOLD: {count(len(judged), 'tier')} with objectives{empty}."]
    held = [words.name(tier.tier) for tier in judged if not tier.missed]
    return [*lines, *([f"HOLDS: {words.sentence_of(held)}."] if held else [])]


def _miss(tier: TierMetrics, target: Target) -> str:
    label = f"{target.metric.upper()} p{round(100 * target.quantile)}"
    if math.isinf(target.observed_s):
        by = "too many were never answered"
    else:
        late = target.observed_s - target.target_s
        by = f"{words.seconds(late)} too late"
    return (
        f"{words.name(tier.tier)} misses {label} {words.seconds(target.target_s)}: "
        f"{words.seconds(target.observed_s)}, {by} "
        f"({words.share(target.attained)} of {target.n:,} within)."
    )


def on_paper(bound: Bound) -> str:
    """One sentence on an analytic bound beside the fleet."""
    enough = "has" if bound.fleet >= bound.replicas else "has ONLY"
    return (
        f"{words.name(bound.pool)} needs at least {count(bound.replicas, 'replica')}, "
        f"{enough} {bound.fleet}: {bound.reason}"
    )


def next_command(
    command: str, scenario: Scenario, tiers: Iterable[TierMetrics], found: Binding
) -> str:
    """The command to run next, built on the one that made the run.

    One replica more where something binds; faster steps where an objective is missed and nothing
    binds; half as much load again where all hold.
    """
    missed = any(tier.missed for tier in tiers)
    if missed and found.constraint in ("none", "step_time"):
        pool = next(name for name, pool in scenario.fleet.items() if pool.role == "policy")
        parallel = 2 * scenario.fleet[pool].tensor_parallel
        return f"{command} --set fleet.{pool}.tensor_parallel={parallel}"
    if missed:
        replicas = scenario.fleet[found.pool].replicas + 1
        return f"{command} --set fleet.{found.pool}.replicas={replicas}"
    arrivals = scenario.workload.arrivals
    if arrivals.kind == "trace":
        return f"{command} --set workload.arrivals.speed={arrivals.speed * 1.5:.6g}"
    return f"{command} --set workload.arrivals.rate={arrivals.rate * 1.5:.6g}/s"


def count(n: int, what: str) -> str:
    """A count with its noun: 1 replica, 2 replicas."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
