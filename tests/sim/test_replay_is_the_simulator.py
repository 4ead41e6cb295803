"""A replica whose every tick is spelled out for a real engine is the simulator's, event by event and page by page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hw.engine_step import Tick
from sim.batch import Batch, Settings, Stretch
from sim.executor import Executor, Played
from sim.kv import KvNode
from sim.stepper import Device, Log, Stepper
from tests.sim.driving import COST, JUDGE_COST, House, questions

pytestmark = pytest.mark.reaches_in

SHORT = {
    "preset": "math-500",
    "prompt_tokens": {"kind": "uniform", "low": 20, "high": 120},
    "step_tokens": {"kind": "uniform", "low": 3, "high": 40},
}
MIX: tuple[tuple[str, dict[str, int]], ...] = (
    ("beam", {"width": 3, "expand": 2}),
    ("best_of_n", {"n": 5}),
    ("weighted_vote", {"n": 4}),
)
VOCAB = 211


class Recorded(Batch):
    """A batch that remembers who finished with which tick, and its pages before each tick it looks at."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.ends: dict[int, tuple[int, ...]] = {}
        self.pages: dict[int, tuple[int, int]] = {}  # free and cached

    def begin(self) -> Stretch | None:
        self.pages[self.tick] = (self.tree.free, self.tree.cached)
        return super().begin()

    def advance(self, ticks: int, seconds: float | None = None) -> list[KvNode]:
        finished = super().advance(ticks, seconds)
        self.ends[self.tick] = tuple(branch.number for branch in finished)
        return finished


class Ghost:
    """An exact stand-in for a transformer: a number for each token of KV, made of all numbers before it.

    It reads and writes the pages that a tick names, so that a wrong page, slot, copy or order shows as a wrong
    number. Free pages are poisoned. After each tick the path of what was sampled or scored is computed again
    from its plain tokens.
    """

    def __init__(self, pages: int, page: int) -> None:
        self.page = page
        self.pool = np.full((pages, page), -1, np.int64)
        self.free = np.ones(pages, bool)
        self.rows: list[int] = []
        self.stack = list(range(pages - 1, -1, -1))
        self.padded, self.described = False, "a stand-in"
        self.checked = 0

    def run(self, tick: Tick) -> Any:
        self._books(tick)
        self.rows = []
        for piece in tick.pieces:
            seen = self._read(piece.context, piece.start)
            for offset, token in enumerate(piece.tokens.tolist()):
                at = piece.start + offset
                number = mixed(token, seen, at)
                seen += number
                self.rows.append(number)
                if piece.pages[offset] >= 0:
                    self._write(int(piece.pages[offset]), at % self.page, number)
        b = len(tick.tokens)
        for row, page, slot in tick.again.tolist():
            self._write(page, slot, self.rows[row - b])
        decoded = []
        for token, at, table in zip(
            tick.tokens.tolist(), tick.positions.tolist(), tick.tables, strict=True
        ):
            number = mixed(token, self._read(table, at), at)
            self._write(int(table[at // self.page]), at % self.page, number)
            decoded.append(number)
        self.rows = [*decoded, *self.rows]
        self.sampled = [self.rows[row] for row in tick.sampled]
        self.scored = [self.rows[row] for row in tick.scored]
        self.tokens = np.asarray(self.sampled, np.int64) % VOCAB
        self.scores = np.full(len(self.scored), 0.5, np.float32)
        return self

    def reset(self) -> None:
        self.free[:] = True
        self.pool[:] = -1
        self.stack = list(range(len(self.free) - 1, -1, -1))

    def free_stack(self) -> Any:
        return np.asarray(self.stack)

    def _books(self, tick: Tick) -> None:
        self.stack += sorted(tick.freed.tolist())
        assert [self.stack.pop() for _ in tick.taken] == tick.taken.tolist()
        assert not self.free[tick.freed].any()
        self.free[tick.freed] = True
        self.pool[tick.freed] = -1
        assert self.free[tick.taken].all()
        self.free[tick.taken] = False
        for source, target, tokens in tick.copies.tolist():
            self.pool[target, :tokens] = self.pool[source, :tokens]

    def _read(self, table: Any, tokens: int) -> int:
        numbers = self.pool[table].reshape(-1)[:tokens]
        assert len(numbers) == tokens
        assert (numbers >= 0).all(), "poison was read"
        return int(numbers.sum())

    def _write(self, page: int, slot: int, number: int) -> None:
        assert not self.free[page]
        self.pool[page, slot] = number

    def watch(self, executor: Executor) -> None:
        """Compare with the plain path whatever is sampled or scored."""
        play, learn = executor.play, executor.learn

        def checked_play() -> Played | None:
            played = play()
            if played is not None:
                self.paths = [executor.held(b).ids for b in played.finished if not b.ticks]
            return played

        def checked_learn(played: Played, tokens: Any) -> None:
            for number, (held, at) in zip(self.sampled, played.sampled, strict=True):
                if number % 4 == 0:
                    assert number == plain(held.ids[:at])
            assert sorted(self.scored) == sorted(plain(ids) for ids in self.paths)
            self.checked += len(self.sampled) + len(self.scored)
            learn(played, tokens)

        executor.play, executor.learn = checked_play, checked_learn  # type: ignore[method-assign]


def mixed(token: int, seen: int, at: int) -> int:
    """The number of a token at a place, after numbers that sum to `seen`."""
    return ((token + 1) * 2_654_435_761 + seen * 40_503 + at * 97) & 0x7FFFFFFF


def plain(ids: Any) -> int:
    """The number of the last token of a path, from its tokens alone."""
    seen = number = 0
    for at, token in enumerate(ids.tolist()):
        number = mixed(token, seen, at)
        seen += number
    return number


def house(
    policy: Settings,
    judge: Settings,
    engines: tuple[Any, Any] | None = None,
    seed: int = 5,
    count: int = 6,
    model: Any = SHORT,
) -> tuple[House, Log]:
    """Let some searches run on the simulator's replicas or, with engines, on steppers."""
    made, log = House(policy, judge), Log()
    made.replica.batch, made.judge.batch = Recorded(policy, COST), Recorded(judge, JUDGE_COST)
    if engines is not None:
        thinker, verifier = (
            Stepper(made.env, old.batch, old.pool, engine, VOCAB, Device(), log)
            for old, engine in zip(made.replicas, engines, strict=True)
        )
        made.replica, made.judge = thinker, verifier
    for stepper in made.replicas:
        if isinstance(stepper, Stepper) and hasattr(stepper.engine, "watch"):
            stepper.engine.watch(stepper.executor)
    for number, world in enumerate(questions(model, seed, count)):
        algorithm, parameters = MIX[number % len(MIX)]
        made.ask(world, algorithm, at_s=0.21 * number, **parameters)
    made.env.run()
    return made, log


def outcome(made: House) -> list[Any]:
    """What every search came to, without its times."""
    ends = [(q.settle(), q.preemptions, q.world.tree()) for q in made.queries]
    replicas = [
        (r.batch.tick, r.batch.num_preemptions, r.batch.tree.reclaimed) for r in made.replicas
    ]
    return [ends, replicas]


def times(made: House) -> list[float]:
    """When everything happened, in s."""
    found = [t for q in made.queries for t in (q.scheduled_s, q.first_token_s, q.finish_s)]
    return [
        *found,
        *(q.policy_s + q.judge_s for q in made.queries),
        *(r.batch.busy_s for r in made.replicas),
    ]


def same(simulated: House, replayed: House) -> None:
    """The replay's every tick has the pages and the ends that the simulator has where it looks."""
    assert outcome(replayed) == outcome(simulated)
    assert times(replayed) == pytest.approx(times(simulated), rel=1e-12)
    for theirs, mine in zip(simulated.replicas, replayed.replicas, strict=True):
        assert theirs.batch.ends
        for tick, ends in theirs.batch.ends.items():
            assert mine.batch.ends[tick] == ends
        for tick, pages in theirs.batch.pages.items():
            assert mine.batch.pages[tick] == pages
        assert isinstance(mine, Stepper)
        mine.executor.pages.check()


SITUATIONS = {
    "seed": st.integers(0, 2**32),
    "engine": st.builds(
        lambda pages, page, seqs, tokens, searches, fork: Settings(
            pages * 16 // page, page, seqs, tokens, searches, "tree", fork
        ),
        st.integers(40, 160),
        st.sampled_from([4, 16]),
        st.sampled_from([3, 8, 64]),
        st.sampled_from([16, 100, 2048]),
        st.sampled_from([None, 2]),
        st.sampled_from(["copy_tail", "recompute_tail"]),
    ),
}
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # a smaller failing world takes minutes


@settings(max_examples=8, phases=UNSHRUNK)
@given(**SITUATIONS)
def test_events_and_pages_are_the_simulators_whatever_the_pressure(
    seed: int, engine: Settings
) -> None:
    check_world(seed, engine)


@pytest.mark.slow
@settings(max_examples=80, phases=UNSHRUNK)
@given(**SITUATIONS)
def test_so_they_are_in_many_worlds(seed: int, engine: Settings) -> None:
    check_world(seed, engine)


def check_world(seed: int, engine: Settings) -> None:
    """Some searches under these limits, simulated and replayed with a stand-in engine that sees every page."""
    simulated, _ = house(engine, engine, seed=seed)
    page = engine.block_size
    ghosts = (Ghost(engine.num_gpu_blocks, page), Ghost(engine.num_gpu_blocks, page))
    replayed, log = house(engine, engine, ghosts, seed=seed)
    same(simulated, replayed)
    assert ghosts[0].checked > 100  # a quarter of them against their plain paths
    assert ghosts[1].checked == sum(query.spent.scores for query in replayed.queries)
    assert len(log.ticks) == sum(replica.batch.tick for replica in replayed.replicas)
