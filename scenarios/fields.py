"""The vocabulary of the schema: strict models, and numbers that are read with their units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from scenarios import units


class Strict(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


def wrong(message: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("treeline", "{message}", {"message": message, "hint": hint})


def _reader(read: Callable[[object], float]) -> BeforeValidator:
    def validate(value: object) -> float:
        try:
            return read(value)
        except units.UnitError as error:
            raise wrong(error.message, error.hint) from None

    return BeforeValidator(validate)


def _unit(quantity: units.Quantity) -> BeforeValidator:
    return _reader(lambda value: units.parse(value, quantity))


def _shown(quantity: units.Quantity) -> PlainSerializer:
    """As JSON, with its unit again, so that a resolved scenario is one that loads."""
    return PlainSerializer(lambda value: units.show(value, quantity), when_used="json")


def _text(*examples: str, number: bool = False) -> WithJsonSchema:
    kind = ["string", "number"] if number else "string"
    return WithJsonSchema({"type": kind, "examples": list(examples)})


def _tokens(value: object) -> int:
    count = units.parse(value, "tokens")
    if not count.is_integer():
        raise units.UnitError(f"{value} is not a whole number of tokens", "write a whole number")
    return int(count)


Seconds = Annotated[float, _unit("time"), _shown("time"), _text("800ms", "60s", "5min", "2h")]
PerSecond = Annotated[float, _unit("rate"), _shown("rate"), _text("12/s", "3/min")]
Usd = Annotated[float, _unit("money"), _shown("money"), _text("0.02 USD")]
UsdPerHour = Annotated[float, _unit("money_rate"), _shown("money_rate"), _text("3.50 USD/h")]
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
