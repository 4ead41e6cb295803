"""Public request traces in their own formats, read into one columnar Trace.

Recorded: Azure 2023, 2024 and multimodal 2025 (CSV, perhaps gzipped), BurstGPT 1 to 3 (CSV), Mooncake and
Qwen-Bailian (JSONL), a ServeGen sample (CSV), runs of a real engine (sim/measured.py). Generated: ServeGen client folders and the compact
JSON of the same, which hold rates and length tables instead of requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sim import servegen
from sim.measured import READERS as MEASURED
from sim.measured import is_measured, read_measured
from sim.trace import Format, Ints, Record, Trace, spread, tick_of, without_empty
from sim.tracefile import (
    LARGEST_TIME_S,
    MAX_TOKENS,
    Column,
    csv_columns,
    fail,
    first_line,
    json_int,
    json_lines,
    json_number,
    line_of,
    read_bytes,
    split_row,
)


@dataclass(frozen=True, slots=True)
class Generator:
    """A trace format that holds rates and length tables instead of requests."""

    path: Path
    clients: tuple[servegen.Client, ...]


Source = Trace | Generator


def read_trace(path: str | Path, format: Format = "auto", key: int = 0) -> Trace:  # noqa: A002
    """All requests of a trace; those of a ServeGen client folder are drawn, keyed by `key`.

    Raises UserError `path:line: what; way out` when it is missing, empty, truncated or wrong.
    """
    return requests(read_source(path, format), key)


def requests(source: Source, key: int, start_s: float = 0.0, until_s: float = math.inf) -> Trace:
    """The requests of a source that arrive in [start_s, until_s), keyed where something is drawn.

    Requests that share a tick of a coarse clock are spread uniformly over it, in their order.
    """
    if isinstance(source, Generator):
        servegen.check_size(source.path, source.clients, start_s, until_s)
        return _drawn(source, key, start_s, until_s)
    trace = replace(source, arrival_s=spread(source, key))
    if start_s <= 0.0 and until_s == math.inf:
        return trace
    return trace.take((trace.arrival_s >= start_s) & (trace.arrival_s < until_s))


def read_source(path: str | Path, format: Format = "auto") -> Source:  # noqa: A002
    """Read a trace once for many replications; raises UserError as `read_trace`."""
    path = Path(path)
    if format in MEASURED or (format == "auto" and is_measured(path)):
        return _requests_of(path)
    if format in ("auto", "servegen") and path.is_dir():
        return _active(Generator(path, servegen.read_folder(path)))
    data = read_bytes(path)
    name = _detect(path, data) if format == "auto" else format
    if name == "servegen" and data.lstrip()[:1] == b"{":
        return _active(Generator(path, servegen.read_compact(path, _document(path, data))))
    if name == "servegen" and len(split_row(first_line(path, data))) == 6:
        return _active(Generator(path, (servegen.read_chunk(path, path.stem),)))
    return _READERS[name](path, data)


def _requests_of(path: Path) -> Trace:
    """The requests of a measured run: when they came and how long they were."""
    run = read_measured(path)
    found = run.requests
    return Trace(
        format="llmservingsim" if run.format == "llmservingsim" else "vllm-bench",
        arrival_s=found.arrival_s,
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        row=np.arange(len(found)),
        dropped=run.left_out,
    )


def _detect(path: Path, data: bytes) -> Format:
    """The format that the content looks like; UserError when none does."""
    line = first_line(path, data)
    if line.startswith("{"):
        try:
            keys = json.loads(line).keys()
        except (ValueError, RecursionError):
            keys = {"clients"} if b'"clients"' in data[:65536] else set()
        if "clients" in keys:
            return "servegen"
        if {"chat_id", "parent_chat_id"} & keys:
            return "bailian"
        if {"timestamp", "input_length"} <= keys:
            return "mooncake"
    header = split_row(line)
    if "ContextTokens" in header:
        return "azure"
    if "Request tokens" in header:
        return "burstgpt"
    if "timestamp_s" in header or (len(header) == 6 and header[0].replace(".", "").isdigit()):
        return "servegen"
    seen = line[:60] + ("..." if len(line) > 60 else "")
    way_out = (
        f"known: {', '.join((*_READERS, *MEASURED))} (name one with format: to see what it lacks)"
    )
    return fail(path, 1, f"{seen!r} starts no trace format that is known", way_out)


def _azure(path: Path, data: bytes) -> Trace:
    wanted = {"TIMESTAMP": "time", "ContextTokens": "int", "GeneratedTokens": "int"}
    table = csv_columns(path, data, wanted)  # type: ignore[arg-type]
    return _finish(path, data, "azure", tuple(wanted), table)


def _burstgpt(path: Path, data: bytes) -> Trace:
    """A response of 0 tokens is a failed request; the clock of most files has whole seconds."""
    wanted = {"Timestamp": "float", "Request tokens": "int", "Response tokens": "int"}
    optional = {"Model": "text", "Session ID": "text"}
    table = csv_columns(path, data, wanted, optional)  # type: ignore[arg-type]
    session = table.get("Session ID")
    trace = _finish(
        path,
        data,
        "burstgpt",
        tuple(wanted),
        table,
        session=None if session is None else _numbered(session),
        tenant=table.get("Model"),
    )
    whole = len(trace) > 1 and bool((trace.arrival_s % 1.0 == 0.0).all())
    return replace(trace, tick_s=1.0 if whole else 0.0)


def _sampled(path: Path, data: bytes) -> Trace:
    """A Monte-Carlo sample of ServeGen's clients, never raw data."""
    wanted = {"timestamp_s": "float", "input_tokens": "int", "output_tokens": "int"}
    optional = {"client_id": "text", "reason_ratio": "float"}
    table = csv_columns(path, data, wanted, optional)  # type: ignore[arg-type]
    ratio = table.get("reason_ratio")
    reasoning = None
    if ratio is not None:
        outside = ~np.isnan(ratio) & ~((ratio >= 0) & (ratio <= 1))
        _refuse(path, data, outside, f"reason_ratio is {_first(ratio, outside)}", "it is a share")
        output = np.clip(table["output_tokens"], 0, MAX_TOKENS)
        reasoning = np.where(np.isnan(ratio), -1, np.rint(np.nan_to_num(ratio) * output))
        reasoning = reasoning.astype(np.int64)
    return _finish(
        path,
        data,
        "servegen",
        tuple(wanted),
        table,
        reasoning_tokens=reasoning,
        tenant=table.get("client_id"),
        provenance="sampled",
    )


def _mooncake(path: Path, data: bytes) -> Trace:
    """Milliseconds, on ticks of 3 s in one of the traces; prefix blocks of 512 tokens."""
    rows = [
        (line, json_number(path, line, r, "timestamp"), *_prompt(path, line, r, 512))
        for line, r in json_lines(path, data)
    ]
    trace = _from_lines(path, "mooncake", rows, 1e-3, 512)
    return replace(trace, tick_s=tick_of(trace.arrival_s))


def _bailian(path: Path, data: bytes) -> Trace:
    """Seconds; prefix blocks of 16 tokens; parent_chat_id -1 starts a conversation."""
    rows = []
    chats: dict[int, int] = {}
    parents: list[int] = []
    for line, r in json_lines(path, data):
        second = json_number(path, line, r, "timestamp")
        chat = json_int(path, line, r, "chat_id", high=2**62)
        parent = json_int(path, line, r, "parent_chat_id", low=-1, high=2**62)
        rows.append((line, second, *_prompt(path, line, r, 16)))
        parents.append(chats.get(parent, -1))
        chats[chat] = len(parents) - 1
    session: list[int] = []
    for i, parent in enumerate(parents):
        session.append(session[parent] if parent >= 0 else i)
    columns = {"session": np.asarray(session, np.int64), "parent": np.asarray(parents, np.int64)}
    return _from_lines(path, "bailian", rows, 1.0, 16, **columns)


_READERS: Final[Mapping[str, Callable[[Path, bytes], Trace]]] = {
    "azure": _azure,
    "burstgpt": _burstgpt,
    "mooncake": _mooncake,
    "servegen": _sampled,
    "bailian": _bailian,
}

Line = tuple[int, float, int, int, tuple[int, ...]]  # line, time, input, output, prefix blocks


def _prompt(
    path: Path, line: int, r: Mapping[str, Any], block: int
) -> tuple[int, int, tuple[int, ...]]:
    tokens = json_int(path, line, r, "input_length")
    output = json_int(path, line, r, "output_length")
    hashes = r.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(type(h) is int for h in hashes):
        fail(path, line, "hash_ids is not a list of whole numbers", "write [0, 1, 2] or nothing")
    if len(hashes) > -(-tokens // block):
        what = f"has {len(hashes)} hash_ids for {tokens} input tokens"
        fail(path, line, what, f"a block has {block} tokens; check the format")
    return tokens, output, tuple(hashes)


def _from_lines(
    path: Path, name: Format, rows: list[Line], unit_s: float, block: int, **columns: Any
) -> Trace:
    if not rows:
        fail(path, 0, "has no requests", "copy or download the file again")
    times = [row[1] for row in rows]
    for i, (before, after) in enumerate(pairwise(times), 1):
        if after < before:
            what = f"timestamp {after:g} is before the line above ({before:g})"
            fail(path, rows[i][0], what, "sort the file by timestamp")
    if times[-1] * unit_s > LARGEST_TIME_S:
        fail(path, rows[-1][0], f"timestamp {times[-1]:g} is too large", "check its unit")
    trace = Trace(
        name,
        (np.asarray(times) - times[0]) * unit_s,
        np.asarray([row[2] for row in rows], np.int64),
        np.asarray([row[3] for row in rows], np.int64),
        np.arange(len(rows)),
        prefix_blocks=tuple(row[4] for row in rows) if any(row[4] for row in rows) else None,
        block_size=block,
        **columns,
    )
    return _kept(path, trace)


def _finish(
    path: Path,
    data: bytes,
    name: Format,
    names: tuple[str, ...],
    table: Mapping[str, Column],
    **columns: Any,
) -> Trace:
    """Check the columns of time, input and output, and make the trace start at 0."""
    clock, given, made = (table[name] for name in names)
    bad = ~(np.isfinite(clock) & (np.abs(clock) <= LARGEST_TIME_S))
    _refuse(path, data, bad, f"{names[0]} is {_first(clock, bad)}", "it must be a sane number of s")
    bad = np.diff(clock, prepend=clock[:1]) < 0
    _refuse(path, data, bad, f"{names[0]} is before the row above", f"sort it by {names[0]}")
    if clock[0] < 0:
        fail(path, line_of(data, 0), f"{names[0]} is {clock[0]:g}", "it must be 0 or more")
    for column, tokens in zip(names[1:], (given, made), strict=True):
        bad = (tokens < 0) | (tokens > MAX_TOKENS)
        what = f"{column} is {_first(tokens, bad)}"
        _refuse(path, data, bad, what, f"it must be from 0 to {MAX_TOKENS:,}")
    row = np.arange(len(clock))
    return _kept(path, Trace(name, clock - clock[0], given, made, row, **columns))


def _refuse(path: Path, data: bytes, bad: npt.NDArray[np.bool_], what: str, way_out: str) -> None:
    if bad.any():
        fail(path, line_of(data, int(np.argmax(bad))), what, way_out)


def _first(values: Column, bad: npt.NDArray[np.bool_]) -> str:
    return str(values[int(np.argmax(bad))]) if bad.any() else ""


def _kept(path: Path, trace: Trace) -> Trace:
    if not ((trace.input_tokens > 0) & (trace.output_tokens > 0)).any():
        fail(path, 0, "has no request with input and output tokens", "check the columns")
    return without_empty(trace)


def _numbered(names: Column) -> Ints:
    """Each distinct name as a number from 0 in order of appearance; "" (no session) as -1."""
    numbers: dict[str, int] = {"": -1}
    return np.asarray([numbers.setdefault(n, len(numbers) - 1) for n in names], dtype=np.int64)


def _document(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        fail(path, line, "is not valid JSON (truncated?)", "copy or download the file again")


def _active(source: Generator) -> Generator:
    if servegen.expected(source.clients) <= 0.0:
        fail(source.path, 0, "has no window with requests", "copy or download it again")
    return source


def _drawn(source: Generator, key: int, start_s: float, until_s: float) -> Trace:
    drawn = servegen.sample(source.clients, key, start_s, until_s)
    names = np.asarray([client.name for client in source.clients], dtype=object)
    return Trace(
        "servegen",
        drawn.arrival_s,
        drawn.input,
        drawn.output,
        np.arange(len(drawn.arrival_s)),
        reasoning_tokens=drawn.reasoning,
        tenant=names[drawn.client],
        provenance="sampled",
    )


__all__ = [
    "Generator",
    "Record",
    "Source",
    "Trace",
    "read_source",
    "read_trace",
    "requests",
]
