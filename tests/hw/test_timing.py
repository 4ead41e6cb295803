"""Clocks: what is timed, in which order, and what stays outside of the time."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from hw.timing import Budget, GraphClock, WallClock, times


class Steps:
    """A clock that a run moves by as much as the run takes."""

    def __init__(self) -> None:
        self.at, self.log = 0.0, []

    def run(self, unit: int) -> None:
        self.log.append(unit)
        self.at += 1.0 + unit

    def reset(self) -> None:
        self.log.append("reset")
        self.at += 100.0


def test_a_wall_clock_takes_input_sets_in_turn_and_keeps_the_reset_out_of_the_time():
    steps = Steps()
    clock = WallClock(lambda: steps.at)
    found = clock.time(steps.run, 2, Budget(0.0, 4, 9, 1), steps.reset)
    assert steps.log == ["reset", 0, 1, "reset", 0, 1, "reset", 0]
    assert (found.median, found.least, found.samples, found.units) == (1.5, 1.0, 4, 1)


def test_a_run_far_beyond_the_budget_is_timed_once():
    steps = Steps()
    found = WallClock(lambda: steps.at).time(steps.run, 2, Budget(0.1, 4, 9, 1))
    assert steps.log == [0]
    assert (found.median, found.samples) == (1.0, 1)


def test_a_budget_pays_for_as_many_samples_as_its_seconds_within_its_bounds():
    budget = Budget(0.06, 7, 60)
    assert [budget.samples(s) for s in (1.0, 0.002, 1e-9, 0.0)] == [7, 30, 60, 60]
    with pytest.raises(ValueError, match="1 <= least <= most"):
        Budget(1.0, 5, 3)


def test_the_statistics_are_of_the_samples():
    found = times([3.0, 1.0, 2.0, 4.0, 5.0], 8)
    assert (found.median, found.p10, found.p90, found.least) == (3.0, 1.4, 4.6, 1.0)


class FakeCuda:
    """Enough of torch.cuda: a graph that runs what was captured, on a stream whose time the runs move."""

    def __init__(self, steps: Steps) -> None:
        self.steps, fake = steps, self
        self.capturing: list[int] | None = None

        class Graph:
            def capture_begin(self, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                fake.capturing = []

            def capture_end(self) -> None:
                self.captured, fake.capturing = fake.capturing, None

            def replay(self) -> None:
                for unit in self.captured:
                    steps.run(unit)

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                self.at = steps.at

            def elapsed_time(self, end: object) -> float:
                return (end.at - self.at) * 1e3

        self.CUDAGraph, self.Event = Graph, Event

    def synchronize(self) -> None:
        assert self.capturing is None

    def run(self, unit: int) -> None:
        if self.capturing is None:
            self.steps.run(unit)
        else:
            self.capturing.append(unit)


def test_a_graph_clock_warms_up_before_it_captures_and_resets_before_each_replay():
    steps = Steps()
    fake = FakeCuda(steps)
    stream = SimpleNamespace(synchronize=lambda: None)
    clock = GraphClock(SimpleNamespace(cuda=fake), stream, nullcontext)
    found = clock.time(fake.run, 3, Budget(0.0, 2, 4, 2), steps.reset)
    assert steps.log == ["reset", 0, 1, 2] + 4 * ["reset", 0, 1, 2]
    assert (found.median, found.samples, found.units) == (2.0, 2, 3)


def test_what_cannot_be_captured_is_launched_one_by_one_and_says_so():
    steps = Steps()
    fake = FakeCuda(steps)

    def run(unit: int) -> None:
        if fake.capturing is not None:
            raise RuntimeError("cannot be captured\nbecause")
        fake.run(unit)

    stream = SimpleNamespace(synchronize=lambda: None)
    found = GraphClock(SimpleNamespace(cuda=fake), stream, nullcontext).time(run, 2, Budget())
    assert fake.capturing is None
    assert found.note == "not in a graph: RuntimeError: cannot be captured"
    assert found.median == 1.5
    assert gc.isenabled()


def test_a_device_that_is_lost_in_a_capture_is_not_timed():
    fake = FakeCuda(Steps())

    def run(unit: int) -> None:
        if fake.capturing is not None:
            stream.synchronize = broken
            raise RuntimeError("an illegal memory access")

    def broken() -> None:
        raise RuntimeError("an illegal memory access")

    stream = SimpleNamespace(synchronize=lambda: None)
    with pytest.raises(RuntimeError, match="illegal"):
        GraphClock(SimpleNamespace(cuda=fake), stream, nullcontext).time(run, 2, Budget())
