"""Scenario -> the queries of one replication: when each arrives, its class and tier, and how long it is.

What a query is depends only on (seed, replication, its number): a what-if that changes the fleet, a
search or the rate meets the same queries, so that two runs can be compared pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import i0e

from models.keyed import Keys, root_keys, stream_key, uniform_array
from models.lengths import Quantile, quantile
from models.question import question_model
from scenarios.arrivals import Arrivals, Diurnal, Gamma, Poisson, TraceReplay
from scenarios.errors import UserError
from scenarios.schema import QueryClass, Scenario
from sim.renewal import Floats, renewal
from sim.trace import Ints, Trace
from sim.traces import Source, read_source, requests

Prefix = tuple[
    tuple[int | str, int], ...
]  # (content, tokens) of each shareable piece, from the start

# streams of a replication, each with a root key of its own
ARRIVALS: Final = 1
QUERIES: Final = 2

# purposes of the draws of one query; models/question.py uses others of the same key
_PROMPT: Final = 48
_CLASS: Final = 49
_TIER: Final = 50

MAX_QUERIES: Final = 5_000_000
_STEPS: Final = 1440  # of the smooth daily shape: one a minute


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of one replication in order of arrival, as columns of shape (n,).

    `class_index` and `tier_index` index `classes` and `tiers` (names in the scenario's order).
    `input_tokens` is the whole prompt: a class's `shared_prefix_tokens` come on top of its
    `prompt_tokens`, but are part of a prompt whose length a trace recorded. `output_tokens_given` is what a
    trace recorded, -1 where the question model draws the length. `prefix[i]` lists the pieces of the
    prompt that other queries may share, in order, as (content, tokens), with at most `input_tokens[i]`
    tokens in all; None when no query has one. `key` names the query for every later draw.
    """

    arrival_s: Floats
    class_index: npt.NDArray[np.int32]
    tier_index: npt.NDArray[np.int32]
    input_tokens: Ints
    output_tokens_given: Ints
    key: Keys
    prefix: list[Prefix] | None
    classes: tuple[str, ...]
    tiers: tuple[str, ...]
    provenance: str  # generated | raw | sampled | scaled

    def __len__(self) -> int:
        return len(self.arrival_s)


def horizon_s(scenario: Scenario) -> float | None:
    """Simulated time in s in which queries arrive: warm-up and measurement; None is a whole trace."""
    horizon = scenario.horizon
    return None if horizon.measure_s is None else horizon.warmup_s + horizon.measure_s


def source(scenario: Scenario) -> Source | None:
    """The trace that the scenario replays, to be read once for all replications. Raises UserError."""
    spec = scenario.workload.arrivals
    return read_source(spec.path, spec.format) if isinstance(spec, TraceReplay) else None


def queries(scenario: Scenario, replication: int, trace: Source | None = None) -> Queries:
    """All queries of one replication (from 0); `trace` is `source(scenario)` when already read.

    Raises UserError for a bad trace, an unknown preset, or more than MAX_QUERIES.
    """
    spec = scenario.workload.arrivals
    key = stream_key(scenario.seed, replication, ARRIVALS)
    replayed: Trace | None = None
    if isinstance(spec, TraceReplay):
        if trace is None:
            trace = read_source(spec.path, spec.format)
        replayed = replay(spec, trace, horizon_s(scenario), key)
        arrival_s = replayed.arrival_s
        numbers = replayed.row
    else:
        arrival_s = arrivals(spec, horizon_s(scenario), key)
        numbers = np.arange(len(arrival_s))
    count = int(numbers[-1]) + 1 if len(numbers) else 0
    keys = root_keys(scenario.seed, replication, QUERIES, count)[numbers]
    class_index = _classes(scenario, keys)
    tokens, given, prefix = _lengths(scenario, keys, class_index, replayed)
    return Queries(
        arrival_s=arrival_s,
        class_index=class_index,
        tier_index=_tiers(scenario, keys, class_index),
        input_tokens=tokens,
        output_tokens_given=given,
        key=keys,
        prefix=prefix,
        classes=tuple(scenario.workload.classes),
        tiers=tuple(scenario.tiers),
        provenance=replayed.provenance if replayed is not None else "generated",
    )


def arrivals(spec: Arrivals, horizon_s: float | None, seed_key: int) -> Floats:
    """Arrival times in s, ascending, in [0, horizon_s); None is allowed for a trace and means all of it.

    A unit-rate process stretched by the rate: the same key at twice the rate gives the same points in
    half the time. Raises UserError for a bad trace, a missing horizon, or more than MAX_QUERIES.
    """
    if isinstance(spec, TraceReplay):
        return replay(spec, read_source(spec.path, spec.format), horizon_s, seed_key).arrival_s
    if horizon_s is None:
        raise UserError(
            "horizon.measure: null means a whole trace, but the arrivals are generated; "
            "write a time, for example measure: 10min"
        )
    if spec.rate * horizon_s > MAX_QUERIES:
        raise UserError(
            f"workload.arrivals.rate: {spec.rate:g}/s for {horizon_s:g} s is more than {MAX_QUERIES:,} "
            "queries in one replication; lower the rate or horizon.measure"
        )
    if isinstance(spec, Poisson):
        return renewal(seed_key, spec.rate * horizon_s) / spec.rate
    if isinstance(spec, Gamma):
        return renewal(seed_key, spec.rate * horizon_s, "gamma", spec.cv**-2) / spec.rate
    times, load = _cumulative(spec, horizon_s)
    points = renewal(seed_key, float(load[-1]), "gamma", spec.cv**-2)
    return np.interp(points, load, times)


def replay(spec: TraceReplay, trace: Source, horizon_s: float | None, key: int) -> Trace:
    """The requests of a trace from `start_s` on, with time divided by `speed`, starting at 0.

    Cut at `horizon_s` and after `limit` requests. Raises UserError when nothing is left.
    """
    span = math.inf if horizon_s is None else horizon_s * spec.speed
    found = requests(trace, key, spec.start_s, spec.start_s + span)
    if spec.limit is not None:
        found = found.take(slice(spec.limit))
    if not len(found):
        until = "its end" if horizon_s is None else f"{spec.start_s + span:g} s"
        raise UserError(
            f"{spec.path}: no request arrives between {spec.start_s:g} s and {until}; "
            "lower workload.arrivals.start or raise horizon.measure"
        )
    return found.scaled(spec.start_s, spec.speed)


def _cumulative(spec: Diurnal, horizon_s: float) -> tuple[Floats, Floats]:
    """Times in s from 0 to horizon_s, and the expected arrivals up to each; linear in between."""
    shape = _hourly_shape(spec.hourly) if spec.hourly else _smooth_shape(spec.peak_to_mean or 1.0)
    steps = len(shape)
    step_s = spec.period_s / steps
    first = spec.start_hour / 24.0 * steps  # in steps, the place in the day of time 0
    if horizon_s / step_s > MAX_QUERIES:
        raise UserError(
            f"workload.arrivals.period: {spec.period_s:g} s is too short for a horizon of "
            f"{horizon_s:g} s; use a longer period"
        )
    edges = np.arange(math.floor(first), math.ceil(first + horizon_s / step_s) + 1)
    times = (edges - first) * step_s
    load = np.append(0.0, np.cumsum(shape[edges[:-1] % steps])) * step_s * spec.rate
    inside = np.append(0.0, np.append(times[(times > 0) & (times < horizon_s)], horizon_s))
    at = np.interp(inside, times, load)
    return inside, at - at[0]


def day(spec: Diurnal) -> Floats:
    """The mean arrival rate in each hour of a day from hour 0, 1/s, shape (24,)."""
    shape = _hourly_shape(spec.hourly) if spec.hourly else _smooth_shape(spec.peak_to_mean or 1.0)
    return np.asarray(spec.rate * shape.reshape(24, -1).mean(axis=1))


def _hourly_shape(hourly: tuple[float, ...]) -> Floats:
    rates = np.asarray(hourly, dtype=np.float64)
    shape: Floats = rates / rates.mean()
    return shape


def _smooth_shape(peak_to_mean: float) -> Floats:
    """A smooth day of mean 1 with its peak at hour 12: exp(k cos(angle)) / I0(k), never negative."""
    from scipy.optimize import brentq  # slow to import, and most scenarios have no such day

    if peak_to_mean <= 1.0:
        return np.ones(_STEPS)
    k = brentq(lambda k: 1.0 / i0e(k) - peak_to_mean, 0.0, 10.0 * peak_to_mean**2)
    angle = (np.arange(_STEPS) + 0.5) * (2.0 * math.pi / _STEPS) - math.pi
    shape = np.exp(k * (np.cos(angle) - 1.0))
    smooth: Floats = shape / shape.mean()
    return smooth


def _classes(scenario: Scenario, keys: Keys) -> npt.NDArray[np.int32]:
    shares = {name: item.share for name, item in scenario.workload.classes.items()}
    return _choose(keys, _CLASS, shares, tuple(shares))


def _tiers(
    scenario: Scenario, keys: Keys, class_index: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Each query's tier, by its class's own shares where the class has them."""
    names = tuple(scenario.tiers)
    common = {name: tier.share for name, tier in scenario.tiers.items()}
    chosen = np.empty(len(keys), np.int32)
    for i, item in enumerate(scenario.workload.classes.values()):
        own = class_index == i
        chosen[own] = _choose(keys[own], _TIER, item.tiers or common, names)
    return chosen


def _choose(
    keys: Keys, purpose: int, shares: Mapping[str, float], names: tuple[str, ...]
) -> npt.NDArray[np.int32]:
    """Index into `names` for each key, with the given shares; a name without a share is never chosen.

    A race of exponential clocks, one per name with its own draws: raising one share against the
    others moves queries only to that name, and the order of names does not matter.
    """
    running = [(i, name) for i, name in enumerate(names) if shares.get(name, 0.0) > 0.0]
    assert running, "shares of zero are refused when the scenario is loaded"
    rings = np.stack(
        [-np.log(uniform_array(keys, _purpose(purpose, n))) / shares[n] for _, n in running]
    )
    first = np.asarray([i for i, _ in running], dtype=np.int32)
    chosen: npt.NDArray[np.int32] = first[np.argmin(rings, axis=0)]
    return chosen


def _purpose(purpose: int, name: str) -> int:
    """The purpose of a draw for one name: 64 bits, the same in every process."""
    return int.from_bytes(blake2b(f"{purpose}:{name}".encode(), digest_size=8).digest(), "big")


def _lengths(
    scenario: Scenario, keys: Keys, class_index: npt.NDArray[np.int32], trace: Trace | None
) -> tuple[Ints, Ints, list[Prefix] | None]:
    """Input tokens, given output tokens and prefixes; a class's own lengths beat a trace's."""
    given = np.full(len(keys), -1, np.int64)
    tokens = np.ones(len(keys), np.int64)
    prefix: list[Prefix] | None = None
    classes = scenario.workload.classes
    if trace is not None:
        tokens[:], given[:] = trace.input_tokens, trace.output_tokens
        prefix = _blocks(trace)
    if prefix is None and any(item.shared_prefix_tokens for item in classes.values()):
        prefix = [()] * len(keys)
    for i, (name, item) in enumerate(classes.items()):
        own = np.flatnonzero(class_index == i)
        if item.output_tokens is not None:
            given[own] = -1
        shared = item.shared_prefix_tokens
        if trace is None or item.prompt_tokens is not None:
            draws = uniform_array(keys[own], _PROMPT)
            draw = _prompt(name, item)
            drawn = np.asarray([draw(u) for u in draws.tolist()], dtype=np.float64)
            tokens[own] = np.maximum(np.rint(drawn), 1.0).astype(np.int64) + shared
            if prefix is not None:
                piece: Prefix = ((name, shared),) if shared else ()
                for q in own.tolist():
                    prefix[q] = piece
        elif shared and prefix is not None and trace.prefix_blocks is None:
            for q in own.tolist():
                held = min(shared, int(tokens[q]) - 1)
                prefix[q] = ((name, held),) if held else ()
    return tokens, given, prefix


def _prompt(name: str, item: QueryClass) -> Quantile:
    """The quantile function of the class's own prompt length, from its question's preset by default."""
    spec = {**({"preset": item.preset} if item.preset else {}), **(item.question or {})}
    try:
        if item.prompt_tokens is not None:
            return quantile(item.prompt_tokens)
        prompt: Quantile = question_model(spec).prompt_tokens
    except ValueError as error:
        raise UserError(f"workload.classes.{name}: {error}") from error
    return prompt


def _blocks(trace: Trace) -> list[Prefix] | None:
    """Each prompt's hashed blocks as (hash, tokens); the last holds what is left of the prompt."""
    if trace.prefix_blocks is None:
        return None
    size = trace.block_size
    whole: dict[int, tuple[int | str, int]] = {}
    chains: list[Prefix] = []
    for blocks, tokens in zip(trace.prefix_blocks, trace.input_tokens.tolist(), strict=True):
        chain = [whole.get(h) or whole.setdefault(h, (h, size)) for h in blocks]
        if (rest := tokens - size * (len(blocks) - 1)) < size and blocks:
            chain[-1] = (blocks[-1], rest)
        chains.append(tuple(chain))
    return chains


def chain(pieces: Prefix, tokens: int, block: int) -> tuple[tuple[Hashable, int], ...]:
    """Cut a chain of shared pieces to whole pages that leave at least one token of the prompt."""
    found = []
    room = (tokens - 1) // block * block
    for key, length in pieces:
        whole = min(length // block * block, room)
        if not whole:
            break
        found.append(((key, whole), whole))
        room -= whole
        if whole < length:
            break
    return tuple(found)
