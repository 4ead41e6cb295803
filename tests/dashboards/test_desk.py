"""What a person types at the page is checked before it runs, and can read nothing beside its folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dashboards import desk
from scenarios.errors import ScenarioError, UserError

SHIPPED = Path(__file__).resolve().parents[2] / "scenarios"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of scenarios with secrets beside it."""
    place = tmp_path / "scenarios"
    place.mkdir()
    for name in ("evening-peak.yaml", "no-sharing.yaml", "azure-conversation.yaml"):
        shutil.copy(SHIPPED / name, place)
    (tmp_path / "secret.yaml").write_text("password: hunter2\n")
    (tmp_path / "secret.csv").write_text("hunter2\n")
    return place


def test_a_what_if_comes_with_the_files_it_extends_and_what_it_changes(folder: Path) -> None:
    draft = desk.check(folder, "no-sharing.yaml", desk.text(folder, "no-sharing.yaml"))
    assert set(draft.files) == {"no-sharing.yaml", "evening-peak.yaml"}
    assert draft.size.queries > 1000
    assert desk.difference(draft.loaded) == [
        ("fleet.reasoner.kv.sharing", "tree", "per_branch"),
        ("fleet.reasoner.kv.attention", "shared", "naive"),
    ]


def test_a_problem_is_shown_at_its_line_without_the_folder(folder: Path) -> None:
    text = desk.text(folder, "evening-peak.yaml").replace("replicas: 8", "replicas: many")
    with pytest.raises(ScenarioError) as caught:
        desk.check(folder, "evening-peak.yaml", text)
    shown = desk.short(caught.value, folder)
    assert shown.startswith("evening-peak.yaml:16:15:")
    assert str(folder) not in shown


@pytest.mark.parametrize(
    "change",
    [
        "extends: ../secret.yaml\n",
        "extends: {folder}/../secret.yaml\n",
        "extends: /etc/passwd\n",
        "extends: evening-peak.yaml\nworkload: {{arrivals: {{kind: trace, path: ../secret.csv}}}}\n",
        "extends: evening-peak.yaml\nfleet: {{reasoner: {{model: {{config: ../secret.csv}}}}}}\n",
    ],
)
def test_nothing_outside_the_folder_can_be_read(folder: Path, change: str) -> None:
    with pytest.raises(UserError) as caught:
        desk.check(folder, "mine.yaml", change.format(folder=folder))
    assert "hunter2" not in str(caught.value)
    assert "root:" not in str(caught.value)
    assert "page" in str(caught.value)


def test_a_trace_below_a_listed_root_may_be_replayed(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = "\n".join(f"2023-11-16 18:15:{s:02d}.0000000,100,20" for s in range(40))
    (data / "trace.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n")
    text = desk.text(folder, "azure-conversation.yaml")
    asked = (
        f"extends: azure-conversation.yaml\nworkload: {{arrivals: {{path: {data}/trace.csv}}}}\n"
    )
    assert text
    with pytest.raises(ScenarioError, match="page may not read"):
        desk.check(folder, "mine.yaml", asked)
    draft = desk.check(folder, "mine.yaml", asked, [data])
    assert any("trace.csv" in option for option in draft.options)


def test_a_scenario_that_is_too_large_is_refused(folder: Path) -> None:
    with pytest.raises(UserError):
        desk.check(folder, "mine.yaml", "a: " + "x" * 2_000_000)


def test_an_extends_that_goes_in_a_circle_is_refused(folder: Path) -> None:
    (folder / "a.yaml").write_text("extends: b.yaml\n")
    (folder / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        desk.check(folder, "a.yaml", "extends: b.yaml\n")
