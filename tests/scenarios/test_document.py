"""YAML by the 1.2 core schema, with the place of every value."""

from __future__ import annotations

import pytest

from scenarios.document import core_scalar, read
from scenarios.errors import ScenarioError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("2026-11-23", "2026-11-23"),
        ("1.2.3", "1.2.3"),
        ("nan", "nan"),
    ],
)
def test_a_plain_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    result = core_scalar(text)
    assert result == value
    assert type(result) is type(value)


def test_every_value_knows_its_line_and_column() -> None:
    tree = read("a: 1\nb:\n  c: [x, y]\n  'd e': {f: null}\n", "t.yaml")
    c, f = tree.get("b", "c"), tree.get("b", "d e", "f")
    assert c is not None
    assert f is not None
    assert str(c.at) == "t.yaml:3:6"
    assert isinstance(c.data, list)
    assert [str(item.at) for item in c.data] == ["t.yaml:3:7", "t.yaml:3:10"]
    assert str(f.at) == "t.yaml:4:14"
    assert str(tree.get("b").keys["d e"]) == "t.yaml:4:3"  # type: ignore[union-attr]


def test_quotes_make_text_of_anything_and_aliases_copy() -> None:
    tree = read("a: '10'\nb: &x {c: \"true\"}\nd: *x\n", "t.yaml")
    assert tree.plain() == {"a": "10", "b": {"c": "true"}, "d": {"c": "true"}}


def test_all_duplicate_keys_are_reported_at_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        read("a: 1\na: 2\nb: {c: 1, c: 2}\n", "t.yaml")
    assert [str(p.where) for p in caught.value.problems] == ["t.yaml:2:1", "t.yaml:3:11"]


def test_byte_order_marks_and_windows_line_ends_do_not_move_the_places() -> None:
    tree = read("a: 1\r\nb: {c: 2}\r\n", "t.yaml")
    c = tree.get("b", "c")
    assert c is not None
    assert (c.at.line, c.at.column, c.at.source) == (2, 8, "b: {c: 2}")


def test_a_caret_stands_under_its_column_after_wide_characters_too() -> None:
    with pytest.raises(ScenarioError) as caught:
        read("木木: .nan\n", "t.yaml")
    _, source, caret, _ = str(caught.value).split("\n")
    assert source == "    木木: .nan"
    assert caret == "          ^"
