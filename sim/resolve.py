"""A scenario's names become things: devices, shapes, costs, page pools, questions, plans; or errors.

The loader checks form; here every device, model, preset and profile must exist, every model must fit,
and an absurd scenario is refused before it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hw.device import CatalogError, Device, device, device_from
from hw.importers import read_foreign
from hw.profile import Profile, ProfileError
from hw.profile import load as load_profile
from hw.rates import hourly, watts
from hw.shipped import default_profile, find_profile
from hw.transformer import Transformer, from_config, transformer
from models.controller import Controller, Fixed, Plan, PlanError, plan
from models.latency import CapacityError, LatencyError, StepCost, kv_pages, step_cost
from models.layer_cost import is_layered, layer_cost
from models.lengths import Quantile, quantile
from models.presets import PresetError
from models.question import QuestionModel, question_model
from models.search import ALGORITHMS, shape
from models.verifier import VerifierModel, verifier_model
from models.world import World
from scenarios.errors import UserError
from scenarios.loader import Loaded
from scenarios.schema import Pool, QueryClass, Scenario, Tier
from sim.batch import Settings
from sim.controllers import controller_of
from sim.trace import Trace
from sim.traces import Source
from sim.workload import horizon_s, source

MAX_BRANCH_STEPS = 3e8
"""A scenario that needs more is refused: at 30,000 a second and worker it would run for hours."""


@dataclass(frozen=True, slots=True)
class ResolvedPool:
    """A pool with everything that its replicas need."""

    name: str
    pool: Pool
    device: Device
    shape: Transformer
    cost: StepCost
    settings: Settings


@dataclass(frozen=True, slots=True)
class ResolvedClass:
    """A class of queries: how its questions come about and what judges them."""

    name: str
    questions: QuestionModel
    verifier: VerifierModel | None
    output_tokens: Quantile | None

    def world(self, key: int, tokens: int, given: int) -> World:
        """The question `key` with a prompt of `tokens`; answers have `given` tokens where a trace says so (> 0)."""
        return self.questions.world(
            key,
            tokens,
            self.verifier,
            output_tokens=self.output_tokens,
            output_tokens_given=given if given > 0 else None,
        )


@dataclass(frozen=True, slots=True)
class Onward:
    """Which answers of a tier are in doubt, and how they are searched for again."""

    below: float  # calibrated confidence
    plan: Plan


@dataclass(frozen=True, slots=True)
class Larger:
    """The pool that doubtful queries escalate to: its model's view of each class, and who goes there."""

    pool: ResolvedPool
    classes: tuple[ResolvedClass, ...]
    onward: tuple[Onward | None, ...]  # by tier


@dataclass(frozen=True, slots=True)
class Resolved:
    """A scenario ready to run."""

    loaded: Loaded
    policy: ResolvedPool
    judge: ResolvedPool | None
    classes: tuple[ResolvedClass, ...]
    plans: tuple[Plan, ...]  # by tier, in the scenario's order
    trace: Source | None
    controller: Controller = field(default_factory=Fixed)
    larger: Larger | None = None

    @property
    def scenario(self) -> Scenario:
        """The scenario as asked for."""
        return self.loaded.scenario

    @property
    def pools(self) -> tuple[ResolvedPool, ...]:
        """All pools: the policy's, the one to escalate to, the verifier's."""
        large = self.larger.pool if self.larger is not None else None
        return tuple(pool for pool in (self.policy, large, self.judge) if pool is not None)

    def onward(self, tier: int) -> Onward | None:
        """What becomes of a doubtful answer of a tier; None where it stays as it is."""
        return self.larger.onward[tier] if self.larger is not None else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """How big a run will be, for one replication and for all of them."""

    queries: float
    branch_steps: float
    memory_bytes: float
    replications: int


def resolve(loaded: Loaded) -> Resolved:
    """Look up everything a scenario names.

    Raises: UserError, with the place in the scenario, where something does not exist or does not fit.
    """
    scenario = loaded.scenario
    policies = [name for name, pool in scenario.fleet.items() if pool.role == "policy"]
    judges = [name for name, pool in scenario.fleet.items() if pool.role == "verifier"]
    for names, role, most in ((policies, "policy", 2), (judges, "verifier", 1)):
        if len(names) > most:
            raise UserError(
                f"{loaded.where(['fleet', names[most]])}: this version routes queries to at most {most} "
                f"{role} pool(s), and the fleet has {len(names)} ({', '.join(names)}); merge them"
            )
    if not policies:
        raise UserError(
            f"{loaded.where(['fleet'])}: the fleet has no policy pool, so nothing can think; "
            "add one, for example: thinker: {model: llama-3.1-8b, device: h200-sxm-141gb}"
        )
    plans = tuple(_plan(loaded, name, tier) for name, tier in scenario.tiers.items())
    larger = _larger(loaded, policies[1], plans, bool(judges)) if len(policies) > 1 else None
    again = {
        f"{name} (escalated)": item.plan
        for name, item in zip(
            scenario.tiers, larger.onward if larger is not None else (), strict=False
        )
        if item is not None
    }
    for name, chosen in (*zip(scenario.tiers, plans, strict=True), *again.items()):
        if ALGORITHMS[chosen.algorithm].needs_verifier and not judges:
            raise UserError(
                f"{loaded.where(['tiers', name, 'search'])}: {chosen.algorithm} scores its answers, and "
                "the fleet has no verifier pool; add one, for example: "
                "judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb}"
            )
    policy = _pool(loaded, policies[0])
    judge = _pool(loaded, judges[0]) if judges else None
    classes = tuple(
        _class(loaded, name, item, judge is not None)
        for name, item in scenario.workload.classes.items()
    )
    decides = controller_of(loaded, policy.cost, judge.cost if judge is not None else None)
    return Resolved(loaded, policy, judge, classes, plans, source(scenario), decides, larger)


def _larger(loaded: Loaded, name: str, plans: tuple[Plan, ...], judged: bool) -> Larger:
    """The second policy pool, its classes, and the tiers that escalate to it."""
    scenario = loaded.scenario
    onward: list[Onward | None] = []
    for (tier_name, tier), own in zip(scenario.tiers.items(), plans, strict=True):
        asked = tier.escalate
        if asked is None:
            onward.append(None)
            continue
        promised = tier.promise.confidence if tier.promise is not None else None
        below = asked.below if asked.below is not None else promised
        assert below is not None, "scenarios.rules asks for one of them"
        chosen = own
        if asked.search is not None:
            chosen = _plan(loaded, tier_name, tier.model_copy(update={"search": asked.search}))
        onward.append(Onward(below, chosen))
    classes = []
    for class_name, item in scenario.workload.classes.items():
        spec: dict[str, Any] = {"preset": item.preset} if item.preset is not None else {}
        spec |= item.question or {}
        found = _class(
            loaded,
            class_name,
            item.model_copy(update={"question": spec | (item.escalated or {}), "preset": None}),
            judged,
        )
        classes.append(found)
    return Larger(_pool(loaded, name), tuple(classes), tuple(onward))


def estimate(resolved: Resolved) -> Estimate:
    """Guess how much one replication simulates, from rates, shares and the tiers' searches.

    Raises: UserError where that is more than a machine could do.
    """
    scenario = resolved.scenario
    horizon = horizon_s(scenario)
    if isinstance(resolved.trace, Trace):
        queries = float(len(resolved.trace.arrival_s))
    else:
        queries = getattr(scenario.workload.arrivals, "rate", 0.0) * (horizon or 0.0)
    per_query = 0.0
    for index, (tier, chosen) in enumerate(
        zip(scenario.tiers.values(), resolved.plans, strict=True)
    ):
        again = resolved.onward(index)  # at the worst everybody goes on
        per_query += tier.share * (grown(chosen) + (grown(again.plan) if again is not None else 0))
    steps = queries * per_query
    if steps * scenario.replications > MAX_BRANCH_STEPS:
        raise UserError(
            f"{resolved.loaded.where(['workload', 'arrivals'])}: this scenario grows about "
            f"{steps * scenario.replications:.1e} branches, more than {MAX_BRANCH_STEPS:.0e}; lower the "
            "rate, horizon.measure or replications, or narrow the tiers' searches"
        )
    return Estimate(queries, steps, 1.2e8 + 1500.0 * queries, scenario.replications)


def grown(chosen: Plan) -> float:
    """Guess how many branches one query's search grows (step by step: eight steps deep)."""
    return shape(chosen.algorithm, chosen.params).branches


def _plan(loaded: Loaded, name: str, tier: Tier) -> Plan:
    search = tier.search
    limits = [search.max_tokens]
    if tier.promise is not None and tier.promise.budget is not None:
        limits += [tier.promise.budget.tokens, _affordable(loaded, name, tier)]
    known = [limit for limit in limits if limit is not None]
    try:
        chosen = plan(
            search.algorithm,
            min(known) if known else None,
            search.max_expansions,
            search.deadline_s,
            search.max_gpu_s,
            **search.parameters,
        )
    except PlanError as error:
        raise UserError(f"{loaded.where(['tiers', name, 'search'])}: {error}") from None
    budget = tier.promise.budget if tier.promise is not None else None
    asked = shape(chosen.algorithm, chosen.params).trajectories
    each = tier.price.per_trajectory if tier.price is not None else 0.0
    if budget is not None and budget.usd is not None and each * asked > budget.usd:
        raise UserError(
            f"{loaded.where(['tiers', name, 'promise', 'budget'])}: the tier charges {each:g} USD a "
            f"trajectory and its search {search.algorithm} finishes {asked}, more than {budget.usd:g} USD "
            "buy; raise the budget or narrow the search"
        )
    if budget is not None and budget.trajectories is not None and asked > budget.trajectories:
        raise UserError(
            f"{loaded.where(['tiers', name, 'promise', 'budget'])}: the tier promises at most "
            f"{budget.trajectories} trajectories and its search {search.algorithm} finishes {asked}; "
            "raise the budget or narrow the search"
        )
    return chosen


def _affordable(loaded: Loaded, name: str, tier: Tier) -> int | None:
    """How many output tokens a budget in USD buys at the tier's own prices; None where they cost nothing."""
    budget = tier.promise.budget if tier.promise is not None else None
    price = tier.price
    if budget is None or budget.usd is None or price is None:
        return None
    top = max(price.levels.values(), default=0.0)
    fixed = price.per_query + price.per_answer + price.per_outcome + top
    left = budget.usd - fixed
    if left < 0 or (price.per_mtok_out and left * 1e6 < price.per_mtok_out):
        raise UserError(
            f"{loaded.where(['tiers', name, 'promise', 'budget'])}: {budget.usd:g} USD buy no answer of "
            f"this tier, which charges {fixed:g} USD before its first token; raise the budget"
        )
    return int(left * 1e6 / price.per_mtok_out) if price.per_mtok_out else None


def _pool(loaded: Loaded, name: str) -> ResolvedPool:
    pool = loaded.scenario.fleet[name]
    at = ["fleet", name]
    where = loaded.where(at)
    try:
        where = loaded.where([*at, "device"])
        chosen = device(pool.device) if isinstance(pool.device, str) else device_from(pool.device)
        _priceable(loaded, chosen)
        where = loaded.where([*at, "model"])
        shape = _shape(loaded, pool.model)
        where = loaded.where([*at, "latency"])
        engine = pool.engine
        cost = _cost(pool, chosen, shape)
        where = loaded.where(at)
        pages = engine.num_gpu_blocks or kv_pages(
            shape,
            chosen,
            pool.tensor_parallel,
            engine.gpu_memory_utilization,
            engine.block_size,
            engine.max_num_batched_tokens,
            engine.max_num_seqs,
        )
    except (CatalogError, CapacityError, LatencyError, ProfileError, OSError) as error:
        raise UserError(f"{where}: {error}") from None
    settings = Settings(
        num_gpu_blocks=pages,
        block_size=engine.block_size,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_active_searches=engine.max_active_searches,
        sharing=pool.kv.sharing,
        fork=pool.kv.fork,
        attention=pool.kv.attention,
        reclaim=pool.kv.reclaim,
        enable_prefix_caching=engine.enable_prefix_caching,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        async_scheduling=engine.async_scheduling,
    )
    return ResolvedPool(name, pool, chosen, shape, cost, settings)


def _priceable(loaded: Loaded, chosen: Device) -> None:
    """Raise CatalogError where the terms that a scenario asks for have no known rate or power."""
    pricing = loaded.scenario.pricing
    if chosen.name not in pricing.device_rates:
        hourly(chosen, pricing.terms)
    if pricing.power is not None:
        watts(chosen)


def _cost(pool: Pool, chosen: Device, shape: Transformer) -> StepCost:
    """The step cost of a pool; with async_scheduling the CPU's gap between two steps is hidden."""
    profile, engine = _profile(pool, chosen, shape), pool.engine
    if engine.async_scheduling:
        chosen = replace(chosen, step_gap_s=0.0)
    if profile is not None and is_layered(profile):
        return layer_cost(
            profile, shape, chosen, pool.tensor_parallel, enforce_eager=engine.enforce_eager
        )
    if engine.enforce_eager:
        raise LatencyError(
            "enforce_eager is known only with a profile of layers timed one by one (LLMServingSim's): "
            "remove it, or name such a profile"
        )
    if profile is not None and engine.async_scheduling:
        ceilings = {k: v for k, v in profile.ceilings.items() if k != "step_gap_s"}
        profile = replace(profile, ceilings=ceilings)
    return step_cost(shape, chosen, profile, pool.tensor_parallel)


def _shape(loaded: Loaded, model: str | Mapping[str, Any]) -> Transformer:
    if isinstance(model, str):
        return transformer(model)
    path = Path(model["config"])
    if not path.is_absolute():
        path = Path(loaded.name).parent / path
    return from_config(path)


def _profile(pool: Pool, chosen: Device, shape: Transformer) -> Profile | None:
    latency = pool.latency
    if latency.kind == "roofline":
        return None
    if latency.profile is not None:
        given = Path(latency.profile)
        if given.is_dir():  # what others measured, read as it is
            return read_foreign(given, chosen, shape)
        return load_profile(find_profile(latency.profile))
    found = default_profile(chosen.name)
    if found is None and latency.kind == "profile":
        raise ProfileError(f"no profile of {chosen.name} ships: name one, or write kind: roofline")
    return load_profile(found) if found is not None else None


def _class(loaded: Loaded, name: str, item: QueryClass, judged: bool) -> ResolvedClass:
    at = ["workload", "classes", name]
    spec: str | dict[str, Any] = item.question or item.preset or "chat"
    if item.question is not None and item.preset is not None:
        spec = {"preset": item.preset} | item.question
    try:
        questions = question_model(spec)
        lengths = quantile(item.output_tokens) if item.output_tokens is not None else None
        verifier = verifier_model(questions.verifier) if judged else None
    except (PresetError, ValueError) as error:
        raise UserError(f"{loaded.where(at)}: {error}") from None
    return ResolvedClass(name, questions, verifier, lengths)
