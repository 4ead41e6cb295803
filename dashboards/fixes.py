"""What would mend a missed objective: changes of the scenario, what each costs an hour, and what it does on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dashboards import data, words
from dashboards.verdict import count
from models.controller import plan
from models.search import shape
from pricing.cost import rates
from scenarios.errors import UserError
from scenarios.loader import Loaded, loads
from scenarios.schema import Scenario, Search
from sim.bound import Binding, demand
from sim.metrics import answered, span_s
from sim.records import Result, Table, measured, select, size
from sim.resolve import Resolved, ResolvedPool, resolve
from sim.settle import Settled, settle

_ENOUGH = 100_000  # queries whose means stand for those of a longer run
_ASKED = ("measured", "status", "tier", "input_tokens", "output_tokens", "scores")
EDGE = 0.10  # how near an objective an estimate says nothing: played what-ifs were at most 9 % off


@dataclass(frozen=True, slots=True)
class Fix:
    """A change and its overrides; `usd_per_h` of the whole fleet, NaN where a rate is not known.

    `before` and `after` are the policy pool on paper: None before where the run itself has a lasting queue,
    None after where the change is of another pool. `essence` tells the run that plays it.
    """

    what: str
    settings: tuple[str, ...]
    gpus: int
    usd_per_h: float
    before: Settled | None
    after: Settled | None
    essence: str

    @property
    def fuller(self) -> bool:
        """Whether less of the batch is left for bursts than before, so that queues may grow."""
        if self.before is None or self.after is None:
            return True
        return self.after.share > self.before.share

    @property
    def ratio(self) -> float:
        """Step time after over before: what decoding takes on paper; NaN where there is no steady state."""
        before, after = self.before, self.after
        if before is None or after is None or before.full or after.full:
            return math.nan
        return after.step_s / before.step_s


def usd_per_h(scenario: Scenario) -> float:
    """What the fleet costs an hour, USD; NaN where the rate of a device is not known."""
    known = rates(scenario)
    each = (known[name] for name in scenario.fleet)
    return sum(
        (math.nan if rate is None else rate) * pool.replicas * pool.tensor_parallel
        for rate, pool in zip(each, scenario.fleet.values(), strict=True)
    )


def gpus(scenario: Scenario) -> int:
    """The GPUs of a fleet."""
    return sum(pool.replicas * pool.tensor_parallel for pool in scenario.fleet.values())


def changes(
    scenario: Scenario, tiers: Sequence[Mapping[str, Any]], found: Binding
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Candidates as (words, overrides); `tiers` are those of a run's summary, `found` is what binds it.

    Where all objectives hold, they are ways to do with less.
    """
    policy = next(name for name, pool in scenario.fleet.items() if pool.role == "policy")
    pool = found.pool if found.pool in scenario.fleet else policy
    now = scenario.fleet[pool]
    late = [t for tier in tiers for t in tier["targets"] if not t["met"]]
    if not late:
        for share in (0.75, 0.5):
            fewer = max(1, math.ceil(share * scenario.fleet[policy].replicas))
            if fewer < scenario.fleet[policy].replicas:
                yield (
                    f"{policy}: {count(fewer, 'replica')}",
                    (f"fleet.{policy}.replicas={fewer}",),
                )
        return
    if now.role == "policy" and (now.kv.sharing, now.kv.attention) != ("tree", "shared"):
        yield (
            f"{pool}: share KV along the tree",
            (f"fleet.{pool}.kv.sharing=tree", f"fleet.{pool}.kv.attention=shared"),
        )
    for limit in ("max_num_seqs", "max_active_searches"):
        if found.constraint == limit and (value := getattr(now.engine, limit)):
            yield f"{pool}: {limit} {2 * value}", (f"fleet.{pool}.engine.{limit}={2 * value}",)
    parallel = 2 * now.tensor_parallel
    if now.replicas % 2 == 0 and 2 * now.engine.max_num_seqs <= now.engine.max_num_batched_tokens:
        half = now.replicas // 2
        yield (
            f"{pool}: the same GPUs as {count(half, 'replica')} of {parallel}, each with twice the sequences",
            (
                f"fleet.{pool}.tensor_parallel={parallel}",
                f"fleet.{pool}.replicas={half}",
                f"fleet.{pool}.engine.max_num_seqs={2 * now.engine.max_num_seqs}",
            ),
        )
    yield (
        f"{pool}: tensor_parallel {parallel} ({parallel} GPUs a replica)",
        (f"fleet.{pool}.tensor_parallel={parallel}",),
    )
    for times in (1.5, 2.0):
        more = math.ceil(times * now.replicas)
        yield f"{pool}: {more} replicas", (f"fleet.{pool}.replicas={more}",)
    yield from _less(scenario, tiers)


def _less(
    scenario: Scenario, tiers: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Let the tier that misses most think half as wide."""
    worst = max(tiers, key=_lateness)
    name = str(worst["tier"])
    parameters = scenario.tiers[name].search.parameters
    for key in ("n", "width"):
        if _lateness(worst) > 1 and int(parameters.get(key, 1)) >= 2:
            half = int(parameters[key]) // 2
            yield (
                f"{name} thinks less: {key} {half} (its accuracy falls)",
                (f"tiers.{name}.search.{key}={half}",),
            )
            return


def _lateness(tier: Mapping[str, Any]) -> float:
    """The worst of a tier's latencies over its objective."""
    late = [
        math.inf if t["observed_s"] is None else t["observed_s"] / t["target_s"]
        for t in tier["targets"]
    ]
    return max(late, default=0.0)


def fixes(base: Resolved, text: str, result: Result, summary: Mapping[str, Any]) -> list[Fix]:
    """Every candidate that the catalogue and the cost model can answer; `text` is the resolved scenario."""
    bind = Binding(**summary["binding"])
    queue = bind.constraint not in ("none", "step_time")
    cascade = (
        base.larger is not None
    )  # two pools share each query: one of them on paper tells nothing
    offered = measured({name: result.queries[name] for name in _ASKED})
    rate = size(offered) / span_s(result)
    served = select(offered, answered(offered))
    served = {name: column[:: 1 + size(served) // _ENOUGH] for name, column in served.items()}
    before = _settled(base.scenario, base.scenario, base.policy, served, rate)
    found: list[Fix] = []
    for what, settings in changes(base.scenario, summary["tiers"], bind):
        try:
            loaded = loads(text, "resolved.yaml", settings)
            policy = _policy(base, loaded)
        except UserError:  # no such split of the model, say: then it is no candidate
            continue
        scenario = loaded.scenario
        after = _settled(base.scenario, scenario, policy, served, rate)
        told = (
            scenario.fleet[policy.name] != base.policy.pool or scenario.tiers != base.scenario.tiers
        )
        found.append(
            Fix(
                what, settings, gpus(scenario), usd_per_h(scenario),
                None if queue or cascade else before, after if told and not cascade else None,
                essence(loaded),
            )
        )  # fmt: skip
    return found


def _policy(base: Resolved, loaded: Loaded) -> ResolvedPool:
    """The policy pool of a changed scenario; steps cost what they did unless their model or GPUs change."""
    was = base.policy
    now = loaded.scenario.fleet[was.name]
    if (now.model, now.device, now.tensor_parallel) != (
        was.pool.model, was.pool.device, was.pool.tensor_parallel
    ):  # fmt: skip
        return resolve(loaded).policy
    settings = replace(was.settings, max_num_seqs=now.engine.max_num_seqs)
    return replace(was, pool=now, settings=settings)


def _settled(
    asked: Scenario, changed: Scenario, pool: ResolvedPool, served: Table, rate: float
) -> Settled:
    """The policy pool of a changed scenario under `rate` a second of the queries that a run served."""
    tokens = served["output_tokens"].astype(np.float64)
    for name, tier in changed.tiers.items():
        if tier.search != asked.tiers[name].search:
            tokens[served["tier"] == name] *= _branches(tier.search) / _branches(
                asked.tiers[name].search
            )
    need = demand({**served, "output_tokens": tokens}, changed, pool.pool, rate)
    return settle(
        need,
        pool.cost,
        replicas=pool.pool.replicas,
        kv_tokens=float(pool.settings.num_gpu_blocks * pool.settings.block_size),
        max_num_seqs=pool.settings.max_num_seqs,
    )


def _branches(search: Search) -> float:
    return shape(
        search.algorithm, plan(search.algorithm, None, **search.parameters).params
    ).branches


def judged(tiers: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Each objective of a run's summary: its name -> (observed, holds or MISSED)."""
    return {
        objective(tier, target): (
            "never" if target["observed_s"] is None else words.seconds(target["observed_s"]),
            "holds" if target["met"] else "MISSED",
        )
        for tier in tiers
        for target in tier["targets"]
    }


def projected(tiers: Sequence[Mapping[str, Any]], fix: Fix) -> dict[str, tuple[str, str]]:
    """As `judged`, on paper: latencies go with the time of a step; a queue's wait has no estimate."""
    nothing, found = "not estimated", {}
    if fix.after is not None:
        nothing = "too full on paper" if fix.after.full else "no queue on paper"
    for tier in tiers:
        for target in tier["targets"]:
            name, goal, was = objective(tier, target), target["target_s"], target["observed_s"]
            if was is None or math.isnan(fix.ratio):
                found[name] = ("", nothing)
            elif target["metric"] == "ttft" and fix.fuller:  # its queue may be another one
                found[name] = ("", "not estimated")
            else:
                then = was * fix.ratio
                state = "holds" if then <= goal else "MISSED"
                near = abs(then / goal - 1) < EDGE
                found[name] = (f"≈ {words.seconds(then)}", "on the edge" if near else state)
    return found


def objective(tier: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """An objective's name, such as "assured E2E p95 60.0 s"."""
    quantile = f"p{100 * target['quantile']:g}"
    goal = words.seconds(target["target_s"])
    return f"{words.name(str(tier['tier']))} {target['metric'].upper()} {quantile} {goal}"


def overall(found: Mapping[str, tuple[str, str]]) -> str:
    """One word for all objectives: the worst of their states."""
    order = (
        "MISSED",
        "too full on paper",
        "not estimated",
        "no queue on paper",
        "on the edge",
        "holds",
    )
    states = {state for _, state in found.values()}
    return next((word for word in order if word in states), "no objective")


def missing(found: Mapping[str, tuple[str, str]]) -> str:
    """The tiers that miss, as ": careful, assured"; empty where none does."""
    tiers = [name.rsplit(" ", 4)[0] for name, (_, state) in found.items() if state == "MISSED"]
    return f": {', '.join(dict.fromkeys(tiers))}" if tiers else ""


def essence(loaded: Loaded) -> str:
    """What decides a run, as `data.essence` reads it from a run's directory."""
    return data.essence(loaded.raw)
