"""One query of a run told again, step by step: what grew when, what was scored, pruned and answered.

A run keeps a row a query, no trees. But nothing in a run is left to chance, so the same scenario,
replication and query number give the very same tree at the very same times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from models.session import Work, node_path
from models.tree import Node
from scenarios.errors import UserError
from sim.escalation import Escalations
from sim.fleet import Fleet
from sim.kv import KvNode
from sim.query import Thinking
from sim.replication import Calibrators, arrivals, calibrate, pairs
from sim.resolve import Resolved
from sim.workload import queries

Fate = Literal["answer", "finished", "pruned", "cancelled", "expanded"]
_SLICE_S = 5.0  # of simulated time, between which we look whether the query is over


@dataclass(frozen=True, slots=True)
class Step:
    """One branch of the tree: what it grew and when; times in s after the query's arrival.

    `asked_s` is when the search asked for it, `end_s` its last token, NaN where that never came; between
    them it waits, is prefilled and decodes. `score` is the verifier's, known at `scored_s`.
    `path_tokens` are those from the start of the prompt to its end.
    """

    name: str
    parent: str
    depth: int
    tokens: int
    path_tokens: int
    asked_s: float
    end_s: float
    score: float
    scored_s: float
    dropped_s: float
    fate: Fate
    correct: bool | None


@dataclass(frozen=True, slots=True)
class Story:
    """One query: its steps in the order of the tree, its KV pages over time, and how it ended.

    `pages` are (s after arrival, unique pages, pages without sharing); `first_s`, `finish_s` are NaN
    when that never came.
    """

    row: int
    tier: str
    klass: str
    replica: int
    prompt_tokens: int
    difficulty: float
    first_s: float
    finish_s: float
    correct: bool
    steps: tuple[Step, ...]
    pages: tuple[tuple[float, int, int], ...]


class _Told(Thinking):
    """A query that remembers when what happened."""

    __slots__ = ("asked", "dropped", "ended", "held", "scored")

    def remember(self) -> None:
        """Keep everything from now on, before it starts."""
        self.keep = True
        self.asked: dict[Node, float] = {}
        self.ended: dict[Node, float] = {}
        self.scored: dict[Node, float] = {}
        self.dropped: dict[Node, float] = {}
        self.held: list[tuple[float, int, int]] = []

    def finished(self, branch: KvNode) -> None:
        times = self.ended if branch.owner.pending.kind == "grow" else self.scored
        times.setdefault(branch.owner.node, self.replica.env.now)
        super().finished(branch)
        self._count()

    def _ask_to_grow(self, works: list[Work]) -> None:
        for work in works:
            self.asked[work.node] = self.replica.env.now
        super()._ask_to_grow(works)

    def _drop(self, nodes: Iterable[Node]) -> None:
        nodes = list(nodes)
        for node in nodes:
            self.dropped.setdefault(node, self.replica.env.now)
        super()._drop(nodes)

    def _count(self) -> None:
        """Note the pages that its tree holds when everything is resident, and without sharing."""
        if self.root is None or self.root.query.gone:
            return
        size = self.replica.batch.block_size
        growing = [node for node in self.asked if node not in self.ended]
        naive = sum(-(-node.path_tokens // size) for node in growing)
        self.held.append((self.replica.env.now - self.arrival_s, self.root.query.pages, naive))


def retell(
    resolved: Resolved,
    row: int,
    replication: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Story:
    """Simulate a replication until query `row` is over, and return what became of it.

    Of a query that escalated its first search is told.

    `progress` is called with the share of the way to its arrival. Raises: UserError where the
    replication has no such query, or its prompt was refused.
    """
    demand = queries(resolved.scenario, replication, resolved.trace)
    if not 0 <= row < len(demand):
        raise UserError(
            f"Replication {replication} has queries 0 to {len(demand) - 1}; there is no {row}."
        )
    env = simpy.Environment()
    larger = resolved.larger.pool if resolved.larger is not None else None
    fleet = Fleet(env, resolved.policy, resolved.judge, larger)
    thinking: list[Thinking | None] = []
    known: Calibrators = {
        pair: calibrate(resolved, *pair)
        for pair in pairs(resolved)
        if resolved.onward(pair[1]) is not None
    }
    escalations = Escalations(resolved, demand, fleet, thinking, known)

    def make(number: int, *given: Any) -> Thinking:
        if number != row:
            return Thinking(number, *given)
        told = _Told(number, *given)
        told.remember()
        return told

    env.process(arrivals(env, resolved, demand, fleet, thinking, make, escalations.watch))
    arrival = float(demand.arrival_s[row])
    last = float(demand.arrival_s[-1])
    while len(thinking) <= row and env.now <= last:
        env.run(until=env.now + _SLICE_S)
        if progress is not None and arrival > 0:
            progress(min(1.0, env.now / arrival))
    told = escalations.first.get(row, thinking[row]) if len(thinking) > row else None
    if not isinstance(told, _Told):
        raise UserError(
            f"Query {row} was refused: its prompt does not fit the memory of a replica, or its tier "
            "sheds load (shed_above)."
        )
    limit = env.now + 2 * last + 3600.0
    while math.isnan(told.finish_s) and env.now < limit and env.peek() < math.inf:
        env.run(until=env.now + _SLICE_S)
    return _story(told, demand, row)


def trace(story: Story) -> dict[str, Any]:
    """The story in the Trace Event Format, which Perfetto and chrome://tracing open. Times in us.

    Source: Google, Trace Event Format, 2016, "X" (complete) and "C" (counter) events.
    """
    events: list[dict[str, Any]] = []
    free: list[float] = []  # per lane, when its last branch ended
    for step in sorted(story.steps, key=lambda step: (step.asked_s, step.name)):
        begin = step.asked_s
        end = next((t for t in (step.end_s, step.dropped_s) if not math.isnan(t)), begin)
        lane = next((i for i, ended in enumerate(free) if ended <= begin), len(free))
        free[lane:] = [end, *free[lane + 1 :]]
        shown = {
            "tokens": step.tokens,
            "score": None if math.isnan(step.score) else round(step.score, 4),
            "fate": step.fate,
            "correct": step.correct,
        }
        events.append(_event(step.name, begin, end, lane, shown))
    for at, pages, naive in story.pages:
        counts = {"unique": pages, "without sharing": naive}
        counter = {"name": "KV pages", "ph": "C", "ts": at * 1e6, "pid": 1, "args": counts}
        events.append(counter)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(name: str, begin: float, end: float, lane: int, shown: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "ph": "X", "ts": begin * 1e6, "dur": max(0.0, end - begin) * 1e6,
        "pid": 1, "tid": lane + 1, "args": shown,
    }  # fmt: skip


def _story(told: _Told, demand: Any, row: int) -> Story:
    session = told.session
    answer = session.answer
    winner = answer.node if answer is not None else None
    winning: set[Node] = set()
    at = winner
    while at is not None:
        winning.add(at)
        at = at.parent
    nodes = sorted(told.asked, key=node_path)
    expanded = {node.parent for node in nodes}
    steps = tuple(_step(told, node, winning, expanded) for node in nodes)
    began = told.arrival_s
    return Story(
        row,
        str(demand.tiers[int(demand.tier_index[row])]),
        str(demand.classes[int(demand.class_index[row])]),
        told.replica.index,
        told.world.root.tokens,
        told.difficulty,
        told.first_token_s - began,
        told.finish_s - began,
        told.world.is_correct(answer.answer) if answer is not None else False,
        steps,
        tuple(told.held),
    )


def _step(told: _Told, node: Node, winning: set[Node], expanded: set[Node | None]) -> Step:
    began = told.arrival_s
    ended = told.ended.get(node, math.nan)
    dropped = min((told.dropped[one] for one in _up(node) if one in told.dropped), default=math.nan)
    fate: Fate = "finished"
    if node in winning:
        fate = "answer"
    elif math.isnan(ended):
        fate = "cancelled"
    elif node in expanded:
        fate = "expanded"
    elif not node.done or not math.isnan(dropped):
        fate = "pruned"
    path = node_path(node)
    return Step(
        ".".join(map(str, path)),
        ".".join(map(str, path[:-1])),
        len(path),
        node.tokens,
        node.path_tokens,
        told.asked[node] - began,
        ended - began,
        node.score,
        told.scored.get(node, math.nan) - began,
        dropped - began,
        fate,
        told.world.is_correct(node.answer) if node.done else None,
    )


def _up(node: Node | None) -> Iterable[Node]:
    while node is not None:
        yield node
        node = node.parent
