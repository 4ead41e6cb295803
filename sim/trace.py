"""One trace as columns: what a request is, which clock stamped it, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from models.keyed import uniform_array
from sim.renewal import Floats, child_keys

Ints = npt.NDArray[np.int64]
Format = Literal[
    "auto", "azure", "burstgpt", "mooncake", "servegen", "bailian", "llmservingsim", "vllm-bench"
]
Provenance = Literal["raw", "sampled", "scaled"]

_JITTER: Final = 6


@dataclass(frozen=True, slots=True)
class Record:
    """One request of a trace; None where the trace does not say."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int | None
    session: int | None
    parent: int | None  # row of the request that this one continues
    prefix_blocks: tuple[int, ...] | None  # content hash of each block of the prompt
    block_size: int  # tokens of a prefix block, 0 without blocks
    tenant: str | None
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace in order of arrival, as columns of shape (n,); -1 marks an unknown number.

    `arrival_s` counts from the first request (ServeGen: from the start of its first day). `row` is the
    request's number in the file among those kept. `tick_s` is the resolution of a coarse clock, 0 for
    a fine one. `provenance`: "raw" as recorded, "sampled" drawn from a model of the recording,
    "scaled" with time changed. `dropped` counts requests left out because they failed or are empty.
    """

    format: Format
    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    row: Ints
    reasoning_tokens: Ints | None = None
    session: Ints | None = None
    parent: Ints | None = None
    prefix_blocks: tuple[tuple[int, ...], ...] | None = None
    block_size: int = 0
    tenant: npt.NDArray[np.object_] | None = None
    provenance: Provenance = "raw"
    tick_s: float = 0.0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.arrival_s)

    def record(self, i: int) -> Record:
        """Request `i` on its own."""
        return Record(
            float(self.arrival_s[i]),
            int(self.input_tokens[i]),
            int(self.output_tokens[i]),
            _known(self.reasoning_tokens, i),
            _known(self.session, i),
            _known(self.parent, i),
            None if self.prefix_blocks is None else self.prefix_blocks[i],
            self.block_size,
            None if self.tenant is None else str(self.tenant[i]),
            self.provenance,
        )

    def records(self) -> Iterator[Record]:
        """All requests in order."""
        return (self.record(i) for i in range(len(self)))

    def take(self, rows: npt.NDArray[np.bool_] | slice) -> Trace:
        """The requests selected by a mask or slice; `row` and `parent` keep the file's numbers."""
        blocks = self.prefix_blocks
        if blocks is not None:
            blocks = tuple(blocks[i] for i in np.arange(len(self))[rows])
        columns = ("reasoning_tokens", "session", "parent", "tenant")
        kept = {n: c[rows] for n in columns if (c := getattr(self, n)) is not None}
        return replace(
            self,
            arrival_s=self.arrival_s[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            row=self.row[rows],
            prefix_blocks=blocks,
            **kept,
        )

    def scaled(self, start_s: float, speed: float) -> Trace:
        """The trace with time counted from `start_s` and running `speed` times as fast."""
        provenance: Provenance = self.provenance if speed == 1.0 else "scaled"
        arrival_s = (self.arrival_s - start_s) / speed
        return replace(self, arrival_s=arrival_s, provenance=provenance, tick_s=self.tick_s / speed)


def without_empty(trace: Trace) -> Trace:
    """The trace without requests that have no input or no output: they failed, or nothing was computed."""
    kept = (trace.input_tokens > 0) & (trace.output_tokens > 0)
    if kept.all():
        return trace
    moved = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last is for parent -1
    left = trace.take(kept)
    return replace(
        left,
        row=np.arange(len(left)),
        parent=None if left.parent is None else moved[left.parent],
        dropped=int((~kept).sum()),
    )


def _known(column: Ints | None, i: int) -> int | None:
    return None if column is None or column[i] < 0 else int(column[i])


def tick_of(arrival_s: Floats) -> float:
    """The tick in s of a clock on which most requests share one and ticks are >= 1 s apart, else 0."""
    gaps = np.diff(arrival_s)
    if not len(gaps) or (gaps == 0).mean() < 0.5 or not gaps.any():
        return 0.0
    tick = float(np.median(gaps[gaps > 0]))
    return tick if tick >= 1.0 else 0.0


def spread(trace: Trace, key: int) -> Floats:
    """Arrivals in s with those of one tick spread uniformly over it; the order of rows stays."""
    if trace.tick_s == 0.0:
        return trace.arrival_s
    u = uniform_array(child_keys(key, int(trace.row[-1]) + 1), _JITTER)[trace.row]
    ticks, at = np.unique(trace.arrival_s, return_inverse=True)
    width = np.minimum(np.append(np.diff(ticks), trace.tick_s), trace.tick_s)
    arrival_s: Floats = trace.arrival_s + width[at] * u[np.lexsort((u, at))]
    return arrival_s
