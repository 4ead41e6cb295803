"""A run directory is whole or absent, and what was changed afterwards is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pricing.contract import price
from scenarios.errors import UserError
from scenarios.loader import loads
from sim import store
from sim.records import Result
from tests.sim import fixtures

REPORTS = {"summary.json": "{}\n", "report.txt": "all hold\n"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return store.save(fixtures.result(n=30), fixtures.loaded(), tmp_path / "run", reports=REPORTS)


def same(a: Result, b: Result) -> None:
    for name in ("queries", "timeline", "pools"):
        left, right = getattr(a, name), getattr(b, name)
        assert list(left) == list(right)
        for column, values in left.items():
            np.testing.assert_array_equal(values, right[column], err_msg=column)


def test_what_is_saved_is_loaded_again(run: Path) -> None:
    stored = store.load(run)
    same(stored.result, fixtures.result(n=30))
    assert stored.result.meta == {"wall_s": 0.5}
    assert (stored.result.scenario_name, stored.result.seed) == ("made-up", 7)
    assert loads(stored.resolved).scenario == fixtures.loaded().scenario
    assert (run / "report.txt").read_text() == "all hold\n"
    assert (run / "scenario.yaml").read_text() == fixtures.SCENARIO


def test_priced_columns_and_nan_survive(tmp_path: Path) -> None:
    spec = fixtures.loaded().scenario
    priced = price(fixtures.result(n=30), spec).result
    priced.queries["finish_s"][3] = np.nan
    same(store.load(store.save(priced, fixtures.loaded(), tmp_path / "run")).result, priced)


def test_an_empty_result_is_stored_too(tmp_path: Path) -> None:
    empty = fixtures.result(replications=1, n=0)
    same(store.load(store.save(empty, fixtures.loaded(), tmp_path / "run")).result, empty)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.save(fixtures.result(n=30), fixtures.loaded(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"manifest.json", "queries.parquet", "timeline.parquet", "pools.parquet"} < set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_manifest_names_no_machine_user_or_path(run: Path) -> None:
    text = (run / "manifest.json").read_text()
    assert str(run.parent) not in text
    assert os.uname().nodename not in text
    assert set(json.loads(text)) == {
        "format", "format_version", "scenario", "seed", "versions", "files", "meta",
    }  # fmt: skip


def test_columns_carry_their_unit_and_meaning_in_the_file(run: Path) -> None:
    field = pq.read_schema(run / "queries.parquet").field("gpu_seconds")
    assert field.metadata[b"unit"] == b"GPU-s"
    assert b"policy and verifier" in field.metadata[b"meaning"]


def test_an_existing_run_is_refused_without_force_and_replaced_with_it(run: Path) -> None:
    other = fixtures.result(seed=8, n=30)
    with pytest.raises(UserError, match=r"exists already.*--force"):
        store.save(other, fixtures.loaded(), run)
    assert store.load(run).result.seed == 7
    store.save(other, fixtures.loaded(), run, force=True)
    assert store.load(run).result.seed == 8
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_run_is_never_replaced(tmp_path: Path, force: bool) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("text")
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(store.save(fixtures.result(n=3), fixtures.loaded(), tmp_path / "run"))
    for place in (precious, file, link):
        with pytest.raises(UserError):
            store.save(fixtures.result(n=3), fixtures.loaded(), place, force=force)
    assert (precious / "chapter.tex").read_text() == "text"
    assert store.load(tmp_path / "run").result.seed == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "run", "thesis"]


@pytest.mark.parametrize("step", range(1, 10))
@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_at_any_file_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, existing: bool
) -> None:
    place = tmp_path / "run"
    if existing:
        store.save(fixtures.result(n=5), fixtures.loaded(), place)
    left, fsync, rename = [step], os.fsync, Path.rename

    def count(name: str) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, f"No space left on device ({name})")

    def failing_fsync(number: int) -> None:
        count("fsync")
        fsync(number)

    def failing_rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            left[0] = 1
            count("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", failing_fsync)
    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        store.save(
            fixtures.result(seed=8, n=5), fixtures.loaded(), place, force=True, reports=REPORTS
        )
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if existing else [])
    if existing:
        assert store.load(place).result.seed == 7


def test_an_interrupt_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(fixtures.result(n=3), fixtures.loaded(), tmp_path / "deep" / "run")
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize(
    "name", ["queries.parquet", "timeline.parquet", "pools.parquet", "resolved.yaml"]
)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named(run: Path, name: str, damage: str) -> None:
    path = run / name
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:-7])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    reason = {"truncate": "bytes where", "flip": "digest", "remove": "cannot be read"}[damage]
    with pytest.raises(UserError, match=rf"{name}.*{reason}"):
        store.load(run)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"format": "other"}', '{"format": "treeline-run"}',
     '{"format": "treeline-run", "format_version": 1}',
     '{"format": "treeline-run", "format_version": 1, "files": 3}',
     '{"format": "treeline-run", "format_version": 1, "files": {"queries.parquet": {}}}'],
)  # fmt: skip
def test_a_manifest_that_is_not_one_is_an_error_a_person_can_read(run: Path, text: str) -> None:
    (run / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        store.load(run)


def test_a_table_with_other_columns_or_no_table_at_all_is_refused(run: Path) -> None:
    import hashlib

    for data, reason in (
        (b"not parquet", "Parquet"),
        ((run / "pools.parquet").read_bytes(), "lacks"),
    ):
        (run / "queries.parquet").write_bytes(data)
        manifest = json.loads((run / "manifest.json").read_text())
        digest = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"]["queries.parquet"] = digest
        (run / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=reason):
            store.load(run)


def test_a_missing_directory_and_an_impossible_name_say_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*--out DIR"):
        store.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be a run directory"):
        store.check_free("..")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        store.save(fixtures.result(n=3), fixtures.loaded(), tmp_path / "file" / "run")
