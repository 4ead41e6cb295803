"""Bad input: every kind of mistake gives one exact message, kept in bad_input.txt.

`python -m tests.scenarios.test_bad_input` rewrites that file; read its difference before committing.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from scenarios.errors import ScenarioError
from scenarios.loader import load, loads

GOLDEN = Path(__file__).with_name("bad_input.txt")

GOOD = """\
question: Does it fit?
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, replicas: 2}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb}
workload:
  arrivals: {rate: 3/s}
  classes:
    chat: {preset: chat, share: 60%}
    math: {preset: math-500, share: 40%}
tiers:
  fast: {share: 70%, search: {algorithm: direct}, slo: {e2e_p95: 20s}}
  careful: {share: 30%, search: {algorithm: beam, width: 4, expand: 4}, slo: {e2e_p95: 60s}}
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")
)

TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "misspelt key": (changed("replicas: 2", "replica: 2"), ()),
    "misspelt key at the top": (changed("tiers:", "teirs:"), ()),
    "key of a later release": (changed("role: verifier,", "role: verifier, versions: {v1: {}},"), ()),
    "value of a later release": (GOOD + "controller: {kind: oracle}\n", ()),
    "a learned controller without a value": (GOOD + "controller: {kind: learned}\n", ()),
    "a fixed controller with a value": (GOOD + "controller: {load_gain: 2}\n", ()),
    "key of another kind": (changed("{rate: 3/s}", "{rate: 3/s, cv: 2}"), ()),
    "unknown kind": (changed("{rate: 3/s}", "{kind: possion, rate: 3/s}"), ()),
    "missing keys": (changed("{rate: 3/s}", "{kind: gamma}"), ()),
    "missing sections": ("question: empty?\n", ()),
    "bare time": (changed("e2e_p95: 20s", "e2e_p95: 20"), ()),
    "bare rate": (changed("rate: 3/s", "rate: 3"), ()),
    "wrong unit": (changed("rate: 3/s", "rate: 3 qps"), ()),
    "unit of another quantity": (changed("rate: 3/s", "rate: 3GB"), ()),
    "dollar sign": (changed("slo: {e2e_p95: 20s}", "price: {per_query: $0.02}"), ()),
    "shares that do not add up": (changed("share: 30%", "share: 20%"), ()),
    "shares missing": (changed("share: 30%, ", ""), ()),
    "share above one": (changed("share: 30%", "share: 30"), ()),
    "budget in USD without a price": (
        changed("slo: {e2e_p95: 20s}", "promise: {budget: 0.05 USD}"), ()),
    "level that is no confidence": (
        changed("slo: {e2e_p95: 20s}", "price: {levels: {high: 0.05 USD}}"), ()),
    "levels that fall": (
        changed("slo: {e2e_p95: 20s}", "price: {levels: {90%: 0.05 USD, 97%: 0.01 USD}}"), ()),
    "commitment without a price beyond it": (
        changed("slo: {e2e_p95: 20s}", "price: {committed: {rate: 1/s, fee: 5 USD/h}}"), ()),
    "basis of no confidence": (
        changed("slo: {e2e_p95: 20s}", "promise: {basis: score}"), ()),
    "segments that do not add up": (GOOD + "pricing: {segments: {a: {share: 50%, value: 0.1 USD, "
        "scale: 0.01 USD}, b: {share: 20%, value: 0.1 USD, scale: 0.01 USD}}}\n", ()),
    "segment of a class that is not there": (GOOD + "pricing: {segments: {a: {classes: [chat, "
        "maths], value: 0.1 USD, scale: 0.01 USD}}}\n", ()),
    "nan": (changed("replicas: 2", "replicas: .nan"), ()),
    "infinity": (changed("rate: 3/s", "rate: 1e999"), ()),
    "negative": (changed("rate: 3/s", "rate: -3/s"), ()),
    "zero replicas": (changed("replicas: 2", "replicas: 0"), ()),
    "quoted number": (changed("replicas: 2", "replicas: '2'"), ()),
    "yes is text": (changed("replicas: 2", "replicas: yes"), ()),
    "list for a mapping": (changed("{rate: 3/s}", "[3/s]"), ()),
    "unknown slo": (changed("e2e_p95: 20s", "e2e_p94: 20s"), ()),
    "parameter of another search": (changed("algorithm: direct", "algorithm: direct, n: 4"), ()),
    "unknown search": (changed("algorithm: beam", "algorithm: beem"), ()),
    "no verifier": (changed("role: verifier", "role: policy"), ()),
    "only verifiers": (changed("thinker: {", "thinker: {role: verifier, "), ()),
    "unknown tier in a class": (changed("share: 60%", "share: 60%, tiers: {fsat: 100%}"), ()),
    "class without questions": (changed("preset: chat, ", ""), ()),
    "class without lengths": (changed("preset: chat", "question: {kind: single_step}"), ()),
    "bad budget": (changed("slo: {e2e_p95: 20s}", "promise: {budget: 3 potatoes}"), ()),
    "refund of nothing": (changed("slo: {e2e_p95: 20s}", "price: {refund: 100%}"), ()),
    "late without a target": (changed("slo: {e2e_p95: 20s}", "price: {per_query: 1 USD, late_credit: 9%}"), ()),
    "twenty-three hours": (changed("{rate: 3/s}", "{kind: diurnal, hourly: [1, 2, 3]}"), ()),
    "trace without a path": (changed("{rate: 3/s}", "{kind: trace, format: mooncake}"), ()),
    "name with a slash": (GOOD + "name: a/b\n", ()),
    "many at once": (changed("replicas: 2", "replica: 2").replace("20s", "20").replace("60%", "50%"), ()),
    "duplicate key": (GOOD + "question: again\n", ()),
    "merge key": (GOOD + "<<: {seed: 1}\n", ()),
    "empty": ("", ()),
    "comment only": ("# nothing\n", ()),
    "a list": ("- 1\n", ()),
    "two documents": (GOOD + "---\n" + GOOD, ()),
    "tab": ("fleet:\n\tthinker: 1\n", ()),
    "second colon": ("question: what: now\n", ()),
    "unclosed brace": ("fleet: {a: 1\n", ()),
    "unclosed quote": ("question: 'what\n", ()),
    "bad indent": ("fleet:\n    a: 1\n  b: 2\n", ()),
    "control character": ("question: a\x07b\n", ()),
    "escape that is no character": ('question: "\\UFFFFFFFF"\n', ()),
    "lone surrogate": ('question: "\\ud800"\n', ()),
    "python tag": ("seed: !!python/object/apply:os.system [ls]\n", ()),
    "unknown alias": ("seed: *one\n", ()),
    "alias of itself": ("seed: &a [*a]\n", ()),
    "alias bomb": (BOMB, ()),
    "too deep": ("seed: " + "[" * 100, ()),
    "too many digits": (f"seed: {'9' * 5000}\n", ()),
    "set: unknown path": (GOOD, ("workload.arrivals.rat=4/s",)),
    "set: unknown name": (GOOD, ("fleet.thinkr.replicas=4",)),
    "set: a key that resembles none": (GOOD, ("fleet.thinker.bogus=1",)),
    "set: only the leaf": (GOOD, ("replicas=4",)),
    "set: no equals sign": (GOOD, ("seed",)),
    "set: bare number": (GOOD, ("workload.arrivals.rate=4",)),
    "set: kind only": (GOOD, ("workload.arrivals.kind=gamma",)),
    "set: not YAML": (GOOD, ("seed=[1",)),
    "set: terminal escape": (GOOD, ("seed=\x1b[2J",)),
    "set: extends": (GOOD, ("extends=x.yaml",)),
    "null deletes nothing": (GOOD, ("fleet.juge=null",)),
    "sweep of an unknown path": (GOOD + "sweep: {grid: {workload.arrivals.rats: [1/s]}}\n", ()),
    "sweep with a bad value": (GOOD + "sweep: {grid: {workload.arrivals.rate: [1/s, 2]}}\n", ()),
    "sweep without values": (GOOD + "sweep: {grid: {workload.arrivals.rate: []}}\n", ()),
    "extends a missing file": ("extends: nowhere/base.yaml\n", ()),
    "extends a number": ("extends: 3\n", ()),
}  # fmt: skip


def message(name: str) -> str:
    text, overrides = TEXTS[name]
    with pytest.raises(ScenarioError) as caught:
        loads(text, "s.yaml", overrides)
    return str(caught.value)


def golden() -> dict[str, str]:
    blocks = GOLDEN.read_text(encoding="utf-8").split("\n### ")
    return {name: body for name, _, body in (block.partition("\n") for block in blocks[1:])}


@pytest.mark.parametrize("name", TEXTS)
def test_the_message_is_the_golden_one(name: str) -> None:
    assert message(name) == golden()[name].rstrip("\n")


def test_the_good_scenario_is_good_so_that_each_case_has_one_cause() -> None:
    assert loads(GOOD, "s.yaml").scenario.name == "s"


def test_files_that_are_not_scenarios_are_refused_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"question: caf\xe9\n")
    (tmp_path / "utf16.yaml").write_bytes("question: x\n".encode("utf-16"))
    (tmp_path / "huge.yaml").write_bytes(b"# " + b"x" * 1_000_000)
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    expected = {
        "latin.yaml": "latin.yaml:1:14: byte 0xe9 is not UTF-8",
        "utf16.yaml": "utf16.yaml:1:1: byte 0xff is not UTF-8",
        "huge.yaml": "is larger than the limit of 1 MB",
        "god.yaml": "did you mean good.yaml?",
        "no/such.yaml": "there is no folder",
        ".": "is a directory",
        "a\0b": "embedded null byte",
    }
    for name, part in expected.items():
        with pytest.raises(ScenarioError) as caught:
            load(f"{tmp_path}/{name}")
        assert part in str(caught.value), name


def test_extends_in_a_circle_names_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError) as caught:
        load("a.yaml")
    assert "extends goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml" in str(caught.value)
    assert str(caught.value).startswith("c.yaml:1:10: ")


def test_a_problem_of_the_base_is_shown_in_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("replicas", "replica"), encoding="utf-8")
    (tmp_path / "what-if.yaml").write_text("extends: base.yaml\nseed: -1\n", encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path / "what-if.yaml")
    places = [str(problem.where) for problem in caught.value.problems]
    assert places == [f"{tmp_path}/base.yaml:3:58", f"{tmp_path}/what-if.yaml:2:7"]


if __name__ == "__main__":
    body = "".join(f"\n### {name}\n{message(name)}\n" for name in TEXTS)
    GOLDEN.write_text("What each mistake says.\n" + body, encoding="utf-8")
