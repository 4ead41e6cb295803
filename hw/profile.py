"""Profiles: one table of operation times with its provenance, measured, imported or from the roofline."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from hw.device import Device
from hw.floors import Op, attention_op, fork_op, merge_op
from hw.transformer import Transformer, linear_work

SourceKind = Literal["measured", "imported", "roofline"]
Column = np.ndarray[Any, np.dtype[Any]]
SCHEMA_VERSION = 1
ROOFLINE_LABEL = "roofline (data sheet and public ceilings; not measured on your GPU)"

# name: (kind, meaning). Kinds: s text, i whole number >= 0, f finite number >= 0, e environment: may be NaN.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "op": ("s", "operation, as in hw.floors"),
    "model_shape": ("s", "model and split that the shape comes from"),
    "dtype": ("s", "dtype of the weights or KV"),
    "page": ("i", "tokens a KV page, 0 where there is none"),
    "B": ("i", "branches"),
    "P": ("i", "shared prefix tokens"),
    "S": ("i", "suffix tokens of one branch"),
    "sum_s": ("i", "suffix tokens of all branches"),
    "m": (
        "i",
        "rows of a linear operation (tokens); of fork_copy: tokens copied; new tokens a sequence",
    ),
    "n": ("i", "columns of the weight matrix; of attention: query heads x head size"),
    "k": ("i", "inner size of the weight matrix; of attention: KV heads x head size"),
    "splits": ("i", "key splits of an attention kernel"),
    "variant": ("s", "kernel variant"),
    "calls": ("i", "calls that t_us covers together (layers)"),
    "t_us_median": ("f", "median time of all calls, us"),
    "t_us_p10": ("f", "10th percentile, us"),
    "t_us_p90": ("f", "90th percentile, us"),
    "t_us_min": ("f", "least, us"),
    "samples": ("i", "timed replays"),
    "units_per_replay": ("i", "calls in a replay"),
    "bytes_floor": ("f", "bytes that must move"),
    "flop": ("f", "FLOP that must be computed"),
    "floor_us": ("f", "least time on this device's ceilings, us"),
    "frac_floor": ("f", "floor_us / t_us_median"),
    "l2_state": ("s", "cold, warm or none"),
    "sm_mhz_before": ("e", "SM clock before, MHz"),
    "sm_mhz_after": ("e", "SM clock after, MHz"),
    "power_w": ("e", "power, W"),
    "temp_c": ("e", "temperature, degrees Celsius"),
    "run_id": ("s", "measurement run"),
    "point_seed": ("i", "seed of the input data"),
    "is_holdout": ("i", "1: kept out of every fit"),
    "status": ("s", "ok, or why the row has no time (or one that no fit may use)"),
}
_DTYPES = {"s": "U", "i": "int64", "f": "float64", "e": "float64"}
_ZERO: Mapping[str, Any] = {"s": "", "i": 0, "f": 0.0, "e": math.nan}
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_CEILINGS = ("copy_bytes_per_s", "read_bytes_per_s", "gemm_flops_bf16", "gemm_flops_fp8",
             "link_bytes_per_s", "link_latency_s", "launch_s", "eager_launch_s", "step_gap_s")  # fmt: skip
_FILE_LIMIT = 256_000_000
_MAX_ROWS = 5_000_000


class ProfileError(ValueError):
    """A profile that cannot be trusted: the message names the file, the rule and the way out."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A checked table of operation times on one device, and where it comes from.

    `columns` holds one array for each name of COLUMNS, all of one length. `ceilings` are the device's
    roofs that floor_us was computed from (Device field names). `digest` is the SHA-256 of the table.
    """

    device: str
    source_kind: SourceKind
    label: str
    columns: Mapping[str, Column] = field(repr=False)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)
    digest: str = ""

    @property
    def error(self) -> str | None:
        """Held-out error in words, None where nobody measured it."""
        found = self.meta.get("error")
        return None if found is None else str(found)

    def rows(self, op: str) -> dict[str, Column]:
        """The usable rows of one operation: status ok, not held out."""
        table = self.columns
        keep = (table["op"] == op) & (table["status"] == "ok") & (table["is_holdout"] == 0)
        return {name: column[keep] for name, column in table.items()}

    def utilisation(self, op: str, n: int = 0, k: int = 0) -> tuple[Column, Column]:
        """Rows m (ascending) and the fraction of the floor reached there, for one linear operation.

        Rows of the very matrix n x k where there are any, else of the matrix nearest in size: what
        a kernel reaches of its floor carries over to another shape, its time does not. Empty when the
        operation was not profiled. Where a point was taken twice the median counts.
        """
        rows = self.rows(op)
        if not len(rows["m"]):
            return np.empty(0), np.empty(0)
        size = np.log1p(rows["n"].astype(float) * rows["k"])
        keep = (rows["n"] == n) & (rows["k"] == k)
        if not keep.any():
            away = np.abs(size - math.log1p(n * k))
            keep = away == away.min()
        m, reached = rows["m"][keep], rows["frac_floor"][keep]
        points = np.unique(m)
        return points, np.array([np.median(reached[m == point]) for point in points])


def make_profile(
    device: str,
    source_kind: SourceKind,
    label: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    ceilings: Mapping[str, float],
    meta: Mapping[str, Any] | None = None,
) -> Profile:
    """A checked profile from rows; a column that a row leaves out is empty, 0 or NaN.

    Raises ProfileError.
    """
    table = list(rows)
    columns = {
        name: np.array([row.get(name, _ZERO[kind]) for row in table], dtype=_DTYPES[kind])
        for name, (kind, _) in COLUMNS.items()
    }
    stray = sorted({key for row in table for key in row} - set(COLUMNS))
    if stray:
        raise ProfileError(f"profile of {device}: unknown columns {', '.join(stray)}.")
    return checked(device, source_kind, label, columns, ceilings=ceilings, meta=meta or {})


def checked(
    device: str,
    source_kind: SourceKind,
    label: str,
    columns: Mapping[str, Column],
    *,
    ceilings: Mapping[str, float],
    meta: Mapping[str, Any],
    where: str = "",
) -> Profile:
    """A profile after every check on its table; raises ProfileError naming the column and row."""
    where = where or f"profile of {device}"
    if source_kind not in ("measured", "imported", "roofline"):
        raise ProfileError(
            f"{where}: source_kind is {source_kind!r}: measured, imported, roofline."
        )
    missing = [name for name in COLUMNS if name not in columns]
    stray = [name for name in columns if name not in COLUMNS]
    if missing or stray:
        raise ProfileError(
            f"{where}: wrong columns (missing: {', '.join(missing) or 'none'}; unknown: "
            f"{', '.join(stray) or 'none'}). This version reads schema {SCHEMA_VERSION}."
        )
    if not len(columns["op"]):
        raise ProfileError(f"{where}: the table is empty; measure it again.")
    for name, (kind, _) in COLUMNS.items():
        _check_column(where, name, kind, columns[name])
    ok = columns["status"] == "ok"
    if not ok.any():
        raise ProfileError(f"{where}: no row has status `ok`; measure it again.")
    for name in ("t_us_median", "floor_us", "frac_floor"):
        bad = np.flatnonzero(ok & (columns[name] <= 0))
        if len(bad):
            raise ProfileError(f"{where}: row {bad[0]}: {name} must be positive in an `ok` row.")
    for name, value in ceilings.items():
        if name not in _CEILINGS or not math.isfinite(value) or value <= 0:
            raise ProfileError(f"{where}: ceiling {name} = {value!r} is not a positive known one.")
    return Profile(device, source_kind, label, dict(columns), dict(ceilings), dict(meta),
                   table_digest(columns))  # fmt: skip


def table_digest(columns: Mapping[str, Column]) -> str:
    """SHA-256 over names and values, column by column: the same table, the same digest."""
    state = hashlib.sha256()
    for name, (kind, _) in COLUMNS.items():
        state.update(name.encode() + b"\0")
        if kind == "s":
            state.update("\0".join(map(str, columns[name])).encode())
        else:
            state.update(columns[name].astype("<f8" if kind in "fe" else "<i8").tobytes())
    return state.hexdigest()


def roofline(device: Device, shape: Transformer, tensor_parallel: int = 1) -> Profile:
    """The profile in which every operation takes exactly its floor: labelled so wherever shown."""
    name = f"{shape.name}/tp{tensor_parallel}"
    rows: list[dict[str, Any]] = []

    def add(op: Op, **axes: Any) -> None:
        us = 1e6 * op.seconds
        rows.append({
            "op": op.name, "model_shape": name, "dtype": shape.dtype, "calls": op.calls,
            "t_us_median": us, "t_us_p10": us, "t_us_p90": us, "t_us_min": us, "floor_us": us,
            "bytes_floor": op.bytes, "flop": op.flops, "frac_floor": 1.0, "l2_state": "none",
            "variant": "roofline", "run_id": "roofline", "status": "ok", **axes,
        })  # fmt: skip

    for work in linear_work(shape, tensor_parallel):
        for m in _ROWS:
            moved = work.weight_bytes(m) + work.bytes_per_row * m
            seconds = work.floor_s(device, m)
            op = Op(work.name, work.flops_per_row * m, moved, seconds, work.calls)
            add(op, m=m, n=work.n, k=work.k)
    split = tensor_parallel
    for b in (1, 8, 64, 256):
        add(merge_op(shape, device, b, split), B=b)
        for tokens in (512, 4096, 32768):
            prefix = attention_op("prefix_attention", shape, device, tokens, tokens * b, split)
            add(prefix, B=b, P=tokens)
            total = b * tokens
            add(attention_op("suffix_attention", shape, device, total, total, split),
                B=b, S=tokens, sum_s=total)  # fmt: skip
    for tokens in (16, 256, 4096):
        add(fork_op(shape, device, tokens, split), m=tokens)
    ceilings = {key: float(getattr(device, key)) for key in _CEILINGS}
    return make_profile(device.name, "roofline", ROOFLINE_LABEL, rows, ceilings=ceilings)


def save(profile: Profile, path: str | Path) -> None:
    """Writes PATH.parquet and then its sidecar PATH.yaml, each whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table_path, side_path = _paths(path)
    table_path.parent.mkdir(parents=True, exist_ok=True)
    beside = table_path.with_name(table_path.name + ".part")
    table = pa.table({name: pa.array(profile.columns[name]) for name in COLUMNS})
    pq.write_table(table, beside, compression="zstd")
    side = {
        "schema_version": SCHEMA_VERSION,
        "device": profile.device,
        "source_kind": profile.source_kind,
        "label": profile.label,
        "rows": len(profile.columns["op"]),
        "digest": profile.digest,
        "file_sha256": hashlib.sha256(beside.read_bytes()).hexdigest(),
        "ceilings": dict(profile.ceilings),
        "meta": dict(profile.meta),
    }
    text = yaml.safe_dump(side, sort_keys=False)
    beside.replace(table_path)
    part = side_path.with_name(side_path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(side_path)


def load(path: str | Path) -> Profile:
    """The profile at PATH (with or without .parquet / .yaml), fully checked; raises ProfileError.

    Nothing is unpickled; the sidecar's SHA-256 of the file and digest of the table must both match.
    """
    table_path, side_path = _paths(path)
    side = _read_sidecar(side_path)
    try:
        if table_path.stat().st_size > _FILE_LIMIT:
            raise ProfileError(f"{table_path} is over {_FILE_LIMIT // 10**6} MB: not a profile.")
        content = table_path.read_bytes()
    except OSError as error:
        raise ProfileError(
            f"cannot read the profile table {table_path}: {error.strerror}."
        ) from error
    return _parsed(table_path, side_path.name, content, side)


@lru_cache(maxsize=4)
def _parsed(table_path: Path, side_name: str, content: bytes, sidecar: str) -> Profile:
    """The profile that these bytes hold; kept, because the pools of a fleet often name the same one."""
    side = _checked_sidecar(table_path.with_name(side_name), sidecar)
    if hashlib.sha256(content).hexdigest() != side["file_sha256"]:
        raise ProfileError(
            f"{table_path} does not match the digest in {side_name}: it was changed or cut off "
            "after it was saved. Copy both files again, or measure again."
        )
    columns = _read_table(table_path, content, side["rows"])
    found = checked(side["device"], side["source_kind"], side["label"], columns,
                    ceilings=side["ceilings"], meta=side["meta"], where=str(table_path))  # fmt: skip
    if found.digest != side["digest"]:
        raise ProfileError(f"{table_path}: the table's digest is not the one in {side_name}.")
    return found


def _paths(path: str | Path) -> tuple[Path, Path]:
    given = Path(path)
    stem = given.with_suffix("") if given.suffix in (".parquet", ".yaml") else given
    return stem.with_name(stem.name + ".parquet"), stem.with_name(stem.name + ".yaml")


_SIDE: Mapping[str, type | tuple[type, ...]] = {
    "schema_version": int, "device": str, "source_kind": str, "label": str, "rows": int,
    "digest": str, "file_sha256": str, "ceilings": dict, "meta": dict,
}  # fmt: skip


def _read_sidecar(path: Path) -> str:
    try:
        if path.stat().st_size > 1_000_000:
            raise ProfileError(f"{path} is over 1 MB: not the sidecar of a profile.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(
            f"cannot read {path}: {error.strerror}. A profile is two files, NAME.parquet and NAME.yaml."
        ) from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path} is not YAML: {error}.") from error


def _checked_sidecar(path: Path, text: str) -> dict[str, Any]:
    try:
        side = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ProfileError(f"{path} is not YAML: {error}.") from error
    if not isinstance(side, dict):
        raise ProfileError(f"{path} must be a mapping with {', '.join(_SIDE)}.")
    for key, kind in _SIDE.items():
        if not isinstance(side.get(key), kind):
            raise ProfileError(f"{path}: `{key}` is missing or of the wrong type.")
    if side["schema_version"] != SCHEMA_VERSION:
        raise ProfileError(
            f"{path}: schema {side['schema_version']}, this version reads {SCHEMA_VERSION}."
        )
    for name, value in side["ceilings"].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ProfileError(f"{path}: ceiling {name} must be a number, not {value!r}.")
    return side


def _read_table(path: Path, content: bytes, rows: int) -> dict[str, Column]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if not 0 <= file.metadata.num_rows <= _MAX_ROWS or file.metadata.num_rows != rows:
            raise ProfileError(f"{path}: {file.metadata.num_rows} rows, the sidecar says {rows}.")
        table = file.read(
            use_threads=False
        )  # small; a pool of threads can abort a short program's exit
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"{path} is not a whole parquet file: {error}.") from error
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            raise ProfileError(f"{path}: column {name} has {column.null_count} nulls.")
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        columns[name] = column.to_numpy() if number else np.asarray(column.to_pylist())
        columns[name].flags.writeable = False  # whoever loads the profile again shares them
    return columns


def _check_column(where: str, name: str, kind: str, column: Column) -> None:
    if kind == "s":
        if column.dtype.kind != "U":
            raise ProfileError(f"{where}: column {name} must be text, not {column.dtype}.")
        return
    if column.dtype.kind not in ("i" if kind == "i" else "fi"):
        raise ProfileError(f"{where}: column {name} must be numbers, not {column.dtype}.")
    values = column.astype(float)
    bad = np.isinf(values) | (values < 0)
    if kind != "e":
        bad |= np.isnan(values)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ProfileError(
            f"{where}: row {row}: {name} is {column[row]}; it must be finite and not negative."
        )
