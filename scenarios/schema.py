"""The scenario: what may be written in a YAML file, its defaults, and the SI numbers it becomes.

Strict: an unknown key is an error. What ties several keys together (shares that add up, a search
that needs a verifier) is in scenarios/rules.py. `python -m scenarios.schema` writes the JSON Schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from scenarios import units


class Strict(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


def _wrong(message: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("treeline", "{message}", {"message": message, "hint": hint})


def _reader(read: Callable[[object], float]) -> BeforeValidator:
    def validate(value: object) -> float:
        try:
            return read(value)
        except units.UnitError as error:
            raise _wrong(error.message, error.hint) from None

    return BeforeValidator(validate)


def _unit(quantity: units.Quantity) -> BeforeValidator:
    return _reader(lambda value: units.parse(value, quantity))


def _text(*examples: str, number: bool = False) -> WithJsonSchema:
    kind = ["string", "number"] if number else "string"
    return WithJsonSchema({"type": kind, "examples": list(examples)})


def _tokens(value: object) -> int:
    count = units.parse(value, "tokens")
    if not count.is_integer():
        raise units.UnitError(f"{value} is not a whole number of tokens", "write a whole number")
    return int(count)


Seconds = Annotated[float, _unit("time"), _text("800ms", "60s", "5min", "2h")]
PerSecond = Annotated[float, _unit("rate"), _text("12/s", "3/min")]
Usd = Annotated[float, _unit("money"), _text("0.02 USD")]
UsdPerHour = Annotated[float, _unit("money_rate"), _text("3.50 USD/h")]
Share = Annotated[float, _unit("share"), _text("30%", number=True)]
Multiple = Annotated[float, _reader(units.multiple), _text("100%", "2.0", number=True)]
Tokens = Annotated[float, _unit("tokens"), _text("4000 tokens", number=True)]
WholeTokens = Annotated[
    int,
    BeforeValidator(_reader(_tokens).func),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["4000 tokens"]}),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Horizon(Strict):
    """How much time is simulated; statistics cover `measure` only, None is the whole trace."""

    warmup_s: Seconds = Field(60.0, alias="warmup")
    measure_s: Annotated[Seconds, Field(gt=0)] | None = Field(600.0, alias="measure")


class Latency(Strict):
    """Where step costs come from: `auto` is the best profile for the device, else the roofline."""

    kind: Literal["auto", "roofline", "profile"] = "auto"
    profile: Text | None = None

    @model_validator(mode="after")
    def _profile_given(self) -> Self:
        if self.kind == "profile" and self.profile is None:
            raise _wrong(
                "kind: profile names no profile", "add profile: NAME, or write kind: roofline"
            )
        if self.kind == "roofline" and self.profile is not None:
            raise _wrong(
                "kind: roofline reads no profile", "remove profile, or write kind: profile"
            )
        return self


class Engine(Strict):
    """The engine's own settings, by vLLM's names and with its defaults."""

    max_num_seqs: Whole = 256
    max_num_batched_tokens: Whole = 8192
    gpu_memory_utilization: Annotated[Share, Field(gt=0, le=1)] = 0.90
    block_size: Whole = 16
    num_gpu_blocks: Whole | None = None
    max_active_searches: Whole | None = None

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise _wrong(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is less than "
                f"max_num_seqs ({self.max_num_seqs}), so a full batch could not decode",
                f"write max_num_batched_tokens: {self.max_num_seqs} or more",
            )
        return self


class Kv(Strict):
    """What branches of one query share in KV memory, and what happens when it is full."""

    sharing: Literal["tree", "per_branch"] = "tree"
    attention: Literal["shared", "naive"] = "shared"
    fork: Literal["copy_tail", "recompute_tail"] = "copy_tail"
    on_pressure: Literal["recompute"] = "recompute"


_SUFFIXES: Final[tuple[tuple[str, units.Quantity], ...]] = (
    ("bytes_per_s", "bandwidth"),
    ("bytes", "bytes"),
    ("usd_per_hour", "money_rate"),
    ("_s", "time"),
)


def _model_or_config(value: object) -> object:
    if isinstance(value, dict) and (
        set(value) != {"config"} or not isinstance(value["config"], str)
    ):
        raise _wrong("a model in place is {config: PATH}", "write {config: path/to/config.json}")
    return value


def _inline_device(value: object) -> object:
    """A device in place, with every quantity that has a unit (memory_bytes: 141GB) as its SI number."""
    if not isinstance(value, dict):
        return value
    device: dict[str, Any] = dict(value)
    for key, item in value.items():
        kind = next((q for end, q in _SUFFIXES if str(key).endswith(end)), None)
        kind = "flops" if str(key).startswith("flops") else kind
        if kind is not None and isinstance(item, str):
            try:
                device[key] = units.parse(item, kind)
            except units.UnitError as error:
                raise _wrong(f"{key}: {error.message}", error.hint) from None
    return device


class Pool(Strict):
    """Replicas of one model on one kind of device: a policy that thinks, or a verifier that scores."""

    role: Literal["policy", "verifier"] = "policy"
    model: Annotated[Text | dict[str, Any], BeforeValidator(_model_or_config)]
    device: Annotated[Text | dict[str, Any], BeforeValidator(_inline_device)]
    replicas: Whole = 1
    tensor_parallel: Whole = 1
    latency: Latency = Latency()
    engine: Engine = Engine()
    kv: Kv = Kv()
    router: Literal["least_loaded", "round_robin", "random"] = "least_loaded"


class Constant(Strict):
    """Always `value` tokens."""

    kind: Literal["constant"] = "constant"
    value: Tokens
    min: Tokens | None = None
    max: Tokens | None = None


class Lognormal(Strict):
    """Lognormal tokens: `median`, and `sigma` the standard deviation of the logarithm."""

    kind: Literal["lognormal"] = "lognormal"
    median: Annotated[Tokens, Field(gt=0)]
    sigma: Annotated[Number, Field(ge=0, le=10)]
    min: Tokens | None = None
    max: Tokens | None = None


class Uniform(Strict):
    """Uniform tokens between `low` and `high`."""

    kind: Literal["uniform"] = "uniform"
    low: Tokens
    high: Tokens
    min: Tokens | None = None
    max: Tokens | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise _wrong(f"low ({self.low:g}) is above high ({self.high:g})", "swap them")
        return self


class Empirical(Strict):
    """Token counts `values` with probabilities `probs`."""

    kind: Literal["empirical"] = "empirical"
    values: tuple[Tokens, ...] = Field(min_length=1)
    probs: tuple[Share, ...] = Field(min_length=1)
    min: Tokens | None = None
    max: Tokens | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.values) != len(self.probs):
            counts = f"{len(self.values)} values and {len(self.probs)} probs"
            raise _wrong(f"{counts}", "give one probability for each value")
        if abs(total := sum(self.probs) - 1) > 1e-6:
            raise _wrong(f"probs add up to {total + 1:.6g}", "they must add up to 1")
        return self


def _kind(default: str | None) -> Discriminator:
    def kind(value: Any) -> Any:
        if isinstance(value, Mapping):
            found = value.get("kind", default)
        else:
            found = getattr(value, "kind", None)
        return f"kind={found}" if isinstance(found, str) else None

    return Discriminator(kind)


Dist = Annotated[
    Annotated[Constant, Tag("kind=constant")]
    | Annotated[Lognormal, Tag("kind=lognormal")]
    | Annotated[Uniform, Tag("kind=uniform")]
    | Annotated[Empirical, Tag("kind=empirical")],
    _kind(None),
]


class Poisson(Strict):
    """Independent arrivals, `rate` queries a second."""

    kind: Literal["poisson"] = "poisson"
    rate: Annotated[PerSecond, Field(gt=0)]


class Gamma(Strict):
    """Arrivals with gamma-distributed gaps: `cv` above 1 is burstier than Poisson."""

    kind: Literal["gamma"] = "gamma"
    rate: Annotated[PerSecond, Field(gt=0)]
    cv: Annotated[Positive, Field(ge=0.01, le=100)]


def _hourly(value: object) -> object:
    """24 rates of the hours of a day: all bare numbers (relative) or all with a unit (19/s)."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) != 24:
        raise _wrong(f"hourly has {len(value)} rates", "give 24, one for each hour of the day")
    if len({isinstance(item, str) for item in value}) > 1:
        raise _wrong("hourly mixes bare numbers and rates", "write all 24 as 19/s, or all as 19")
    if not any(isinstance(item, str) for item in value):
        value = [f"{item}/s" if type(item) in (int, float) else item for item in value]
    return tuple(value)


class Diurnal(Strict):
    """A day that repeats every `period`: 24 hourly rates, or a peak to mean ratio, around a mean rate."""

    kind: Literal["diurnal"] = "diurnal"
    rate: Annotated[
        PerSecond, Field(gt=0)
    ]  # the mean over the period; absolute hourly rates give it
    hourly: (
        Annotated[
            tuple[PerSecond, ...],
            BeforeValidator(_hourly),
            WithJsonSchema({"type": "array", "items": {"type": ["number", "string"]}}),
        ]
        | None
    ) = None
    peak_to_mean: Annotated[Number, Field(ge=1, le=100)] | None = None
    period_s: Annotated[Seconds, Field(gt=0)] = Field(86400.0, alias="period")
    start_hour: Annotated[Number, Field(ge=0, lt=24)] = 0.0
    cv: Annotated[Positive, Field(ge=0.01, le=100)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _mean_rate(cls, value: Any) -> Any:
        """Absolute hourly rates without `rate` are their own mean."""
        hourly = value.get("hourly") if isinstance(value, dict) else None
        if not isinstance(hourly, list) or "rate" in value or len(hourly) != 24:
            return value
        try:
            mean = sum(units.parse(item, "rate") for item in hourly) / 24
        except units.UnitError:
            return value
        return {**value, "rate": f"{mean!r}/s"}

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if (self.hourly is None) == (self.peak_to_mean is None):
            raise _wrong(
                "a diurnal rate needs hourly or peak_to_mean, and not both",
                "add peak_to_mean: 2.0, or hourly: with 24 rates",
            )
        if self.hourly is not None and not any(self.hourly):
            raise _wrong("every hourly rate is 0", "give at least one hour a rate")
        return self


class TraceReplay(Strict):
    """Arrivals and lengths read from a trace; `speed` 2 is twice as fast, `start` skips its beginning."""

    kind: Literal["trace"] = "trace"
    path: Text
    format: Literal["auto", "azure", "burstgpt", "mooncake", "servegen", "bailian"] = "auto"
    speed: Annotated[Positive, Field(ge=1e-6, le=1e6)] = 1.0
    limit: Whole | None = None
    start_s: Seconds = Field(0.0, alias="start")


Arrivals = Annotated[
    Annotated[Poisson, Tag("kind=poisson")]
    | Annotated[Gamma, Tag("kind=gamma")]
    | Annotated[Diurnal, Tag("kind=diurnal")]
    | Annotated[TraceReplay, Tag("kind=trace")],
    _kind("poisson"),
]


def _question(value: object) -> object:
    if isinstance(value, dict):
        kind = value.get("kind")
        if kind is not None and kind not in QUESTION_KINDS:
            known = ", ".join(QUESTION_KINDS)
            raise _wrong(f"{units._quoted(kind)} is not a kind of question", f"kinds: {known}")
        if kind is None and not isinstance(value.get("preset"), str):
            raise _wrong("a question needs a kind or a preset", "add preset: math-500")
    return value


QUESTION_KINDS: Final = ("single_step", "steps", "thinking")


class QueryClass(Strict):
    """One kind of query: its share of the arrivals, its lengths and how hard its questions are."""

    share: Share = 1.0
    preset: Text | None = None
    prompt_tokens: Dist | None = None
    output_tokens: Dist | None = None
    question: Annotated[dict[str, Any], BeforeValidator(_question)] | None = None
    shared_prefix_tokens: WholeTokens = 0
    tiers: dict[Name, Share] | None = None


class Workload(Strict):
    """When queries arrive and what they are."""

    arrivals: Arrivals
    classes: Annotated[dict[Name, QueryClass], Field(min_length=1)]


class Search(Strict):
    """How a tier thinks; which parameters belong to which algorithm is in `SEARCH_PARAMETERS`."""

    algorithm: Literal["direct", "best_of_n", "self_consistency", "weighted_vote", "beam"] = (
        "direct"
    )
    n: Annotated[Whole, Field(le=4096)] | None = None
    width: Annotated[Whole, Field(le=4096)] | None = None
    expand: Annotated[Whole, Field(le=4096)] | None = None
    max_steps: Annotated[Whole, Field(le=4096)] | None = None
    max_tokens: WholeTokens | None = None

    @property
    def parameters(self) -> dict[str, int]:
        """The algorithm's own parameters that were given (`max_tokens` is the driver's)."""
        given = {name: getattr(self, name) for name in ("n", "width", "expand", "max_steps")}
        return {name: value for name, value in given.items() if value is not None}


# algorithm -> (parameter -> required); models/search.py has the same signatures
SEARCH_PARAMETERS: Final[Mapping[str, Mapping[str, bool]]] = {
    "direct": {},
    "best_of_n": {"n": True},
    "self_consistency": {"n": True},
    "weighted_vote": {"n": True},
    "beam": {"width": True, "expand": True, "max_steps": False},
}
NEEDS_VERIFIER: Final = frozenset({"best_of_n", "weighted_vote", "beam"})


class Budget(Strict):
    """What a query may spend at most: "1 trajectory" or "4000 tokens"."""

    trajectories: Whole | None = None
    tokens: Whole | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        text = value if isinstance(value, str) else units._quoted(value)
        for field, quantity in (("trajectories", "count"), ("tokens", "tokens")):
            try:
                amount = units.parse(value, quantity)  # type: ignore[arg-type]
            except units.UnitError:
                continue
            if isinstance(value, str) and value.strip()[-1].isalpha() and amount.is_integer():
                return {field: int(amount)}
        raise _wrong(f"{text} is not a budget", "write for example 1 trajectory or 4000 tokens")


class Promise(Strict):
    """What a tier promises: a confidence in its answers, a budget, or both."""

    confidence: Annotated[Share, Field(gt=0, lt=1)] | None = None
    budget: Budget | None = None


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


class Price(Strict):
    """What a query is charged in USD, and what is paid back when it is wrong or late."""

    per_mtok_in: Usd = 0.0
    per_mtok_out: Usd = 0.0
    per_query: Usd = 0.0
    per_trajectory: Usd = 0.0
    per_answer: Usd = 0.0
    refund: Multiple = 0.0  # multiple of the charge paid back when the answer is wrong
    late_credit: Share = 0.0  # fraction of the charge credited when e2e misses its target


class Tier(Strict):
    """One service level: its share of the queries, how it thinks, what it promises and costs."""

    share: Share = 1.0
    search: Search = Search()
    promise: Promise | None = None
    slo: Slo | None = None
    price: Price | None = None


class Controller(Strict):
    """Who decides how much a query thinks: `fixed` is what its tier's search says."""

    kind: Literal["fixed"] = "fixed"


class Pricing(Strict):
    """Device rates that replace the catalogue's, in USD per device and hour."""

    device_rates: dict[Text, UsdPerHour] = Field(default_factory=dict)


class Sweep(Strict):
    """A grid of cells: each dotted path takes each of its values; cells share their random numbers."""

    grid: Annotated[dict[Text, list[Any]], Field(min_length=1)]
    common_random_numbers: Annotated[bool, Field(strict=True)] = True


class Scenario(Strict):
    """One question to the simulator, complete; SI numbers throughout."""

    schema_version: Literal[1] = Field(1, alias="schema")
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
