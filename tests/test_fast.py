"""The compiled core gives the interpreted one's bytes, and is used for exactly the sources it was made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import compiled
from models.compiled import COMPILED, INTERPRETED, MODULES, ROOMS, ROOT, builds, digest, find
from scenarios.errors import UserError
from tests import fast

RUN = "from models.compiled import core; import sim.batch; print(core(), sim.batch.__file__)"


def sources(place: Path) -> Path:
    """A copy of what the core may depend on."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, place / room, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def python(*words: str, core: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TREELINE_CORE": core, "PYTHONPATH": str(cwd)}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_every_module_of_the_core_is_there() -> None:
    for room, names in MODULES.items():
        assert [name for name in names if not (ROOT / room / f"{name}.py").is_file()] == []


def test_a_build_of_other_sources_is_never_used(tmp_path: Path) -> None:
    root = sources(tmp_path)
    assert find("", root) is None
    place = builds(root) / digest(root)
    place.mkdir(parents=True)
    assert find("", root) == find(COMPILED, root) == place
    assert find(INTERPRETED, root) is None
    changed = root / "sim" / "kv.py"
    text = changed.read_text(encoding="utf-8")
    changed.write_text(text + "\n", encoding="utf-8")
    assert find("", root) is None
    changed.write_text(text, encoding="utf-8")
    assert find("", root) == place
    changed.rename(root / "sim" / "pages_of_others.py")
    assert find("", root) is None


def test_what_cannot_be_chosen_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compiled or interpreted, not 'fast'"):
        find("fast", tmp_path)
    with pytest.raises(UserError, match="make fast"):
        find(COMPILED, tmp_path)


def test_without_a_compiler_the_core_stays_interpreted_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fast.main(said.append) == 0
    assert "no C compiler" in said[0]


def test_processes_use_a_build_where_there_is_one_and_say_which(tmp_path: Path) -> None:
    root = sources(tmp_path)
    asked = python("-c", RUN, core="", cwd=root)
    assert asked.stdout.startswith(f"{INTERPRETED} {root / 'sim' / 'batch.py'}"), asked.stderr
    place = builds(root) / digest(root)
    (place / "sim").mkdir(parents=True)
    (place / "sim" / "batch.py").touch()  # stands in for the compiled module
    asked = python("-c", RUN, core="", cwd=root)
    assert asked.stdout.startswith(f"{COMPILED} {place / 'sim' / 'batch.py'}"), asked.stderr
    assert python("-c", RUN, core="other", cwd=root).returncode == 1


@pytest.mark.slow
def test_a_compiled_run_has_the_bytes_of_an_interpreted_one(tmp_path: Path) -> None:
    reason = fast.lacking()
    if reason:
        pytest.skip(reason)
    fast.build()
    made = []
    for core, workers in ((INTERPRETED, 1), (COMPILED, 1), (COMPILED, 2)):
        place = tmp_path / f"{core}-{workers}"
        ran = python(
            "treeline.py", "run", "scenarios/evening-peak.yaml", "--out", str(place), "--quiet",
            "--workers", str(workers), "--replications", "2", "--set", "horizon.measure=20s",
            "--set", "fleet.reasoner.engine.num_gpu_blocks=3000", core=core,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        made.append(place)
    for name in ("queries.parquet", "pools.parquet", "timeline.parquet"):
        first, *others = ((place / name).read_bytes() for place in made)
        assert others == [first] * len(others), name


def test_this_process_runs_what_it_was_told_to() -> None:
    assert compiled.core() == os.environ["TREELINE_CORE"]
