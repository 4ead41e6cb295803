"""Backends: a CPU says what it is; a GPU's is put together from CuPy, torch and NVML, stood in for here by their outlines."""

from __future__ import annotations

import math
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hw import backend, cuda, ops
from hw.device import device
from hw.profiler import measure
from hw.timing import Budget, GraphClock
from tests.hw.test_timing import FakeCuda, Steps
from tests.hw.tiny import on_cpu, on_twin, plan


def test_a_cpu_says_what_it_is_and_nothing_of_who_or_where() -> None:
    on = on_cpu()
    assert on.kind == "cpu"
    assert on.facts["cores"] >= 1
    assert on.facts["processor"]
    assert "numpy" in on.facts["versions"]
    assert 1e5 < on.cache_bytes < 1e10
    assert on.memory_bytes > 1e8
    assert all(math.isnan(value) for value in on.sense())
    shape = ops.Shape(16, 4, 2)
    assert on.kernels(shape) is on.kernels(shape)
    on.wait()


def test_one_thread_is_timed_by_its_own_time_and_several_by_the_wall_clock(monkeypatch) -> None:
    for threads, now, said in (
        ("1", time.process_time, "CPU time of one thread"),
        ("2", time.perf_counter, "wall clock"),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        on = on_cpu()
        assert on.clock.now is now
        assert on.facts["clock"] == said


class Device:
    compute_capability = "90"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An H200 in outline; the log says which stream either package was put on."""
    log: list[str] = []

    @contextmanager
    def stream(which):
        log.append(f"on {which}")
        yield

    class Failure(Exception):
        pass

    runtime = SimpleNamespace(
        CUDARuntimeError=Failure,
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        getDeviceProperties=lambda number: {"l2CacheSize": 60_000_000},
    )
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(
            Device=Device,
            runtime=runtime,
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            memory=SimpleNamespace(OutOfMemoryError=MemoryError),
            Stream=SimpleNamespace(
                from_external=lambda it: stream(f"cupy {it.__cuda_stream__()[1]}")
            ),
        )
    )
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    torch = SimpleNamespace(
        __version__="2.11.0",
        cuda=SimpleNamespace(
            is_available=lambda: True,
            Stream=lambda: SimpleNamespace(cuda_stream=77),
            stream=lambda it: stream(f"torch {it.cuda_stream}"),
            current_device=lambda: 0,
            get_device_properties=lambda number: properties,
            mem_get_info=lambda number: (140e9, 150e9),
            synchronize=lambda: log.append("wait"),
            OutOfMemoryError=MemoryError,
        ),
    )

    class NvmlError(Exception):
        pass

    def refused(*given):
        raise NvmlError

    nvml = SimpleNamespace(
        NVMLError=NvmlError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetVbiosVersion=refused,
        nvmlDeviceGetEccMode=lambda handle: [1, 1],
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: 1980,
        nvmlDeviceGetClockInfo=lambda handle, clock: 1755,
        nvmlDeviceGetPowerUsage=lambda handle: 341_500,
        nvmlDeviceGetTemperature=lambda handle, sensor: 48,
    )
    for name, module in (("cupy", cupy), ("torch", torch), ("pynvml", nvml)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(backend, "torch_linear", lambda: "dense")
    return log


def test_a_gpus_backend_keeps_both_packages_on_one_stream_and_tells_its_provenance(card) -> None:
    on = backend.backend("cuda")
    assert (on.kind, on.linear) == ("cuda", "dense")
    assert (on.cache_bytes, on.memory_bytes, on.arena_bytes) == (6e7, 150e9, 0.4 * 140e9)
    facts = on.facts
    assert (facts["gpu"], facts["arch"], facts["multiprocessors"]) == ("NVIDIA H200", "sm_90a", 132)
    assert (facts["driver"], facts["ecc"], facts["power_limit_w"]) == ("580.1", True, 700.0)
    assert "vbios" not in facts  # the card would not tell
    assert on.sense() == (1755.0, 341.5, 48.0)
    assert isinstance(on.clock, GraphClock)
    with on.clock.on():
        pass
    on.wait()
    assert card == ["on torch 77", "on cupy 77", "wait"]


def test_a_driver_that_tells_little_or_nothing_costs_no_measurement(card, monkeypatch) -> None:
    nvml = sys.modules["pynvml"]

    def refused(*given):
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", refused)
    clock, power, temperature = backend.backend("cuda").sense()
    assert (clock, np.isnan(power), temperature) == (1755.0, True, 48.0)
    monkeypatch.setattr(nvml, "nvmlInit", refused)
    on = backend.backend("cuda")
    assert np.isnan(on.sense()).all()
    assert "driver" not in on.facts
    assert on.facts["gpu"] == "NVIDIA H200"


def test_a_card_is_asked_by_its_own_identity_where_cuda_counts_others(card, monkeypatch) -> None:
    asked, nvml = [], sys.modules["pynvml"]
    monkeypatch.setattr(
        nvml, "nvmlDeviceGetHandleByUUID", lambda name: asked.append(name) or 3, raising=False
    )
    properties = sys.modules["torch"].cuda.get_device_properties(0)
    monkeypatch.setattr(properties, "uuid", "1234-abcd", raising=False)
    assert backend.backend("cuda").sense()[0] == 1755.0
    assert asked == ["GPU-1234-abcd"]


def test_a_device_answers_until_it_is_lost_and_is_not_lost_when_its_memory_is_full(
    card, monkeypatch
) -> None:
    torch = sys.modules["torch"]
    one = SimpleNamespace(item=lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda *size, **more: one, raising=False)
    monkeypatch.setattr(torch, "int32", "int32", raising=False)
    on = backend.backend("cuda")
    assert on.answers()

    def full(*size, **more):
        raise torch.cuda.OutOfMemoryError

    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch, "ones", full)
    assert on.answers()
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert not backend.backend("cuda").answers()


def test_a_torch_without_cuda_beside_a_gpu_is_refused_with_the_way_out(card, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["torch"].cuda, "is_available", lambda: False)
    with pytest.raises(cuda.GpuError, match="install the torch build for your CUDA version"):
        backend.backend("cuda")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(cuda.GpuError, match="pip install torch"):
        backend.backend("cuda")


def test_a_whole_profile_is_measured_through_graphs_on_the_launch_twin() -> None:
    """What a GPU does, but for the device: kernels by their twins, times by a clock that every run moves on."""
    steps, real = Steps(), on_twin(6e6)
    fake = FakeCuda(steps)

    class Clock(GraphClock):
        def time(self, run, units, budget, reset=None):
            run(0)  # it really runs once; the graph then only counts
            return super().time(fake.run, units, budget, reset)

    @contextmanager
    def on():
        yield

    stream = SimpleNamespace(synchronize=lambda: None)
    clock = Clock(SimpleNamespace(cuda=fake), stream, on)
    asked = replace(
        plan(("merge", "prune", "kv_append", "sample"), device("h200-sxm-141gb")),
        budget=Budget(0.0, 2, 3, 1),
        sentinels=0,
    )
    found = measure(asked, replace(real, clock=clock), tell=lambda *given: None)
    assert set(found.columns["status"]) == {"ok"}
    assert found.device == "h200-sxm-141gb"
    assert (found.columns["units_per_replay"] >= 1).all()
    assert np.isfinite(found.columns["t_us_median"]).all()
    assert found.ceilings["eager_launch_s"] > 1e-8
