"""A replica that really works: every tick runs on an engine, and takes as long as it takes.

To a search it is a `Replica`. Replicas on one device take turns, a tick each, in the order in which they ask.
A tick takes what the cost model charges (on any engine, or none), or what it took on the wall, or what this
process computed for it: where others use the same cores, the wall measures them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic, process_time
from typing import Any, Literal

import simpy
from simpy.rt import RealtimeEnvironment

from sim.batch import Batch
from sim.executor import Executor, Played, RealEngine
from sim.kv import DoesNotFitError, KvNode
from sim.replica import Replica

Clock = Literal["charged", "wall", "cpu"]


@dataclass(slots=True)
class Device:
    """What replicas share that take turns."""

    free_at: float = 0.0  # s, when the last tick that was asked for is over


@dataclass(frozen=True, slots=True)
class TickRow:
    """One tick of one replica: what it did, what it took (s), and the pages when it began.

    `charged_s` is what the cost model says for this very tick; `read` the KV tokens that its decoders read,
    `attended` counts each as often as a decoder attends to it; `context` is the sum over prefill tokens of what
    each attends to; `waited_s` the wait for its turn.
    """

    pool: str
    tick: int
    at_s: float
    seconds: float
    charged_s: float
    waited_s: float
    decoders: int
    prefill: int
    read: float
    attended: int
    context: float
    copied: int
    pages_held: int  # counted by the batch: pinned and cached
    pages_named: int  # handed to the engine and not taken back
    pages_pinned: int
    finished: tuple[int, ...]  # numbers of the branches that ended


@dataclass(slots=True)
class Log:
    """Every tick of a run, in the order in which they began."""

    ticks: list[TickRow] = field(default_factory=list)


class Stepper(Replica):
    """One new batch and the engine that executes it, which forgets all pages first. On the clock `wall` the environment must run in real time."""

    __slots__ = ("executor", "engine", "device", "log", "clock", "_played", "_computed")

    def __init__(
        self,
        env: simpy.Environment,
        batch: Batch,
        pool: str,
        engine: RealEngine | None,
        vocab: int,
        device: Device,
        log: Log,
        *,
        clock: Clock = "charged",
    ) -> None:
        super().__init__(env, batch, pool, 0)
        self.executor = Executor(batch, vocab)
        self.engine = engine
        if engine is not None:
            engine.reset()
        self.device = device
        self.log = log
        self.clock = clock
        self._played: Played | None = None
        self._computed = 0.0  # CPU s of this process when the last tick was over

    def _go(self) -> None:
        """Play one tick; what follows the tick before it (searches, scheduling) is part of its time."""
        batch, env = self.batch, self.env
        tick, tree = batch.tick, batch.tree
        try:
            played = self._played = self.executor.play()
        except DoesNotFitError as error:
            raise DoesNotFitError(str(error), self.pool) from None
        for query in batch.activated:
            query.owner.scheduled(self)
        if played is None:
            self._stretch = None
            return
        self._stretch = played.stretch
        asked = env.now
        begin = max(asked, self.device.free_at)
        charged = played.stretch.seconds(1)
        over = begin + charged
        if self.engine is not None:
            result = self.engine.run(played.tick)
            self.executor.learn(played, result.tokens)
        if self.clock == "wall":
            over = max(asked, wall_now(env))
        elif self.clock == "cpu":
            over = begin + process_time() - self._computed
        self.device.free_at = over
        self.log.ticks.append(
            TickRow(
                self.pool,
                tick,
                begin,
                over - begin,
                charged,
                begin - asked,
                played.decoders,
                played.prefill,
                played.read,
                int(played.tick.positions.sum()),
                played.context,
                played.copied,
                tree.total - tree.free,
                tree.total - len(self.executor.pages.stack),
                tree.total - tree.free - tree.cached,
                tuple(branch.number for branch in played.finished),
            )
        )
        self.running_s += (over - begin) * played.decoders
        env.timeout(over - asked).callbacks.append(self._wake)

    def books_agree(self) -> bool:
        """Whether the engine's own stack of free pages is the one kept here, page for page."""
        if self.engine is None:
            return True
        return bool(self.engine.free_stack().tolist() == self.executor.pages.stack)

    def _start(self, _: Any) -> None:
        self._computed = process_time()
        super()._start(_)

    def _wake(self, _: Any) -> None:
        self._computed = process_time()
        played = self._played
        assert played is not None
        self._played = None
        self._stretch = None
        self._acting = True
        batch = self.batch
        pinned = batch.tree.total - batch.tree.free - batch.tree.cached
        self.pages_max = max(self.pages_max, pinned)
        for branch in batch.started:
            branch.query.owner.started(branch)
        for branch in batch.marked:
            branch.query.owner.marked(branch)
        for branch in played.finished:
            branch.query.owner.finished(branch)
        if self._pending:
            self._due(batch.tick)
        self._acting = False
        self._go()

    def _act(self, lag: int, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Do something at once between two ticks, else when the tick is over."""
        if self._stretch is not None:
            self._pending.append((0, action, arguments))
        else:
            super()._act(0, action, arguments)

    def drop(self, nodes: Iterable[KvNode]) -> None:
        """Forget subtrees when the tick is over: the engine is at work on them until then."""
        if self._stretch is None:
            super().drop(nodes)
            return
        for node in nodes:
            self.do(self.batch.drop, node)


def wall_now(env: simpy.Environment) -> float:
    """The time of a real-time environment as the wall shows it, in s."""
    assert isinstance(env, RealtimeEnvironment)
    return float(env.env_start + monotonic() - env.real_start)
