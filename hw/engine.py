"""A small real engine: a random-weight transformer of a real shape over a paged KV pool, with our own kernels.

It knows no search and no queue: whoever drives it says in a `Tick` which rows decode, which prompt pieces run
and which pages move, and gets sampled tokens and scores back. The same code runs on a GPU (CuPy kernels, CUDA
graphs) and on a CPU (hw/cpu.py).
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hw import cpu, cuda, ops
from hw.engine_graph import StillTicks
from hw.engine_model import (
    Weights,
    check_shape,
    feed_forward,
    normed,
    random_weights,
    turned,
    turns,
)
from hw.engine_prompt import Context, attend, contexts
from hw.engine_step import Tick, ints, written
from hw.kvtree import Ints, Step, plan
from hw.reference import HEAD_DIM
from hw.transformer import Transformer

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine is built for: pages of the pool, tokens a page, most decoders and most tokens of a tick.

    Raises ValueError where one is below 1.
    """

    pages: int
    page: int = 16
    max_rows: int = 256
    max_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("pages", "page", "max_rows", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f'"{name}" must be at least 1, got {getattr(self, name)}.')


@dataclass(frozen=True, slots=True)
class Result:
    """What a tick gave: the tokens of `sampled` and the scores in (0, 1) of `scored`, in their order."""

    tokens: Ints
    scores: Floats32


class Engine:
    """One model, its KV pool and the books of its pages, on one device.

    `device`: cpu or cuda. `exact` (CPU only) computes in float32 instead of bf16. `still`: decode-only ticks are
    padded and run in memory that lies still, on a GPU as graphs (there the default). Raises
    UnsupportedShapeError, and GpuError without a GPU that fits.
    """

    def __init__(
        self,
        shape: Transformer,
        limits: Limits,
        *,
        device: str = "cpu",
        exact: bool = False,
        seed: int = 0,
        temperature: float = 1.0,
        still: bool | None = None,
    ) -> None:
        check_shape(shape)
        self.torch = torch = torch_package()
        if exact and device != "cpu":
            raise ValueError("float32 is for the CPU: on a GPU the kernels are bf16")
        self.shape, self.limits, self.device = shape, limits, torch.device(device)
        self.dtype = torch.float32 if exact else torch.bfloat16
        kinds = ops.Shape(
            limits.page, shape.heads // shape.kv_heads, shape.kv_heads, logits_bf16=not exact
        )
        self.kernels = (
            cuda.kernels(kinds)
            if self.device.type == "cuda"
            else cpu.kernels(kinds, np.float32 if exact else np.uint16)
        )
        self.weights: Weights = random_weights(shape, self.dtype, self.device, seed)
        self.ctas = 264
        if self.device.type == "cuda":
            self.ctas = 2 * torch.cuda.get_device_properties(self.device).multi_processor_count
        self.seed = seed
        self.inverse_temperature = 1.0 / temperature
        self.ticks = 0
        self._make_room()
        # a judge does not decode
        self.padded = self.device.type == "cuda" if still is None else still
        self.padded &= not shape.score_head
        self.still = StillTicks(self) if self.padded else None
        self.graph_pool = (
            torch.cuda.graph_pool_handle() if self.device.type == "cuda" and self.padded else None
        )

    @property
    def described(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return str(self.torch.cuda.get_device_name(self.device))
        return f"CPU ({platform.machine()}, {self.torch.get_num_threads()} thread(s))"

    def _make_room(self) -> None:
        """Everything that kernels read or write lies still, so that a graph can be replayed."""
        torch = self.torch
        s, limits = self.shape, self.limits
        xp = self.kernels.xp
        most = limits.max_tokens + limits.max_rows * limits.page  # a fork may repeat a whole page

        def empty(*sizes: int) -> Any:
            return torch.zeros(sizes, dtype=self.dtype, device=self.device)

        self.pool = empty(s.layers, limits.pages, 2, s.kv_heads, limits.page, HEAD_DIM)
        self.queries = empty(limits.max_rows, s.heads, HEAD_DIM)
        self.merged = empty(limits.max_rows, s.heads, HEAD_DIM)
        self.keys = empty(most, s.kv_heads, HEAD_DIM)
        self.values = empty(most, s.kv_heads, HEAD_DIM)
        self.pools_x = self.array(self.pool)
        self.layers_x = [self.pools_x[i] for i in range(s.layers)]
        self.queries_x, self.merged_x = self.array(self.queries), self.array(self.merged)
        self.keys_x, self.values_x = self.array(self.keys), self.array(self.values)
        if not s.score_head:
            self.logits_room = empty(limits.max_rows, s.vocab)
            self.logits_room_x = self.array(self.logits_room)
        self.room = ops.scratch(self.kernels, 4 * limits.max_rows + 2 * self.ctas)
        self.refs = xp.empty(limits.pages, np.int32)
        self.free = xp.empty(limits.pages, np.int32)
        self.free_count = xp.empty(1, np.int32)
        self.flags = xp.zeros(-(-limits.pages // 8), np.uint64)
        self.reset()

    # -- sharing memory between torch and the kernels ------------------------------------------------

    def array(self, tensor: Any) -> Any:
        """The same memory as an array of the kernels' package; bf16 as bits in uint16."""
        torch = self.torch
        half = tensor.dtype == torch.bfloat16
        bits = tensor.view(torch.int16) if half else tensor
        cpu = self.device.type == "cpu"
        found = bits.numpy() if cpu else self.kernels.xp.from_dlpack(bits)
        return found.view(np.uint16) if half else found

    def tensor(self, values: npt.NDArray[Any]) -> Any:
        """A host array on the engine's device."""
        torch = self.torch
        there = torch.from_numpy(np.ascontiguousarray(values))
        return there.to(self.device, non_blocking=True)

    def stream(self) -> AbstractContextManager[Any]:
        """Let CuPy launch on torch's current stream."""
        if self.device.type != "cuda":
            return nullcontext()
        torch = self.torch
        address = torch.cuda.current_stream(self.device).cuda_stream
        return cuda.on_stream(self.kernels.xp, address)

    # -- one tick --------------------------------------------------------------------------------------

    def run(self, tick: Tick) -> Result:
        """Let one iteration happen; it is over when this returns.

        Raises ValueError for a tick that is larger than the engine was built for.
        """
        torch = self.torch
        if len(tick.tokens) > self.limits.max_rows:
            raise ValueError(
                f"{len(tick.tokens)} decoders, but the engine was built for {self.limits.max_rows}"
            )
        if tick.rows > self.limits.max_tokens or tick.rows + len(tick.again) > self.keys.shape[0]:
            raise ValueError(
                f"{tick.rows} tokens in one tick and {len(tick.again)} for forks, but the engine was built for "
                f"{self.limits.max_tokens} and {self.limits.max_rows} forks"
            )
        self.ticks += 1
        with torch.inference_mode(), self.stream():
            self.keep_books(tick)
            step = self._plan(tick)
            if step is not None and self.still is not None and not tick.pieces:
                still = self.still.find(len(tick.tokens), step)
                if still is not None and len(tick.sampled) == len(tick.tokens):
                    return Result(self._fetch(still.run(tick, step)), np.empty(0, np.float32))
            hidden = self._forward(tick, step)
            tokens = self._sample(hidden, tick.sampled)
            scores = self._judge(hidden, tick.scored)
            return Result(self._fetch(tokens), self._fetch(scores))

    def keep_books(self, tick: Tick) -> None:
        """Give pages back, take new ones, and copy the partial pages of forks."""
        xp, k = self.kernels.xp, self.kernels
        if len(tick.freed):
            width = len(tick.freed)
            tables = xp.asarray(tick.freed.reshape(1, width))
            lengths = xp.full(1, width * self.limits.page, np.int32)
            row = xp.zeros(1, np.int32)
            ops.prune(k, tables, lengths, self.refs, row, self.free, self.free_count, self.flags)
        if len(tick.taken):
            self.refs[xp.asarray(tick.taken)] = 1
            self.free_count -= np.int32(len(tick.taken))
        self._copy(tick.copies)

    def _copy(self, copies: Ints) -> None:
        if not len(copies):
            return
        xp, n = self.kernels.xp, len(copies)
        tables = xp.asarray(ints([*copies[:, 0], *([-1] * n)]).reshape(2 * n, 1))
        lengths = xp.asarray(ints([*copies[:, 2], *([0] * n)]))
        rows = xp.asarray(np.arange(2 * n, dtype=np.int32))
        fresh = xp.asarray(np.ascontiguousarray(copies[:, 1]))
        ops.fork(self.kernels, self.pools_x, tables, lengths, self.refs, rows[:n], rows[n:], fresh)

    def _plan(self, tick: Tick) -> Step | None:
        """The work lists of the decoders' attention, on the host."""
        if not len(tick.tokens):
            return None
        kinds = self.kernels.shape
        return plan(
            tick.tables,
            tick.positions + 1,
            page=kinds.page,
            group=kinds.group,
            kv_heads=kinds.kv_heads,
            row_tile=kinds.row_tile,
            ctas=self.ctas,
        )

    def _forward(self, tick: Tick, step: Step | None) -> Any:
        """The last hidden state of every row [rows, hidden]."""
        xp = self.kernels.xp
        pages, slots = written(tick, self.limits.page)
        tokens = np.concatenate([tick.tokens, *(p.tokens for p in tick.pieces)])
        positions = np.concatenate(
            [tick.positions, *(np.arange(p.start, p.start + len(p.tokens)) for p in tick.pieces)]
        )
        if step is not None:
            self._grow_room(int(step.parts[-1]))
            lists = (step.order, step.pages, step.prefix, step.suffix, step.parts)
            step = Step(*(xp.asarray(values) for values in lists))
        return self.forward(
            self.tensor(tokens),
            self.tensor(positions),
            xp.asarray(pages.reshape(-1, 1)),
            xp.asarray(slots),
            step,
            self.tensor(tick.again[:, 0]) if len(tick.again) else None,
            contexts(tick, self.tensor),
            self.room,
        )

    def _grow_room(self, parts: int) -> None:
        if parts > self.room[0].shape[0]:
            self.room = ops.scratch(self.kernels, 2 * parts)

    def forward(
        self, tokens: Any, positions: Any, pages: Any, slots: Any, step: Step | None, again: Any,
        shared: list[Context], room: tuple[Any, Any],
    ) -> Any:  # fmt: skip
        """All layers over tensors [rows] of tokens and positions; decoders come first, by `step`."""
        functional = self.torch.nn.functional
        s, k, n = self.shape, self.kernels, tokens.shape[0]
        b = len(step.parts) - 1 if step is not None else 0
        more = 0 if again is None else len(again)
        turn = turns(positions)
        x = functional.embedding(tokens, self.weights.embedding)
        for i, layer in enumerate(self.weights.layers):
            mixed = functional.linear(normed(x, layer.norm_in), layer.qkv)
            mixed = mixed.view(n, s.heads + 2 * s.kv_heads, HEAD_DIM)
            asked = mixed[:, : s.heads]
            turned(mixed[:, s.heads : s.heads + s.kv_heads], turn, self.keys[:n])
            self.values[:n] = mixed[:, s.heads + s.kv_heads :]
            if more:
                self.keys[n : n + more] = self.keys[again]
                self.values[n : n + more] = self.values[again]
            kept = slice(n + more)
            pool = self.layers_x[i]
            ops.append(k, pool, self.keys_x[kept], self.values_x[kept], pages, slots, False)
            if step is not None:
                turned(asked[:b], (turn[0][:b], turn[1][:b]), self.queries[:b])
                ops.attention(k, self.queries_x[:b], pool, step, room, self.merged_x[:b])
            attended = self.merged[:b]
            if shared:
                attended = asked.new_empty((n, s.heads, HEAD_DIM))
                attended[:b] = self.merged[:b]
                for context in shared:
                    attend(context, self.pool[i], self.keys, self.values, asked, turn, attended)
            x = x + functional.linear(attended.reshape(n, -1), layer.out)
            x = x + feed_forward(normed(x, layer.norm_mid), layer)
        return normed(x, self.weights.norm)

    # -- what comes out ----------------------------------------------------------------------------------

    def logits(self, hidden: Any) -> Any:
        """Next-token logits of last hidden states [rows, hidden]."""
        functional = self.torch.nn.functional
        return functional.linear(hidden, self.weights.head)

    def _sample(self, hidden: Any, rows: Ints) -> Any:
        if not len(rows):
            return ints()
        return self.sample(self.logits(hidden[self.tensor(rows.astype(np.int64))]))

    def sample(self, logits: Any) -> Any:
        """One token a row by Gumbel-max: an int32 array of the kernels' package."""
        xp = self.kernels.xp
        tokens = xp.empty(logits.shape[0], np.int32)
        self.sample_into(self.array(logits), xp.asarray(self.key()), tokens)
        return tokens

    def sample_into(self, logits: Any, key: Any, tokens: Any) -> None:
        """The same on arrays of the kernels' package."""
        ops.sample(
            self.kernels,
            logits,
            inverse_temperature=self.inverse_temperature,
            top_p=1.0,
            key=key,
            tokens=tokens,
        )

    def key(self) -> npt.NDArray[np.uint32]:
        """What this tick's draws are keyed by: seed (low, high) and tick."""
        return np.array([self.seed & 0xFFFFFFFF, self.seed >> 32, self.ticks], np.uint32)

    def _judge(self, hidden: Any, rows: Ints) -> Any:
        """The reward head's probability that a step is right. Shape: Qwen2.5-Math-PRM, linear, ReLU, linear to 2."""
        if not len(rows):
            return np.empty(0, np.float32)
        functional = self.torch.nn.functional
        last = functional.relu(self.logits(hidden[self.tensor(rows.astype(np.int64))]))
        two = functional.linear(last, self.weights.judge)
        return two.float().softmax(-1)[:, 1].contiguous()

    def _fetch(self, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return values
        return values.get() if hasattr(values, "get") else values.cpu().numpy()

    def reset(self) -> None:
        """Forget all pages: the next tick is a new batch's first."""
        xp, pages = self.kernels.xp, self.limits.pages
        self.refs[...] = 0
        self.free[...] = xp.asarray(np.arange(pages, dtype=np.int32)[::-1].copy())
        self.free_count[...] = pages

    # -- checks -------------------------------------------------------------------------------------------

    def free_stack(self) -> Ints:
        """The device's own stack of free pages, for whoever drives it to compare with."""
        count = int(self._fetch(self.free_count)[0])
        stack: Ints = self._fetch(self.free)[:count]
        return stack

    def pages_held(self) -> Ints:
        """Pages that the device counts as taken, ascending."""
        held: Ints = np.flatnonzero(self._fetch(self.refs)).astype(np.int32)
        return held


def torch_package() -> Any:
    """torch, which is optional, imported when an engine is made; raises ModuleNotFoundError without it."""
    import torch
    import torch.nn.attention.bias

    return torch
