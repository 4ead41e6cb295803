"""A rig: two models on one device under a mix of tree searches, played by the cost model or by real engines.

What the queries are is keyed by (seed, number): a prediction and a measurement meet the same ones, and random
weights do not matter. A policy and a verifier share the device and take turns, a tick each.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import simpy
from simpy.rt import RealtimeEnvironment

from hw.transformer import Transformer, transformer
from models.controller import plan, search_for
from models.keyed import root_key, stream_key, uniform
from models.question import question_model
from models.tree import Tree
from models.verifier import verifier_model
from sim.batch import Batch, Cost, Settings
from sim.executor import RealEngine
from sim.query import Thinking
from sim.renewal import renewal
from sim.stepper import Clock, Device, Log, Stepper, TickRow

ARRIVALS, QUERIES = 11, 12  # streams of a replay; those of a simulation are others
_MIX, _PROMPT = 96, 97  # purposes of a query's draws
MIX = (
    ("beam", {"width": 4, "expand": 4}),
    ("best_of_n", {"n": 8}),
    ("weighted_vote", {"n": 8}),
)


@dataclass(frozen=True, slots=True)
class Rig:
    """Two models, their engines' limits, and the questions that arrive (a spec for `question_model`)."""

    name: str
    policy: Transformer
    judge: Transformer
    policy_limits: Settings
    judge_limits: Settings
    questions: Mapping[str, Any]
    grid_repeats: int = 1  # of the grid that is measured first


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One query of a run: times in s; NaN where it did not get that far."""

    number: int
    algorithm: str
    arrival_s: float
    scheduled_s: float
    first_token_s: float
    finish_s: float
    tokens: int
    scores: int
    peak_pages: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind: its queries in order of arrival, its ticks in order of their beginnings."""

    queries: tuple[QueryRow, ...]
    ticks: tuple[TickRow, ...]
    pages_max: Mapping[str, int]  # pinned, by pool
    span_s: float  # until the last query was answered
    books_agree: bool  # each engine's own stack of free pages is the one that the replay kept


def _tiny(name: str, score_head: bool) -> Transformer:
    return Transformer(name, 2, 256, 4, 1, 128, 512, 1024, score_head=score_head)


def rig(name: str) -> Rig:
    """The rig for a device: cpu (two tiny models) or cuda (Llama-3.1-8B and Qwen2.5-Math-PRM-7B).

    Raises ValueError for another name.
    """
    if name == "cpu":
        short = {
            "preset": "math-500",
            "prompt_tokens": {"kind": "lognormal", "median": 100, "sigma": 0.4, "max": 400},
            "step_tokens": {"kind": "lognormal", "median": 12, "sigma": 0.5, "max": 60},
        }
        return Rig(
            name,
            _tiny("tiny", False),
            _tiny("tiny-prm", True),
            Settings(2_500, 16, 48, 512),
            Settings(2_500, 16, 48, 512),
            short,
        )
    if name == "cuda":
        # 10,000 and 12,000 pages of 16 tokens take 21 and 11 GB: with both models' weights, 60 GB in all.
        return Rig(
            name,
            transformer("llama-3.1-8b"),
            transformer("qwen2.5-math-prm-7b"),
            Settings(10_000, 16, 128, 2_048),
            Settings(12_000, 16, 128, 2_048),
            {"preset": "math-500"},
            grid_repeats=3,
        )
    raise ValueError(f"there is no rig for {name!r}; it is cpu or cuda")


def run(
    setup: Rig,
    costs: tuple[Cost, Cost],
    seed: int,
    rate: float,
    horizon_s: float,
    engines: tuple[RealEngine | None, RealEngine | None] = (None, None),
    *,
    clock: Clock = "charged",
    progress: Callable[[float, int, int], None] | None = None,
) -> Run:
    """Let queries arrive at `rate` a second for `horizon_s` and play them to their ends.

    A tick takes what `clock` says; `costs` (policy, judge) are what is charged for it. `progress` is told
    (time, arrived, answered) once a second of the environment's time.
    """
    env: simpy.Environment = (
        RealtimeEnvironment(strict=False) if clock == "wall" else simpy.Environment()
    )
    device, log = Device(), Log()
    policy, judge = (
        Stepper(env, Batch(limits, cost), name, engine, shape.vocab, device, log, clock=clock)
        for limits, cost, name, engine, shape in zip(
            (setup.policy_limits, setup.judge_limits), costs, ("policy", "judge"), engines,
            (setup.policy, setup.judge), strict=True,
        )
    )  # fmt: skip
    queries: list[tuple[str, Thinking]] = []
    env.process(_arrivals(env, setup, seed, rate, horizon_s, policy, judge, queries))
    if progress is not None:
        env.process(_reports(env, horizon_s, queries, progress))
    gc.collect()
    gc.disable()
    try:
        if isinstance(env, RealtimeEnvironment):
            env.sync()
        env.run()
    finally:
        gc.enable()
    rows = tuple(_row(algorithm, query) for algorithm, query in queries)
    assert all(row.finish_s == row.finish_s for row in rows), "a query was never answered"
    for stepper in (policy, judge):
        stepper.executor.pages.check()
    return Run(
        rows,
        tuple(log.ticks),
        {stepper.pool: stepper.pages_max for stepper in (policy, judge)},
        max((row.finish_s for row in rows), default=0.0),
        policy.books_agree() and judge.books_agree(),
    )


def _arrivals(
    env: simpy.Environment, setup: Rig, seed: int, rate: float, horizon_s: float,
    policy: Stepper, judge: Stepper, queries: list[tuple[str, Thinking]],
) -> Generator[simpy.Event, Any, Any]:  # fmt: skip
    model = question_model(setup.questions)
    verifier = verifier_model(model.verifier)
    points = renewal(stream_key(seed, 0, ARRIVALS), rate * horizon_s) / rate
    for number, arrival_s in enumerate(points.tolist()):
        if arrival_s > env.now:
            yield env.timeout(arrival_s - env.now)
        key = root_key(seed, 0, QUERIES, number)
        tokens = max(2, round(model.prompt_tokens(uniform(key, _PROMPT))))
        world = model.world(key, tokens, verifier)
        algorithm, parameters = MIX[int(uniform(key, _MIX) * len(MIX))]
        search = search_for(plan(algorithm, None, **parameters), Tree(world.root))
        query = Thinking(number, search, world, policy, judge, (), None, False)
        queries.append((algorithm, query))
        policy.do(query.start)


def _reports(
    env: simpy.Environment, horizon_s: float, queries: list[tuple[str, Thinking]],
    progress: Callable[[float, int, int], None],
) -> Generator[simpy.Event, Any, Any]:  # fmt: skip
    while True:
        yield env.timeout(1.0)
        answered = sum(query.spent is not None for _, query in queries)
        progress(env.now, len(queries), answered)
        if env.now > horizon_s and answered == len(queries):
            return


def _row(algorithm: str, query: Thinking) -> QueryRow:
    spent = query.settle()
    return QueryRow(
        query.row, algorithm, query.arrival_s, query.scheduled_s, query.first_token_s,
        query.finish_s, spent.tokens, spent.scores, query.peak_pages, query.preemptions,
    )  # fmt: skip
