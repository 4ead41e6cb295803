"""The scenarios we ship load, ask a question and fit the JSON Schema, which is fresh."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import scenarios
from scenarios import document, schema
from scenarios.errors import ScenarioError
from scenarios.loader import Loaded, load, loads
from tests.scenarios.test_bad_input import GOOD

FOLDER = Path(scenarios.__file__).parent
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = {
    "quickstart", "evening-peak", "no-sharing", "flat-best-of-n", "double-load",
    "azure-conversation", "thinking-r1", "fixed-compute-plan", "flat-per-token", "flat-to-confidence",
    "width-or-depth",
}  # fmt: skip


def shipped(file: Path) -> Loaded:
    trace = ["workload.arrivals.path=x.csv"] if file.stem == "azure-conversation" else []
    return load(file, trace)


def test_the_promised_scenarios_are_there() -> None:
    assert {file.stem for file in FILES} >= NAMES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_scenario_loads_under_its_file_name_and_asks_a_question(file: Path) -> None:
    scenario = shipped(file).scenario
    assert scenario.name == file.stem
    assert scenario.question.endswith("?")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_scenario_fits_the_json_schema(file: Path) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema.SCHEMA_FILE.read_text()))
    validator.validate(document.read(file.read_text(encoding="utf-8"), file.name).plain())


@pytest.mark.parametrize(
    ("old", "new"),
    [("replicas: 2", "replica: 2"), ("rate: 3/s", "rate: 3"), ("role: verifier", "role: judge")],
)
def test_the_json_schema_refuses_what_an_editor_should_underline(old: str, new: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema.SCHEMA_FILE.read_text()))
    assert validator.is_valid(document.read(GOOD, "s").plain())
    assert not validator.is_valid(document.read(GOOD.replace(old, new), "s").plain())


def test_the_json_schema_is_fresh() -> None:
    assert schema.SCHEMA_FILE.read_text(encoding="utf-8") == schema.schema_text(), (
        "run `python -m scenarios.schema`"
    )
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())


def test_the_three_what_ifs_have_the_evening_peak_as_their_base() -> None:
    for name in ("no-sharing", "flat-best-of-n", "double-load", "fixed-compute-plan"):
        base = load(FOLDER / f"{name}.yaml").base
        assert base is not None
        assert base.scenario.name == "evening-peak"


def test_the_trace_scenario_without_a_path_says_where_to_get_it_and_the_command() -> None:
    with pytest.raises(ScenarioError) as caught:
        load(FOLDER / "azure-conversation.yaml")
    text = str(caught.value)
    assert "https://github.com/Azure/AzurePublicDataset" in text
    assert f"treeline run {FOLDER}/azure-conversation.yaml --set workload.arrivals.path=" in text


def test_the_ten_line_first_scenario_has_every_default_it_promises() -> None:
    text = """\
question: Can two H200s take 3/s, and do careful answers pay?
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, replicas: 2}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb}
workload:
  arrivals: {rate: 3/s}
  classes: {chat: {preset: chat, share: 60%}, math: {preset: math-500, share: 40%}}
tiers:                                   # drawn independently of the class
  fast:    {share: 70%, search: {algorithm: direct}, slo: {e2e_p95: 20s}, price: {per_mtok_out: 2.40 USD}}
  careful: {share: 30%, search: {algorithm: beam, width: 4, expand: 4}, promise: {confidence: 90%}, slo: {e2e_p95: 60s}, price: {per_answer: 0.02 USD, refund: 100%}}
"""
    scenario = loads(text, "first.yaml").scenario
    assert (scenario.schema_version, scenario.name) == (1, "first")
    assert (scenario.seed, scenario.replications) == (0, 3)
    assert (scenario.horizon.warmup_s, scenario.horizon.measure_s) == (60.0, 600.0)
    pool = scenario.fleet["thinker"]
    assert (pool.role, pool.tensor_parallel, pool.latency.kind) == ("policy", 1, "auto")
    assert (pool.kv.sharing, pool.kv.attention, pool.router) == ("tree", "shared", "least_loaded")
    assert scenario.workload.arrivals.kind == "poisson"
    careful = scenario.tiers["careful"]
    assert careful.search.parameters == {"width": 4, "expand": 4}
    assert careful.price is not None
    assert (careful.price.per_answer, careful.price.refund) == (0.02, 1.0)
    assert careful.slo is not None
    assert careful.slo.targets == {"e2e_p95": 60.0}
    assert careful.promise is not None
    assert careful.promise.confidence == 0.9


def test_search_parameters_are_those_of_the_algorithms() -> None:
    algorithms = pytest.importorskip("models.search").ALGORITHMS
    for name, algorithm in algorithms.items():
        assert set(schema.SEARCH_PARAMETERS[name]) == set(algorithm.parameters), name
        assert (name in schema.NEEDS_VERIFIER) == algorithm.needs_verifier, name
    assert set(schema.SEARCH_PARAMETERS) == set(algorithms)


def test_a_scenario_cannot_be_changed_once_loaded() -> None:
    scenario = loads(GOOD).scenario
    tier = scenario.tiers["fast"]
    for owner, key in (
        (scenario, "seed"),
        (scenario.horizon, "warmup_s"),
        (scenario.fleet["thinker"].engine, "block_size"),
        (scenario.workload.arrivals, "rate"),
        (tier.search, "n"),
        (tier.slo, "root"),
    ):
        with pytest.raises(ValueError, match="frozen"):
            setattr(owner, key, 3)
