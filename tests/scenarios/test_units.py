"""Units: what people write is the SI number, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import units

EXAMPLES: list[tuple[object, units.Quantity, float]] = [
    ("800ms", "time", 0.8),
    ("5min", "time", 300.0),
    ("2h", "time", 7200.0),
    ("1.5 s", "time", 1.5),
    ("0s", "time", 0.0),
    ("12/s", "rate", 12.0),
    ("3/min", "rate", 0.05),
    ("3 / min".replace(" /", "/").replace("/ ", "/"), "rate", 0.05),
    ("141GB", "bytes", 141e9),
    ("1GiB", "bytes", 1024.0**3),
    ("4.8TB/s", "bandwidth", 4.8e12),
    ("989 TFLOP/s", "flops", 989e12),
    ("3.50 USD/h", "money_rate", 3.5),
    ("0.02 USD", "money", 0.02),
    ("30%", "share", 0.3),
    ("70%", "share", 0.7),
    (0.3, "share", 0.3),
    (1, "share", 1.0),
    ("1 trajectory", "count", 1.0),
    ("4000 tokens", "tokens", 4000.0),
    (600, "tokens", 600.0),
    ("1e3 tokens", "tokens", 1000.0),
]


@pytest.mark.parametrize(("text", "quantity", "number"), EXAMPLES)
def test_a_value_as_people_write_it_is_the_si_number(
    text: object, quantity: units.Quantity, number: float
) -> None:
    assert units.parse(text, quantity) == pytest.approx(number, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "quantity", "message"),
    [
        (600, "time", "600 has no unit, and a time needs one; write 600ms or 600s"),
        ("600", "time", "'600' has no unit, and a time needs one; write 600ms or 600s"),
        ("3 minutes", "time", "'minutes' is not a unit of a time; did you mean 3min?"),
        ("141gb", "bytes", "'gb' is not a unit of a size in bytes; did you mean 141GB?"),
        ("$3.50/h", "money_rate", "'$3.50/h' is not a price per hour; write 3.50 USD/h"),
        (-1, "tokens", "-1 is negative; a number of tokens is 0 or more"),
        (float("nan"), "share", "nan is not a finite number; write for example 30% or 0.3"),
        ("1e999s", "time", "'1e999' is not a finite number; write for example 800ms, 5min"),
        (10**400, "tokens", "is not a finite number"),
        (True, "share", "true is not a share; write for example 30% or 0.3"),
        (None, "time", "nothing is not a time"),
        ([], "time", "a list is not a time"),
        (60, "share", "60 is more than the whole; write 60%"),
        ("120%", "share", "'120%' is more than the whole; a share is at most 100%"),
    ],
)
def test_what_is_no_quantity_says_how_to_write_it(
    value: object, quantity: units.Quantity, message: str
) -> None:
    with pytest.raises(units.UnitError) as caught:
        units.parse(value, quantity)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("number", "quantity", "text"),
    [
        (0.8, "time", "800ms"),
        (100.0, "time", "100s"),
        (600.0, "time", "10min"),
        (5400.0, "time", "1.5h"),
        (0.0, "time", "0s"),
        (0.05, "rate", "3/min"),
        (12.0, "rate", "12/s"),
        (141e9, "bytes", "141GB"),
        (0.02, "money", "0.02 USD"),
        (3.99, "money_rate", "3.99 USD/h"),
        (0.3, "share", "30%"),
        (1.0, "count", "1 trajectory"),
        (4000.0, "tokens", "4000 tokens"),
    ],
)
def test_show_chooses_the_unit_a_person_would(
    number: float, quantity: units.Quantity, text: str
) -> None:
    assert units.show(number, quantity) == text


@given(
    number=st.floats(0, 1e15, allow_subnormal=False),
    quantity=st.sampled_from(
        ("time", "rate", "bytes", "bandwidth", "flops", "money", "money_rate", "tokens", "count")
    ),
)
def test_what_show_writes_parse_reads(number: float, quantity: units.Quantity) -> None:
    assert units.parse(units.show(number, quantity), quantity) == pytest.approx(number, rel=1e-9)


@given(st.floats(0, 1))
def test_a_share_survives_the_way_through_percent(share: float) -> None:
    assert units.parse(units.show(share, "share"), "share") == pytest.approx(share, rel=1e-9)


@given(
    value=st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()),
    quantity=st.sampled_from(("time", "rate", "bytes", "money", "share", "tokens", "count")),
)
def test_any_value_is_a_number_that_is_not_negative_or_a_unit_error(
    value: object, quantity: units.Quantity
) -> None:
    try:
        number = units.parse(value, quantity)
    except units.UnitError:
        return
    assert 0 <= number < float("inf")


@pytest.mark.parametrize(("value", "number"), [("100%", 1.0), (2.0, 2.0), (0, 0.0), ("250%", 2.5)])
def test_a_multiple_is_a_factor_or_a_percentage(value: object, number: float) -> None:
    assert units.multiple(value) == number


@pytest.mark.parametrize("value", ["2", "-10%", -1, True, None, "lots", float("inf")])
def test_a_multiple_is_nothing_else(value: object) -> None:
    with pytest.raises(units.UnitError):
        units.multiple(value)
