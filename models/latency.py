"""Step latency: what one iteration of a replica costs, in the few numbers that the simulator asks for."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hw.device import Device
from hw.profile import ROOFLINE_LABEL, Profile
from hw.transformer import Transformer, linear_work
from models.attention import Attention, attend, reached
from models.attention_grid import Lines, Skew
from models.measured import measured
from models.operations import Operation, extras, operation

# CUDA-graph capture sizes of vLLM with its default configuration: a decode batch is padded up to one.
# Source: vLLM 0.19.0, resolved `cudagraph_capture_sizes`, 2026-08-20.
CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
# Kernels of a layer beside its linear operations and norms: attention in two phases and its merge, the
# activation. Source: count of the kernels in docs/engine.md's step, 2026-11-23.
_KERNELS_A_LAYER = 4
# Memory that is neither weights nor KV: context, workspaces, CUDA graphs (fixed); three fp32 arrays of
# logits for max_num_seqs; bf16 activations of one layer for max_num_batched_tokens.
# Source: fixed part fitted to vLLM 0.19.0, Llama-3.1-8B on one RTX 4090 (2,588 blocks), 2026-08-20.
_RESERVE_BYTES = 0.6e9
# Communication buffers of tensor parallelism. Source: NVIDIA aiconfigurator system files, 2026-11-23.
_COMMUNICATION_BYTES = 0.41e9


class LatencyError(ValueError):
    """A step cost that cannot be made: the profile is of another device."""


class CapacityError(ValueError):
    """Weights that leave no room for KV: the message says how many GPUs would do."""


@dataclass(frozen=True, slots=True)
class Domain:
    """The decode batches between measured ones: branches, and KV tokens that each reads. Ends included."""

    branches: tuple[float, float]
    tokens: tuple[float, float]

    def holds(self, branches: float, tokens: float) -> bool:
        """Whether a batch lies inside."""
        (b0, b1), (t0, t1) = self.branches, self.tokens
        return b0 <= branches <= b1 and t0 <= tokens <= t1


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of one iteration: a base for its tokens, and a price for each KV token read or copied.

    An iteration that decodes b branches beside c prefill tokens takes `base_s(b, c)`, plus `kv_s` for
    each KV token read by one to `saturation` branches, plus `context_s(chunk)` for each context token
    of a prefill chunk, plus `copy_s` for each KV token that a fork copies. Where attention was timed,
    `lines` takes the place of `kv_s`, and `skew` says what unequal contexts add. Units: s.
    docs/engine.md defines how the terms add up.
    """

    step: Callable[[int, int], float]  # seconds of (b, c), pure; asked once per pair
    kv_s: float  # s per KV token read
    saturation: float  # branches reading the same KV token before compute is the limit
    copy_s: float  # s per KV token copied by a fork
    gpus: int = 1  # devices of the replica (tensor parallel)
    label: str = "linear (given)"
    source_kind: str = "roofline"  # measured | imported | roofline
    error: str | None = (
        None  # held-out error of the profile in words, None where nobody measured it
    )
    chunk_s: Callable[[int], float] | None = (
        None  # s per context token of a chunk, where it is known
    )
    lines: Callable[[int, int], Lines] | None = None  # s of reading KV, of (b, c)
    skew: Skew | None = None  # what unequal contexts add
    gap_s: float = 0.0  # of base_s: the CPU between two iterations
    domain: Domain | None = None  # what was measured; None where nothing was
    _memo: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def linear(
        cls,
        base: float,
        per_decode: float = 0.0,
        per_prefill: float = 0.0,
        kv: float = 0.0,
        saturation: float = 1e18,
        copy: float = 0.0,
    ) -> StepCost:
        """A cost that is linear in b and c, for tests and for theory. Units: s, branches."""
        return cls(
            step=_Linear(base, per_decode, per_prefill), kv_s=kv, saturation=saturation, copy_s=copy
        )

    def base_s(self, b: int, c: int) -> float:
        """Seconds of an iteration with b decode and c prefill tokens, without reading any KV."""
        key = (b, c)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self.step(b, c)
        return found

    def linear_s(self, b: int, c: int) -> float:
        """base_s without the CPU's gap: what the device does whatever is read."""
        return self.base_s(b, c) - self.gap_s

    def head_s(self, sampled: int) -> float:
        """Of base_s, the seconds of embedding, LM head and sampler for `sampled` sequences; 0 if not known apart."""
        return self.step.head_s(sampled) if isinstance(self.step, _Step) else 0.0

    def context_s(self, c: int) -> float:
        """Seconds per context token of a prefill chunk of c tokens."""
        if self.chunk_s is not None:
            return self.chunk_s(c)
        return self.kv_s * max(1.0, c / self.saturation)

    def reading(self, b: int, c: int, read: float) -> tuple[float, float, float]:
        """Seconds that b decoders beside c prefill tokens take to read `read` KV tokens.

        Returns them, seconds for each further token, and the tokens up to which that holds.
        """
        if self.lines is None or not b:
            return self.kv_s * read, self.kv_s, math.inf
        return self.lines(b, c).at(read)

    @property
    def timed(self) -> bool:
        """Whether reading KV takes another time than `kv_s` a token."""
        return self.lines is not None or self.skew is not None

    def alpha(self, b: int, mixed: bool) -> float:
        """How far a two-valued batch lies from one of mean (0) to one of longest contexts (1)."""
        return self.skew.alpha(b, mixed) if self.skew is not None else 0.0


def step_cost(
    shape: Transformer,
    device: Device,
    profile: Profile | None = None,
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
) -> StepCost:
    """The cost of a step of this model on this device, learned from a profile; the roofline without one.

    Operations take the times of models.operations (exact where measured, a learned residual over the floor
    elsewhere), attention those of models.attention; what nobody measured takes its floor and the gap between
    kernels. Of the devices, `expert_parallel` hold other experts (the rest share each expert's matrices).
    Raises LatencyError for a profile of another device, CatalogError for an impossible split.
    """
    if profile is not None and profile.device != device.name:
        raise LatencyError(
            f"the profile was made on {profile.device}, the pool runs on {device.name}: name a "
            f"profile of {device.name}, or use `latency: {{kind: roofline}}`."
        )
    if profile is not None and profile.source_kind == "roofline":
        profile = None  # its times are the floors
    ceilings: dict[str, Any] = dict(profile.ceilings) if profile else {}
    roofs = replace(device, **ceilings)
    works = linear_work(shape, tensor_parallel, expert_parallel)
    known = measured(profile) if profile else None
    attention = attend(known, roofs, shape, tensor_parallel)
    timed = tuple(Operation(work, roofs) for work in works)
    kernels = eager = sum(w.calls for w in works) + _KERNELS_A_LAYER * shape.layers
    copied = 2.0 * shape.kv_bytes_per_token(tensor_parallel) / roofs.copy_bytes_per_s
    if known is not None:
        timed = tuple(operation(known, roofs, work, shape, tensor_parallel) for work in works)
        timed += extras(known, roofs, shape, tensor_parallel)
        # A measured kernel's time holds its launch already.
        unmeasured = sum(t.work.calls for t in timed if t.padded is None)
        light = {"activation", "rotary"} - {t.work.name for t in timed}
        attending = 0 if attention.decode else _KERNELS_A_LAYER - 1
        kernels = unmeasured + shape.layers * (len(light) + attending)
        copied /= reached(known, "fork_copy")
    return StepCost(
        step=_Step(
            timed,
            roofs.launch_s * kernels,
            roofs.eager_launch_s * eager,
            roofs.step_gap_s,
            attention,
        ),
        kv_s=attention.kv_s,
        saturation=attention.saturation,
        copy_s=copied,
        gpus=tensor_parallel,
        label=profile.label if profile else ROOFLINE_LABEL,
        source_kind=profile.source_kind if profile else "roofline",
        error=profile.error if profile else None,
        chunk_s=attention.context_s,
        lines=attention.lines if attention.decode else None,
        gap_s=roofs.step_gap_s,
        domain=_domain(attention, timed),
    )


def _domain(attention: Attention, timed: tuple[Operation, ...]) -> Domain | None:
    """Where both attention and every layer's matrices were measured."""
    grid = attention.grid
    rows = [
        t.padded.rows for t in timed if t.padded is not None and t.work.n and not t.work.sampled
    ]
    if grid is None or not rows:
        return None
    low = max(float(grid.branches[0]), *(points[0] for points in rows))
    high = min(float(grid.branches[-1]), *(points[-1] for points in rows))
    return Domain((low, high), (float(grid.tokens[0]), float(grid.tokens[-1])))


def kv_pages(
    shape: Transformer,
    device: Device,
    tensor_parallel: int = 1,
    gpu_memory_utilization: float = 0.90,
    block_size: int = 16,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
) -> int:
    """KV pages (vLLM: num_gpu_blocks) that fit beside the weights, on each device of the replica.

    (memory x utilisation - weights - reserve) / bytes of a page. Raises CapacityError when none fit,
    CatalogError for an impossible split.
    """
    shape.check_split(tensor_parallel)
    engine = (gpu_memory_utilization, max_num_batched_tokens, max_num_seqs)
    left = _free_bytes(shape, device, tensor_parallel, *engine)
    pages = int(left // (block_size * shape.kv_bytes_per_token(tensor_parallel)))
    if pages >= 1:
        return pages
    weights = shape.weight_bytes(tensor_parallel)
    fits = [
        n
        for n in range(tensor_parallel + 1, 65)
        if shape.heads % n == 0 and _free_bytes(shape, device, n, *engine) > 0.1 * weights / n
    ]
    out = (
        f"tensor_parallel: {fits[0]} would fit"
        if fits
        else "no number of these devices fits: choose a larger device or a smaller model"
    )
    raise CapacityError(
        f"{shape.name} does not fit: its weights take {weights / 1e9:.1f} GB on each of "
        f"{tensor_parallel} x {device.name}, which has {device.memory_bytes / 1e9:.1f} GB of which "
        f"{gpu_memory_utilization:.0%} may be used; {out}."
    )


def _free_bytes(
    shape: Transformer, device: Device, split: int, utilization: float, tokens: int, seqs: int
) -> float:
    wide = shape.expert_ffn * shape.experts_per_token if shape.experts else shape.ffn
    activations = 2.0 * tokens * (3 * wide / split + 4 * shape.hidden)
    logits = 0.0 if shape.score_head else 3 * 4.0 * seqs * shape.vocab / split
    reserve = _RESERVE_BYTES + activations + logits + (_COMMUNICATION_BYTES if split > 1 else 0.0)
    return device.memory_bytes * utilization - shape.weight_bytes(split) - reserve


@dataclass(frozen=True, slots=True)
class _Linear:
    base: float
    per_decode: float
    per_prefill: float

    def __call__(self, b: int, c: int) -> float:
        return self.base + self.per_decode * b + self.per_prefill * c


@dataclass(frozen=True, slots=True)
class _Step:
    """base_s of a model: its operations, and the cost of launching them, with or without a graph."""

    timed: tuple[Operation, ...]
    graph_s: (
        float  # gaps between the kernels of a replayed graph, those of measured kernels left out
    )
    eager_s: float  # launching every kernel on its own
    gap_s: float
    attention: Attention
    _all: dict[int, float] = field(default_factory=dict, repr=False, compare=False)
    _ragged: dict[int, float] = field(default_factory=dict, repr=False, compare=False)
    _head: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, b: int, c: int) -> float:
        if c == 0 and b <= CAPTURE_SIZES[-1]:
            padded = CAPTURE_SIZES[bisect_left(CAPTURE_SIZES, b)]
            return self._operations(padded, b) + self.graph_s + self.gap_s
        # Launches run ahead of the kernels: the longer of the two counts. Prefill samples one more
        # token. A mixed step is never cheaper than its decode alone.
        attention = self.attention.chunk_fixed_s(c)
        tokens, sampled = b + c, b + (1 if c else 0)
        busy = self._operations(tokens, sampled, whole_tiles=not c) + attention + self.graph_s
        alone = self(b, 0) if b and c else 0.0
        return max(max(busy, self.eager_s) + self.gap_s, alone)

    def head_s(self, sampled: int) -> float:
        """Seconds of what a step does outside its layers."""
        once = [t for t in self.timed if t.work.sampled or t.work.name == "embedding"]
        return sum(t.seconds(sampled) for t in once)

    def _operations(self, tokens: int, sampled: int, *, whole_tiles: bool = True) -> float:
        known = self._all if whole_tiles else self._ragged
        body = known.get(tokens)
        if body is None:
            body = known[tokens] = sum(
                t.seconds(tokens, whole_tiles=whole_tiles) for t in self.timed if not t.work.sampled
            )
        head = self._head.get(sampled)
        if head is None:
            head = sum(t.seconds(sampled) for t in self.timed if t.work.sampled)
            self._head[sampled] = head
        return body + head
