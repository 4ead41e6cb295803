"""The catalogue of search algorithms: each by name, with its parameters, their ranges and its source.

A search is a sans-IO generator: it says what to grow, score and drop, then answers, and knows no clock,
no GPU and no random source; `models/session.py` runs it. A new algorithm is one function in one of the
files search_*.py and one entry in `ALGORITHMS`.

The signal of an `Answer` is a raw confidence in [0, 1], to be calibrated: 0 without an answer, 0.5 where
nothing was observed or a cut left an answer without a score, else as each entry's `signal` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from models.search_beam import beam, dvts, rebase
from models.search_chain import long_chain, revision
from models.search_parts import AGGREGATES, NO_ANSWER, UNOBSERVED
from models.search_tree import mcts, tree_search
from models.search_vote import (
    adaptive_consistency,
    adaptive_vote,
    best_of_n,
    direct,
    first_finish,
    self_consistency,
    weighted_vote,
)
from models.tree import Search

__all__ = [
    "ALGORITHMS",
    "NO_ANSWER",
    "UNOBSERVED",
    "Algorithm",
    "Parameter",
    "Shape",
    "adaptive_consistency",
    "adaptive_vote",
    "beam",
    "best_of_n",
    "direct",
    "dvts",
    "first_finish",
    "long_chain",
    "mcts",
    "needs_verifier",
    "rebase",
    "revision",
    "self_consistency",
    "shape",
    "tree_search",
    "weighted_vote",
]

Value = int | float | str
Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A setting of an algorithm: a whole number, a real number or a choice, as its default is."""

    default: Value
    meaning: str
    low: float = 0  # least and greatest value of a number
    high: float = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """How big a search with given parameters is; an estimate where it depends on the question."""

    side: int  # branches that grow side by side
    kept: int  # paths whose KV is held between steps
    branches: float  # branches grown in all, for a question of eight steps
    trajectories: int  # finished trajectories at most


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A search as the catalogue shows it; `function(tree, **parameters)` starts one."""

    function: Callable[..., Search]
    parameters: Mapping[str, Parameter]
    needs_verifier: bool
    shape: Callable[[Params], Shape]
    description: str
    signal: str  # what the signal of its answer is
    source: str
    in_order: bool = True  # False: its answer depends on which trajectory happens to end first


STEPS: Final = 8.0
"""Steps of a typical trajectory, for `Shape.branches`. Source: assumed, near math-500's 6.5."""


def _whole(default: int, high: int, meaning: str) -> Parameter:
    return Parameter(default, meaning, 1, high)


def _share(default: float, meaning: str) -> Parameter:
    return Parameter(default, meaning, 0.0, 1.0)


_N: Final = _whole(16, 65_536, "trajectories grown for one answer")
_WINDOW: Final = _whole(4, 65_536, "trajectories grown at a time")
_CERTAINTY: Final = _share(0.95, "posterior probability of the leading answer that stops the vote")
_WIDTH: Final = _whole(4, 4_096, "beams kept after each step")
_EXPAND: Final = _whole(4, 4_096, "children grown from each beam a step")
_MAX_STEPS: Final = _whole(40, 1_000, "expansions; the last runs to the answer")
_AGGREGATE: Final = Parameter(
    "last",
    "how the scores of a trajectory's steps become one",
    choices=tuple(AGGREGATES),
)


def _flat(p: Params) -> Shape:
    n = int(p.get("n", 1))
    steps = 1.0 if p.get("aggregate", "last") == "last" else STEPS
    return Shape(n, n, n * steps, n)


def _adaptive(p: Params) -> Shape:
    side = min(int(p["n"]), int(p["window"]))
    return Shape(side, side, float(p["n"]), int(p["n"]))


def _levels(paths: str) -> Callable[[Params], Shape]:
    def shape_of(p: Params) -> Shape:
        kept = int(p[paths])
        side = kept * int(p.get("expand", 1))
        return Shape(side, kept, STEPS * side, kept)

    return shape_of


def _mcts(p: Params) -> Shape:
    grown = int(p["simulations"]) * int(p["expand"])
    side = min(int(p["parallel"]), int(p["simulations"])) * int(p["expand"])
    return Shape(side, max(side, grown // 4), float(grown), grown)


def _revision(p: Params) -> Shape:
    side = min(int(p["n"]), int(p["chains"]))
    return Shape(side, side, float(p["n"]), int(p["n"]))


def _long_chain(p: Params) -> Shape:
    return Shape(1, 1, 2.0 + int(p["waits"]), 2 + int(p["waits"]))


_SCORE_OF_ANSWER: Final = "the score of the answer"
_SHARE_OF_VOTES: Final = "the answer's share of the n votes"
_SHARE_OF_SCORES: Final = (
    "the answer's share of the scores, times the part of the n that was scored"
)
_POSTERIOR: Final = "the posterior mean share of the answer, (its weight + 1) / (all weights + 2)"

ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {
        "direct": Algorithm(
            direct,
            MappingProxyType({}),
            False,
            _flat,
            "One trajectory, no verifier: what a plain chat completion does.",
            "0.5: nothing was observed",
            "the baseline, pass@1",
        ),
        "best_of_n": Algorithm(
            best_of_n,
            MappingProxyType({"n": _N, "aggregate": _AGGREGATE}),
            True,
            _flat,
            "Grow n trajectories, score each, answer with the best.",
            _SCORE_OF_ANSWER,
            "Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
        ),
        "self_consistency": Algorithm(
            self_consistency,
            MappingProxyType({"n": _N}),
            False,
            _flat,
            "Grow n trajectories and answer with the most frequent answer.",
            _SHARE_OF_VOTES,
            "Wang et al., Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171",
        ),
        "weighted_vote": Algorithm(
            weighted_vote,
            MappingProxyType({"n": _N, "aggregate": _AGGREGATE}),
            True,
            _flat,
            "Grow n trajectories, score each, answer with the largest sum of scores.",
            _SHARE_OF_SCORES,
            "Li et al., Making Language Models Better Reasoners with Step-Aware Verifier, "
            "arXiv 2206.02336",
        ),
        "first_finish": Algorithm(
            first_finish,
            MappingProxyType({"n": _N}),
            False,
            _flat,
            "Grow n trajectories, answer with the first that ends, cancel the others.",
            "0.5: nothing was observed",
            "Agarwal et al., First Finish Search, arXiv 2505.18149",
            in_order=False,
        ),
        "adaptive_consistency": Algorithm(
            adaptive_consistency,
            MappingProxyType({"n": _N, "window": _WINDOW, "certainty": _CERTAINTY}),
            False,
            _adaptive,
            "A majority vote that stops as soon as its leader is certain to stay ahead.",
            _POSTERIOR,
            "Aggarwal et al., Let's Sample Step by Step: Adaptive-Consistency, arXiv 2305.11860",
        ),
        "adaptive_vote": Algorithm(
            adaptive_vote,
            MappingProxyType({"n": _N, "window": _WINDOW, "certainty": _CERTAINTY}),
            True,
            _adaptive,
            "A weighted vote that stops as soon as its leader is certain to stay ahead.",
            _POSTERIOR,
            "the rule of arXiv 2305.11860 on the weights of arXiv 2206.02336; stopping on certainty: "
            "Fu et al., Certaindex, arXiv 2412.20993",
        ),
        "beam": Algorithm(
            beam,
            MappingProxyType(
                {
                    "width": _WIDTH,
                    "expand": _EXPAND,
                    "max_steps": _MAX_STEPS,
                    "aggregate": _AGGREGATE,
                }
            ),
            True,
            _levels("width"),
            "Grow step by step, keeping the best partial trajectories by verifier score.",
            "the aggregated score of the answer's trajectory",
            "Snell et al., Scaling LLM Test-Time Compute Optimally, arXiv 2408.03314, section 5.1",
        ),
        "dvts": Algorithm(
            dvts,
            MappingProxyType(
                {
                    "subtrees": _whole(4, 4_096, "independent paths"),
                    "expand": _EXPAND,
                    "max_steps": _MAX_STEPS,
                }
            ),
            True,
            _levels("subtrees"),
            "Independent paths that each take the best of a few children at every step.",
            _SCORE_OF_ANSWER,
            "Beeching, Tunstall, Rush, Scaling test-time compute with open models (diverse verifier "
            "tree search), Hugging Face, 2024-12-16",
        ),
        "rebase": Algorithm(
            rebase,
            MappingProxyType(
                {
                    "n": _whole(16, 65_536, "paths grown side by side"),
                    "temperature": Parameter(
                        0.2, "of the softmax that shares children out by score", 0.001, 1_000.0
                    ),
                    "max_steps": _MAX_STEPS,
                }
            ),
            True,
            _levels("n"),
            "Share a number of paths out by the softmax of the scores at every step, then vote.",
            _SHARE_OF_SCORES,
            "Wu et al., Inference Scaling Laws (reward balanced search), arXiv 2408.00724",
        ),
        "tree_search": Algorithm(
            tree_search,
            MappingProxyType(
                {
                    "width": _whole(4, 4_096, "paths kept after each step"),
                    "expand": _whole(2, 4_096, "children grown from a node at a time"),
                    "max_children": _whole(6, 4_096, "a node is widened no more from this many on"),
                    "confidence": _share(0.8, "score of a child that makes widening unnecessary"),
                    "margin": _share(0.5, "a path that scores this much below the best is pruned"),
                    "stop": _share(1.0, "a path that scores this much is finished alone"),
                    "max_steps": _MAX_STEPS,
                }
            ),
            True,
            _levels("width"),
            "Follow a few paths, widening a node only while none of its children convinces.",
            _SCORE_OF_ANSWER,
            "Chaslot et al., Progressive Strategies for Monte-Carlo Tree Search, 2008 (progressive "
            "widening), with the verifier's confidence in place of visit counts",
        ),
        "mcts": Algorithm(
            mcts,
            MappingProxyType(
                {
                    "simulations": _whole(64, 65_536, "expansions"),
                    "expand": _whole(2, 4_096, "children grown from a leaf"),
                    "exploration": Parameter(
                        1.0, "weight of the PUCT bonus against the mean value", 0.0, 1_000.0
                    ),
                    "parallel": _whole(4, 4_096, "leaves expanded at a time"),
                }
            ),
            True,
            _mcts,
            "Expand the leaf of the highest PUCT value, worth its verifier score, then vote.",
            "the answer's share of the scores of all ends",
            "Silver et al., Mastering the game of Go without human knowledge, 2017 (PUCT); process "
            "rewards as values: Zhang et al., ReST-MCTS*, arXiv 2406.03816",
        ),
        "revision": Algorithm(
            revision,
            MappingProxyType(
                {
                    "n": _whole(8, 65_536, "tries in all chains together"),
                    "chains": _whole(1, 65_536, "chains of revisions side by side"),
                    "inject": _whole(32, 65_536, "tokens that ask for a revision"),
                    "stop": _share(1.0, "score of a try that ends its chain"),
                }
            ),
            True,
            _revision,
            "Answer and revise the answer again and again, in one chain or a few, then vote.",
            _SHARE_OF_SCORES,
            "Snell et al., Scaling LLM Test-Time Compute Optimally, arXiv 2408.03314, section 6",
        ),
        "long_chain": Algorithm(
            long_chain,
            MappingProxyType(
                {
                    "min_think": _whole(1_024, 10**9, "an earlier end is told to wait"),
                    "max_think": _whole(8_192, 10**9, "tokens after which it must conclude"),
                    "waits": Parameter(2, "times that it is told to wait, at most", 0, 1_000),
                }
            ),
            False,
            _long_chain,
            "One long chain of thought of at least and at most so many tokens (budget forcing).",
            "the part of its answers that agree with the last; half of that where it was forced",
            "Muennighoff et al., s1: Simple test-time scaling, arXiv 2501.19393",
        ),
    }
)


def needs_verifier(algorithm: str) -> bool:
    """Say whether the algorithm of this name asks for scores. Raises: KeyError for another name."""
    return ALGORITHMS[algorithm].needs_verifier


def shape(algorithm: str, params: Params) -> Shape:
    """How big the algorithm is with these (complete) parameters. Raises: KeyError for another name."""
    return ALGORITHMS[algorithm].shape(params)
