"""One replication: arrivals meet the fleet in simulated time, and leave rows behind.

Also what a replication needs beforehand: how far a search's raw signal can be trusted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator
from itertools import product
from typing import Any

import simpy

from models.batch_rollout import batch_rollout, covers
from models.calibration import Calibrator
from models.controller import STAGED, Features, Plan, search_for
from models.keyed import root_keys
from models.rollout import rollout
from models.search import ALGORITHMS
from models.tree import Tree
from scenarios.errors import UserError
from sim.escalation import Escalations, elsewhere, in_doubt, together
from sim.fleet import Fleet
from sim.kv import DoesNotFitError
from sim.limits import watch
from sim.query import Thinking
from sim.records import Recorder, Result
from sim.replica import Replica
from sim.resolve import Resolved, ResolvedClass, ResolvedPool, grown
from sim.workload import Queries, chain, queries

Calibrators = dict[tuple[int, ...], Calibrator]
"""By class and tier; with a third number, ESCALATED, of the answers that the larger pool gave."""
ESCALATED = 1

_CALIBRATION, _DOUBTS = 3, 7  # random streams of the rollouts that calibrate confidence
_DECIDED = 1_000  # questions played to calibrate a class that a controller decides on
_CALIBRATION_BRANCHES = 25_000  # branches grown to calibrate one class in one tier,
_COLUMNS = 8  # times as many where they are grown in columns
_SAMPLES = 240  # of the timeline, over arrivals
_SLICES = 200  # of the horizon, between which progress is reported
_DRAIN = 1.0  # a run waits this many horizons for queries that arrived in time


# -- confidence -------------------------------------------------------------------------------------


def calibrate(
    resolved: Resolved, class_index: int, tier_index: int, escalated: int = 0
) -> Calibrator:
    """Fit signal -> confidence for one class in one tier, on questions that no run will meet.

    With `escalated` of the larger pool's answers to those questions whose first answer was in doubt.
    """
    if escalated:
        return _calibrate_escalated(resolved, class_index, tier_index)
    item = resolved.classes[class_index]
    chosen = resolved.plans[tier_index]
    decided = _decided(resolved, item, chosen, tokens=1, key=0)
    if decided.algorithm != chosen.algorithm:
        return _calibrate_decided(resolved, class_index, tier_index)
    branches = _CALIBRATION_BRANCHES * (_COLUMNS if covers(chosen) else 1)
    samples = int(min(5000, max(250, branches / grown(chosen))))
    keys = root_keys(resolved.scenario.seed, class_index * 1000 + tier_index, _CALIBRATION, samples)
    tokens = max(1, round(item.questions.prompt_tokens(0.5)))
    found = batch_rollout(item.questions, item.verifier, keys, chosen, item.output_tokens, tokens)
    kept = found.answered
    return Calibrator.fit(found.signal[kept], found.correct[kept])


def _decided(resolved: Resolved, item: ResolvedClass, tier: Plan, tokens: int, key: int) -> Plan:
    """What the controller gives a query when nothing waits."""
    return resolved.controller.plan(Features(tier, "", tokens, item.questions.name, key))


def _calibrate_decided(resolved: Resolved, class_index: int, tier_index: int) -> Calibrator:
    """`calibrate` where a controller decides query by query: each is played by its own search."""
    item, tier = resolved.classes[class_index], resolved.plans[tier_index]
    tokens = max(1, round(item.questions.prompt_tokens(0.5)))
    purpose = class_index * 1000 + tier_index
    signals, correct = [], []
    for key in root_keys(resolved.scenario.seed, purpose, _CALIBRATION, _DECIDED).tolist():
        world = item.world(key, tokens, -1)
        chosen = _decided(resolved, item, tier, tokens, key)
        outcome = rollout(search_for(chosen, Tree(world.root)), world, chosen.max_tokens)
        if outcome.answer is not None:
            signals.append(outcome.signal)
            correct.append(outcome.correct)
    return Calibrator.fit(signals, correct)


def _calibrate_escalated(resolved: Resolved, class_index: int, tier_index: int) -> Calibrator:
    first, onward = calibrate(resolved, class_index, tier_index), resolved.onward(tier_index)
    assert resolved.larger is not None
    assert onward is not None
    item, tier = resolved.classes[class_index], resolved.plans[tier_index]
    large = resolved.larger.classes[class_index]
    tokens = max(1, round(item.questions.prompt_tokens(0.5)))
    purpose = class_index * 1000 + tier_index
    signals, correct = [], []
    for key in root_keys(resolved.scenario.seed, purpose, _DOUBTS, _DECIDED).tolist():
        world = item.world(key, tokens, -1)
        chosen = _decided(resolved, item, tier, tokens, key)
        found = rollout(search_for(chosen, Tree(world.root)), world, chosen.max_tokens)
        if in_doubt(found, onward.below, first):
            world = elsewhere(large.world(key, tokens, -1))
            again = onward.plan
            found = rollout(search_for(again, Tree(world.root)), world, again.max_tokens)
            if found.answer is not None:
                signals.append(found.signal)
                correct.append(found.correct)
    return Calibrator.fit(signals, correct)


def calibrated(resolved: Resolved) -> list[tuple[int, ...]]:
    """What needs a calibrator: each class in each tier, and what it escalates to."""
    first = pairs(resolved)
    again = [(c, t, ESCALATED) for c, t in first if resolved.onward(t) is not None]
    return [*first, *again]


def pairs(resolved: Resolved) -> list[tuple[int, int]]:
    """Return the (class, tier) pairs that queries can have."""
    scenario = resolved.scenario
    return [
        (c, t)
        for (c, item), (t, tier) in product(
            enumerate(scenario.workload.classes.values()), enumerate(scenario.tiers)
        )
        if item.tiers is None or item.tiers.get(tier, 0.0) > 0.0
    ]


def calibrate_all(resolved: Resolved) -> Calibrators:
    """Every calibrator of a run."""
    return {key: calibrate(resolved, *key) for key in calibrated(resolved)}


# -- one replication ----------------------------------------------------------------------------------


def replicate(
    resolved: Resolved,
    replication: int,
    calibrators: Calibrators,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Simulate one replication."""
    began = time.perf_counter()
    thresholds = gc.get_threshold()
    gc.set_threshold(
        100_000, 50, 100
    )  # a search's tree is taken apart when it ends: little is cyclic
    try:
        result = _replicate(resolved, replication, calibrators, progress)
    finally:
        gc.set_threshold(*thresholds)
    result.meta["simulate_s"] = time.perf_counter() - began
    return result


def _replicate(
    resolved: Resolved,
    replication: int,
    calibrators: Calibrators,
    progress: Callable[[float], None] | None,
) -> Result:
    scenario = resolved.scenario
    demand = queries(scenario, replication, resolved.trace)
    env = simpy.Environment()
    larger = resolved.larger.pool if resolved.larger is not None else None
    fleet = Fleet(env, resolved.policy, resolved.judge, larger)
    recorder = Recorder()
    thinking: list[Thinking | None] = []
    last = float(demand.arrival_s[-1]) if len(demand) else 0.0
    horizon = scenario.horizon
    end = last if horizon.measure_s is None else horizon.warmup_s + horizon.measure_s
    escalations = Escalations(resolved, demand, fleet, thinking, calibrators)
    env.process(arrivals(env, resolved, demand, fleet, thinking, begun=escalations.watch))
    env.process(_timeline(env, fleet, recorder, replication, end / _SAMPLES))
    try:
        for step in range(1, _SLICES + 1):
            env.run(until=max(end, 1e-9) * step / _SLICES)
            if progress is not None:
                progress(0.9 * step / _SLICES)
        open_ = list(range(len(thinking)))
        for step in range(1, _SLICES + 1):
            open_ = [row for row in open_ if (q := thinking[row]) is not None and q.spent is None]
            if not open_:
                break
            env.run(until=end + max(end * _DRAIN, 60.0) * step / _SLICES)
            if progress is not None:
                progress(0.9 + 0.1 * step / _SLICES)
    except DoesNotFitError as error:
        message, pool = error.args
        raise UserError(f"{resolved.loaded.where(['fleet', pool])}: {message}") from None
    total_s = float(env.now)
    _record_queries(recorder, resolved, replication, demand, thinking, escalations, end)
    everybody = [query for query in (*thinking, *escalations.first.values()) if query is not None]
    for pool in resolved.pools:
        replicas = [one for one in fleet.replicas if one.pool == pool.name]
        recorder.pools.append(
            _pool_row(pool, replicas, replication, end - horizon.warmup_s, total_s, everybody)
        )
    tables = recorder.tables()
    meta = {
        "branch_steps": sum(
            replica.batch.branch_steps for replica in (*fleet.policy, *fleet.large)
        ),
        "provenance": demand.provenance,
    }
    return Result(scenario.name, scenario.seed, *tables, meta)


def arrivals(
    env: simpy.Environment,
    resolved: Resolved,
    demand: Queries,
    fleet: Fleet,
    thinking: list[Thinking | None],
    make: Callable[..., Thinking] = Thinking,
    begun: Callable[[Thinking], None] | None = None,
) -> Generator[simpy.Event, Any, Any]:
    """Let the queries of `demand` arrive and think, each made by `make`; None where it is refused.

    `begun` is told of each before it starts.
    """
    decide = resolved.controller
    plans = resolved.plans
    classes = resolved.classes
    block = resolved.policy.settings.block_size
    room = resolved.policy.settings.num_gpu_blocks * block
    streams = [  # nobody is shown an answer that may be withdrawn
        chosen.algorithm == "direct" and resolved.onward(tier) is None
        for tier, chosen in enumerate(plans)
    ]
    sheds = [tier.shed_above for tier in resolved.scenario.tiers.values()]
    scoring = {STAGED} | {name for name, known in ALGORITHMS.items() if known.needs_verifier}
    gpus = resolved.policy.cost.gpus
    judge_gpus = resolved.judge.cost.gpus if resolved.judge is not None else 0
    columns = zip(
        demand.arrival_s.tolist(),
        demand.class_index.tolist(),
        demand.tier_index.tolist(),
        demand.input_tokens.tolist(),
        demand.output_tokens_given.tolist(),
        demand.key.tolist(),
        strict=True,
    )
    for row, (arrival_s, item, tier, tokens, given, key) in enumerate(columns):
        if arrival_s > env.now:
            yield env.timeout(arrival_s - env.now)
        if tokens + 2 > room:  # no engine admits a prompt longer than its memory
            thinking.append(None)
            continue
        tokens = max(1, tokens)
        replica, judge = fleet.place(row, key)
        bearable = sheds[tier]
        if bearable is not None and replica.pressure() > bearable:
            thinking.append(None)
            continue
        world = classes[item].world(key, tokens, given)
        preset = classes[item].questions.name
        known = Features(plans[tier], demand.classes[item], tokens, preset, key, replica.pressure)
        chosen: Plan = decide.plan(known)
        prefix = chain(demand.prefix[row], tokens, block) if demand.prefix is not None else ()
        query = make(
            row,
            search_for(chosen, Tree(world.root)),
            world,
            replica,
            judge if chosen.algorithm in scoring else None,
            prefix,
            chosen.max_tokens,
            streams[tier],
            chosen.max_expansions,
        )
        thinking.append(query)
        if begun is not None:
            begun(query)
        replica.do(query.start)
        if chosen.deadline_s is not None or chosen.max_gpu_s is not None:
            watch(query, chosen, gpus, judge_gpus)


def _timeline(
    env: simpy.Environment, fleet: Fleet, recorder: Recorder, replication: int, every_s: float
) -> Generator[simpy.Event, Any, Any]:
    for _ in range(_SAMPLES):
        yield env.timeout(every_s)
        recorder.timeline.extend(fleet.timeline(replication))


def _record_queries(
    recorder: Recorder,
    resolved: Resolved,
    replication: int,
    demand: Queries,
    thinking: list[Thinking | None],
    escalations: Escalations,
    end: float,
) -> None:
    scenario = resolved.scenario
    warmup_s = scenario.horizon.warmup_s
    tiers = list(scenario.tiers.values())
    promises = [t.promise.confidence if t.promise is not None else None for t in tiers]
    by_score = [t.promise is not None and t.promise.basis == "score" for t in tiers]
    gpus = {pool.name: pool.cost.gpus for pool in resolved.pools}
    judge_gpus = resolved.judge.cost.gpus if resolved.judge is not None else 0
    pool = resolved.policy.name
    calibrators = escalations.calibrators
    nan = float("nan")
    add = recorder.queries.append
    for row in range(len(demand)):
        arrival_s = float(demand.arrival_s[row])
        item, tier = int(demand.class_index[row]), int(demand.tier_index[row])
        head = (
            replication, row, warmup_s <= arrival_s <= end, arrival_s,
            demand.classes[item], demand.tiers[tier],
        )  # fmt: skip
        tokens = int(demand.input_tokens[row])
        query = thinking[row] if row < len(thinking) else None
        if query is None:
            status = "refused" if row < len(thinking) else "unfinished"
            add((*head, status, tokens, 0, 0, 0, 0, 0, nan, nan, nan, nan, 0.0, False, nan, nan,
                 False, nan, 0, 0, 0.0, 0.0, 0.0, pool, 0.0, 0, pool, -1))  # fmt: skip
            continue
        spent = query.settle()
        first = escalations.first.get(row, query)
        started = spent if first is query else first.settle()
        key: tuple[int, ...] = (item, tier)
        shown_s = query.answer_start_s
        if first is not query:
            if spent.answer is not None:
                key = (item, tier, ESCALATED)
            else:
                shown_s = query.finish_s
            spent = together(started, spent)
        raw = confidence = nan
        accepted = False
        status = "unfinished"
        if spent.answered and query.finish_s == query.finish_s:
            status = "cut" if spent.cut else "answered"
            if spent.answer is not None and spent.signal == spent.signal:
                raw = spent.signal
                calibrated = calibrators[key].confidence(raw)
                confidence = raw if by_score[tier] else calibrated
                promised = promises[tier]
                accepted = promised is None or confidence >= promised
        first_s = policy_s = first.policy_s * gpus[pool]
        judge_s, verify_s = query.judge_s * judge_gpus, query.verify_s
        preemptions, pages = query.preemptions, query.peak_pages
        if first is not query:
            policy_s += query.policy_s * gpus[query.replica.pool]
            judge_s, verify_s = judge_s + first.judge_s * judge_gpus, verify_s + first.verify_s
            preemptions, pages = preemptions + first.preemptions, max(pages, first.peak_pages)
        add((*head, status, tokens, spent.tokens, spent.answer_tokens, spent.trajectories,
             spent.expansions, spent.scores, first.scheduled_s, first.first_token_s,
             shown_s, query.finish_s, verify_s, spent.correct, raw,
             confidence, accepted, first.difficulty, preemptions, pages,
             policy_s + judge_s, policy_s, judge_s, pool, first_s, started.tokens,
             query.replica.pool, query.replica.index))  # fmt: skip


def _pool_row(
    pool: ResolvedPool,
    replicas: list[Replica],
    replication: int,
    span_s: float,
    total_s: float,
    everybody: list[Thinking],
) -> tuple[Any, ...]:
    batches = [replica.batch for replica in replicas]
    gpus = pool.cost.gpus
    busy_s = sum(batch.busy_s for batch in batches)
    policy = pool.pool.role == "policy"
    if policy:
        attributed = gpus * sum(q.policy_s for q in everybody if q.replica.pool == pool.name)
    else:
        attributed = gpus * sum(query.judge_s for query in everybody)
    fleet_s = total_s * len(replicas) * gpus
    branch_steps = sum(batch.branch_steps for batch in batches)
    if not policy:
        branch_steps = sum(batch.prefills for batch in batches)
    return (
        replication, pool.name, pool.pool.role, len(replicas), gpus, pool.device.name, span_s, busy_s,
        total_s, busy_s * gpus, fleet_s, attributed, fleet_s - attributed,
        sum(batch.iterations for batch in batches), sum(batch.regimes for batch in batches),
        branch_steps, sum(batch.num_preemptions for batch in batches),
        pool.settings.num_gpu_blocks,
        sum(replica.pages_s for replica in replicas) / (total_s * len(replicas)) if total_s else 0.0,
        max(replica.pages_max for replica in replicas),
        sum(batch.hit_tokens for batch in batches), sum(batch.computed_tokens for batch in batches),
        pool.cost.label, pool.cost.source_kind,
    )  # fmt: skip
