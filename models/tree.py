"""The vocabulary of search: nodes, the commands a search sends, the outcomes it gets back, its answer.

A search algorithm is a generator that knows no clock, no GPU and no random source. It yields lists of
commands and is resumed with one outcome at a time; whoever drives it decides what time and memory mean.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

Until = Literal["step", "answer", "conclude"]


@dataclass(slots=True, eq=False)
class Node:
    """One node of a search tree: the prompt, one reasoning step, or a whole trajectory grown at once.

    A search may read everything here except `hidden`, which belongs to the world that grew the node.
    `answer` is an opaque label: equal labels are equal answers, nothing more can be read from it.
    """

    parent: Node | None
    ordinal: int  # number among the children requested of the parent, from 0
    depth: int  # reasoning steps from the prompt, this node's included
    tokens: int  # tokens of this node alone; of the prompt: input tokens
    path_tokens: int  # prompt, injected tokens and all steps up to and including this node
    done: bool = False  # the trajectory ends here
    answer: int | None = (
        None  # label of the final answer when done, None where it was cut or has none
    )
    score: float = float("nan")  # last verifier score in (0, 1); NaN until scored
    answer_tokens: int = 0  # how many of `tokens` are the visible answer at the end
    requested: int = 0  # children requested so far: the next child's ordinal
    key: int = 0  # random key of this node, see models/keyed.py
    hidden: Any = None  # the world's own state
    kv: Any = None  # the policy replica's page-tree node, set by the simulator
    verifier_kv: Any = None  # the verifier replica's page-tree node, set by the simulator
    injected: int = 0  # tokens of text put in between the parent and this node's own


@dataclass(frozen=True, slots=True)
class Expand:
    """Grow `n` children of every node in `parents`, each to the end of a step or of the answer.

    `cap` truncates a child's tokens. With `each` every finished child is an outcome of its own;
    without it the whole command is one barrier and one outcome. `inject` tokens are put after the
    parent, and read rather than generated; a finished parent needs some ("Wait", or what to revise) and
    is tried again. "conclude" makes an unfinished trajectory answer with what it has thought so far.
    """

    parents: tuple[Node, ...]
    n: int
    until: Until = "step"
    cap: int | None = None
    each: bool = False
    inject: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Have the verifier score `nodes`; `each` as in `Expand`."""

    nodes: tuple[Node, ...]
    each: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """These subtrees will never be used again: cancel what is in flight there and free their memory."""

    nodes: tuple[Node, ...]


Command = Expand | Score | Drop


@dataclass(frozen=True, slots=True)
class Grown:
    """An `Expand` (or with `each`, one child of it) is finished: the new nodes in request order."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A `Score` (or with `each`, one node of it) is finished; the scores are on the nodes."""

    nodes: tuple[Node, ...]


Outcome = Grown | Scored


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search returns: the chosen trajectory, its answer, and a raw signal of confidence in [0, 1]."""

    node: Node | None
    answer: int | None
    signal: float
    trajectories: int = 0  # finished trajectories it chose from


class Cut(Exception):
    """Thrown into a search at its yield: stop now, with `grace` tokens left to finish one answer."""

    def __init__(self, reason: str, grace: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.grace = grace


Search = Generator[list[Command], Outcome, Answer]


@dataclass(slots=True)
class Tree:
    """What a search starts from: the prompt's node and what it has grown so far."""

    root: Node
    leaves: list[Node] = field(default_factory=list)
