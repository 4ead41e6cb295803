"""A bench to measure on: a backend, one device's roofs, and an arena of random data that input sets are cut from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw.backend import Backend
from hw.device import Device
from hw.floors import Op
from hw.reference import bf16_bits
from hw.timing import Run

_TILE = 1 << 22  # random elements that the arena repeats
_UNITS = 32  # input sets of a small operation, as many as a model has layers
REPLAY_S = 2e-3  # all input sets together take about so long, on a GPU one replay
POISON = 0x7FC0  # a bf16 NaN


class TooBig(Exception):
    """A point whose data does not fit the arena; the message says by how much."""


@dataclass(frozen=True, slots=True)
class Case:
    """A point made ready: run(i) issues it on input set i of `units`; `op` is its floor, all its calls together.

    `reset` puts back what a run changes. `outputs` are poisoned before a first run, after which nothing in them may be
    poison or infinite. `touched`: bytes that one run moves through memory, to tell a cold cache from a warm one.
    """

    run: Run
    units: int
    op: Op
    outputs: tuple[Any, ...]
    touched: float
    reset: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What cases are built on. `device` holds the roofs that floors are computed from; `arena` random bf16 bits."""

    backend: Backend
    device: Device
    arena: Any

    def take(self, shape: tuple[int, ...], at: int = 0) -> Any:
        """A view of the arena from element `at`; raises TooBig where the arena ends before."""
        size = int(np.prod(shape))
        if at + size > self.arena.shape[0]:
            raise TooBig(
                f"needs {2e-9 * (at + size):.3g} GB of data, the arena holds {2e-9 * self.arena.shape[0]:.3g} GB"
            )
        return self.arena[at : at + size].reshape(shape)

    def sets(self, shape: tuple[int, ...], floor_s: float, at: int = 0) -> list[Any]:
        """Input sets of one shape, as many as are useful and fit: views that do not overlap.

        Useful are as many as overflow the last-level cache twice, or fill a replay; at most _UNITS.
        """
        size = aligned(shape)
        cold = 2 * self.backend.cache_bytes / (2 * size)
        useful = int(np.clip(max(cold, REPLAY_S / max(floor_s, 1e-9)), 2, _UNITS))
        fit = (self.arena.shape[0] - at) // size
        return [self.take(shape, at + i * size) for i in range(max(1, min(useful, fit)))]

    def tensors(self, arrays: list[Any]) -> list[Any]:
        """The arrays as `backend.linear` takes them."""
        return [self.backend.linear.tensor(a) for a in arrays]

    def array(self, host: Any) -> Any:
        """A NumPy array on the backend."""
        return self.backend.xp.asarray(host)

    def room(self, shape: tuple[int, ...], dtype: Any = np.uint16) -> Any:
        """An array to write to, of nothing but zeros."""
        return self.backend.xp.zeros(shape, dtype)


def aligned(*shapes: tuple[int, ...]) -> int:
    """Elements that arrays of these shapes take one after the other in the arena, each from a multiple of 256 bytes."""
    return sum(-(-int(np.prod(shape)) // 128) * 128 for shape in shapes)


def bench(backend: Backend, device: Device, seed: int = 0) -> Bench:
    """A bench with its arena filled: normal random bf16, for zeros run faster than real data."""
    rng = np.random.default_rng(seed)
    tile = backend.xp.asarray(bf16_bits(rng.standard_normal(_TILE, np.float32)))
    arena = backend.xp.empty(int(backend.arena_bytes) // 2, np.uint16)
    for at in range(0, arena.shape[0], _TILE):
        arena[at : at + _TILE] = tile[: arena.shape[0] - at]
    return Bench(backend, device, arena)


def checked(case: Case) -> str:
    """Run a case once on poisoned outputs; what is wrong with what it wrote, empty where nothing is."""
    for array in case.outputs:
        array[...] = {"u": POISON, "f": float("nan"), "i": -1}[array.dtype.kind]
    if case.reset is not None:
        case.reset()
    case.run(0)
    for number, array in enumerate(case.outputs):
        host = array.get() if hasattr(array, "get") else array
        if host.dtype.kind == "u":
            bad = (host & 0x7F80) == 0x7F80
        else:
            bad = host == -1 if host.dtype.kind == "i" else ~np.isfinite(host)
        if bad.any():
            return f"output {number}: {int(bad.sum())} of {bad.size} values are not written or not finite"
    return ""
