"""Pools of replicas and the rule that places a query on one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import simpy

from models.keyed import uniform
from sim.batch import Batch
from sim.replica import Replica
from sim.resolve import ResolvedPool

_PLACE = 64  # purpose of the draw of the random router

Router = Callable[[list[Replica], int, int], Replica]


def least_loaded(replicas: list[Replica], index: int, key: int) -> Replica:
    """The replica with the fewest searches in progress; the first of equals."""
    best = replicas[0]
    for replica in replicas:
        if replica.searches < best.searches:
            best = replica
    return best


def round_robin(replicas: list[Replica], index: int, key: int) -> Replica:
    """One replica after the other, in order of arrival."""
    return replicas[index % len(replicas)]


def at_random(replicas: list[Replica], index: int, key: int) -> Replica:
    """Any replica, by the query's own key: the same query goes to the same place in every what-if."""
    return replicas[int(uniform(key, _PLACE) * len(replicas))]


ROUTERS: Mapping[str, Router] = MappingProxyType(
    {"least_loaded": least_loaded, "round_robin": round_robin, "random": at_random}
)


class Fleet:
    """The replicas of one replication: a policy pool, and perhaps one to escalate to and one that verifies."""

    def __init__(
        self,
        env: simpy.Environment,
        policy: ResolvedPool,
        judge: ResolvedPool | None,
        large: ResolvedPool | None = None,
    ) -> None:
        self.env = env
        self.policy = _replicas(env, policy)
        self.large = _replicas(env, large) if large is not None else []
        self._route_large = ROUTERS[large.pool.router] if large is not None else least_loaded
        self.judges = _replicas(env, judge) if judge is not None else []
        self._route = ROUTERS[policy.pool.router]
        self._route_judge = ROUTERS[judge.pool.router] if judge is not None else least_loaded

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All replicas, pool by pool."""
        return (*self.policy, *self.large, *self.judges)

    def place(self, index: int, key: int) -> tuple[Replica, Replica | None]:
        """Return the policy replica and the verifier replica of query number `index`."""
        return self._route(self.policy, index, key), self._judge(index, key)

    def place_large(self, index: int, key: int) -> tuple[Replica, Replica | None]:
        """Return the replica that query number `index` escalates to, and a verifier replica."""
        return self._route_large(self.large, index, key), self._judge(index, key)

    def _judge(self, index: int, key: int) -> Replica | None:
        return self._route_judge(self.judges, index, key) if self.judges else None

    def timeline(self, replication: int) -> list[tuple[Any, ...]]:
        """Return one row of the timeline table for every replica, as things stand now."""
        rows = []
        for replica in self.replicas:
            batch = replica.batch
            count = batch.tree.count()
            rows.append(
                (
                    replication,
                    self.env.now,
                    replica.pool,
                    replica.index,
                    batch.decoders + (batch.fill is not None),
                    batch.waiting_branches,
                    count.total,
                    count.pinned,
                    count.cached,
                    batch.pages_naive(),
                    batch.active_searches,
                    batch.waiting_queries(),
                )
            )
        return rows


def _replicas(env: simpy.Environment, pool: ResolvedPool) -> list[Replica]:
    return [
        Replica(env, Batch(pool.settings, pool.cost), pool.name, index)
        for index in range(pool.pool.replicas)
    ]
