"""The engine's launches on the kernels themselves: emulated lane by lane, and their own source compiled for a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the mini-engine needs torch (extra: torch)")

from hw import engine_graph  # noqa: E402
from hw.engine import Engine, Limits  # noqa: E402
from hw.engine_step import Tick, ints  # noqa: E402
from hw.ops import Kernels, Launch, Shape  # noqa: E402
from tests.hw import host_cuda, launch_twin  # noqa: E402
from tests.hw.test_engine import TINY, Watched, piece, prompt  # noqa: E402


def play(engine: Engine, ticks: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """A prompt, three forks that share it, and some ticks in which they decode; one leaves."""
    ids, trunk = prompt(38), ints([0, 1, 2])
    engine.run(Tick(pieces=[piece(ids[:37], 0, trunk)], taken=trunk))
    own = [ints([0, 1, 3 + row]) for row in range(3)]
    paths = [[int(ids[37])] for _ in own]
    seen = []
    for number in range(ticks):
        live = 3 if number < 2 else 2
        first = number == 0
        result = engine.run(
            Tick(
                ints([path[-1] for path in paths[:live]]),
                ints([37 + number] * live),
                own[:live],
                sampled=ints(range(live)),
                copies=ints([[2, 3 + row, 5] for row in range(3)] if first else []).reshape(-1, 3),
                taken=ints([3, 4, 5] if first else []),
                freed=ints([2] if number == 1 else []),
            )
        )
        seen.append(engine.seen[:live].float().clone())
        for path, token in zip(paths, result.tokens.tolist(), strict=False):
            path.append(token)
    return paths, seen


def compare(
    monkeypatch: pytest.MonkeyPatch, launcher: Callable[[Shape], Launch], still: bool, ticks: int
) -> None:
    """The same ticks with hw/cpu.py and with these kernels: the same states, near enough for bf16."""
    monkeypatch.setattr(engine_graph, "ITEMS", (3,))
    reference = Watched(TINY, Limits(8, 16, max_rows=4, max_tokens=40))
    expected, states = play(reference, ticks)
    engine = Watched(TINY, Limits(8, 16, max_rows=4, max_tokens=40), still=still)
    shape = engine.kernels.shape
    engine.kernels = Kernels(shape, launcher(shape), np, np.uint16)
    found, theirs = play(engine, ticks)
    for ours, others in zip(states, theirs, strict=True):
        assert torch.linalg.norm(ours - others) <= 0.02 * torch.linalg.norm(ours)
    assert [len(path) for path in found] == [len(path) for path in expected]
    assert engine.free_stack().tolist() == reference.free_stack().tolist() == [7, 6, 2]
    assert (still and engine.still is not None and len(engine.still.made) == 2) or not still


@pytest.mark.parametrize("still", [True, False])
def test_the_engines_ticks_are_right_on_the_emulated_kernels(
    monkeypatch: pytest.MonkeyPatch, still: bool
) -> None:
    compare(monkeypatch, launch_twin.launcher, still, ticks=3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the kernels with")
def test_padded_ticks_are_right_on_the_kernels_own_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compare(
        monkeypatch, lambda shape: host_cuda.launcher(shape, tmp_path, late=True), True, ticks=4
    )
