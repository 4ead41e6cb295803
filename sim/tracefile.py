"""Reads a trace file of unknown health: every fault becomes a UserError with path:line and the way out.

The fast path is pyarrow for columns and json for lines. Only when it fails does a slow pass walk the
file to name the first bad line.
"""

from __future__ import annotations

import csv
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from scenarios.errors import UserError, printable

MAX_BYTES: Final = 2 * 1024**3  # of a file, and of what it decompresses to
MAX_ROWS: Final = 50_000_000
MAX_TOKENS: Final = 10_000_000  # of one request; more is a wrong column
MAX_LINE: Final = 64 * 1024**2
LARGEST_TIME_S: Final = 1e10  # about 300 years
AGAIN: Final = "copy or download the file again"

Kind = Literal["int", "float", "time", "text"]
Column = npt.NDArray[Any]


def fail(path: Path, line: int, what: str, way_out: str) -> NoReturn:
    """Raise the UserError `path:line: what; way_out` (line 0: the file as a whole)."""
    place = f"{path}:{line}" if line else f"{path}"
    raise UserError(printable(f"{place}: {what}; {way_out}"))


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed when it is gzip.

    Raises UserError when it is missing, not a file, empty, too large, or damaged gzip.
    """
    try:
        if path.is_dir():
            fail(path, 0, "is a folder, not a trace file", "give the path of a file")
        if (size := path.stat().st_size) > MAX_BYTES:
            way_out = "cut it, for example with head -n 1000000"
            fail(path, 0, f"has {size:,} bytes, more than the {MAX_BYTES:,} allowed", way_out)
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        fail(path, 0, f"cannot be read ({reason})", "check the path; it must be a readable file")
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(path, data)
    if not data.strip():
        fail(path, 0, "is empty", AGAIN)
    if data.startswith(b"version https://git-lfs"):
        fail(path, 1, "is a Git LFS pointer, not the data", "run git lfs pull where it came from")
    return data


def _gunzip(path: Path, data: bytes) -> bytes:
    parts: list[bytes] = []
    size = 0
    while data:
        stream = zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(data, MAX_BYTES + 1 - size)
        except zlib.error as error:
            fail(path, 0, f"is damaged gzip ({error})", AGAIN)
        size += len(part)
        if size > MAX_BYTES or stream.unconsumed_tail:
            fail(path, 0, f"decompresses to more than {MAX_BYTES:,} bytes", "cut the trace first")
        if not stream.eof:
            fail(path, 0, "is gzip that ends too early (truncated)", AGAIN)
        parts.append(part)
        data = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def first_line(path: Path, data: bytes) -> str:
    """The first line as text, without its end and byte order mark; UserError when it is not text."""
    end = data.find(b"\n")
    line = data[: end if end >= 0 else len(data)][: MAX_LINE + 1]
    if len(line) > MAX_LINE:
        fail(path, 1, "the line is too long", "this is no trace in a known format")
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or b"\0" in data[:65536]:
        fail(path, 1, "is binary, not text", "give a CSV or JSONL trace (either may be gzipped)")
    return text


def split_row(line: str) -> list[str]:
    """The fields of one CSV line, stripped; a line that no CSV reader takes is one field."""
    try:
        return [field.strip() for field in next(csv.reader([line]), [])]
    except csv.Error:
        return [line]


def csv_columns(
    path: Path, data: bytes, wanted: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None
) -> dict[str, Column]:
    """The `wanted` columns of a CSV file with a header, and those of `optional` that it has.

    Kinds: "int" is int64, "float" float64, "time" float64 seconds since the first row (ISO 8601,
    to the nanosecond, with or without zone), "text" objects (str, "" where empty). A value is never missing
    in the first three; it is NaN where an optional float is empty. Raises UserError.
    """
    header = split_row(first_line(path, data))
    if missing := [name for name in wanted if header.count(name) != 1]:
        needs = ", ".join(wanted)
        fail(path, 1, f"needs exactly one column {missing[0]!r}", f"the header must hold {needs}")
    kinds = {**wanted, **{k: v for k, v in (optional or {}).items() if header.count(k) == 1}}
    names = [name if name in kinds else f"{i} {name}" for i, name in enumerate(header)]
    table = _table(path, data, names, kinds, wanted)
    if table.num_rows > MAX_ROWS:
        fail(path, 0, f"has {table.num_rows:,} rows, over {MAX_ROWS:,}", "cut it with head")
    for name, kind in wanted.items():
        if table[name].null_count and kind != "text":
            row = int(np.argmax(table[name].is_null().to_numpy()))
            fail(path, line_of(data, row), f"{name} is empty", _RULES[kind])
    return {name: _column(table[name], kind) for name, kind in kinds.items()}


def _table(
    path: Path,
    data: bytes,
    names: list[str],
    kinds: Mapping[str, Kind],
    wanted: Mapping[str, Kind],
) -> Any:
    """The pyarrow table of the columns in `kinds`, with at least one row."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    zone = "time" in kinds.values() and _has_zone(data, names, kinds)
    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "time": pa.timestamp("ns", "UTC") if zone else pa.timestamp("ns"),
        "text": pa.string(),
    }
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(kinds),
                column_types={name: types[kind] for name, kind in kinds.items()},
                null_values=[""],
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unreadable"
        if any(True for _ in _body(data)):
            _first_bad_row(path, data, names, kinds, wanted)
            fail(path, 0, f"is not a CSV table ({reason})", AGAIN)
    else:
        if table.num_rows:
            return table
    return fail(path, 1, "has a header and no requests", AGAIN)


def _column(column: Any, kind: Kind) -> Column:
    import pyarrow as pa

    if kind == "text":
        return np.asarray(column.fill_null("").to_numpy(), dtype=object)
    if kind == "time":
        ticks = column.cast(pa.int64()).to_numpy()
        return np.asarray((ticks - ticks[0]) / 1e9)
    if kind == "float":
        return np.asarray(column.fill_null(math.nan).to_numpy())
    return np.asarray(column.fill_null(-1).to_numpy())


_RULES: Final[Mapping[Kind, str]] = {
    "int": "write a whole number",
    "float": "write a finite number",
    "time": "write a date and time such as 2023-11-16 18:15:46.6805900",
    "text": "write UTF-8 text",
}


def _has_zone(data: bytes, names: list[str], kinds: Mapping[str, Kind]) -> bool:
    at = next(i for i, name in enumerate(names) if kinds.get(name) == "time")
    for _, raw in _body(data):
        row = split_row(raw.decode("utf-8", "replace"))
        clock = row[at][10:] if at < len(row) else ""
        return clock.endswith("Z") or "+" in clock or "-" in clock
    return False


def _body(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the lines after the header that are not empty."""
    start, number = 0, 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        line = data[start:end].rstrip(b"\r")
        if number > 1 and line:
            yield number, line
        start = end + 1


def line_of(data: bytes, row: int) -> int:
    """The line of the row numbered `row` (from 0) after the header of a CSV file; 0 when unknown."""
    for i, (number, _) in enumerate(_body(data)):
        if i == row:
            return number
    return 0


def _first_bad_row(
    path: Path,
    data: bytes,
    names: list[str],
    kinds: Mapping[str, Kind],
    wanted: Mapping[str, Kind],
) -> None:
    for number, raw in _body(data):
        try:
            row = split_row(raw.decode("utf-8"))
        except UnicodeDecodeError:
            fail(path, number, "is not UTF-8 text", AGAIN)
        if len(row) != len(names):
            what = f"has {len(row)} of {len(names)} columns"
            fail(path, number, what, "if it is the last line the file is truncated; " + AGAIN)
        for name, text in zip(names, row, strict=True):
            kind = kinds.get(name)
            if kind is None or (name not in wanted and not text) or _readable(text, kind):
                continue
            fail(path, number, f"{name} is {text[:40]!r}", _RULES[kind])


def _readable(text: str, kind: Kind) -> bool:
    try:
        if kind == "int":
            return len(text) < 20 and text.isascii() and "_" not in text and abs(int(text)) < 2**63
        if kind == "float":
            return math.isfinite(float(text))
        if kind == "time":
            datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def json_lines(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-empty line of a JSONL file; UserError at the first bad one."""
    start, number = 0, 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        last, end = end < 0, len(data) if end < 0 else end
        line = data[start:end].strip()
        start = end + 1
        if not line:
            continue
        try:
            record = json.loads(line) if len(line) <= MAX_LINE else None
        except (ValueError, RecursionError):
            what = "is not valid JSON" + (" (the file looks truncated)" if last else "")
            fail(path, number, what, AGAIN)
        if not isinstance(record, dict):
            fail(path, number, "is not a JSON object", 'each line must be one {"timestamp": ...}')
        if number > MAX_ROWS:
            fail(path, number, f"has more than {MAX_ROWS:,} lines", "cut the trace first")
        yield number, record


def json_number(path: Path, line: int, record: Mapping[str, Any], name: str) -> float:
    """A finite number >= 0 of a JSON object, in whatever unit the format has; UserError otherwise."""
    value = record.get(name)
    if type(value) is int and 0 <= value < 2**53:
        return float(value)
    if type(value) is float and math.isfinite(value) and value >= 0:
        return value
    what = f"{name} is {printable(repr(value))[:40]}" if name in record else f"has no {name!r}"
    fail(path, line, what, f"{name} must be a finite number >= 0")


def json_int(
    path: Path,
    line: int,
    record: Mapping[str, Any],
    name: str,
    low: int = 0,
    high: int = MAX_TOKENS,
) -> int:
    """A whole number from `low` to `high` of a JSON object; UserError otherwise."""
    value = record.get(name)
    if type(value) is int and low <= value <= high:
        return value
    what = f"{name} is {repr(value)[:40]}" if name in record else f"has no {name!r}"
    fail(path, line, what, f"{name} must be a whole number from {low} to {high:,}")
