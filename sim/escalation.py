"""A query whose first answer is in doubt starts again at the larger pool: the same question, another model's luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from models.calibration import Calibrator
from models.controller import Plan, search_for
from models.keyed import mix
from models.rollout import Rollout
from models.search import ALGORITHMS
from models.tree import Tree
from models.world import World
from sim.fleet import Fleet
from sim.limits import watch
from sim.query import Spent, Thinking
from sim.resolve import Resolved
from sim.workload import Queries, chain

_LUCK: Final = 0x5851F42D4C957F2D  # tells the larger model's luck from the first one's


class Escalations:
    """Who goes on to the larger pool; `first` holds the first search of each, by row of the demand."""

    def __init__(
        self,
        resolved: Resolved,
        demand: Queries,
        fleet: Fleet,
        thinking: list[Thinking | None],
        calibrators: Mapping[tuple[int, ...], Calibrator],
    ) -> None:
        self.resolved = resolved
        self.demand = demand
        self.fleet = fleet
        self.thinking = thinking
        self.calibrators = calibrators
        self.first: dict[int, Thinking] = {}

    def watch(self, query: Thinking) -> None:
        """Let a query that just arrived go on if its answer will be in doubt."""
        larger, row = self.resolved.larger, query.row
        if larger is None or larger.onward[self.demand.tier_index[row]] is None:
            return
        settings = larger.pool.settings
        if int(self.demand.input_tokens[row]) + 2 <= settings.num_gpu_blocks * settings.block_size:
            query.then = self._ended  # else it has no room there: the first answer stands

    def _ended(self, query: Thinking) -> None:
        demand, row = self.demand, query.row
        item, tier = int(demand.class_index[row]), int(demand.tier_index[row])
        onward = self.resolved.onward(tier)
        assert onward is not None
        if in_doubt(query.spent, onward.below, self.calibrators[item, tier]):
            self._again(query, item, onward.plan)

    def _again(self, query: Thinking, item: int, chosen: Plan) -> None:
        larger, demand, row = self.resolved.larger, self.demand, query.row
        assert larger is not None
        key, tokens = int(demand.key[row]), max(1, int(demand.input_tokens[row]))
        world = elsewhere(
            larger.classes[item].world(key, tokens, int(demand.output_tokens_given[row]))
        )
        block = larger.pool.settings.block_size
        replica, judge = self.fleet.place_large(row, key)
        again = Thinking(
            row,
            search_for(chosen, Tree(world.root)),
            world,
            replica,
            judge if ALGORITHMS[chosen.algorithm].needs_verifier else None,
            chain(demand.prefix[row], tokens, block) if demand.prefix is not None else (),
            chosen.max_tokens,
            chosen.algorithm == "direct",
            chosen.max_expansions,
        )
        self.first[row], self.thinking[row] = query, again
        replica.do(again.start)
        if chosen.deadline_s is not None or chosen.max_gpu_s is not None:
            pool = self.resolved.judge
            watch(again, chosen, larger.pool.cost.gpus, pool.cost.gpus if pool is not None else 0)


def elsewhere(world: World) -> World:
    """The question of a fresh world with other luck: its difficulty, steps and wrong answers stay."""
    world.root.key = mix(world.key ^ _LUCK)
    return world


def in_doubt(spent: Spent | Rollout | None, below: float, calibrator: Calibrator) -> bool:
    """Whether a first answer is not sure enough; what has no answer never is."""
    if spent is None or spent.answer is None or spent.signal != spent.signal:
        return True
    return calibrator.confidence(spent.signal) < below


def together(first: Spent, last: Spent) -> Spent:
    """What both searches of an escalated query came to: the last answer, or the first where there is none."""
    answer = last if last.answer is not None else replace(first, cut=last.cut)
    return replace(
        answer,
        trajectories=first.trajectories + last.trajectories,
        tokens=first.tokens + last.tokens,
        expansions=first.expansions + last.expansions,
        scores=first.scores + last.scores,
    )
