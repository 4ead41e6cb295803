"""Profiles: what is saved is what is loaded, and nothing broken gets in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hw.device import device
from hw.profile import COLUMNS, Profile, ProfileError, load, make_profile, roofline, save
from hw.transformer import transformer

H200 = device("h200-sxm-141gb")
LLAMA = transformer("llama-3.1-8b")


def row(**given: Any) -> dict[str, Any]:
    return {
        "op": "o", "status": "ok", "m": 1, "n": 4, "k": 4, "t_us_median": 2.0, "floor_us": 1.0,
        "frac_floor": 0.5, **given,
    }  # fmt: skip


def measured(*rows: dict[str, Any]) -> Profile:
    return make_profile("x", "measured", "mine", rows or [row()], ceilings={"launch_s": 1e-6})


def test_a_roofline_profile_says_so_and_takes_exactly_the_floor() -> None:
    profile = roofline(H200, LLAMA)
    assert profile.source_kind == "roofline"
    assert "not measured" in profile.label
    np.testing.assert_array_equal(profile.columns["t_us_median"], profile.columns["floor_us"])
    ops = set(profile.columns["op"].tolist())
    assert {"qkv", "o", "gate_up", "down", "lm_head", "embedding", "kv_append", "sample", "norm",
            "prefix_attention", "suffix_attention", "merge", "fork_copy"} <= ops  # fmt: skip


def test_a_profile_survives_saving_and_loading(tmp_path: Path) -> None:
    profile = roofline(H200, LLAMA)
    save(profile, tmp_path / "deep" / "h200")
    loaded = load(tmp_path / "deep" / "h200.parquet")
    assert loaded.digest == profile.digest
    assert (loaded.device, loaded.label, loaded.ceilings) == (
        profile.device, profile.label, profile.ceilings,
    )  # fmt: skip
    for name in COLUMNS:
        np.testing.assert_array_equal(loaded.columns[name], profile.columns[name])
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["h200.parquet", "h200.yaml"]


def test_the_digest_depends_on_every_value() -> None:
    first = measured()
    assert measured().digest == first.digest
    assert measured(row(t_us_median=2.0000001)).digest != first.digest
    assert measured(row(op="p")).digest != first.digest


def test_utilisation_prefers_the_very_matrix_and_ignores_held_out_and_failed_rows() -> None:
    profile = measured(
        row(m=1, frac_floor=0.5),
        row(m=8, frac_floor=0.7),
        row(m=8, frac_floor=0.9),
        row(m=64, frac_floor=0.1, is_holdout=1),
        row(m=64, frac_floor=0.1, status="out of memory"),
        row(m=2, n=4096, k=4096, frac_floor=0.95),
    )
    m, reached = profile.utilisation("o", 4, 4)
    assert (m.tolist(), reached.tolist()) == ([1, 8], [0.5, 0.8])
    assert profile.utilisation("o", 4096, 4000)[1].tolist() == [0.95]
    assert profile.utilisation("lm_head")[0].size == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the table is empty"),
        ([row(t_us_median=math.nan)], "row 0: t_us_median is nan"),
        ([row(), row(flop=-1.0)], "row 1: flop is -1.0"),
        ([row(floor_us=math.inf)], "floor_us is inf"),
        ([row(frac_floor=0.0)], "frac_floor must be positive"),
        ([row(status="failed")], "no row has status `ok`"),
        ([row(power_w=-3.0)], "power_w is -3.0"),
        ([row(speed=3)], "unknown columns speed"),
    ],
)
def test_a_wrong_table_is_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        make_profile("x", "measured", "mine", rows, ceilings={})


def test_a_wrong_ceiling_or_kind_is_refused() -> None:
    with pytest.raises(ProfileError, match="ceiling launch_s"):
        make_profile("x", "measured", "mine", [row()], ceilings={"launch_s": -1.0})
    with pytest.raises(ProfileError, match="ceiling speed"):
        make_profile("x", "measured", "mine", [row()], ceilings={"speed": 1.0})
    with pytest.raises(ProfileError, match="source_kind is 'guessed'"):
        make_profile("x", "guessed", "mine", [row()], ceilings={})  # type: ignore[arg-type]


def rewrite(path: Path, table: pa.Table, rows: int) -> None:
    """A table put in place of another, with a sidecar that vouches for the file."""
    import hashlib

    pq.write_table(table, path)
    side = yaml.safe_load(path.with_suffix(".yaml").read_text())
    side.update(rows=rows, file_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    path.with_suffix(".yaml").write_text(yaml.safe_dump(side))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(measured(), tmp_path / "p")
    return tmp_path / "p.parquet"


def test_a_truncated_or_changed_file_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(ProfileError, match="changed or cut off"):
        load(saved)
    saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ProfileError, match="changed or cut off"):
        load(saved)


def test_a_file_that_is_not_parquet_is_refused_even_with_a_matching_checksum(saved: Path) -> None:
    import hashlib

    saved.write_bytes(b"PAR1 not a table PAR1")
    side = yaml.safe_load(saved.with_suffix(".yaml").read_text())
    side["file_sha256"] = hashlib.sha256(saved.read_bytes()).hexdigest()
    saved.with_suffix(".yaml").write_text(yaml.safe_dump(side))
    with pytest.raises(ProfileError, match="not a whole parquet file"):
        load(saved)


def test_wrong_columns_nulls_row_counts_and_digests_are_refused(saved: Path) -> None:
    table = pq.read_table(saved)
    rewrite(saved, table.drop_columns(["m"]), 1)
    with pytest.raises(ProfileError, match="missing: m; unknown: none"):
        load(saved)
    rewrite(saved, table.append_column("extra", pa.array([1])), 1)
    with pytest.raises(ProfileError, match="unknown: extra"):
        load(saved)
    rewrite(saved, table, 2)
    with pytest.raises(ProfileError, match="1 rows, the sidecar says 2"):
        load(saved)
    index = table.schema.get_field_index("m")
    rewrite(saved, table.set_column(index, "m", pa.array([None], pa.int64())), 1)
    with pytest.raises(ProfileError, match="column m has 1 nulls"):
        load(saved)
    rewrite(saved, table.set_column(index, "m", pa.array(["one"])), 1)
    with pytest.raises(ProfileError, match="column m must be numbers"):
        load(saved)
    rewrite(saved, table.set_column(index, "m", pa.array([7])), 1)
    with pytest.raises(ProfileError, match="digest is not the one"):
        load(saved)
    rewrite(saved, table, 1)
    assert load(saved).device == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema 99, this version reads 1"),
        ({"device": 3}, "`device` is missing or of the wrong type"),
        ({"ceilings": {"launch_s": "fast"}}, "ceiling launch_s must be a number"),
        ({"source_kind": "guessed"}, "source_kind is 'guessed'"),
    ],
)
def test_a_wrong_sidecar_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    path = saved.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(ProfileError, match=message):
        load(saved)


def test_a_missing_half_and_a_sidecar_that_would_run_code_are_refused(saved: Path) -> None:
    side = saved.with_suffix(".yaml")
    good = side.read_text()
    side.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ProfileError, match="is not YAML"):
        load(saved)
    side.write_text("just text")
    with pytest.raises(ProfileError, match="must be a mapping"):
        load(saved)
    side.unlink()
    with pytest.raises(ProfileError, match=r"two files, NAME.parquet and NAME.yaml"):
        load(saved)
    side.write_text(good)
    saved.unlink()
    with pytest.raises(ProfileError, match="cannot read the profile table"):
        load(saved)
