"""Searches on the real (tiny) engine: the simulator's events and pages, and the hidden states of a dense model."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the mini-engine needs torch (extra: torch)")

from hw.engine import Limits  # noqa: E402
from hw.transformer import Transformer  # noqa: E402
from sim.batch import Settings  # noqa: E402
from sim.executor import Executor, Played  # noqa: E402
from tests.hw.test_engine import Watched, dense  # noqa: E402
from tests.sim.test_replay_is_the_simulator import VOCAB, house, same  # noqa: E402

pytestmark = pytest.mark.reaches_in

POLICY = Transformer("tiny", 2, 64, 4, 1, 128, 96, VOCAB)
JUDGE = Transformer("tiny-prm", 2, 64, 4, 2, 128, 96, VOCAB, score_head=True)
ENGINE = Settings(60, 16, 8, 64)
EVERY = 37  # one row in so many is computed again


class Checked(Watched):
    """An engine whose last hidden states are compared with those of a dense model over the same path."""

    checked = 0
    rows = 0

    def watch(self, executor: Executor) -> None:
        """Compare some rows of each tick, chosen by count."""
        play, learn = executor.play, executor.learn

        def noted_play() -> Played | None:
            self.played = play()
            if self.played is not None:
                ended = [b for b in self.played.finished if not b.ticks]
                self.paths = [executor.held(branch).ids.tolist() for branch in ended]
            return self.played

        def checked_learn(played: Played, tokens: Any) -> None:
            sampled = zip(played.tick.sampled.tolist(), played.sampled, strict=True)
            rows = [(row, held.ids[:at].tolist()) for row, (held, at) in sampled]
            if len(played.tick.scored) == 1:
                rows += [(int(played.tick.scored[0]), self.paths[0])]
            for row, path in rows:
                self.rows += 1
                if self.rows % EVERY == 0:
                    expected = dense(self, path)[-1]
                    error = torch.linalg.norm(self.seen[row] - expected)
                    assert error <= 2e-4 * torch.linalg.norm(expected)
                    self.checked += 1
            learn(played, tokens)

        executor.play, executor.learn = noted_play, checked_learn  # type: ignore[method-assign]


def test_searches_on_a_real_engine_are_the_simulators_and_their_text_has_the_right_logits() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engines = tuple(
        Checked(shape, Limits(60, 16, max_rows=8, max_tokens=72), exact=True)
        for shape in (POLICY, JUDGE)
    )
    simulated, _ = house(ENGINE, ENGINE, seed=11, count=3)
    replayed, log = house(ENGINE, ENGINE, engines, seed=11, count=3)
    torch.set_num_threads(threads)
    same(simulated, replayed)
    assert engines[0].checked > 30
    assert replayed.replica.batch.num_preemptions > 0
    assert replayed.replica.batch.tree.reclaimed > 0
    assert all(row.pages_named == row.pages_held for row in log.ticks)
    assert all(stepper.books_agree() for stepper in replayed.replicas)
