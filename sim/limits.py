"""Limits of time and of GPU-seconds: when a query's search is cut, so that neither is exceeded.

A search that would have no answer yet is cut early, with a reserve in which its best partial solution can
be finished; any other goes on until the limit itself. Near the limit of GPU-seconds it is looked at ever
more often, because a query could at most have its replicas to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from models.controller import Plan
from models.session import RESERVE_DIVISOR
from sim.query import Thinking

HOPE: Final = 2.0
"""An answer may be finished with this many times the tokens that fit at today's pace: the batch may
empty, and the limit itself ends what does not. Source: assumed, 2026-11-25."""


def watch(query: Thinking, chosen: Plan, policy_gpus: int, judge_gpus: int) -> None:
    """See to it that a query that is about to start keeps the limits of its plan."""
    env = query.replica.env
    if chosen.deadline_s is not None:
        early = chosen.deadline_s * (1 - 1 / RESERVE_DIVISOR)
        grace = partial(_finish_in, query, chosen.deadline_s - early)
        env.timeout(early).callbacks.append(grace)
        env.timeout(chosen.deadline_s).callbacks.append(partial(_end, query, "deadline"))
    if chosen.max_gpu_s is not None:
        judge = judge_gpus if query.judge is not None else 0
        _Meter(query, chosen.max_gpu_s, policy_gpus, judge).wait()


def _end(query: Thinking, reason: str, _: Any = None) -> None:
    query.cut(reason, 0)


def _finish_in(query: Thinking, left_s: float, _: Any) -> None:
    """Let a search without an answer finish one within `left_s` seconds."""
    if query.spent is None and query.session.needs_grace:
        query.cut("deadline", int(HOPE * left_s / query.replica.tick_s))


@dataclass(slots=True)
class _Meter:
    """Reads what a query has spent between two ticks, early enough never to be late."""

    query: Thinking
    limit: float  # GPU-seconds
    policy_gpus: int
    judge_gpus: int
    early: bool = False  # was cut once, with grace

    def wait(self) -> None:
        """Look again when the limit could have been reached at the earliest."""
        query = self.query
        fastest = self.policy_gpus + self.judge_gpus
        left = self.limit - self._spent() - self._guard()
        timeout = query.replica.env.timeout(max(left / fastest, query.replica.tick_s))
        timeout.callbacks.append(self._look)

    def _guard(self) -> float:
        """What may be spent before a cut takes effect: two ticks of all the GPUs."""
        query = self.query
        ticks = 2 * query.replica.tick_s * self.policy_gpus
        if query.judge is not None:
            ticks += 2 * query.judge.tick_s * self.judge_gpus
        return ticks

    def _spent(self) -> float:
        query = self.query
        spent = 0.0
        for root, replica, gpus in (
            (query.root, query.replica, self.policy_gpus),
            (query.judge_root, query.judge, self.judge_gpus),
        ):
            if root is not None and replica is not None:
                if not root.query.gone:
                    replica.batch.charge(root.query)
                spent += root.query.gpu_s * gpus
        return spent

    def _look(self, _: Any) -> None:
        if self.query.spent is None:
            self.query.replica.do(self._at_policy)

    def _at_policy(self) -> None:
        judge = self.query.judge
        if judge is None:
            self._decide()
        else:
            judge.do(self._decide)

    def _decide(self) -> None:
        query = self.query
        if query.spent is not None:
            return
        left = self.limit - self._spent() - self._guard()
        if left <= 0:
            query.cut("gpu_seconds", 0)
            return
        if not self.early and left <= self.limit / RESERVE_DIVISOR and query.session.needs_grace:
            self.early = True
            replica = query.replica
            per_token = replica.tick_s * self.policy_gpus / max(1, replica.batch.decoders)
            query.cut("gpu_seconds", int(HOPE * left / per_token))
        self.wait()
