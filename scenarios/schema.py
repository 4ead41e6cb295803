"""The scenario: what may be written in a YAML file, its defaults, and the SI numbers it becomes.

Strict: an unknown key is an error. What ties several keys together (shares that add up, a search
that needs a verifier) is in scenarios/rules.py. `python -m scenarios.schema` writes the JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from scenarios import units
from scenarios.arrivals import (
    Arrivals,
    Constant,
    Dist,
    Diurnal,
    Empirical,
    Gamma,
    Lognormal,
    Poisson,
    TraceReplay,
    Uniform,
)
from scenarios.fields import (
    Multiple,
    Name,
    Number,
    Positive,
    Seconds,
    Share,
    Strict,
    Text,
    Usd,
    Whole,
    WholeTokens,
    wrong,
)
from scenarios.pools import Engine, Kv, Latency, Pool
from scenarios.prices import Drift, Month, Power, Price, Pricing, Segment

__all__ = [
    "BUDGETS",
    "NEEDS_VERIFIER",
    "PARAMETERS",
    "QUESTION_KINDS",
    "SEARCH_PARAMETERS",
    "Arrivals",
    "Budget",
    "Constant",
    "Controller",
    "Dist",
    "Diurnal",
    "Drift",
    "Empirical",
    "Engine",
    "Escalate",
    "Gamma",
    "Horizon",
    "Kv",
    "Latency",
    "Lognormal",
    "Month",
    "Poisson",
    "Pool",
    "Power",
    "Price",
    "Pricing",
    "Promise",
    "QueryClass",
    "Scenario",
    "Search",
    "Segment",
    "Slo",
    "Sweep",
    "Tier",
    "TraceReplay",
    "Uniform",
    "Workload",
    "json_schema",
    "schema_text",
]


class Horizon(Strict):
    """How much time is simulated; statistics cover `measure` only, None is the whole trace."""

    warmup_s: Seconds = Field(default=60.0, alias="warmup")
    measure_s: Annotated[Seconds, Field(gt=0)] | None = Field(default=600.0, alias="measure")


def _question(value: object) -> object:
    if isinstance(value, dict):
        kind = value.get("kind")
        if kind is not None and kind not in QUESTION_KINDS:
            known = ", ".join(QUESTION_KINDS)
            raise wrong(f"{units.quoted(kind)} is not a kind of question", f"kinds: {known}")
        if kind is None and not isinstance(value.get("preset"), str):
            raise wrong("a question needs a kind or a preset", "add preset: math-500")
    return value


QUESTION_KINDS: Final = ("single_step", "steps", "thinking")


class QueryClass(Strict):
    """One kind of query: its share of the arrivals, its lengths and how hard its questions are.

    `escalated` are the parameters of its questions that differ for the model that doubtful ones escalate to,
    such as its pass rate: the same questions in the same order of difficulty, another model's luck.
    """

    share: Share = 1.0
    preset: Text | None = None
    prompt_tokens: Dist | None = None
    output_tokens: Dist | None = None
    question: Annotated[dict[str, Any], BeforeValidator(_question)] | None = None
    shared_prefix_tokens: WholeTokens = 0
    tiers: dict[Name, Share] | None = None
    escalated: dict[str, Any] | None = None


class Workload(Strict):
    """When queries arrive and what they are."""

    arrivals: Arrivals
    classes: Annotated[dict[Name, QueryClass], Field(min_length=1)]


Fan = Annotated[Whole, Field(le=4096)]
Many = Annotated[Whole, Field(le=65_536)]
Unit = Annotated[Share, Field(ge=0, le=1)]

# algorithm -> its parameters; models/search.py has the same names, and their defaults
SEARCH_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "direct": (),
    "best_of_n": ("n", "aggregate"),
    "self_consistency": ("n",),
    "weighted_vote": ("n", "aggregate"),
    "first_finish": ("n",),
    "adaptive_consistency": ("n", "window", "certainty"),
    "adaptive_vote": ("n", "window", "certainty"),
    "beam": ("width", "expand", "max_steps", "aggregate"),
    "dvts": ("subtrees", "expand", "max_steps"),
    "rebase": ("n", "temperature", "max_steps"),
    "tree_search": (
        "width",
        "expand",
        "max_children",
        "confidence",
        "margin",
        "stop",
        "max_steps",
    ),
    "mcts": ("simulations", "expand", "exploration", "parallel"),
    "revision": ("n", "chains", "inject", "stop"),
    "long_chain": ("min_think", "max_think", "waits"),
}
NEEDS_VERIFIER: Final = frozenset(
    {"best_of_n", "weighted_vote", "adaptive_vote", "beam", "dvts", "rebase", "tree_search", "mcts"}
    | {"revision"}
)


class Search(Strict):
    """How a tier thinks; which parameters belong to which algorithm is in `SEARCH_PARAMETERS`."""

    algorithm: Literal[
        "direct", "best_of_n", "self_consistency", "weighted_vote", "first_finish",
        "adaptive_consistency", "adaptive_vote", "beam", "dvts", "rebase", "tree_search", "mcts",
        "revision", "long_chain",
    ] = "direct"  # fmt: skip
    n: Many | None = None
    aggregate: Literal["last", "min", "product", "mean", "max"] | None = None
    window: Many | None = None
    certainty: Unit | None = None
    width: Fan | None = None
    subtrees: Fan | None = None
    expand: Fan | None = None
    max_children: Fan | None = None
    confidence: Unit | None = None
    margin: Unit | None = None
    stop: Unit | None = None
    temperature: Annotated[Positive, Field(ge=0.001, le=1000)] | None = None
    simulations: Many | None = None
    exploration: Annotated[Number, Field(ge=0, le=1000)] | None = None
    parallel: Fan | None = None
    max_steps: Annotated[Whole, Field(le=1000)] | None = None
    chains: Many | None = None
    inject: Many | None = None
    min_think: WholeTokens | None = None
    max_think: WholeTokens | None = None
    waits: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None
    max_tokens: WholeTokens | None = None
    max_expansions: Whole | None = None
    deadline_s: Annotated[Seconds, Field(gt=0)] | None = Field(default=None, alias="deadline")
    max_gpu_s: Annotated[Seconds, Field(gt=0)] | None = Field(default=None, alias="max_gpu_time")

    @property
    def parameters(self) -> dict[str, Any]:
        """The algorithm's own parameters that were given (the budgets are the driver's)."""
        given = {name: getattr(self, name) for name in PARAMETERS}
        return {name: value for name, value in given.items() if value is not None}


BUDGETS: Final = (
    "max_tokens",
    "max_expansions",
    "deadline",
    "max_gpu_time",
)  # what any search may be limited by
PARAMETERS: Final = tuple(
    name
    for name, field in Search.model_fields.items()
    if name != "algorithm" and (field.alias or name) not in BUDGETS
)


class Budget(Strict):
    """What a query may spend at most: "1 trajectory", "4000 tokens", or "0.05 USD" at its tier's prices."""

    trajectories: Whole | None = None
    tokens: Whole | None = None
    usd: Annotated[Usd, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        text = value if isinstance(value, str) else units.quoted(value)
        for field, quantity in (("trajectories", "count"), ("tokens", "tokens"), ("usd", "money")):
            try:
                amount = units.parse(value, quantity)  # type: ignore[arg-type]
            except units.UnitError:
                continue
            if field == "usd":
                return {field: value}
            if isinstance(value, str) and value.strip()[-1].isalpha() and amount.is_integer():
                return {field: int(amount)}
        raise wrong(
            f"{text} is not a budget", "write for example 1 trajectory, 4000 tokens or 0.05 USD"
        )


_COUNT: Final = {"type": "integer", "minimum": 1}
_BUDGET_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "examples": ["1 trajectory", "4000 tokens", "0.05 USD"]},
            {
                "type": "object",
                "properties": {
                    "trajectories": _COUNT,
                    "tokens": _COUNT,
                    "usd": {"type": "string", "examples": ["0.05 USD"]},
                },
                "additionalProperties": False,
            },
        ]
    }
)


class Promise(Strict):
    """What a tier promises: a confidence in its answers, a budget, or both.

    `basis` is what the confidence is read from: calibrated, or the search's raw score as it is.
    """

    confidence: Annotated[Share, Field(gt=0, lt=1)] | None = None
    basis: Literal["calibrated", "score"] = "calibrated"
    budget: Annotated[Budget, _BUDGET_SCHEMA] | None = None


SloTarget = Literal[
    "ttft_p50", "ttft_p90", "ttft_p95", "ttft_p99",
    "ttfat_p50", "ttfat_p90", "ttfat_p95", "ttfat_p99",
    "tpot_p50", "tpot_p90", "tpot_p95", "tpot_p99",
    "e2e_p50", "e2e_p90", "e2e_p95", "e2e_p99",
]  # fmt: skip


class Slo(RootModel[dict[SloTarget, Annotated[Seconds, Field(gt=0)]]]):
    """Latency targets in s: time to first (answer) token, per output token, end to end."""

    model_config = ConfigDict(frozen=True)

    @property
    def targets(self) -> dict[SloTarget, float]:
        """Target in s by its name, such as `e2e_p95`."""
        return self.root


class Escalate(Strict):
    """When a query starts again at the second policy pool, and with which search (else the tier's own).

    `below`: the calibrated confidence under which its first answer is not good enough; by default what the
    tier promises. Budgets inside a search bound that search alone.
    """

    below: Annotated[Share, Field(gt=0, lt=1)] | None = None
    search: Search | None = None


class Tier(Strict):
    """One service level: its share of the queries, how it thinks, what it promises and costs.

    A query that arrives while the pressure on its replica is above `shed_above` is refused at once; 1 is a
    full batch or full memory, every further batch that waits adds 1. The tier with the lowest sheds first.
    """

    share: Share = 1.0
    search: Search = Search()
    shed_above: Annotated[Multiple, Field(gt=0)] | None = None
    escalate: Escalate | None = None
    promise: Promise | None = None
    slo: Slo | None = None
    price: Price | None = None


class Controller(Strict):
    """Who decides how much a query thinks: `fixed` is what its tier's search says.

    `learned` decides stage by stage how wide the vote of a query is, up to its tier's n: it goes on while
    the chance that it gains, times `value_per_correct`, exceeds the GPU time that it costs. `load_gain`
    makes that time dearer under load: each replica-full of waiting or memory pressure adds so many times
    its price. The vote grows in at most `max_rounds` rounds: fewer answer sooner and cost more. `file` is a controller made by `treeline fit controller`; by default the one that ships.
    """

    kind: Literal["fixed", "learned"] = "fixed"
    value_per_correct: Annotated[Usd, Field(gt=0)] | None = None
    load_gain: Annotated[float, Field(ge=0, le=1000)] = 0.0
    max_rounds: Annotated[int, Field(ge=1, le=12)] = 4
    file: Text | None = None

    @model_validator(mode="after")
    def _learned_needs_a_value(self) -> Self:
        fields = type(self).model_fields
        given = [n for n in fields if n != "kind" and getattr(self, n) != fields[n].default]
        if self.kind == "fixed" and given:
            hint = "write kind: learned beside it, or leave it out"
            raise wrong(f"a fixed controller has no {given[0]}", hint)
        if self.kind == "learned" and self.value_per_correct is None:
            hint = "say what a right answer is worth: value_per_correct: 0.05 USD"
            raise wrong("a learned controller weighs GPU time against right answers", hint)
        return self


class Sweep(Strict):
    """A grid of cells: each dotted path takes each of its values; cells share their random numbers."""

    grid: Annotated[dict[Text, list[Any]], Field(min_length=1)]
    common_random_numbers: Annotated[bool, Field(strict=True)] = True


class Scenario(Strict):
    """One question to the simulator, complete; SI numbers throughout."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = (
        "scenario"
    )
    question: Annotated[str, Field(strict=True, max_length=2000)] = ""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    replications: Annotated[Whole, Field(le=10_000)] = 3
    horizon: Horizon = Horizon()
    fleet: Annotated[dict[Name, Pool], Field(min_length=1)]
    workload: Workload
    tiers: Annotated[dict[Name, Tier], Field(min_length=1)]
    controller: Controller = Controller()
    pricing: Pricing = Pricing()
    sweep: Sweep | None = None

    @model_validator(mode="before")
    @classmethod
    def _whole_trace(cls, value: Any) -> Any:
        """A replayed trace is measured whole, from its first request, unless the horizon says otherwise."""
        arrivals = _dig(value, "workload", "arrivals")
        if _dig(arrivals, "kind") != "trace":
            return value
        horizon = value.get("horizon")
        given = horizon if isinstance(horizon, dict) else {}
        if horizon is not None and not isinstance(horizon, dict):
            return value
        return {**value, "horizon": {"warmup": "0s", "measure": None} | given}


def _dig(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def json_schema() -> dict[str, Any]:
    """The JSON Schema for editors: keys, kinds and units.

    Nothing is required below the top level and null is allowed everywhere, because a what-if holds
    only its differences; `treeline check` sees the merged scenario and requires the rest.
    """
    schema = _lenient(Scenario.model_json_schema(by_alias=True))
    schema["properties"]["extends"] = {"type": "string", "description": "the file this one changes"}
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = {"required": ["fleet", "workload", "tiers"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _lenient(node: Any) -> Any:
    if isinstance(node, list):
        return [_lenient(item) for item in node]
    if not isinstance(node, dict):
        return node
    loose = {"anyOf" if key == "oneOf" else key: _lenient(item) for key, item in node.items()}
    if isinstance(loose.get("properties"), dict):
        loose.pop("required", None)
        loose["properties"] = {k: _nullable(item) for k, item in loose["properties"].items()}
    if isinstance(loose.get("additionalProperties"), dict):
        loose["additionalProperties"] = _nullable(loose["additionalProperties"])
    for pattern, item in loose.get("patternProperties", {}).items():
        loose["patternProperties"][pattern] = _nullable(item)
    return loose


def _nullable(item: Any) -> Any:
    if not isinstance(item, dict) or {"type": "null"} in item.get("anyOf", []):
        return item
    return {"anyOf": [item, {"type": "null"}]}


SCHEMA_FILE: Final = Path(__file__).with_name("scenario.schema.json")


def schema_text() -> str:
    """What scenario.schema.json must hold."""
    import json

    return json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {SCHEMA_FILE.name}")
