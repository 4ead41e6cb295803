"""A decode-only tick of padded size in memory that lies still: captured once as a CUDA graph, then replayed.

All that changes from tick to tick (tokens, places, the work lists of attention) is one array that is copied in
before. Lists are padded with items that read and write nothing. Without a GPU the same body runs as it is.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hw import ops
from hw.engine_step import Tick, written
from hw.kvtree import Ints, Step

if TYPE_CHECKING:
    from hw.engine import Engine

# Rows to which a decode tick is padded. Source: vLLM 0.19.0, resolved `cudagraph_capture_sizes`, 2026-08-20.
SIZES = (1, 2, 4, *range(8, 257, 8))
ITEMS = (64, 512)  # places for prefix items, and for suffix items beyond one a row
_WARM_UP = 2  # runs before a capture: libraries choose their kernels, memory is found


class Still:
    """The body for `rows` rows and `items` spare items of attention, its inputs and its tokens."""

    def __init__(self, engine: Engine, rows: int, items: int) -> None:
        torch = engine.torch
        self.engine, self.rows, self.items = engine, rows, items
        self.suffixes = rows + items
        sizes = {
            "tokens": rows,
            "positions": rows,
            "pages": rows,
            "slots": rows,
            "key": 3,
            "order": rows,
            "parts": rows + 1,
            "prefix": items * 8,
            "suffix": self.suffixes * 8,
            "lists": engine.limits.pages,
        }
        total = sum(sizes.values())
        on_gpu = engine.device.type == "cuda"
        self.staged = torch.zeros(total, dtype=torch.int32, pin_memory=on_gpu)
        self.inputs = torch.zeros(total, dtype=torch.int32, device=engine.device)
        staged = self.staged.numpy()
        there = engine.array(self.inputs)
        at = 0
        self.host: dict[str, Ints] = {}
        self.views: dict[str, Any] = {}
        for name, size in sizes.items():
            self.host[name] = staged[at : at + size]
            self.views[name] = there[at : at + size]
            at += size
        self.tokens = self.inputs[:rows]
        self.positions = self.inputs[rows : 2 * rows]
        v = self.views
        self.step = Step(
            v["order"],
            v["lists"],
            v["prefix"].reshape(-1, 8),
            v["suffix"].reshape(-1, 8),
            v["parts"],
        )
        self.room = ops.scratch(engine.kernels, 8 * rows + 4 * engine.ctas)
        self.logits = engine.logits_room[:rows]
        self.logits_x = engine.logits_room_x[:rows]
        self.sampled = engine.kernels.xp.zeros(rows, np.int32)
        self.replay: Callable[[], None] = self.body
        self.host["pages"][:] = -1
        self._pad(0, 0, 0)
        self.inputs.copy_(self.staged)
        if on_gpu:
            self._capture()

    def body(self) -> None:
        """One decode step of all rows, from inputs to sampled tokens."""
        engine, v = self.engine, self.views
        hidden = engine.forward(
            self.tokens, self.positions, v["pages"].reshape(-1, 1), v["slots"], self.step, None, [],
            self.room,
        )  # fmt: skip
        engine.torch.mm(hidden, engine.weights.head.t(), out=self.logits)
        engine.sample_into(self.logits_x, v["key"].view(np.uint32), self.sampled)

    def _capture(self) -> None:
        torch, engine = self.engine.torch, self.engine
        side = torch.cuda.Stream(engine.device)
        side.wait_stream(torch.cuda.current_stream(engine.device))
        with torch.cuda.stream(side), engine.stream():
            for _ in range(_WARM_UP):
                self.body()
        torch.cuda.current_stream(engine.device).wait_stream(side)
        torch.cuda.synchronize(engine.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                torch.cuda.graph(graph, pool=engine.graph_pool, capture_error_mode="thread_local"),
                engine.stream(),
            ):
                self.body()
        except Exception as error:  # noqa: BLE001 (slower ticks are better than none)
            torch.cuda.synchronize(engine.device)  # raises where the device itself is lost
            first = (str(error).splitlines() or [""])[0][:200]
            words = f"a tick of {self.rows} rows could not be captured, it is launched call by call"
            warnings.warn(
                f"{words} ({type(error).__name__}: {first})", RuntimeWarning, stacklevel=2
            )
            return
        self.replay = graph.replay

    def _pad(self, rows: int, prefixes: int, parts: int) -> None:
        """What lies beyond the tick's own rows and items: it reads nothing and writes to a spare part."""
        host = self.host
        for name in ("tokens", "positions", "slots", "order"):
            host[name][rows:] = 0
        host["pages"][rows:] = -1
        host["parts"][rows:] = parts
        host["prefix"].reshape(-1, 8)[prefixes:] = 0
        suffix = host["suffix"].reshape(-1, 8)
        suffix[:] = 0
        suffix[:, 4] = parts  # the slot of branch 0, counted from its first part, which is 0

    def run(self, tick: Tick, step: Step) -> Any:
        """Play a tick that `fits`; return the sampled tokens of its rows."""
        host, b = self.host, len(tick.tokens)
        pages, slots = written(tick, self.engine.limits.page)
        self._pad(b, len(step.prefix), int(step.parts[-1]))
        host["tokens"][:b], host["positions"][:b] = tick.tokens, tick.positions
        host["pages"][:b], host["slots"][:b] = pages, slots
        host["key"][:] = self.engine.key().view(np.int32)
        host["order"][:b], host["parts"][: b + 1] = step.order, step.parts
        host["prefix"].reshape(-1, 8)[: len(step.prefix)] = step.prefix
        host["suffix"].reshape(-1, 8)[: len(step.suffix)] = step.suffix
        host["lists"][: len(step.pages)] = step.pages
        self.inputs.copy_(self.staged, non_blocking=True)
        self.replay()
        return self.sampled[:b]

    def fits(self, step: Step) -> bool:
        """Whether the work lists of a step have room here."""
        return (
            len(step.prefix) <= self.items
            and len(step.suffix) <= self.suffixes
            and len(step.pages) <= len(self.host["lists"])
            and int(step.parts[-1]) < self.room[0].shape[0]
        )


class StillTicks:
    """The still bodies of an engine, made when they are first needed or all at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.made: dict[tuple[int, int], Still] = {}

    def find(self, rows: int, step: Step) -> Still | None:
        """The smallest body for a step of so many rows; None where it is too large for all."""
        if rows > min(SIZES[-1], self.engine.limits.max_rows):
            return None
        size = min(SIZES[bisect_left(SIZES, rows)], self.engine.limits.max_rows)
        for items in ITEMS:
            if len(step.prefix) <= items and len(step.suffix) <= size + items:
                still = self.get(size, items)
                return still if still.fits(step) else None
        return None

    def get(self, size: int, items: int) -> Still:
        """The body of this size."""
        if (size, items) not in self.made:
            with self.engine.torch.inference_mode(), self.engine.stream():
                self.made[size, items] = Still(self.engine, size, items)
        return self.made[size, items]

    def make_all(self, progress: Callable[[float, str], None] | None = None) -> None:
        """Make every body of the fewer items, so that none is made while somebody waits."""
        most = self.engine.limits.max_rows
        sizes = sorted({min(size, most) for size in SIZES})
        for number, size in enumerate(sizes):
            if progress is not None:
                progress(number / len(sizes), f"graph of {size} rows")
            self.get(size, ITEMS[0])
