"""What attention costs beside decoders and chunks: time as a table over (branches, KV tokens read).

Between measured batches and contexts the residual over a smooth floor is interpolated in log scale; the
table that follows is monotone in both loads and linear in KV between its knots, which is what the virtual
clock needs. A shape that was not measured takes the utilisation of the nearest one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hw.device import Device
from hw.imported import attention_widths
from hw.profile import Column
from hw.transformer import Transformer
from models.attention_grid import Lines
from models.curves import isotonic
from models.kriging import with_lent_attention
from models.measured import Measured, Table, per_call, where
from models.prefill import Prefill, prefill

Array = np.ndarray[Any, np.dtype[Any]]
_OCTAVE = 16  # knots for each doubling of KV: linear pieces are then within 0.05 % of the model
_STRAIGHT = 5e-4
_MOST = 2**20  # KV tokens of a branch
_LONG = 16_384  # tokens a branch: a long context, whose reading is all that counts
_BATCHES = (1, 2, 4, 8, *range(16, 257, 16), 320, 384, 448, 512, 768, 1024)


@dataclass(frozen=True, slots=True)
class Grid:
    """Measured seconds of one layer over branches (ascending) and tokens a branch (ascending).

    `residual[i, j]` is log(time / floor) at branches[i], tokens[j].
    """

    branches: Array
    tokens: Array
    residual: Array
    read_s: float  # s per KV token read, one layer, at the floor
    pair_s: float  # s per (query, KV token)
    start_s: float  # s of the call with nothing to read
    row_s: float  # s more for each branch
    causal: bool = False  # branches are chunks of new tokens that read themselves

    def floor(self, b: Array, tokens: Array) -> Array:
        """Smooth floor of b branches that read `tokens` each, s."""
        pairs = tokens * (tokens + 1) / 2 if self.causal else tokens
        work = np.hypot(b * tokens * self.read_s, b * pairs * self.pair_s)
        found: Array = self.start_s + b * self.row_s + work
        return found

    def seconds(self, b: Array, kv: Array) -> Array:
        """Seconds of one layer for b branches that together read kv tokens; held outside the grid."""
        b, kv = np.broadcast_arrays(np.asarray(b, float), np.asarray(kv, float))
        tokens = kv / np.maximum(b, 1)
        i, u = _between(self.branches, b)
        j, v = _between(self.tokens, np.maximum(tokens, 1e-9))
        r = self.residual
        mixed = (1 - u) * ((1 - v) * r[i, j] + v * r[i, j + 1]) + u * (
            (1 - v) * r[i + 1, j] + v * r[i + 1, j + 1]
        )
        found: Array = self.floor(b, tokens) * np.exp(mixed)
        return found

    def inside(self, b: float, kv: float) -> bool:
        """Whether a batch lies between measured ones."""
        tokens = kv / max(b, 1.0)
        return bool(
            self.branches[0] <= b <= self.branches[-1]
            and self.tokens[0] <= tokens <= self.tokens[-1]
        )


@dataclass(frozen=True, slots=True)
class Decode:
    """Seconds of all layers' decode attention: for each number of branches, pieces linear in KV.

    `times[i, j]` is that of branches[i] reading tokens[j] each, non-decreasing along both axes. (At the same
    total, few long contexts may well be slower than many short ones.)
    """

    branches: tuple[int, ...]
    tokens: Array = field(repr=False)
    times: Array = field(repr=False)
    _rows: dict[int, Array] = field(default_factory=dict, repr=False, compare=False)
    _lines: dict[int, Lines] = field(default_factory=dict, repr=False, compare=False)

    def pieces(self, b: int) -> Array:
        """Times at the knots b x `tokens` of KV: linear in b between the compiled batch sizes."""
        found = self._rows.get(b)
        if found is None:
            i = min(max(bisect_right(self.branches, b) - 1, 0), len(self.branches) - 2)
            low, high = self.branches[i], self.branches[i + 1]
            u = min((b - low) / (high - low), 1.0)
            found = (1 - u) * self.times[i] + u * self.times[i + 1]
            found = self._rows[b] = found * max(1.0, b / self.branches[-1])
        return found

    def lines(self, b: int) -> Lines:
        """The pieces of b branches; straight over further knots where that errs by less than 0.05 %."""
        found = self._lines.get(b)
        if found is None:
            reads, times = b * self.tokens, self.pieces(b)
            kept = _corners(reads.tolist(), times.tolist())
            reads, times = reads[kept], times[kept]
            slopes = np.diff(times) / np.diff(reads)
            found = self._lines[b] = Lines(
                tuple(reads[:-1].tolist()), tuple(times[:-1].tolist()), tuple(slopes.tolist())
            )
        return found

    def seconds(self, b: int, kv: float) -> float:
        """Seconds of all layers for b branches that together read kv tokens."""
        return self.lines(b).at(kv)[0] if b else 0.0


def _corners(reads: list[float], times: list[float]) -> list[int]:
    """The knots that straight lines need so as not to err by more than 0.05 % between them.

    Each knot that a line passes over bounds its slope from both sides.
    """
    kept, start = [0], 0
    while start < len(reads) - 1:
        end = start + 1
        x, y = reads[start], times[start]
        least, most = -math.inf, math.inf
        while end + 1 < len(reads):
            away, time = reads[end] - x, times[end]
            least = max(least, (time * (1.0 - _STRAIGHT) - y) / away)
            most = min(most, (time * (1.0 + _STRAIGHT) - y) / away)
            if not least <= (times[end + 1] - y) / (reads[end + 1] - x) <= most:
                break
            end += 1
        kept.append(end)
        start = end
    return kept


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of a step in the simulator's few numbers: all layers, one device.

    Decode of b branches that read kv tokens takes `lines(b, c).at(kv)` where it was measured, else `kv_s` a
    token; a prefill takes `chunk_fixed_s(tokens)` once and `context_s(chunk)` for each token of context.
    """

    kv_s: float
    saturation: float  # branches that read the same KV before computing is the limit
    expand_s: float = math.inf  # MLA: s to expand the latent of one context token for a chunk
    expanded_s: float = 0.0  # MLA: s per (context token, chunk token) of the expanded form
    grid: Grid | None = None
    decode: Decode | None = None
    chunks: Prefill | None = None

    def chunk_fixed_s(self, chunk: int) -> float:
        """Seconds of a prefill's attention that no context changes."""
        return self.chunks.fixed_s(chunk) if self.chunks else 0.0

    def lines(self, b: int, c: int) -> Lines:
        """Decode attention of b branches over the KV tokens that they read, in straight pieces.

        A prefill chunk beside them changes nothing: tables of both together are rare (models.layer_cost).
        """
        del c
        assert self.decode is not None
        return self.decode.lines(b)

    def context_s(self, chunk: int) -> float:
        """Seconds per context token of a prefill chunk.

        With latent attention a long chunk expands the latent to keys and values first, when cheaper.
        """
        read = self.kv_s * max(1.0, chunk / self.saturation)
        if self.chunks is not None:
            read = max(self.kv_s, self.chunks.context_s(chunk))
        return min(read, self.expand_s + self.expanded_s * chunk)


def attend(measured: Measured | None, device: Device, shape: Transformer, split: int) -> Attention:
    """Attention of a shape on a device: its floors, and what a profile says is reached of them."""
    layers = shape.layers - shape.windowed_layers
    read_s = layers * shape.kv_layer_bytes(split) / device.copy_bytes_per_s
    pair_s = layers * shape.attention_flops(split) / device.gemm_flops_bf16
    # One branch that reads one token both moves and computes it; a floor counts the larger.
    kv_s = max(read_s, pair_s)
    expand_s, expanded_s = _expansion(shape, device, split)
    if measured is None:
        return Attention(kv_s, kv_s / min(kv_s, pair_s), expand_s, expanded_s)
    pair_s /= reached(measured, "prefix_attention")
    grid, table = decode_grid(measured, device, shape, split), None
    if grid is not None:
        table = compiled(grid, layers, _BATCHES)
        kv_s = _slope(table)
    return Attention(
        kv_s, kv_s / min(kv_s, pair_s), expand_s, expanded_s, grid, table,
        None if shape.kv_lora else prefill(measured, device, shape, split),
    )  # fmt: skip


def reached(measured: Measured, op: str) -> float:
    """The fraction of its floor that an operation reaches where it is largest; 1 if not profiled."""
    rows = measured.rows(op)
    if not len(rows["m"]):
        return 1.0
    largest = rows["floor_us"] >= 0.5 * rows["floor_us"].max()
    return min(1.0, float(np.median(rows["frac_floor"][largest])))


def _slope(table: Decode) -> float:
    """Seconds per further KV token where reading it is all that counts: the median over batches."""
    low, high = np.searchsorted(table.tokens, [_LONG / 4, _LONG])
    further = float(table.tokens[high] - table.tokens[low])
    b = np.array(table.branches)
    slopes = (table.times[:, high] - table.times[:, low]) / (b * further)
    return float(np.median(slopes[b >= 8]))


def _expansion(shape: Transformer, device: Device, split: int) -> tuple[float, float]:
    """MLA's expanded form: s to expand one context token, s per (context token, chunk token).

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1: keys of nope + rope, values of v for each head.
    """
    if not shape.kv_lora:
        return math.inf, 0.0
    layers, heads = shape.layers, shape.heads / split
    expand = 2.0 * layers * heads * shape.kv_lora * (shape.qk_nope + shape.v_dim)
    attended = 2.0 * layers * heads * (shape.qk_nope + shape.qk_rope + shape.v_dim)
    rate, moved = device.gemm_flops_bf16, attended
    return expand / rate + 2 * moved / device.copy_bytes_per_s, attended / rate


def decode_grid(measured: Measured, device: Device, shape: Transformer, split: int) -> Grid | None:
    """The measured decode attention of a shape, or of the nearest measured one; None without any."""
    rows = _decode_rows(measured, shape, split)
    if rows is None:
        return None
    everyone = _decoders(measured)
    if len(everyone["B"]):
        rows = with_lent_attention(rows, everyone, device, causal=False)
    found = grid_of(rows, device)
    own_roofs = _roofs(device, *attention_widths(shape, split))
    return replace(found, read_s=own_roofs[0], pair_s=own_roofs[1])


def grid_of(rows: Table, device: Device, *, causal: bool = False) -> Grid:
    """The grid that rows of one shape measured: seconds of one call of one layer.

    Decoders by their contexts, or with `causal` chunks (column m) without context.
    """
    branches, tokens, times = _table(rows, rows["m"] if causal else rows["S"])
    roofs = _roofs(device, *(_chunk_widths(rows) if causal else _widths(rows)))
    start, row = _overheads(branches, times[:, 0])
    floors = Grid(branches, tokens, np.zeros_like(times), *roofs, start, row, causal)
    at = np.meshgrid(branches, tokens, indexing="ij")
    residual = _filled(np.log(times / floors.floor(*at)), np.log(tokens))
    return Grid(branches, tokens, residual, *roofs, start, row, causal)


def compiled(grid: Grid, layers: int, branches: tuple[int, ...]) -> Decode:
    """The grid as a table over these batch sizes and sixteen knots for each doubling of context."""
    octaves = np.arange(0, np.log2(_MOST) + 1e-9, 1 / _OCTAVE)
    tokens = np.concatenate([[0.0], 2.0**octaves])
    b = np.array(branches, float)[:, None]
    times = layers * grid.seconds(b, b * np.maximum(tokens, 1.0)[None, :])
    times = np.maximum.accumulate(np.maximum.accumulate(times, axis=1), axis=0)
    return Decode(branches, tokens, times)


def _overheads(branches: Array, times: Array) -> tuple[float, float]:
    """Seconds of a call, and for each branch, from the shortest contexts: what reading comes on top of."""
    many = (branches >= 8) & ~np.isnan(times)
    start = float(np.nanmin(times))
    if not many.any():
        return start, 0.0
    return start, float(np.median(np.maximum(times[many] - start, 0.0) / branches[many]))


def _filled(residual: Array, lengths: Array) -> Array:
    """Gaps of a batch are interpolated over `lengths` (log tokens).

    Those at its end (contexts too long for memory) take its last residual. But none reads faster than the fastest long context that was measured: where a batch's contexts end
    early, its reading still hides behind its overheads.
    """
    long = residual[:, -4:]
    fastest = float(np.nanmin(long)) if (~np.isnan(long)).any() else -math.inf
    for row in residual:
        known = np.flatnonzero(~np.isnan(row))
        last = known[-1] + 1
        row[:last] = np.interp(lengths[:last], lengths[known], row[known])
        row[last:] = max(row[last - 1], fastest)
    return residual


def _roofs(device: Device, n: float, k: float) -> tuple[float, float]:
    return 4.0 * k / device.copy_bytes_per_s, 4.0 * n / device.gemm_flops_bf16


def _widths(rows: Table) -> tuple[float, float]:
    """n and k of rows that may not name them: FLOP and bytes of a call over 4 x tokens read."""
    read = 4.0 * np.maximum(rows["sum_s"], 1) * np.maximum(rows["calls"], 1)
    return float(np.median(rows["flop"] / read)), float(np.median(rows["bytes_floor"] / read))


def _chunk_widths(rows: Table) -> tuple[float, float]:
    """n and k of rows of chunks: FLOP over 4 x pairs, bytes over 4 x tokens (queries and KV)."""
    tokens = rows["B"] * np.maximum(rows["calls"], 1) * rows["m"]
    n = float(np.median(rows["flop"] / (2.0 * tokens * (rows["m"] + 1.0))))
    return n, float(np.median(rows["bytes_floor"] / (4.0 * tokens)))


def _decode_rows(measured: Measured, shape: Transformer, split: int) -> Table | None:
    """Decode rows of this shape's widths and head size, else of the nearest widths."""
    rows = _decoders(measured)
    if not len(rows["B"]):
        rows = _decoders_alone(measured.rows("mixed_attention"))
    if not len(rows["B"]):
        return None
    read = 4.0 * rows["sum_s"] * np.maximum(rows["calls"], 1)
    n, k = attention_widths(shape, split)
    own_n, own_k = rows["flop"] / read, rows["bytes_floor"] / read
    away = np.log(own_n / n) ** 2 + np.log(own_k / k) ** 2
    # Of two shapes with the same widths, the one with our head size.
    sizes = np.array([str(name).rpartition("/")[2] for name in rows["model_shape"]])
    away = away + np.where(sizes == str(shape.head_dim), 0.0, 1e-6)
    return where(rows, away <= away.min() + 1e-9)


def _decoders(measured: Measured) -> Table:
    """Decoders that share nothing: each reads its own tokens, or (measured as naive) a context that is all its own."""
    own, naive = measured.rows("suffix_attention"), measured.rows("naive_attention")
    own = where(own, (own["sum_s"] > 0) & (own["B"] > 0))
    naive = where(naive, (naive["variant"] == "private_pages") & (naive["B"] > 0))
    if not len(naive["B"]):
        return own
    whole = naive["P"] + naive["S"]
    naive |= {"S": whole, "sum_s": naive["B"] * whole, "P": np.zeros_like(whole)}
    return {name: np.concatenate([own[name], naive[name]]) for name in own}


def _decoders_alone(rows: Table) -> Table:
    keep = (rows["m"] == 0) & (rows["sum_s"] > 0)
    return where(rows, keep)


def _table(rows: Table, lengths: Column) -> tuple[Array, Array, Array]:
    """Branches, tokens and seconds on their grid, monotone in both; NaN where nothing was measured."""
    branches, tokens = np.unique(rows["B"]).astype(float), np.unique(lengths).astype(float)
    times = np.full((len(branches), len(tokens)), np.nan)
    seconds = per_call(rows)
    for b, s, t in zip(rows["B"], lengths, seconds, strict=True):
        i, j = np.searchsorted(branches, b), np.searchsorted(tokens, s)
        times[i, j] = t if np.isnan(times[i, j]) else (times[i, j] + t) / 2
    for axis, lines in ((tokens, times), (branches, times.T)):
        for line in lines:
            here = np.flatnonzero(~np.isnan(line))
            line[here], _ = isotonic(axis[here], line[here])
    if len(branches) == 1:
        branches, times = np.array([branches[0], 2 * branches[0]]), np.vstack([times, 2 * times])
    if len(tokens) == 1:
        tokens, times = np.array([tokens[0], 2 * tokens[0]]), np.hstack([times, 2 * times])
    return branches, tokens, times


def _between(axis: Array, at: Array) -> tuple[Array, Array]:
    """Index of the interval and the share of it in log scale, held at the ends."""
    held = np.clip(at, axis[0], axis[-1])
    i = np.clip(np.searchsorted(axis, held, side="right") - 1, 0, len(axis) - 2)
    u = (np.log(held) - np.log(axis[i])) / (np.log(axis[i + 1]) - np.log(axis[i]))
    return i, u
