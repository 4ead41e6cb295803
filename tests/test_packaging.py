"""What a stranger gets: a wheel that works on its own, pins for all that is installed, a README that is true."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import treeline
from hw.profile import make_profile, save
from hw.shipped import default_profile
from tests import readme
from tests.hardware import hardware

MADE = {"test", "dashboard", "e2e"}  # the extras that make installs
ROOT = Path(__file__).resolve().parents[1]
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DATA = {".yaml", ".json", ".cu", ".parquet", ".py"}


def bare(requirement: str) -> str:
    """The normalised name of a requirement: scikit-learn>=1.5 -> scikit-learn."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pip() -> list[str]:
    """The first pip that can install into another environment, as the Makefile looks for it."""
    base = getattr(sys, "_base_executable", sys.executable)
    for words in ([sys.executable, "-m", "pip"], [base, "-m", "pip"], ["pip3"], ["pip"]):
        if shutil.which(words[0]) is None:
            continue
        asked = [*words, "--python", sys.executable, "--version"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return words
    raise AssertionError("no pip 22.3 or later here, and the Makefile needs one")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built offline with the build tools that are installed."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it, which borrows only the dependencies from this one."""
    place = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    command = [*pip(), "--python", str(programs / "python"), "install", "--no-index", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    (site,) = place.rglob("site-packages")
    # A path alone: an editable install of this source tree that lies there is not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def test_every_file_of_the_rooms_is_in_the_wheel(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    rooms = [path for room in readme.ROOMS for path in (ROOT / room).rglob("*")]
    ours = {path.relative_to(ROOT).as_posix() for path in rooms if path.suffix in DATA}
    assert "scenarios/quickstart.yaml" in ours
    assert packed == ours | {"treeline.py"}


def test_the_installed_wheel_runs_on_its_own_from_any_folder(
    installed: Path, tmp_path: Path
) -> None:
    environment = {"PATH": str(installed), "HOME": str(tmp_path)}
    small = ("--set", "horizon.measure=10s", "--set", "horizon.warmup=0s", "--replications", "1")

    def run(*words: str) -> str:
        command = [str(installed / "treeline"), *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    document = json.loads(run("run", "scenarios/quickstart.yaml", "--json", "--quiet", *small))
    assert document["runs"][0]["scenario"] == "quickstart"
    assert "quickstart" in run("show", "runs/quickstart")
    assert "goodput" in run("explain", "goodput")
    assert "llama-3.1-8b" in run("catalog", "models")
    assert run("--version") == f"treeline {PROJECT['version']}\n"
    where = [str(installed / "python"), "-c", "import treeline, sim; print(treeline.HERE)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)


def test_all_that_make_installs_is_pinned_and_nothing_heavy_is() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(w for name in MADE for w in extras[name])]
    assert {bare(requirement) for requirement in wanted} <= pins.keys()
    assert all(re.fullmatch(r"\d+(\.\w+)*", version) for version in pins.values())
    heavy = {
        bare(requirement) for extra in ("gpu", "torch", "cluster") for requirement in extras[extra]
    }
    compiler = {"cupy-cuda13x"}  # `make kernels` puts it into a folder of its own
    assert not heavy & pins.keys() - compiler


def test_make_installs_no_extra_but_those_it_needs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"'\.\[(.*?)\]'", makefile)) == MADE
    apart = r"(?![^\n]*--target)"  # `make engine` puts torch into a folder of its own
    assert not re.search(rf"\$pip install {apart}[^\n]*torch", makefile)


def test_the_extras_that_the_command_line_offers_are_those_of_the_package() -> None:
    extras = {
        name: set(map(bare, items)) for name, items in PROJECT["optional-dependencies"].items()
    }
    offered = {name: set(packages.split()) for name, (_, packages) in treeline.EXTRAS.items()}
    assert offered == {name: items for name, items in extras.items() if name not in ("test", "e2e")}


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony, *_ = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    told = set(re.findall(r"@echo \"make ([\w-]+)", makefile))
    assert told == set(phony.split()) - {"help", "FORCE"}


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_tree_in_the_readme_is_fresh() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(text, "tree", readme.tree()) == text, "run `python tests/readme.py`"


def test_every_file_of_the_rooms_begins_with_its_idea() -> None:
    for room in readme.ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert readme.first_line(path), f"{path.relative_to(ROOT)} has no docstring"


def test_the_table_of_hardware_is_fresh_wherever_it_is_quoted() -> None:
    for page in (readme.README, readme.PROFILE):
        text = page.read_text(encoding="utf-8")
        assert readme.with_hardware(text) == text, "run `python tests/readme.py`"
    assert "<!-- hardware: begin" in readme.PROFILE.read_text(encoding="utf-8")


def test_a_profile_that_we_measured_becomes_lines_of_the_table_with_its_benchmark(
    tmp_path: Path,
) -> None:
    before = hardware()
    assert "No profile of our own on a GPU ships yet" in before
    assert "| h200-sxm-141gb-aiconfigurator | imported | 37," in before
    step = {
        "op": "decode_step",
        "calls": 32,
        "status": "ok",
        "frac_floor": 0.7,
        "B": 64,
        "P": 8192,
        "t_us_median": 6200.0,
        "floor_us": 4340.0,
    }
    more = step | {"op": "expansion", "B": 256, "t_us_median": 20_000.0, "floor_us": 10_000.0}
    roofs = {"copy_bytes_per_s": 4.31e12, "read_bytes_per_s": 4.45e12, "gemm_flops_bf16": 7.88e14}
    profile = make_profile("h200-sxm-141gb", "measured", "measured on NVIDIA H200, 2026-12-01", [step, more],
                           ceilings=roofs, meta={"error": "median 2.1 %, p90 7.0 %"})  # fmt: skip
    save(profile, tmp_path / "h200-sxm-141gb")
    (tmp_path / "h200-sxm-141gb-kernels.json").write_text('{"goals": ["met    B=64: 48.0 us"]}')
    lines = hardware(tmp_path).splitlines()
    assert lines[2] == (
        "| h200-sxm-141gb | measured | 2 | 4.31 TB/s | 4.45 TB/s | 788 TFLOP/s | median 2.1 %, p90 7.0 % |"
    )
    assert "measured on NVIDIA H200, 2026-12-01 (`h200-sxm-141gb`):" in lines
    assert "| a decode step | 6.2 ms (70% of its floor's speed) |  |" in lines
    assert "| an expansion |  | 20 ms (50% of its floor's speed) |" in lines
    assert "met    B=64: 48.0 us" in lines
    assert "No profile" not in "\n".join(lines)


def test_our_own_measurement_is_a_devices_default_as_soon_as_it_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hw.shipped.FOLDER", tmp_path)
    found = []
    for name in ("h200-sxm-141gb-aiconfigurator", "h200-sxm-141gb"):
        (tmp_path / f"{name}.parquet").touch()
        found.append(default_profile("h200-sxm-141gb"))
    assert [path.name for path in found if path] == [
        "h200-sxm-141gb-aiconfigurator",
        "h200-sxm-141gb",
    ]
