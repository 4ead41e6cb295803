"""`treeline frontier`: a quality, a volume, and what is cheapest."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from treeline import app


def frontier(*words: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["frontier", *words])
    return result.exit_code, result.stdout, result.stderr


def test_a_volume_of_queries_decides_between_training_and_thinking() -> None:
    code, out, _ = frontier("2.0", "--queries", "1e5", "--json")
    few = json.loads(out)
    assert code == 0
    many = json.loads(frontier("2.0", "--queries", "1e14", "--json")[1])
    assert few["ways"][0]["thinking"] > 1 == many["ways"][0]["thinking"]
    assert many["ways"][0]["parameters"] < few["ways"][2]["parameters"]
    for found in (few, many):
        best, plain, _ = found["ways"]
        assert best["usd"] <= plain["usd"]
        assert best["usd"] == best["train_usd"] + best["infer_usd"]
    assert 1e5 < few["thinking_stops_paying_at_queries"] <= 1e14


def test_the_size_of_a_model_names_a_quality_and_the_sentence_says_where_the_dollar_goes() -> None:
    code, out, _ = frontier("70B", "--queries", "1e6")
    assert code == 0
    assert "next dollar goes into thinking" in out
    assert "no thinking, Chinchilla" in out
    assert "USD/h" in out


def test_what_is_no_quality_device_or_verification_is_refused() -> None:
    for words, message in (
        (("good",), "no quality"),
        (("1.2",), "irreducible"),
        (("2.0", "--verification", "hope"), "no kind of verification"),
        (("2.0", "--device", "abacus"), "abacus"),
        (("2.0", "--queries", "0"), "above 0"),
    ):
        code, _, err = frontier(*words)
        assert code == 2
        assert message in " ".join(err.split())
