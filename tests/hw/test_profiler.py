"""The profiler on a tiny model: every operation really runs, is checked, and whatever happens, nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from hw import ops
from hw.bench import bench, checked
from hw.cases import case, tree
from hw.cuda import DeviceLost
from hw.device import device
from hw.grid import Point
from hw.measure import MeasureError, Request, check_place, main, plan_of
from hw.profile import load, save
from hw.profiler import STRIKES, JournalError, measure
from tests.hw.tiny import AXES, model, on_cpu, on_twin, plan

ENGINES = [
    pytest.param(
        "torch",
        marks=pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    ),
    "numpy",
]


def silent(done: int, total: int, left_s: float, what: str) -> None:
    """No progress."""


@pytest.mark.parametrize("engine", ENGINES)
def test_every_operation_of_the_grid_is_measured_and_written_what_it_should(engine, tmp_path):
    asked = plan()
    told = []
    found = measure(asked, on_cpu(engine), tell=lambda *given: told.append(given))
    table = found.columns
    assert set(table["op"]) == {point.op for point in asked.points}
    assert set(table["status"]) == {"ok"}
    assert len(table["op"]) == len(asked.points)
    assert (table["t_us_p10"] <= table["t_us_median"]).all()
    assert (table["samples"] >= 2).all()
    assert set(found.ceilings) >= {"copy_bytes_per_s", "read_bytes_per_s", "gemm_flops_bf16"}
    assert found.meta["complete"]
    assert found.meta["drift"]["rounds"] == 3
    assert told[-1][0] == told[-1][1] == len(asked.points)
    save(found, tmp_path / "it")
    assert load(tmp_path / "it").digest == found.digest


def test_on_a_gpu_the_same_host_code_launches_every_kernel_once():
    """One point of each operation on the twin of the launch interface, which checks grids and shared memory."""
    bench_ = bench(on_twin(), device("h200-sxm-141gb"))
    seen: set[str] = set()
    for point in plan().points:
        small = point.branches <= 2 and point.prefix <= 64 and point.page in (0, 16)
        if point.op not in seen and small and not point.holdout:
            seen.add(point.op)
            assert checked(case(bench_, model(), point)) == "", point
    assert seen == {point.op for point in plan().points}


def test_an_interrupt_keeps_what_was_measured_and_a_resumed_run_measures_the_rest(tmp_path):
    asked = plan(only=("qkv", "o", "down"))
    journal = tmp_path / "p.part.jsonl"

    def interrupt(done: int, total: int, left_s: float, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    first = measure(asked, on_cpu(), tell=interrupt, journal=journal)
    assert not first.meta["complete"]
    assert len(first.columns["op"]) == 2
    with journal.open("a") as stream:
        stream.write('{"op": "cut o')  # as a kill in the middle of a line leaves it
    seen = []
    second = measure(
        asked,
        on_cpu(),
        tell=lambda done, total, left, what: seen.append(done),
        journal=journal,
        resume=True,
    )
    assert second.meta["complete"]
    assert min(done for done in seen[1:]) == 2
    assert len(second.columns["op"]) == len(asked.points)
    before = dict(zip(first.columns["point_seed"], first.columns["t_us_median"], strict=True))
    after = dict(zip(second.columns["point_seed"], second.columns["t_us_median"], strict=True))
    assert before.items() <= after.items()
    assert second.ceilings == first.ceilings


def test_a_journal_of_another_plan_or_none_at_all_is_refused(tmp_path):
    journal = tmp_path / "p.part.jsonl"
    measure(plan(only=("o",)), on_cpu(), tell=silent, journal=journal)
    with pytest.raises(JournalError, match="points of another plan"):
        measure(plan(only=("qkv",)), on_cpu(), tell=silent, journal=journal, resume=True)
    journal.write_text("not json\n")
    with pytest.raises(JournalError, match="not the journal of a profile"):
        measure(plan(only=("o",)), on_cpu(), tell=silent, journal=journal, resume=True)


def test_a_point_too_big_for_memory_is_recorded_and_skipped():  # an arena of odd size, too
    found = measure(plan(only=("naive_attention",)), on_cpu(arena_bytes=500_006), tell=silent)
    status = found.columns["status"]
    skipped = [text for text in status.tolist() if text != "ok"]
    assert 0 < len(skipped) < len(status)
    assert all(text.startswith("skipped: needs") and "the arena holds" in text for text in skipped)


@pytest.mark.parametrize("times", [1, 2])
def test_memory_that_runs_out_is_given_back_once_then_recorded_and_the_run_goes_on(times):
    on, calls, given_back = on_cpu(), 0, []

    class Exhausted:
        def time(self, run, units, budget, reset=None):
            nonlocal calls
            calls += 1
            if 6 <= calls < 6 + times:  # the first point after the roofs
                raise MemoryError("cannot allocate 7 GB")
            return on.clock.time(run, units, budget, reset)

    asked = replace(plan(only=("o", "qkv", "down")), sentinels=0)
    on_this = replace(on, clock=Exhausted(), spare=lambda: given_back.append(calls))
    found = measure(asked, on_this, tell=silent)
    status = [text for text in found.columns["status"].tolist() if text != "ok"]
    assert status == ["out of memory: cannot allocate 7 GB"] * (times - 1)
    assert given_back == [6]


ROOFS = {"copy_bytes_per_s": 4e12, "read_bytes_per_s": 4e12, "gemm_flops_bf16": 8e14}


@pytest.fixture
def roofs(monkeypatch):
    """The device's own ceilings are given, not measured: they take longest of all."""
    monkeypatch.setattr("hw.profiler.ceilings", lambda ready, budget: (ROOFS, {}))


class Broken:
    """A backend whose suffix kernel breaks: it raises, or takes the device with it until a new process begins."""

    def __init__(self, *, takes: bool) -> None:
        self.real, self.takes, self.lost, self.faults = on_cpu(), takes, False, 0

    def backend(self):
        self.lost = False
        return replace(self.real, kernels=self.kernels, answers=lambda: not self.lost)

    def kernels(self, shape: ops.Shape) -> ops.Kernels:
        real = self.real.kernels(shape)

        def launch(name, grid, threads, shared, arguments):
            if name == "suffix_attention" or self.lost:
                self.lost, self.faults = self.takes, self.faults + 1
                raise RuntimeError("an illegal memory access was encountered")
            real.launch(name, grid, threads, shared, arguments)

        return replace(real, launch=launch)


def test_an_operation_that_fails_again_and_again_is_left_out_and_costs_no_other(roofs):
    broken = Broken(takes=False)
    asked = plan(only=("suffix_attention", "merge", "kv_append", "o"))
    found = measure(asked, broken.backend(), tell=silent)
    assert found.meta["complete"]
    by_op = {op: set(found.columns["status"][found.columns["op"] == op]) for op in
             ("suffix_attention", "merge", "kv_append", "o")}  # fmt: skip
    assert by_op.pop("suffix_attention") == {
        "failed: RuntimeError: an illegal memory access was encountered",
        f"skipped: suffix_attention failed {STRIKES} times in a row",
    }
    assert broken.faults == STRIKES
    assert all(status == {"ok"} for status in by_op.values())


def test_a_fault_that_takes_the_device_ends_the_run_and_a_new_one_goes_on_without_it(
    tmp_path, roofs
):
    broken, journal = Broken(takes=True), tmp_path / "p.part.jsonl"
    asked = plan(only=("suffix_attention", "merge", "kv_append", "o"))
    runs = []
    while not runs or "lost" in runs[-1]:
        try:
            found = measure(asked, broken.backend(), tell=silent, journal=journal, resume=True)
            runs.append(found.meta)
        except DeviceLost as error:  # before a single point was measured
            runs.append({"lost": str(error)})
        assert len(runs) < 9
    assert len(runs) == 1 + STRIKES // 2
    assert "an illegal memory access" in runs[0]["lost"]
    assert runs[-1]["complete"]
    assert len(found.columns["op"]) == len(asked.points)
    assert len(set(found.columns["point_seed"].tolist())) == len(asked.points)
    others = found.columns["status"][found.columns["op"] != "suffix_attention"]
    assert set(others.tolist()) == {"ok"}


def test_the_command_becomes_a_new_process_where_the_device_was_lost(
    tmp_path, monkeypatch, capsys, roofs
):
    broken, called = Broken(takes=True), []
    monkeypatch.setattr("hw.measure.backend", lambda kind: broken.backend())
    monkeypatch.setattr("hw.measure.plan_of", lambda *given: plan(only=("suffix_attention", "o")))
    monkeypatch.setattr("os.execv", lambda program, words: called.append(words))
    words = ["--device", "cpu", "--out", str(tmp_path / "it"), "--force"]
    main(words)
    assert called[0][1:] == ["-m", "hw.measure", *words, "--resume", "--restarts", "1"]
    main([*called[0][3:-1], "24"])
    assert len(called) == 1
    assert "given up; what was measured is kept" in capsys.readouterr().err


def test_a_kernel_that_does_not_write_is_found_out():
    on = on_cpu()

    def kernels(shape: ops.Shape) -> ops.Kernels:
        real = on.kernels(shape)

        def launch(name, grid, threads, shared, arguments):
            if name != "suffix_attention":
                real.launch(name, grid, threads, shared, arguments)

        return replace(real, launch=launch)

    found = measure(
        plan(only=("suffix_attention", "merge")), replace(on, kernels=kernels), tell=silent
    )
    status = dict(zip(found.columns["op"], found.columns["status"], strict=True))
    assert status["merge"] == "ok"
    assert status["suffix_attention"].startswith("wrong: output 0")


@pytest.mark.parametrize("private", [False, True])
def test_branches_share_the_full_pages_of_their_prefix_alone(private):
    variant = "private_pages" if private else ""
    tables, lengths, pages = tree(Point("attention", "tiny", 16, 4, 40, 10, variant=variant), 3)
    assert (lengths == 50).all()
    shared = 0 if private else 2
    assert (tables[:, :shared] == tables[0, :shared]).all()
    own = tables[:, shared:][tables[:, shared:] >= 0]
    assert len(set(own.tolist())) == len(own) == 4 * (4 - shared)
    assert pages == shared + len(own)


def test_a_cold_cache_is_one_that_the_input_sets_overflow():
    small = replace(on_cpu(), cache_bytes=1e3)
    assert set(measure(plan(only=("qkv",)), small, tell=silent).columns["l2_state"]) == {"cold"}
    large = replace(on_cpu(), cache_bytes=1e12)
    assert set(measure(plan(only=("qkv",)), large, tell=silent).columns["l2_state"]) == {"warm"}


def test_input_sets_are_as_many_as_overflow_the_cache_twice_while_they_fit():
    def sets(cache_bytes: float, arena_bytes: float = 2e7) -> int:
        ready = bench(
            replace(on_cpu(arena_bytes=arena_bytes), cache_bytes=cache_bytes), device("cpu")
        )
        return len(ready.sets((512, 1024), floor_s=1.0))  # 1 MiB each

    assert sets(1e3) == 2  # however little: turn by turn
    assert sets(5 * 2**20) == 10
    assert sets(1e9) == 19  # all that the arena holds
    assert sets(1e9, 4e7) == 32


def test_a_run_is_refused_where_a_profile_or_an_interrupted_run_lies(tmp_path):
    asked = Request("cpu", out=tmp_path / "here.parquet")
    check_place(asked)
    asked.journal.write_text("")
    with pytest.raises(MeasureError, match="--resume, or begin again with --force"):
        check_place(asked)
    (tmp_path / "here.parquet").write_text("")  # what the interrupted run had measured
    check_place(replace(asked, resume=True))
    asked.journal.unlink()
    with pytest.raises(MeasureError, match="exists already"):
        check_place(replace(asked, resume=True))
    check_place(replace(asked, force=True))


@pytest.mark.parametrize(
    ("asked", "gpu", "message"),
    [
        (Request("cpu", only=("qvk",)), "", "no operation 'qvk'; there are activation"),
        (Request("cpu", models=("gpt-oss-120b",)), "", "dense models of head_dim 128"),
        (Request("cuda"), "NVIDIA RTX 6000", "the catalogue holds no NVIDIA RTX 6000"),
        (Request("cuda"), "NVIDIA H100 PCIe", "--name my-gpu"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(asked, gpu, message):
    with pytest.raises(MeasureError, match=message):
        plan_of(asked, gpu)


def test_a_gpu_is_told_by_its_name_and_a_new_one_gets_the_name_given():
    assert plan_of(Request("cuda"), "NVIDIA H100 80GB HBM3").device.name == "h100-sxm-80gb"
    assert plan_of(Request("cuda", name="mine"), "NVIDIA RTX 6000").device.name == "mine"


def test_the_module_measures_without_the_rest_of_the_house(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hw.backend.ARENA_LIMIT", {"cpu": 5e7})
    place = tmp_path / "it"
    words = [
        "--device",
        "cpu",
        "--quick",
        "--model",
        "qwen2.5-1.5b",
        "--only",
        "norm",
        "--out",
        str(place),
    ]
    assert main([*words, "--dry-run"]) == 0
    assert not place.with_suffix(".parquet").exists()
    assert main(words) == 0
    assert "5 points" in capsys.readouterr().out
    assert load(place).device == "cpu"
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    side = place.with_suffix(".yaml").read_text()
    for word in ("kernels_sha256", "collector_sha256", "plan_digest", "holdout_seed", "versions"):
        assert word in side


def test_holdout_rows_are_marked_and_no_fit_sees_them():
    found = measure(plan(only=("qkv", "suffix_attention")), on_cpu(), tell=silent)
    held = found.columns["is_holdout"] == 1
    assert 0 < held.sum() < len(held)
    assert len(found.rows("qkv")["m"]) == int(((found.columns["op"] == "qkv") & ~held).sum())
    assert np.isin(found.rows("qkv")["m"], AXES.m).all()


def test_what_make_gpu_profile_calls_runs_to_its_files_on_the_launch_twin(
    tmp_path, monkeypatch, roofs
):
    """The very command of a GPU, but for CuPy's launch and the clock: plan by the card's name, journal, files."""
    on = replace(on_twin(2e7), facts={"gpu": "NVIDIA H200", "multiprocessors": 132})
    monkeypatch.setattr("hw.measure.backend", lambda kind: on)
    place = tmp_path / "gpu" / "profile"
    words = [
        "--device",
        "cuda",
        "--model",
        "llama-3.1-8b",
        "--quick",
        "--only",
        "kv_append",
        "--out",
        str(place),
    ]
    assert main([*words, "--resume", "--force"]) == 0
    found = load(place)
    assert (found.device, found.source_kind) == ("h200-sxm-141gb", "measured")
    assert found.label.startswith("measured on NVIDIA H200")
    assert set(found.columns["status"]) == {"ok"}
    assert sorted(path.name for path in place.parent.iterdir()) == [
        "profile.parquet",
        "profile.yaml",
    ]
    # Again, after a kernel was changed: the journal of the old one is begun again, not refused.
    journal = place.with_name("profile.part.jsonl")
    journal.write_text('{"plan": "another", "device": "h200-sxm-141gb", "kernels": "older"}\n')
    assert main([*words, "--resume"]) == 2
    assert main([*words, "--resume", "--force"]) == 0
    assert not journal.exists()
