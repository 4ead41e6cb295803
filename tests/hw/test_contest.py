"""The kernel benchmark: peers compute what we compute, whoever is absent or fails is told so, and goals are judged."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from hw import contest, peers
from hw.bench import bench
from hw.cuda import DeviceLost
from hw.device import device
from hw.floors import Op
from hw.grid import Point
from hw.timing import Budget, times
from hw.transformer import transformer
from tests.hw.tiny import on_cpu, on_twin

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
SHAPE = transformer("llama-3.1-8b")
ONCE = Budget(0.0, 1, 1, 1)


def silent(line: str) -> None:
    """No progress."""


@needs_torch
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["torch_naive", "torch_cascade", "flex_attention"])
@pytest.mark.parametrize(("branches", "prefix", "suffix"), [(3, 64, 20), (2, 32, 16)])
def test_a_peer_computes_the_same_attention_on_the_same_tree(name, branches, prefix, suffix):
    ready = bench(on_cpu("torch", arena_bytes=6e7), device("cpu"))
    forest = peers.forest(
        ready, SHAPE, Point("attention", SHAPE.name, 16, branches, prefix, suffix)
    )
    run, expected = peers.ours(forest)
    run(0)
    for make in (peers.PEERS[name], lambda f: peers.ours(f, shared=False)):
        run, got = make(forest)
        run(len(forest.pools) - 1)
        assert peers.relative_error(got, expected) > 0.1  # another layer's data: another output
        run(0)
        assert peers.relative_error(got, expected) < contest.AGREES


@pytest.mark.parametrize("on", [on_cpu("numpy", 6e7), on_twin(6e7)], ids=["cpu", "launch twin"])
def test_whoever_is_absent_is_told_so_and_ours_are_timed(on):
    ready = bench(on, device("h200-sxm-141gb"))
    trees = contest.Trees((2,), (32,), (5,))
    (row,) = contest.contest(ready, SHAPE, trees, ONCE, silent)
    assert row["status"] == "ok"
    assert set(row["us"]) == {"ours", "ours_naive"}
    assert row["why_not"]["torch_naive"] == "skipped: torch is not installed"
    assert row["floor_us"] > 0


def test_a_peer_that_fails_or_computes_something_else_costs_nothing_but_its_own_time(monkeypatch):
    def broken(forest):
        raise RuntimeError("no such kernel\nand a long trace")

    def wrong(forest):
        out = forest.bench.room(forest.queries.shape)
        return lambda i: None, out

    monkeypatch.setattr(peers, "PEERS", {"broken": broken, "wrong": wrong})
    ready = bench(on_cpu("numpy", 6e7), device("cpu"))
    (row,) = contest.contest(ready, SHAPE, contest.Trees((2,), (32,), (5,)), ONCE, silent)
    assert set(row["us"]) == {"ours", "ours_naive"}
    assert row["why_not"]["broken"] == "failed: RuntimeError: no such kernel"
    assert row["why_not"]["wrong"] == "failed: its output is 1 away from ours"
    late = contest.contest(ready, SHAPE, contest.Trees((2,), (32,), (5,)), ONCE, silent, until=0.0)
    assert set(late[0]["why_not"].values()) == {"skipped: out of time"}


def test_a_tree_too_big_for_memory_is_a_line_of_its_own():
    ready = bench(on_cpu("numpy", 1e6), device("cpu"))
    (row,) = contest.contest(ready, SHAPE, contest.Trees((2,), (512,), (5,)), ONCE, silent)
    assert row["status"].startswith("skipped: needs")
    assert "skipped" in contest.table([row])


def test_the_trees_of_a_goal_come_first_and_all_come_once():
    trees = [(p.branches, p.prefix, p.suffix) for p, _ in contest.Trees().points()]
    assert trees[:2] == [(8, 32768, 128), (64, 8192, 128)]
    assert len(set(trees)) == len(trees) == 48
    assert sum(marked for _, marked in contest.Trees().points()) == 12


def row(ours: float, best: float, b: int = 2, p: int = 512, s: int = 128) -> dict:
    return {
        "B": b,
        "P": p,
        "S": s,
        "status": "ok",
        "floor_us": 1.0,
        "us": {"ours": ours, "torch_naive": best},
    }


def test_goals_are_met_or_missed_by_what_was_measured():
    roofs = {"read_bytes_per_s": 4.4e12, "copy_bytes_per_s": 4.3e12}
    rows = [row(48.0, 30.0, 64, 8192), row(100.0, 90.0), row(10.0, 20.0), row(10.0, 7.0)]
    lines = contest.verdict(rows, [], roofs)
    assert lines[0] == "met    B=64 P=8192 S=128: 48.0 us (goal <= 50)"
    assert lines[1].startswith(
        "MISSED of the grid at 0.8 times the best peer's speed or more: 50.0 %"
    )
    assert lines[2].startswith("MISSED of the grid ahead of the best peer: 25.0 %")
    parts = [
        {"op": "prefix_attention", "B": 256, "status": "ok", "tflops": 310.0, "gbps": 0.0},
        {"op": "fork_copy", "B": 64, "status": "ok", "tflops": 0.0, "gbps": 2150.0},
    ]
    lines = contest.verdict([], parts, roofs)
    assert lines[0].startswith("met    prefix phase B=256 P=32k: 310.0 TFLOP/s")
    assert lines[1].startswith("MISSED fork of 64, of copy bandwidth: 50.0 %")


def test_the_table_marks_the_fastest_of_each_line():
    text = contest.table([row(1234.5, 99.0)])
    assert "99.0*" in text
    assert "1,234.5 " in text


def test_the_command_writes_its_files_and_refuses_what_is_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contest, "backend", lambda kind: replace(on_cpu("numpy", 2e7)))
    monkeypatch.setattr(contest, "SMALL", contest.Trees((2,), (32,), (5,)))
    assert contest.main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["trees"][0]["us"]["ours"] > 0
    assert document["goals"] == []
    assert (tmp_path / "kernels.txt").read_text() == capsys.readouterr().out
    assert np.isfinite(document["roofs"]["copy_bytes_per_s"])


def test_without_a_gpu_the_contest_says_so(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    assert contest.main(["--device", "cuda", "--out", str(tmp_path)]) == 4


class Losing:
    """A backend that a peer takes with it, as a fault of a kernel does, until a new process begins."""

    def __init__(self) -> None:
        self.lost, self.faults = False, 0

    def backend(self):
        self.lost = False
        return replace(on_cpu("numpy", 2e7), answers=lambda: not self.lost, spare=self.spare)

    def spare(self):
        assert not self.lost, "a lost device gives nothing back"

    def peer(self, forest):
        self.lost, self.faults = True, self.faults + 1
        raise RuntimeError("an illegal memory access was encountered")


def test_ours_failing_costs_no_tree_and_is_told(monkeypatch):
    def broken(forest):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(contest, "_OURS", {"ours": broken})
    monkeypatch.setattr(peers, "PEERS", {"peer": peers.ours})
    ready, kept = bench(on_cpu("numpy", 6e7), device("cpu")), []
    trees = contest.Trees((2, 3), (32, 64), (5,))
    rows = contest.contest(
        ready, SHAPE, trees, ONCE, silent, keep=lambda rows: kept.append(len(rows))
    )
    assert [set(row["us"]) for row in rows] == [{"peer"}] * 4
    assert kept == [1, 2, 3, 4]
    told = [row["why_not"]["ours"] for row in rows]
    assert told == ["failed: RuntimeError: no such kernel"] * 3 + [
        "skipped: it failed 3 times in a row"
    ]


def test_a_lost_device_costs_the_command_one_tree_of_one_peer_and_a_new_process(
    tmp_path, monkeypatch
):
    losing, words, runs = Losing(), ["--device", "cpu", "--small", "--out", str(tmp_path)], 0
    monkeypatch.setattr(contest, "backend", lambda kind: losing.backend())
    monkeypatch.setattr(contest, "SMALL", contest.Trees((2, 3), (32, 64), (5,)))
    monkeypatch.setattr(peers, "PEERS", {"peer": losing.peer})

    class Restarted(Exception):
        pass

    def execv(program, given):
        raise Restarted(given[3:])

    monkeypatch.setattr("os.execv", execv)
    while runs < 9:
        runs += 1
        try:
            code = contest.main(words)
            break
        except Restarted as again:
            (words,) = again.args
    assert (runs, losing.faults, code) == (3, 2, 0)
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["complete"]
    assert len(document["trees"]) == 4
    assert all("ours" in row["us"] for row in document["trees"])
    reasons = [row["why_not"]["peer"] for row in document["trees"]]
    assert reasons[0].startswith("lost the device: RuntimeError: an illegal memory access")
    assert reasons[2:] == ["skipped: it failed 3 times in a row"] * 2


@pytest.mark.parametrize("lost", [False, True])
def test_a_tree_that_cannot_be_grown_is_a_row_too(monkeypatch, lost):
    def forest(on, shape, point):
        raise MemoryError("no more of it")

    monkeypatch.setattr(peers, "forest", forest)
    on = bench(replace(on_cpu("numpy", 2e7), answers=lambda: not lost), device("cpu"))
    kept: list[str] = []
    arguments = (on, SHAPE, contest.Trees((2,), (32, 64), (5,)), ONCE, silent)
    keep = lambda rows: kept.append(rows[-1]["status"])  # noqa: E731
    if lost:
        with pytest.raises(DeviceLost, match="no more of it"):
            contest.contest(*arguments, keep=keep)
        assert kept == ["lost the device: MemoryError: no more of it"]
    else:
        rows = contest.contest(*arguments, keep=keep)
        assert kept == ["failed: MemoryError: no more of it"] * 2
        assert "no more of it" in contest.table(rows)


def test_a_phase_that_fails_or_takes_the_device_is_a_row_and_the_next_begins_behind_it(monkeypatch):
    lost: list[bool] = []

    def case(on, shape, point):
        if point.op == "suffix_attention":
            lost.append(point.branches == 256)
            raise RuntimeError("an illegal memory access")
        return SimpleNamespace(run=None, units=1, reset=None, op=Op(point.op, 1e9, 1e6, 1e-6))

    monkeypatch.setattr(contest, "case", case)
    clock = SimpleNamespace(time=lambda *given: times([2e-6], 1))
    on = replace(on_cpu("numpy", 2e7), clock=clock, answers=lambda: not lost[-1])
    ready, statuses = bench(on, device("cpu")), []
    with pytest.raises(DeviceLost, match="suffix_attention"):
        for row in contest.phases(ready, SHAPE, ONCE):
            statuses.append(row["status"])
    assert statuses[:3] == ["ok"] * 3
    assert statuses[3] == "failed: RuntimeError: an illegal memory access"
    assert statuses[4] == "lost the device: RuntimeError: an illegal memory access"
    (rest,) = contest.phases(ready, SHAPE, ONCE, done=len(statuses))
    assert (rest["op"], rest["status"], rest["of_floor"]) == ("fork_copy", "ok", 0.5)


def test_flashinfer_is_tried_in_a_process_of_its_own_before_it_may_keep_the_contest_waiting(
    monkeypatch,
):
    import subprocess

    def ends(code: int, stderr: str = ""):
        monkeypatch.setattr(
            "subprocess.run", lambda *given, **more: SimpleNamespace(returncode=code, stderr=stderr)
        )
        peers._unbuilt.cache_clear()
        return peers._unbuilt()

    def never(*given, timeout, **more):
        raise subprocess.TimeoutExpired("build", timeout)

    assert ends(0) == ""
    assert ends(1, "a trace\nRuntimeError: ninja is missing\n").endswith("ninja is missing")
    monkeypatch.setattr("subprocess.run", never)
    peers._unbuilt.cache_clear()
    assert "not built within" in peers._unbuilt()
    peers._unbuilt.cache_clear()
