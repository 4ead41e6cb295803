"""When queries arrive and how long they are: arrival processes and token-length distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from scenarios import units
from scenarios.fields import (
    Number,
    PerSecond,
    Positive,
    Seconds,
    Share,
    Strict,
    Text,
    Tokens,
    Whole,
    wrong,
)


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
            raise wrong(f"low ({self.low:g}) is above high ({self.high:g})", "swap them")
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
            raise wrong(f"{counts}", "give one probability for each value")
        if abs(total := sum(self.probs) - 1) > 1e-6:
            raise wrong(f"probs add up to {total + 1:.6g}", "they must add up to 1")
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
        raise wrong(f"hourly has {len(value)} rates", "give 24, one for each hour of the day")
    if len({isinstance(item, str) for item in value}) > 1:
        raise wrong("hourly mixes bare numbers and rates", "write all 24 as 19/s, or all as 19")
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
    period_s: Annotated[Seconds, Field(gt=0)] = Field(default=86400.0, alias="period")
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
            raise wrong(
                "a diurnal rate needs hourly or peak_to_mean, and not both",
                "add peak_to_mean: 2.0, or hourly: with 24 rates",
            )
        if self.hourly is not None and not any(self.hourly):
            raise wrong("every hourly rate is 0", "give at least one hour a rate")
        return self


class TraceReplay(Strict):
    """Arrivals and lengths read from a trace; `speed` 2 is twice as fast, `start` skips its beginning."""

    kind: Literal["trace"] = "trace"
    path: Text
    format: Literal[
        "auto",
        "azure",
        "burstgpt",
        "mooncake",
        "servegen",
        "bailian",
        "llmservingsim",
        "vllm-bench",
    ] = "auto"
    speed: Annotated[Positive, Field(ge=1e-6, le=1e6)] = 1.0
    limit: Whole | None = None
    start_s: Seconds = Field(default=0.0, alias="start")


Arrivals = Annotated[
    Annotated[Poisson, Tag("kind=poisson")]
    | Annotated[Gamma, Tag("kind=gamma")]
    | Annotated[Diurnal, Tag("kind=diurnal")]
    | Annotated[TraceReplay, Tag("kind=trace")],
    _kind("poisson"),
]
