"""A Countdown puzzle as a world that searches grow in: moves really sampled, scores really computed, answers graded.

The same generators, sessions and drivers as everywhere. What a child is depends on its key alone: its moves are
drawn by Gumbel noise of (key, move).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from models.countdown import net
from models.countdown.net import Size, Weights
from models.countdown.task import MOVES, SLOTS, Ints, moved
from models.keyed import child_key, uniform
from models.tree import Node, Until

STEP_TOKENS: Final = (
    8  # of one move written out, such as "12 x 5 = 60"; a puzzle's prompt has two a number
)
_GUMBEL: Final = 1 << 20  # purposes of a node's draws, one a move


@dataclass(frozen=True, slots=True)
class Models:
    """A policy and a process reward model of one size; `sees_end` lets it score the last number, as an oracle."""

    size: Size
    policy: Weights
    rewards: Weights
    sees_end: bool = False


class CountdownWorld:
    """One puzzle. Raises ValueError for fewer than 2 or more than SLOTS numbers."""

    __slots__ = ("models", "target", "root", "difficulty", "_logs", "_scores")

    def __init__(self, models: Models, numbers: tuple[int, ...], target: int, key: int) -> None:
        if not 2 <= len(numbers) <= SLOTS:
            raise ValueError(f"A puzzle has 2 to {SLOTS} numbers, not {len(numbers)}.")
        self.models = models
        self.target = target
        self.difficulty = math.nan  # not known before it is tried
        state = tuple(sorted(numbers, reverse=True))
        tokens = 2 * len(numbers) + 2
        self.root = Node(None, 0, 0, tokens, tokens, key=key)
        # numbers; of a truncated step (tokens left, numbers after it); the last numbers with a choice
        self.root.hidden = (state, None, state)
        self._logs: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}
        self._scores: dict[tuple[int, ...], float] = {}

    def grow(
        self, parent: Node, ordinal: int, until: Until = "step", cap: int | None = None
    ) -> Node:
        """The complete child number `ordinal` of `parent`, truncated at `cap` tokens."""
        if parent.done:
            raise ValueError("A finished trajectory cannot grow: expand a node that is not done.")
        state, pending, choice = parent.hidden
        key, number, depth, tokens = parent.key, ordinal, parent.depth, 0
        while True:
            if pending is None:
                key = child_key(key, ordinal)
                length, after = STEP_TOKENS, self._move(state, key)
                depth += 1
            else:
                length, after = pending
                pending = None
            ordinal = 0
            tokens += length
            if cap is not None and tokens > cap:
                pending = (tokens - cap, after)
                tokens = cap
                break
            if len(after) < 2:
                choice = state
            state = after
            if len(state) < 2 or until == "step" or tokens == cap:
                break
        done = len(state) < 2 and pending is None
        answer = state[0] if done and state else None
        return Node(
            parent, number, depth, tokens, parent.path_tokens + tokens, done, answer, key=key,
            hidden=(state, pending, choice if len(state) < 2 else state),
        )  # fmt: skip

    def _move(self, state: tuple[int, ...], key: int) -> tuple[int, ...]:
        """The numbers after a sampled move; none where there is no legal one."""
        logs = self._logs.get(state)
        if logs is None:
            logs = net.log_policy(
                self.models.policy, padded(state), np.array([self.target]), self.models.size.heads
            )[0]
            self._logs[state] = logs
        best, chosen = -math.inf, -1
        for move in range(MOVES):
            if logs[move] > -math.inf:
                drawn = logs[move] - math.log(-math.log(uniform(key, _GUMBEL + move)))
                if drawn > best:
                    best, chosen = drawn, move
        if chosen < 0:
            return ()
        after = moved(padded(state), np.array([chosen]))[0]
        return tuple(after[after > 0].tolist())

    def score(self, node: Node) -> float:
        """The reward model's chance for the state of `node`; at the end that of the last state with a choice."""
        state: tuple[int, ...] = node.hidden[0 if self.models.sees_end else 2]
        found = self._scores.get(state)
        if found is None:
            found = 0.0
            if state:
                found = float(
                    net.chances(
                        self.models.rewards,
                        padded(state),
                        np.array([self.target]),
                        self.models.size.heads,
                    )[0]
                )
            self._scores[state] = found
        node.score = min(max(found, 1e-6), 1.0 - 1e-6)
        return node.score

    def is_correct(self, answer: int | None) -> bool:
        """Whether the last number is the target: graded exactly."""
        return answer == self.target


def padded(state: tuple[int, ...]) -> Ints:
    """One state as the networks take it [1, SLOTS]."""
    row = np.zeros((1, SLOTS), np.int64)
    row[0, : len(state)] = state
    return row
