"""The ServeGen format: clients with ten-minute windows of rate and burstiness, and tables of lengths.

It holds no requests; `sample` draws them. Unlike the published generator it (i) draws input length,
output length and reasoning share from uniforms of their own, instead of one for all, and (ii) lets the
number of requests in a window vary as the renewal process does, instead of rescaling its gaps to a
given count. Data are parsed as literals and never evaluated.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from models.keyed import Keys, child_key, mix, uniform_array
from sim.renewal import Family, Floats, child_keys, renewal
from sim.tracefile import LARGEST_TIME_S, MAX_ROWS, MAX_TOKENS, fail, read_bytes, split_row

Ints = npt.NDArray[np.int64]

# Rank correlation (of normal scores) between a request's output length and its reasoning share, which
# the tables give only apart. Chosen so that the day's tokens are 4 parts reasoning to 1 part answer.
# Source: ServeGen, NSDI 2026, reasoning section ("about four times"); independent draws give 2.9, full
# dependence 4.4.
COPULA: Final = 0.8

_INPUT: Final = 3
_OUTPUT: Final = 4
_RATIO: Final = 5
_FAMILIES: Final[Mapping[str, Family]] = {"Gamma": "gamma", "Weibull": "weibull"}
_FIELDS: Final = ("input_tokens", "output_tokens", "reason_ratio")


@dataclass(frozen=True, slots=True)
class Table:
    """A discrete distribution: ascending values, and the cumulative probability up to each."""

    values: Floats
    edges: Floats

    def quantile(self, u: Floats) -> Floats:
        """The value at each u in (0, 1)."""
        at = np.searchsorted(self.edges, u, side="right").clip(0, len(self.values) - 1)
        drawn: Floats = self.values[at]
        return drawn


@dataclass(frozen=True, slots=True)
class Lengths:
    """What requests look like during one period of one client; `ratio` is reasoning per output token."""

    input: Table
    output: Table
    ratio: Table | None


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one client: `rate` requests a second and the shape of the gaps between them."""

    start_s: float
    length_s: float
    rate: float
    family: Family
    shape: float
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Client:
    """One client by name, with its active windows in order."""

    name: str
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Requests:
    """Sampled requests in order of arrival; `client` indexes the clients, `reasoning` is -1 unknown."""

    arrival_s: Floats
    input: Ints
    output: Ints
    reasoning: Ints
    client: Ints


def expected(clients: tuple[Client, ...], start_s: float = 0.0, until_s: float = math.inf) -> float:
    """The expected number of requests in [start_s, until_s)."""
    return sum(
        w.rate * max(0.0, min(w.start_s + w.length_s, until_s) - max(w.start_s, start_s))
        for client in clients
        for w in client.windows
    )


def sample(
    clients: tuple[Client, ...], key: int, start_s: float = 0.0, until_s: float = math.inf
) -> Requests:
    """Draw the requests that arrive in [start_s, until_s), keyed by (key, client, window, number).

    A wider interval only adds requests. Each window is a stationary renewal process with its own rate
    and shape, so its expected count is rate times length.
    """
    parts = [
        part
        for ordinal, client in enumerate(clients)
        for window in client.windows
        if window.start_s < until_s and window.start_s + window.length_s > start_s
        for part in [_window(window, child_key(key, ordinal), ordinal, start_s, until_s)]
        if len(part.arrival_s)
    ]
    if not parts:
        empty = np.empty(0, np.int64)
        return Requests(np.empty(0), empty, empty, empty, empty)
    arrival = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(arrival, kind="stable")
    joined = [
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("input", "output", "reasoning", "client")
    ]
    return Requests(arrival[order], *joined)


def _window(w: Window, client_key: int, ordinal: int, start_s: float, until_s: float) -> Requests:
    key = child_key(client_key, int(w.start_s))
    arrival = w.start_s + renewal(key, w.length_s * w.rate, w.family, w.shape) / w.rate
    keys = child_keys(mix(key), len(arrival))
    inside = (arrival >= start_s) & (arrival < until_s)
    arrival, keys = arrival[inside], keys[inside]
    output, reasoning = _thinking(w.lengths, keys)
    tokens = w.lengths.input.quantile(uniform_array(keys, _INPUT)).astype(np.int64)
    return Requests(arrival, tokens, output, reasoning, np.full(len(keys), ordinal))


def _thinking(lengths: Lengths, keys: Keys) -> tuple[Ints, Ints]:
    """Output tokens and how many of them are reasoning, tied by a Gaussian copula."""
    u = uniform_array(keys, _OUTPUT)
    output = lengths.output.quantile(u)
    if lengths.ratio is None:
        return output.astype(np.int64), np.full(len(keys), -1)
    own = ndtri(uniform_array(keys, _RATIO))
    tied = ndtr(COPULA * ndtri(u) + math.sqrt(1.0 - COPULA**2) * own)
    reasoning = np.rint(lengths.ratio.quantile(tied) * output)
    return output.astype(np.int64), reasoning.astype(np.int64)


def read_folder(folder: Path) -> tuple[Client, ...]:
    """The clients of a folder with chunk-i-trace.csv and chunk-i-dataset.json. Raises UserError."""
    numbered = [
        (int(match.group(1)), path)
        for path in sorted(folder.iterdir())
        if (match := re.fullmatch(r"chunk-(\d{1,9})-trace\.csv", path.name))
    ]
    if not numbered:
        way_out = "give a ServeGen client folder, or the path of a trace file"
        fail(folder, 0, "is a folder without chunk-0-trace.csv", way_out)
    return tuple(read_chunk(path, str(number)) for number, path in sorted(numbered))


def read_chunk(path: Path, name: str) -> Client:
    """One client: its chunk-i-trace.csv, and chunk-i-dataset.json beside it. Raises UserError."""
    dataset = path.with_name(path.name.replace("-trace.csv", "-dataset.json"))
    if dataset == path:
        fail(path, 0, "is not named chunk-0-trace.csv", "keep ServeGen's own file names")
    rows = list(_chunk_rows(path))
    periods = _mapping(dataset, 0, _json(dataset, read_bytes(dataset)), "the file")
    lengths = {
        _period(dataset, text): _lengths(dataset, f"period {text}", fields)
        for text, fields in periods.items()
    }
    step = min((b[1] - a[1] for a, b in pairwise(rows)), default=600.0)
    return Client(name, tuple(_windows(path, rows, step, lengths, f"none in {dataset}")))


def read_compact(path: Path, document: Any) -> tuple[Client, ...]:
    """The clients of one JSON document {clients: {name: {windows, pdf}}, window_s}. Raises UserError."""
    top = _mapping(path, 0, document, "the file")
    step = _number(path, 0, top.get("window_s"), "window_s")
    if not 0 < step <= 86400.0:
        fail(path, 0, f"window_s is {step:g}", "write the seconds of a window, such as 600")
    clients = []
    for name, client in _mapping(path, 0, top.get("clients"), "clients").items():
        where = f"client {name[:40]}"
        parts = _mapping(path, 0, client, where)
        pdf = _mapping(path, 0, parts.get("pdf"), f"pdf of {where}")
        lengths = {
            _period(path, text): _lengths(path, f"{where}, period {text}", fields)
            for text, fields in pdf.items()
        }
        windows = parts.get("windows")
        if not isinstance(windows, list):
            fail(path, 0, f"windows of {where} is not a list", "give [[start_s, rate, ...], ...]")
        rows = [_row(path, 0, window) for window in windows]
        clients.append(
            Client(name, tuple(_windows(path, rows, step, lengths, f"none for {where}")))
        )
    return tuple(clients)


Row = tuple[int, float, float, str, float]  # line, start_s, rate, family, shape


def _chunk_rows(path: Path) -> Iterator[Row]:
    text = read_bytes(path).decode("utf-8", "replace").replace("\r", "")
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            yield _row(path, line, split_row(row))


def _row(path: Path, line: int, fields: Any) -> Row:
    if not isinstance(fields, list) or len(fields) != 6:
        count = len(fields) if isinstance(fields, list) else "no"
        way_out = "a window is start_s, rate, cv, family, shape, scale"
        fail(path, line, f"has {count} of 6 columns", way_out)
    start = _number(path, line, fields[0], "start_s")
    rate = _number(path, line, fields[1], "rate")
    if start > LARGEST_TIME_S or rate > 1e6:
        fail(path, line, f"start_s {start:g} or rate {rate:g} is out of range", "check the columns")
    if rate == 0.0:  # an idle window: start,0,0,,0,0
        return line, start, 0.0, "Gamma", 1.0
    shape = _number(path, line, fields[4], "shape")
    if not 1e-4 <= shape <= 1e4:
        fail(path, line, f"shape is {shape:g}", "it must be from 0.0001 to 10,000")
    return line, start, rate, str(fields[3]), shape


def _windows(
    path: Path, rows: list[Row], step: float, lengths: Mapping[float, Lengths | None], none: str
) -> Iterator[Window]:
    full = {start: found for start, found in lengths.items() if found is not None}
    before = -math.inf
    for line, start, rate, family, shape in rows:
        if start <= before or start < before + step * (1 - 1e-9):
            fail(path, line, f"start_s {start:g} comes too early", "sort the windows by start")
        before = start
        if rate == 0.0:
            continue
        if family not in _FAMILIES:
            fail(path, line, f"family is {family[:40]!r}", "known: Gamma, Weibull")
        if not full:
            fail(path, line, f"requests without length tables ({none})", "restore the dataset file")
        started = [period for period in full if period <= start]
        period = max(started) if started else min(full)
        yield Window(start, step, rate, _FAMILIES[family], shape, full[period])


def _lengths(path: Path, where: str, fields: Any) -> Lengths | None:
    """The tables of one period; None where it is empty. A missing reason_ratio is no reasoning."""
    given = _mapping(path, 0, fields, where)
    tables = [_table(path, f"{name} of {where}", given.get(name), name) for name in _FIELDS]
    if tables[0] is None or tables[1] is None:
        return None
    return Lengths(tables[0], tables[1], tables[2])


def _table(path: Path, where: str, entry: Any, field: str) -> Table | None:
    if entry is None:
        return None
    if isinstance(entry, str):
        entry = _literal(path, where, entry)
    pairs: Any = [[], []]
    if isinstance(entry, dict):
        pairs = [list(entry), list(entry.values())]
    elif isinstance(entry, list) and len(entry) == 2:
        pairs = entry
    try:
        values, probs = (np.asarray(side, dtype=np.float64) for side in pairs)
    except (TypeError, ValueError, OverflowError):
        values, probs = np.empty(0), np.ones(1)
    low, high = (0.0, 1.0) if field == "reason_ratio" else (1.0, float(MAX_TOKENS))
    if values.ndim != 1 or values.shape != probs.shape:
        fail(path, 0, f"{where} is no table", "give {value: probability} or [values, probs]")
    if not len(values):
        return None
    used = probs != 0
    ok = np.isfinite(probs).all() and (probs >= 0).all() and abs(probs.sum() - 1) < 0.01
    inside = (values[used] >= low) & (values[used] <= high)
    if not (ok and inside.all()):
        rule = f"values must be {low:g} to {high:g} and probabilities add up to 1"
        fail(path, 0, f"{where} is out of range", rule)
    order = np.argsort(values[used])
    edges = np.cumsum(probs[used][order])
    return Table(values[used][order], edges / edges[-1])


def _literal(path: Path, where: str, text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        fail(path, 0, f"{where} is not a literal table", "write {45: 0.01, 46: 0.99}")


def _json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        fail(path, line, "is not valid JSON", "copy or download the file again")


def _mapping(path: Path, line: int, value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        fail(path, line, f"{what} is not a mapping", "check that this is ServeGen data")
    return value


def _period(path: Path, text: str) -> float:
    return _number(path, 0, text, "period")


def _number(path: Path, line: int, value: Any, what: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        fail(path, line, f"{what} is {str(value)[:40]!r}", "it must be a finite number >= 0")
    return number


def check_size(path: Path, clients: tuple[Client, ...], start_s: float, until_s: float) -> None:
    """Refuse with UserError to draw more requests than memory holds."""
    if (count := expected(clients, start_s, until_s)) > MAX_ROWS / 10:
        way_out = f"use a shorter horizon, at most {MAX_ROWS // 10:,} requests"
        fail(path, 0, f"would draw {count:,.0f} requests", way_out)
