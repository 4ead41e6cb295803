"""The command line as a person and a script meet it: results, exit codes, JSON, files, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import treeline
from dashboards.glossary import terms
from models.search import ALGORITHMS
from scenarios.loader import load, loads
from sim import store
from sim.metrics import LATENCIES

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("run", "check", "new", "explain", "show", "dash", "catalog")
SMALL = """\
question: Is this small enough to be a test?
replications: 2
horizon: {warmup: 5s, measure: 30s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb}
workload:
  arrivals: {rate: 2/s}
  classes: {chat: {preset: chat}}
tiers:
  fast: {search: {algorithm: direct}, slo: {e2e_p95: 20s}, price: {per_mtok_out: 2.40 USD}}
"""
WHAT_IF = "extends: small.yaml\nquestion: And twice the load?\nworkload: {arrivals: {rate: 4/s}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small scenario and a what-if of it."""
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "twice.yaml").write_text(WHAT_IF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")  # as wide as the report that is saved
    return tmp_path


def treeline_(*words: str) -> Result:
    """One command in this process; a traceback fails the test."""
    result = CliRunner().invoke(treeline.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*words: str) -> Result:
    return treeline_("run", *words, "--workers", "1", "--quiet")


def document(result: Result) -> Any:
    """The one JSON document on stdout; anything else there fails the test."""
    return json.loads(result.stdout)


def started(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "treeline.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example_and_offers_json(command: str) -> None:
    text = treeline_(command, "--help").stdout
    assert f"Example: treeline {command}" in text
    assert "--json" in text


@pytest.mark.parametrize("command", ("", *COMMANDS))
def test_help_is_answered_in_less_than_three_tenths_of_a_second(command: str) -> None:
    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert started(*filter(None, (command, "--help"))).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(3)) < 0.3


def test_a_run_prints_its_report_and_leaves_a_whole_run_directory(here: Path) -> None:
    result = run("small.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Is this small enough to be a test?" in result.stdout
    assert {path.name for path in (here / "runs/small").iterdir()} == {
        "manifest.json", "scenario.yaml", "resolved.yaml", "queries.parquet", "timeline.parquet",
        "pools.parquet", "report.txt", "summary.json",
    }  # fmt: skip
    assert store.load(here / "runs/small").result.scenario_name == "small"
    assert str(here) not in "".join(
        (here / "runs/small" / name).read_text()
        for name in ("manifest.json", "report.txt", "summary.json", "resolved.yaml")
    )


def test_progress_goes_to_stderr_and_quiet_silences_it(here: Path) -> None:
    loud = treeline_("run", "small.yaml", "--workers", "1")
    assert "small" in loud.stderr
    assert "simulating" not in loud.stdout
    assert run("small.yaml").stderr == ""


def test_without_a_directory_the_next_free_one_is_taken(here: Path) -> None:
    for expected in ("small", "small-2", "small-3"):
        assert document(run("small.yaml", "--json"))["runs"][0]["run"] == f"runs/{expected}"
    run("small.yaml", "--force")
    assert sorted(path.name for path in (here / "runs").iterdir()) == [
        "small",
        "small-2",
        "small-3",
    ]


def test_a_directory_that_exists_is_refused_before_anything_runs(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine/thesis.tex").write_text("x")
    refused = run("small.yaml", "--out", "mine")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "mine exists already" in refused.stderr
    assert run("small.yaml", "--out", "mine", "--force").exit_code == 2
    assert [path.name for path in (here / "mine").iterdir()] == ["thesis.tex"]


def test_json_is_the_saved_summary_and_nothing_else_is_on_stdout(here: Path) -> None:
    printed = document(run("small.yaml", "--json", "--out", "one"))["runs"]
    shown = document(treeline_("show", "one", "--json"))
    assert len(printed) == 1
    assert {key: value for key, value in printed[0].items() if key != "run"} == {
        key: value for key, value in shown.items() if key != "run"
    }
    assert shown["tiers"]


def test_show_prints_the_report_again(here: Path) -> None:
    report = run("small.yaml").stdout
    shown = treeline_("show", "runs/small").stdout
    figures = [line.rstrip() for line in shown.splitlines() if "fast" in line]
    assert figures
    assert set(figures) <= {line.rstrip() for line in report.splitlines()}
    assert treeline_("show", "small.yaml").exit_code == 2


def test_seed_and_replications_and_set_change_what_runs(here: Path) -> None:
    changes = ("--seed", "7", "--replications", "1", "--set", "workload.arrivals.rate=1/s")
    run("small.yaml", *changes)
    resolved = yaml.safe_load((here / "runs/small/resolved.yaml").read_text())
    assert (resolved["seed"], resolved["replications"]) == (7, 1)
    assert resolved["workload"]["arrivals"]["rate"] == "1/s"
    result = store.load(here / "runs/small").result
    assert result.seed == 7
    assert set(result.queries["replication"]) == {0}


def test_a_what_if_runs_its_base_on_the_same_queries_and_shows_the_difference(here: Path) -> None:
    result = document(run("twice.yaml", "--json", "--seed", "3"))["runs"][0]
    assert result["comparison"]["base_name"] == "small"
    assert all(tier["pairs"] > 0 for tier in result["comparison"]["tiers"])
    assert "small" in run("twice.yaml").stdout


def test_what_ifs_of_one_base_run_it_once(here: Path) -> None:
    (here / "thrice.yaml").write_text(WHAT_IF.replace("4/s", "6/s"))
    words = ("run", "twice.yaml", "thrice.yaml", "--workers", "1")
    simulated = [line for line in treeline_(*words).stderr.splitlines() if "simulating" in line]
    assert [line.split()[1].strip(",") for line in simulated] == ["small", "twice", "thrice"]


def test_every_cell_of_a_sweep_is_a_run_of_its_own(here: Path) -> None:
    grid = "sweep: {grid: {workload.arrivals.rate: [1/s, 2/s]}}\n"
    (here / "sweep.yaml").write_text(SMALL + grid)
    runs = document(run("sweep.yaml", "--json", "--out", "grid"))["runs"]
    places = [entry["run"] for entry in runs]
    assert places == ["grid/sweep-rate=1-s", "grid/sweep-rate=2-s"]
    assert all(store.is_run(place) for place in places)


def test_a_missed_objective_is_exit_code_3_where_that_was_asked_for(here: Path) -> None:
    hopeless = ("small.yaml", "--set", "tiers.fast.slo.e2e_p95=1ms")
    assert run(*hopeless, "--fail-on-slo").exit_code == 3
    assert run(*hopeless).exit_code == 0
    assert run("small.yaml", "--fail-on-slo").exit_code == 0
    assert store.is_run("runs/small")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml"),
        (("run", "small.yaml", "--set", "fleet.thinker.replica=2"), "did you mean"),
        (("run", "small.yaml", "--set", "workload.arrivals.rate=NaN"), "workload.arrivals.rate"),
        (("run", "small.yaml", "--seed", "-1"), "--seed"),
        (("run", "small.yaml", "--workers", "0"), "--workers"),
        (("run", "small.yaml", "--no-such-option"), "--no-such-option"),
        (("run",), "FILE"),
        (("check", "."), "."),
        (("check", "small.yaml", "--set", "fleet.thinker.device=h2000"), "h200"),
        (("explain", "gooodput"), "Did you mean 'goodput'?"),
        (("catalog", "device"), "Did you mean 'devices'?"),
        (("show", "runs/none"), "runs/none"),
        (("new", "small.yaml"), "--force"),
        (("new", "no/such/folder.yaml"), "no/such/folder.yaml"),
        (("new", "a\0b.yaml"), "a\\x00b.yaml"),
    ],
)
def test_a_mistake_is_exit_code_2_with_a_message_on_stderr(
    here: Path, words: tuple[str, ...], message: str
) -> None:
    result = treeline_(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.casefold() in result.stderr.casefold()
    assert "Traceback" not in result.stderr
    assert not (here / "runs").exists()


def test_a_refusal_is_a_json_document_too_with_the_place_of_each_problem(here: Path) -> None:
    (here / "bad.yaml").write_text(
        SMALL.replace("rate: 2/s", "rate: 2").replace("preset: chat", "preset: 3")
    )
    result = treeline_("check", "bad.yaml", "--json")
    problems = document(result)["problems"]
    assert result.exit_code == 2
    assert [problem["where"].split(":")[0] for problem in problems] == ["bad.yaml"] * len(problems)
    assert len(problems) == 2


def test_a_missing_extra_is_exit_code_4_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = treeline_("dash")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "streamlit is not installed" in result.stderr
    assert f"make -C {shlex.quote(str(ROOT))} dash" in result.stderr


def test_an_interrupted_run_is_exit_code_130_and_leaves_no_directory(here: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "treeline.py"),
        "run",
        "evening-peak.yaml",
        "--workers",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "simulating" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert not (here / "runs").exists()


def test_our_own_fault_is_exit_code_1(here: Path) -> None:
    broken = "import sys, sim.run, treeline\nsim.run.resolve = None\nsys.argv = ['treeline', 'check', 'small.yaml']\ntreeline.main()\n"
    found = subprocess.run(
        [sys.executable, "-c", broken],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout == ""


def test_the_commands_that_a_report_prints_can_be_pasted(here: Path) -> None:
    report = started("run", "small.yaml", "--quiet", "--workers", "1", "--out", "a run").stdout
    lines = report.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Again"))
    (show, follow) = " ".join(lines[first:]).split("Next")
    shown = subprocess.run(
        show.removeprefix("Again").strip(), shell=True, capture_output=True, text=True, check=True
    )
    assert "Is this small enough to be a test?" in shown.stdout
    follow = " ".join(follow.split()) + " --workers 1 --quiet --out next"
    subprocess.run(follow, shell=True, capture_output=True, check=True)
    assert store.is_run("next")


def test_nothing_from_a_scenario_steers_the_terminal(here: Path) -> None:
    hostile = SMALL.replace("Is this small", r"\e]0;x\a\e[31m [bold]Is[/bold] this \u202E small")
    hostile = "\n".join(
        f'question: "{line.removeprefix("question: ")}"' if line.startswith("question") else line
        for line in hostile.splitlines()
    )
    (here / "hostile.yaml").write_text(hostile)
    for text in (run("hostile.yaml").stdout, treeline_("show", "runs/hostile").stdout):
        assert "[bold]Is[/bold]" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_check_says_how_big_a_run_will_be(here: Path) -> None:
    assert "small.yaml: fine. About" in treeline_("check", "small.yaml").stdout
    found = document(treeline_("check", "small.yaml", "twice.yaml", "--json"))["scenarios"]
    small, twice = (entry["estimate"] for entry in found)
    assert twice["queries"] == pytest.approx(2 * small["queries"])
    assert small["queries"] == pytest.approx(70)
    assert small["replications"] == 2


def test_an_absurd_scenario_is_refused_before_it_runs(here: Path) -> None:
    result = run("small.yaml", "--set", "workload.arrivals.rate=1000000000/s")
    assert result.exit_code == 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_resolved_scenario_is_complete_and_loads_to_the_same(file: Path) -> None:
    trace = ["workload.arrivals.path=x.csv"] if "azure" in file.stem else []
    scenario = load(file, trace).scenario
    plain = scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert loads(yaml.safe_dump(plain)).scenario == scenario
    assert plain["fleet"]
    for pool in plain["fleet"].values():
        assert pool["engine"]["max_num_seqs"]
        assert pool["kv"]["sharing"]


def test_check_resolved_prints_that_yaml(here: Path) -> None:
    printed = treeline_("check", "small.yaml", "--resolved").stdout
    assert loads(printed).scenario == load("small.yaml").scenario


def test_a_new_scenario_is_commented_and_ready_to_run(here: Path) -> None:
    result = treeline_("new", "my first.yaml")
    assert result.exit_code == 0
    assert "run 'my first.yaml'" in result.stdout
    text = (here / "my first.yaml").read_text()
    assert text.count("#") > 10
    assert "treeline check 'my first.yaml' --resolved" in text
    assert treeline_("check", "my first.yaml").exit_code == 0
    assert document(treeline_("new", "other.yaml", "--json")) == {"written": "other.yaml"}


def test_a_shipped_scenario_is_found_from_any_folder_unless_one_lies_there(here: Path) -> None:
    for name in ("quickstart.yaml", "scenarios/quickstart.yaml"):
        assert treeline_("check", name).exit_code == 0
    (here / "quickstart.yaml").write_text(SMALL.replace("2/s", "2"))
    assert treeline_("check", "quickstart.yaml").exit_code == 2
    assert treeline_("check", "elsewhere/quickstart.yaml").exit_code == 2


def test_every_term_has_a_sentence_and_a_source_and_no_spelling_means_two_things() -> None:
    seen: dict[str, str] = {}
    for term in terms():
        assert term.sentence.endswith("."), term.name
        assert term.source, term.name
        for spelling in {s.casefold() for s in (term.name, *term.also)}:
            assert seen.setdefault(spelling, term.name) == term.name


@pytest.mark.parametrize(
    "word",
    [*LATENCIES, *ALGORITHMS, "goodput", "KV pages", "preemption", "PRM", "confidence", "promise",
     "refund", "roofline", "binding constraint", "ECE", "Kv-Page", "verify_s"],
)  # fmt: skip
def test_the_words_of_the_field_are_explained_in_any_spelling(word: str) -> None:
    result = treeline_("explain", *word.split())
    assert result.exit_code == 0
    assert "source" in result.stdout
    assert document(treeline_("explain", word, "--json"))["sentence"]


def test_explain_alone_lists_all_terms() -> None:
    listed = treeline_("explain").stdout
    assert all(term.name in listed for term in terms())
    assert len(document(treeline_("explain", "--json"))["terms"]) == len(terms())


def test_the_catalogue_lists_what_scenarios_can_name_with_a_source_for_every_figure() -> None:
    found = document(treeline_("catalog", "--json"))
    assert list(found) == ["devices", "models", "presets", "algorithms"]
    text = treeline_("catalog").stdout
    for name in (*found["devices"], *found["models"], *found["algorithms"]):
        assert name in text
    figures = [figure for device in found["devices"].values() for figure in device.values()]
    figures += [
        f for section in found["presets"].values() for p in section.values() for f in p.values()
    ]
    assert figures
    assert all(figure["source"] for figure in figures)
    assert document(treeline_("catalog", "models", "--json"))["models"]["llama-3.1-8b"]


def test_without_a_command_the_commands_are_listed() -> None:
    listed = treeline_("--help").stdout
    assert all(command in listed for command in COMMANDS)
    assert "130 interrupted" in listed
    assert treeline_("--version").stdout.startswith("treeline ")
