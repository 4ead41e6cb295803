"""A run directory is whole or absent: written beside its place, then renamed; read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from scenarios.errors import UserError, printable
from scenarios.loader import Loaded
from sim.records import PRICED, TABLES, Column, Result, Table, documented

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "treeline-run"
VERSION = 1
MANIFEST = "manifest.json"
GIVEN, RESOLVED = "scenario.yaml", "resolved.yaml"
_PACKAGES = ("treeline", "numpy", "scipy", "simpy", "pyarrow")
_LARGEST_MANIFEST = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A run directory as read: its result, its manifest and the resolved scenario's YAML."""

    result: Result
    manifest: dict[str, Any]
    resolved: str


def save(
    result: Result,
    loaded: Loaded,
    directory: str | os.PathLike[str],
    *,
    force: bool = False,
    reports: Mapping[str, str] | None = None,
) -> Path:
    """Write a run directory and return its path; `reports` are further files by name, as text.

    Either the whole directory is there afterwards or nothing is. Raises UserError when the place is
    taken (with `force`, only a run directory is replaced) or cannot be written.
    """
    place = Path(directory)
    check_free(place, force=force)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    except OSError as error:
        raise _unwritable(place, error) from None
    try:
        _write_all(beside, result, loaded, dict(reports or {}))
        _swap(beside, place)
    except OSError as error:
        raise _unwritable(place, error) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def check_free(directory: str | os.PathLike[str], *, force: bool = False) -> None:
    """Raise UserError now, before a long run, when `save` could not write to the directory later."""
    place = Path(directory)
    if not place.name or place.name == "..":
        raise UserError(f"{_shown(place)} cannot be a run directory. Name one: --out runs/first")
    if not os.path.lexists(place):
        return
    if not force:
        way = "Name another, or replace it with --force."
        raise UserError(f"{_shown(place)} exists already. {way}")
    empty = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
    if not empty and not is_run(place):
        why = "is not a run directory, so --force does not replace it."
        raise UserError(f"{_shown(place)} {why} Name another with --out.")


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a manifest of ours."""
    place = Path(directory)
    try:
        return not place.is_symlink() and _manifest(place)["format"] == FORMAT
    except UserError:
        return False


def load(directory: str | os.PathLike[str]) -> Stored:
    """Read a run directory; raises UserError that names the file when one is missing or changed."""
    place = Path(directory)
    manifest = _manifest(place)
    try:
        tables = {name: _read_table(place, name, manifest["files"]) for name in TABLES}
        resolved = _bytes(place, RESOLVED, manifest["files"]).decode()
        result = Result(
            str(manifest["scenario"]),
            int(manifest["seed"]),
            tables["queries"],
            tables["timeline"],
            tables["pools"],
            dict(manifest["meta"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise _broken(place / MANIFEST, f"does not describe a run ({detail})") from None
    return Stored(result, manifest, resolved)


def _write_all(beside: Path, result: Result, loaded: Loaded, reports: dict[str, str]) -> None:
    import pyarrow as pa  # slow to import, and only reading and writing runs needs it
    import pyarrow.parquet as pq

    files: dict[str, Any] = {}
    texts = {GIVEN: loaded.text, RESOLVED: resolved_text(loaded), **reports}
    for name, text in texts.items():
        assert name == Path(name).name, f"{name} is not a plain file name"
        assert name != MANIFEST, "the manifest is written last, by save itself"
        files[name] = _write(beside / name, text.encode())
    for name in TABLES:
        table: Table = getattr(result, name)
        file = f"{name}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(_arrow(name, table), sink, compression="zstd")
        files[file] = _write(beside / file, sink.getvalue().to_pybytes())
    manifest = {
        "format": FORMAT,
        "format_version": VERSION,
        "scenario": result.scenario_name,
        "seed": result.seed,
        "versions": versions(),
        "files": files,
        "meta": result.meta,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"
    _write(beside / MANIFEST, text.encode())
    beside.chmod(0o777 & ~_umask())


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def resolved_text(loaded: Loaded) -> str:
    """The scenario after `extends` and `--set`, as YAML that loads again."""
    return str(yaml.safe_dump(loaded.raw, sort_keys=False, allow_unicode=True))


def versions() -> dict[str, str]:
    """Versions of what computes a run; says nothing about the machine or its user."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "from source"
    return found


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _swap(beside: Path, place: Path) -> None:
    """Put the finished directory in its place; a replaced run is moved aside first, then removed."""
    if not os.path.lexists(place):
        beside.rename(place)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".old", dir=place.parent))
    old = aside / "run"
    place.rename(old)
    try:
        beside.rename(place)
    except OSError:
        old.rename(place)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _arrow(name: str, table: Table) -> pa.Table:
    import pyarrow as pa

    columns, fields = [], []
    for column in _columns(name, table):
        values = table[column.name]
        if column.dtype == "U":
            words, codes = np.unique(values, return_inverse=True)
            array = pa.DictionaryArray.from_arrays(
                pa.array(codes.astype(np.int32)), pa.array(words.tolist(), pa.string())
            )
        else:
            array = pa.array(values)
        columns.append(array)
        note = {"unit": column.unit, "meaning": column.meaning}
        fields.append(pa.field(column.name, array.type, nullable=False, metadata=note))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _columns(name: str, table: Table) -> tuple[Column, ...]:
    """The documented columns of a table, those that pricing adds only where they are present."""
    if name != "queries":
        return TABLES[name]
    return (*TABLES[name], *(column for column in PRICED if column.name in table))


def _read_table(place: Path, name: str, files: Mapping[str, Any]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = f"{name}.parquet"
    data = _bytes(place, file, files)
    try:
        stored = pq.read_table(pa.BufferReader(data), use_threads=False)  # its pool can outlive us
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _broken(place / file, f"is not readable as Parquet: {first}") from None
    required = {column.name for column in TABLES[name]}
    allowed = required | ({column.name for column in PRICED} if name == "queries" else set())
    found = set(stored.column_names)
    if required - found or found - allowed:
        lacks, extra = sorted(required - found), sorted(found - allowed)
        raise _broken(place / file, f"lacks the columns {lacks}, has unknown ones {extra}")
    return {name: _numpy(stored.column(name), documented(name)) for name in stored.column_names}


def _numpy(stored: pa.ChunkedArray, column: Column) -> Any:
    """One column as NumPy; words are looked up by their codes, not one by one."""
    dtype = np.dtype(column.dtype)
    if column.dtype != "U":
        return np.array(stored.to_numpy(), dtype=dtype)
    if not hasattr(stored.type, "value_type"):  # plain strings
        stored = stored.dictionary_encode()
    pieces = stored.unify_dictionaries().chunks
    if not pieces:
        return np.array([], dtype)
    words = np.array(pieces[0].dictionary.to_pylist() or [""], dtype)
    return words[np.concatenate([piece.indices.to_numpy(zero_copy_only=False) for piece in pieces])]


def _bytes(place: Path, file: str, files: Mapping[str, Any]) -> bytes:
    """One file's bytes, after its size and digest agree with the manifest's."""
    path = place / file
    entry = files[file]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _broken(path, f"cannot be read: {error.strerror}") from None
    if len(data) != entry["bytes"]:
        raise _broken(path, f"has {len(data)} bytes where its manifest says {entry['bytes']}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _broken(path, "was changed after the run: its digest is not the manifest's")
    return data


def _manifest(place: Path) -> dict[str, Any]:
    path = place / MANIFEST
    if not place.is_dir():
        what = "is not a directory" if place.exists() else "does not exist"
        raise UserError(f"{_shown(place)} {what}. Make a run: treeline run FILE --out DIR")
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise _broken(path, "is larger than any manifest")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise _broken(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _broken(path, "is not JSON") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _broken(path, f"does not say format: {FORMAT}")
    if found.get("format_version") != VERSION:
        given = found.get("format_version")
        raise _broken(path, f"has format_version {given!r}, this treeline reads {VERSION}")
    return found


def _shown(path: Path) -> str:
    return printable(str(path))


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"{_shown(path)} {printable(why)}. Run the scenario again with --out.")


def _unwritable(place: Path, error: OSError) -> UserError:
    return UserError(f"{_shown(place)} cannot be written: {error.strerror}. Name another --out.")
