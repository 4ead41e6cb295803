"""Puts single searches on one policy replica and one verifier replica, and remembers what they grew."""

from __future__ import annotations

from typing import Any

import simpy

from models.controller import plan, search_for
from models.keyed import root_key
from models.latency import StepCost
from models.question import QuestionModel, question_model
from models.session import node_path
from models.tree import Node, Tree
from models.verifier import verifier_model
from sim.batch import Batch, Settings
from sim.limits import watch
from sim.query import Prefix, Thinking
from sim.replica import Replica

COST = StepCost.linear(8e-3, per_decode=1e-5, per_prefill=2e-5, kv=1e-8, saturation=32, copy=1e-9)
JUDGE_COST = StepCost.linear(4e-3, per_prefill=2e-5, kv=1e-8)


class Watched:
    """A world that remembers every node it grew."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.root = world.root
        self.score = world.score
        self.is_correct = world.is_correct
        self.difficulty: float = world.difficulty
        self.grown: list[Node] = []

    def grow(self, parent: Node, ordinal: int, until: Any, cap: int | None) -> Node:
        """Let the world grow a node, and remember it."""
        node: Node = self.world.grow(parent, ordinal, until, cap)
        self.grown.append(node)
        return node

    def tree(self) -> list[tuple[Any, ...]]:
        """Everything a search can see of its tree, in an order that no driver decides."""
        return sorted(
            (node_path(n), n.key, n.tokens, n.done, n.answer or 0, f"{n.score:.17g}")
            for n in self.grown
        )


def question(
    model: QuestionModel, key: int, prompt_tokens: int | None = None, judged: bool = True
) -> Watched:
    """One question of a class, named by `key`."""
    if prompt_tokens is None:
        prompt_tokens = max(1, round(model.prompt_tokens((key % 997 + 0.5) / 997)))
    verifier = verifier_model(model.verifier) if judged else None
    return Watched(model.world(key, prompt_tokens, verifier))


def questions(preset: Any, seed: int, count: int) -> list[Watched]:
    """Some questions of one class with prompts of its own lengths."""
    model = question_model(preset)
    return [question(model, root_key(seed, 0, 99, number)) for number in range(count)]


class House:
    """One policy replica, one verifier replica and the searches that were put on them."""

    def __init__(
        self,
        policy: Settings,
        judge: Settings,
        cost: StepCost = COST,
        judge_cost: StepCost = JUDGE_COST,
        gpus: tuple[int, int] = (1, 1),
    ) -> None:
        self.gpus = gpus  # of a replica of each
        self.env = simpy.Environment()
        self.replica = Replica(self.env, Batch(policy, cost), "thinker", 0)
        self.judge = Replica(self.env, Batch(judge, judge_cost), "judge", 0)
        self.queries: list[Thinking] = []

    def ask(
        self,
        world: Watched,
        algorithm: str,
        at_s: float = 0.0,
        max_tokens: int | None = None,
        prefix: Prefix = (),
        **parameters: Any,
    ) -> None:
        """Let a query arrive at `at_s`."""

        def arrive(_: Any) -> None:
            chosen = plan(algorithm, max_tokens, **parameters)
            search = search_for(chosen, Tree(world.root))
            query = Thinking(
                len(self.queries),
                search,
                world,
                self.replica,
                self.judge,
                prefix,
                max_tokens,
                algorithm == "direct",
                chosen.max_expansions,
            )
            query.keep = True
            self.queries.append(query)
            self.replica.do(query.start)
            watch(query, chosen, *self.gpus)

        self.env.timeout(at_s).callbacks.append(arrive)

    @property
    def replicas(self) -> tuple[Replica, Replica]:
        """Both replicas."""
        return self.replica, self.judge
