"""Which search a query gets: a controller looks at a query's features and returns a plan.

answer = search_for(controller("fixed").plan(features), tree)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final, Protocol

from models.search import ALGORITHMS, Parameter, Value
from models.search_staged import staged_vote
from models.tree import Search, Tree

STAGED: Final = "staged_vote"  # a controller's own search: no scenario can ask for it
_BUDGETS: Final[Mapping[str, Parameter]] = MappingProxyType(
    {
        "max_tokens": Parameter(1, "tokens generated for one query", 1, math.inf),
        "max_expansions": Parameter(1, "children grown for one query", 1, math.inf),
        "deadline_s": Parameter(1.0, "seconds from arrival to answer", 1e-6, math.inf),
        "max_gpu_s": Parameter(1.0, "GPU-seconds spent on one query", 1e-9, math.inf),
    }
)


class PlanError(ValueError):
    """An algorithm, parameter or controller that does not exist or is out of range."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A search and its settings; made and checked by `plan`."""

    algorithm: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    max_tokens: int | None = None  # budget of generated tokens for the whole search
    max_expansions: int | None = None  # budget of children grown for the whole search
    deadline_s: float | None = None  # from the query's arrival to its answer
    max_gpu_s: float | None = None  # budget of GPU-seconds, policy and verifier together


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of a query before its search starts."""

    tier: Plan  # what the tier asks for
    query_class: str = ""
    prompt_tokens: int = 0
    preset: str = ""  # the preset of its class, by which a learned controller knows it
    key: int = 0  # of the query: what a look at its prompt tells is drawn from it
    load: Callable[[], float] | None = None  # pressure on its replica now, 0 when nothing waits


class Controller(Protocol):
    """Turns the features of a query into the plan of its search."""

    def plan(self, features: Features) -> Plan:
        """Return the plan for one query."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every query gets what its tier says."""

    def plan(self, features: Features) -> Plan:
        """Return the tier's own plan."""
        return features.tier


CONTROLLERS: Final[Mapping[str, Callable[[], Controller]]] = MappingProxyType({"fixed": Fixed})


def controller(kind: str) -> Controller:
    """Return the controller of this kind. Raises: PlanError for a kind that does not exist."""
    if kind not in CONTROLLERS:
        raise PlanError(f"controller {kind!r} does not exist{_hint(kind, CONTROLLERS)}")
    return CONTROLLERS[kind]()


def plan(
    algorithm: str,
    max_tokens: int | None = None,
    max_expansions: int | None = None,
    deadline_s: float | None = None,
    max_gpu_s: float | None = None,
    **params: Value | None,
) -> Plan:
    """Return a plan with every parameter of the algorithm; one that is None gets its default.

    Raises: PlanError for an algorithm or parameter that does not exist or a value out of range.
    """
    if algorithm not in ALGORITHMS:
        raise PlanError(
            f"search algorithm {algorithm!r} does not exist{_hint(algorithm, ALGORITHMS)}"
        )
    known = ALGORITHMS[algorithm].parameters
    given = {name: value for name, value in params.items() if value is not None}
    for name in given:
        if name not in known:
            raise PlanError(f"search {algorithm} has no parameter {name!r}{_hint(name, known)}")
    chosen = {
        name: _checked(
            f"search {algorithm}: {name}", given.get(name, known[name].default), known[name]
        )
        for name in known
    }
    budgets = (max_tokens, max_expansions, deadline_s, max_gpu_s)
    for (name, parameter), limit in zip(_BUDGETS.items(), budgets, strict=True):
        if limit is not None:
            _checked(f"search {algorithm}: {name}", limit, parameter)
    return Plan(algorithm, chosen, *budgets)


def search_for(chosen: Plan, tree: Tree) -> Search:
    """Start the chosen search on `tree`; the plan's budgets are the driver's."""
    if chosen.algorithm == STAGED:
        return staged_vote(tree, **chosen.params)
    return ALGORITHMS[chosen.algorithm].function(tree, **chosen.params)


def _checked(where: str, value: object, parameter: Parameter) -> Value:
    """The value in the kind of the parameter's default, if it is one of its kind and in range."""
    default, low, high = parameter.default, parameter.low, parameter.high
    what = f"{where} ({parameter.meaning})"
    if isinstance(default, str):
        if not isinstance(value, str) or value not in parameter.choices:
            raise PlanError(f"{what} must be one of {', '.join(parameter.choices)}, not {value!r}")
        return value
    if isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PlanError(f"{what} must be a number, not {value!r}")
        value = float(value)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{what} must be a whole number, not {value!r}")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise PlanError(f"{what} must be {bounds}, not {value}")
    return value


def _hint(name: str, known: Mapping[str, object]) -> str:
    """Say what the nearest known name is, or all of them."""
    close = get_close_matches(name, list(known), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has: {', '.join(known)}" if known else "; it has none: leave it out"
