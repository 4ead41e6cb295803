"""What a tier charges, and what the business around it assumes: rates, segments of clients, drift, the month."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scenarios import units
from scenarios.fields import (
    Multiple,
    Name,
    Number,
    PerSecond,
    Positive,
    Share,
    Strict,
    Text,
    Usd,
    UsdPerHour,
    Whole,
    wrong,
)


class Commitment(Strict):
    """A throughput that a client pays for by the hour, used or not; what goes beyond pays per use."""

    rate: Annotated[PerSecond, Field(gt=0)]
    fee: UsdPerHour


class Price(Strict):
    """What a query is charged in USD, and what is paid back when it is wrong or late."""

    per_mtok_in: Usd = 0.0
    per_mtok_out: Usd = 0.0
    per_query: Usd = 0.0
    per_trajectory: Usd = 0.0
    per_answer: Usd = 0.0
    levels: dict[Text, Usd] = Field(
        default_factory=dict
    )  # 95%: 0.02 USD, by the confidence reached
    per_outcome: Usd = 0.0  # of an accepted answer that turns out to be right
    committed: Commitment | None = None
    refund: Multiple = 0.0  # multiple of the charge paid back when the answer is wrong
    late_credit: Share = 0.0  # fraction of the charge credited when e2e misses its target

    @model_validator(mode="after")
    def _levels_are_shares(self) -> Self:
        for text in self.levels:
            try:
                units.parse(text, "share")
            except units.UnitError as error:
                hint = "write levels: {90%: 0.01 USD, 97%: 0.03 USD}"
                raise wrong(f"a level is a confidence: {error.message}", hint) from None
        steps = [usd for _, usd in self.steps]
        if steps != sorted(steps):
            raise wrong("a higher confidence costs less than a lower one", "let prices rise")
        return self

    @property
    def steps(self) -> tuple[tuple[float, float], ...]:
        """The levels as (confidence, USD), rising."""
        return tuple(sorted((units.parse(text, "share"), usd) for text, usd in self.levels.items()))


class Segment(Strict):
    """Clients of one kind: what a right answer is worth to them, what a wrong one and waiting cost them.

    They ask queries of every class unless `classes` names theirs; `scale` is the spread of tastes.
    """

    share: Share = 1.0
    classes: tuple[Name, ...] | None = None
    value: Usd
    harm: Usd = 0.0
    wait: UsdPerHour = 0.0
    scale: Annotated[Usd, Field(gt=0)]


class Power(Strict):
    """Electricity on top of the rates, for GPUs of your own: every GPU at full draw, busy or idle."""

    per_kwh: Usd
    pue: Annotated[Number, Field(ge=1, le=5)] = 1.2


class Drift(Strict):
    """How the verifier in service differs from the one that confidence was calibrated with.

    `bias` is added to its logits, `strength` multiplies what separates right from wrong; a share
    `audited` of the sold answers is checked against the truth, with one false alarm in
    `false_alarm_days`.
    """

    bias: Number = 0.0
    strength: Annotated[Positive, Field(le=10)] = 1.0
    audited: Annotated[Share, Field(gt=0)] = 0.01
    false_alarm_days: Positive = 30.0


class Month(Strict):
    """How a month is planned: busy share at the peak, weekends, whole nodes, rates of a commitment."""

    busy: Annotated[Share, Field(gt=0)] = 0.7
    weekend: Share = 0.7  # of a weekday's load, where arrivals have a day (kind: diurnal)
    node_gpus: Whole = 8
    committed_rates: dict[Text, UsdPerHour] = Field(default_factory=dict)


class Pricing(Strict):
    """What the business assumes; rates that replace the catalogue's are USD per device and hour."""

    device_rates: dict[Text, UsdPerHour] = Field(default_factory=dict)
    terms: Literal["on_demand", "committed", "spot"] = "on_demand"
    power: Power | None = None
    calibration_queries: Whole = 1000  # a class in a tier, to support what it promises
    delta: Annotated[Share, Field(gt=0, lt=1)] = 0.05
    error_correlation: Annotated[Share, Field(lt=1)] = 0.01
    drift: Drift | None = None
    segments: dict[Name, Segment] = Field(default_factory=dict)
    month: Month = Month()
