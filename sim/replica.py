"""A replica: the SimPy events that give a batch its clock.

Between two events nothing is computed: the batch says how long its next stretch takes, and one
timeout ends it. A submission in the middle of a stretch moves that end to the first tick boundary at
or after now. With `async_scheduling` the next tick is scheduled by then, and it acts one boundary later.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import simpy
from simpy.events import Timeout

from sim.batch import Batch, Stretch
from sim.kv import DoesNotFitError, KvNode


class Replica:
    """One batch in simulated time.

    A query's owner has `scheduled(replica)`, and `started(branch)`, `marked(branch)` and
    `finished(branch)`, called at tick boundaries; see `Batch.advance`.
    """

    __slots__ = (
        "batch", "env", "pool", "index", "searches", "running_s", "pages_s", "pages_max", "_stretch",
        "_began", "_ends", "_seconds", "_timeout", "_pending", "_acting", "_lag", "_at_start", "_at_end",
    )  # fmt: skip

    def __init__(
        self,
        env: simpy.Environment,
        batch: Batch,
        pool: str = "",
        index: int = 0,
    ) -> None:
        self.env = env
        self.batch = batch
        self.pool = pool
        self.index = index
        self.searches = 0  # placed here and not over
        self.pages_s = 0.0  # integral of pinned pages over time
        self.pages_max = 0
        self.running_s = 0.0  # integral of decoding branches over time
        self._stretch: Stretch | None = None
        self._began = 0.0
        self._ends = 0  # ticks after which the stretch will be ended
        self._seconds = 0.0  # that these take
        self._timeout: simpy.Event | None = (
            None  # that ends it; one that was overtaken does nothing
        )
        self._pending: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = []  # (tick, what)
        self._lag = 1 if batch.settings.async_scheduling else 0
        self._acting = False
        # What its timeouts call, in lists that they share: SimPy only reads them.
        self._at_start: list[Callable[[simpy.Event], None]] = [self._start]
        self._at_end: list[Callable[[simpy.Event], None]] = [self._wake]

    @property
    def tick_s(self) -> float:
        """How long a tick takes now: of the stretch under way, else of one branch alone."""
        if self._stretch is None:
            return self.batch.cost.base_s(1, 0)
        return self._stretch.first_s

    # -- what queries ask for ------------------------------------------------------------------------

    def prompt(
        self, tokens: int, prefix: Sequence[tuple[Hashable, int]] = (), owner: Any = None
    ) -> KvNode:
        """Register a query; its pages and work come with its branches."""
        return self.batch.prompt(tokens, prefix, owner)

    def pressure(self) -> float:
        """How full it is: 0 idle, 1 with every place or page in use, more where branches wait."""
        batch = self.batch
        tree, places = batch.tree, batch.settings.max_num_seqs
        pinned = (tree.total - tree.free - tree.cached) / tree.total
        return max(batch.decoders / places, pinned) + batch.waiting_branches / places

    def do(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Submit something: at once between two ticks, else at the next boundary; see `_lag`."""
        batch = self.batch
        busy = self._stretch is not None or batch.decoders or batch.fill is not None
        self._act(self._lag if busy else 0, action, arguments)

    def _act(self, lag: int, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Do something at the first boundary at or after now, or `lag` ticks later."""
        batch = self.batch
        stretch = self._stretch
        if stretch is None:
            if lag:
                self._pending.append((batch.tick + lag, action, arguments))
            else:
                action(*arguments)
            self._soon()
            return
        now = self.env.now
        ticks = lag + (stretch.ticks_until(now - self._began) if self._ends > 1 else 1)
        self._pending.append((batch.tick + ticks, action, arguments))
        if ticks < self._ends:
            self._schedule(ticks, stretch.seconds(ticks))

    def drop(self, nodes: Iterable[KvNode]) -> None:
        """Forget subtrees: as `do` does, but without ending a stretch of which it changes nothing."""
        batch = self.batch
        for node in nodes:
            if node.dropped:
                continue
            if self._stretch is None:
                batch.drop(node)
                if batch.ready:
                    self._soon()
            elif not self._dropped(node):
                self._act(0, batch.drop, (node,))

    def _dropped(self, node: KvNode) -> bool:
        """Drop `node` in the middle of a stretch, if it is idle and the stretch goes on after this tick."""
        stretch = self._stretch
        if stretch is None or self._ends == 1 or not self.batch.droppable(node):
            return False
        if self.env.now > self._began + stretch.seconds(self._ends - 1):
            return False
        self.batch.drop(node)
        return True

    # -- the clock ------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Begin a stretch once everything that happens at this instant has happened."""
        if not self._acting:
            self._acting = True
            Timeout(self.env, 0).callbacks = self._at_start

    def _start(self, _: Any) -> None:
        self._acting = False
        if self._stretch is None:
            self._go()

    def _schedule(self, ticks: int, seconds: float) -> None:
        """Let the stretch end after `ticks` ticks, which take `seconds`."""
        self._ends = ticks
        self._seconds = seconds
        delay = self._began + seconds - self.env.now
        timeout = self._timeout = Timeout(self.env, delay if delay > 0.0 else 0.0)
        timeout.callbacks = self._at_end

    def _due(self, tick: int) -> None:
        """Do what acts at `tick` or before."""
        pending, self._pending = self._pending, []
        for due, action, arguments in pending:
            if due <= tick:
                action(*arguments)
            else:
                self._pending.append((due, action, arguments))

    def _go(self) -> None:
        batch = self.batch
        try:
            stretch = batch.begin()
            if stretch is None and self._pending:  # nothing runs that could keep it waiting
                self._due(1 << 60)
                stretch = batch.begin()
            self._stretch = stretch
        except DoesNotFitError as error:
            raise DoesNotFitError(str(error), self.pool) from None
        if batch.activated:
            for query in batch.activated:
                query.owner.scheduled(self)
        if stretch is not None:
            self._began = self.env.now
            ticks = stretch.ticks
            if self._pending:
                ticks = min(ticks, min(due for due, _, _ in self._pending) - batch.tick)
            self._schedule(ticks, stretch.seconds(ticks))

    def _wake(self, timeout: simpy.Event) -> None:
        stretch = self._stretch
        if timeout is not self._timeout or stretch is None:
            return
        batch = self.batch
        ticks = self._ends
        tree = batch.tree
        before = tree.total - tree.free - tree.cached
        seconds = self._seconds
        self.running_s += seconds * batch.decoders
        finished = batch.advance(ticks, seconds)
        self._stretch = None
        self._acting = True
        after = batch.held
        self.pages_s += seconds * (before + after) / 2
        if after > self.pages_max:
            self.pages_max = after
        if batch.started:
            for branch in batch.started:
                branch.query.owner.started(branch)
        if batch.marked:
            for branch in batch.marked:
                branch.query.owner.marked(branch)
        for branch in finished:
            branch.query.owner.finished(branch)
        if self._pending:
            self._due(batch.tick)
        self._acting = False
        self._go()
