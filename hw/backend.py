"""Where operations run: one machine's kernels, dense operations, clock, memory and facts, behind one small interface."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hw import cpu, cuda
from hw.linear import Linear, numpy_linear, torch_linear
from hw.ops import Kernels, Shape
from hw.timing import Clock, GraphClock, WallClock

# Of a GPU's memory, or of a computer's: what is left goes to weights, workspaces and other programs.
_ARENA_FRACTION = {"cuda": 0.4, "cpu": 0.2}
ARENA_LIMIT = {"cuda": 64e9, "cpu": 1.5e9}


@dataclass(frozen=True, slots=True)
class Backend:
    """One machine to measure: what runs its operations and how they are timed.

    `cache_bytes`: its last-level cache; `arena_bytes`: what the profiler may fill with KV. `facts`: provenance.
    `sense()`: clock in MHz, power in W, temperature in C now (NaN where it cannot be read). `kernels` compiles once a
    shape; `wait()` until everything issued is done. Errors in `exhausted` mean that memory ran out: `spare()` gives
    back what is kept for later. `answers()`: whether the device still works, which a kernel's fault may end.
    """

    kind: Literal["cpu", "cuda"]
    xp: Any
    linear: Linear
    clock: Clock
    kernels: Callable[[Shape], Kernels]
    cache_bytes: float
    memory_bytes: float
    arena_bytes: float
    sense: Callable[[], tuple[float, float, float]]
    wait: Callable[[], None] = lambda: None
    exhausted: tuple[type[BaseException], ...] = (MemoryError,)
    spare: Callable[[], None] = lambda: None
    answers: Callable[[], bool] = lambda: True
    facts: dict[str, Any] = field(default_factory=dict, repr=False)


def backend(kind: Literal["cpu", "cuda"]) -> Backend:
    """This machine's CPU or its current NVIDIA GPU; raises hw.cuda.GpuError where a GPU or its packages are missing."""
    return cpu_backend() if kind == "cpu" else cuda_backend()


def cpu_backend(computes: cpu.Engine | None = None) -> Backend:
    """This machine's CPU, through torch where it is installed, else NumPy."""
    engine = computes or cpu.engine()
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8e9
    )
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "engine": engine,
        "versions": _versions("numpy", *(["torch"] if engine == "torch" else [])),
    }
    if engine == "torch":
        import torch

        facts["threads"] = torch.get_num_threads()
    # On one thread the process's own time is the run's, whoever else keeps the machine busy.
    alone = os.environ.get("OMP_NUM_THREADS") == "1"
    facts["clock"] = "CPU time of one thread" if alone else "wall clock"
    made: dict[Shape, Kernels] = {}
    return Backend(
        "cpu",
        np,
        torch_linear() if engine == "torch" else numpy_linear(),
        WallClock(time.process_time if alone else time.perf_counter),
        lambda shape: made.setdefault(
            shape, made.get(shape) or cpu.kernels(shape, computes=engine)
        ),
        cache_bytes=_cpu_cache(),
        memory_bytes=float(memory),
        arena_bytes=min(_ARENA_FRACTION["cpu"] * memory, ARENA_LIMIT["cpu"]),
        sense=lambda: (float("nan"),) * 3,
        facts=facts,
    )


def cuda_backend() -> Backend:
    """The current NVIDIA GPU, through CuPy and torch; raises hw.cuda.GpuError where one of the three is missing."""
    arch = cuda.architecture()
    cupy: Any = import_module("cupy")
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        raise cuda.GpuError(
            f"matrix products need torch, which does not import here ({error}); install it: pip install torch"
        ) from error
    if not torch.cuda.is_available():
        raise cuda.GpuError(
            f"torch {torch.__version__} sees no GPU, CuPy does: install the torch build for your CUDA version"
        )
    stream = torch.cuda.Stream()

    @contextmanager
    def on() -> Iterator[None]:
        with torch.cuda.stream(stream), cuda.on_stream(cupy, stream.cuda_stream):
            yield

    def spare() -> None:
        gc.collect()
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()

    def answers() -> bool:
        try:
            torch.cuda.synchronize()
            return int(torch.ones(1, dtype=torch.int32, device="cuda").item()) == 1
        except torch.cuda.OutOfMemoryError:
            return True
        except Exception:  # noqa: BLE001 (whatever it says: it does not answer)
            return False

    number = torch.cuda.current_device()
    card = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    runtime = cupy.cuda.runtime
    handle = _nvml_handle(card, number)
    facts = {
        "gpu": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "arch": arch,
        "multiprocessors": card.multi_processor_count,
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cuda_driver": runtime.driverGetVersion(),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "versions": _versions("numpy", "torch", "cupy-cuda13x", "triton"),
        **_nvml_facts(handle),
    }
    made: dict[Shape, Kernels] = {}
    return Backend(
        "cuda",
        cupy,
        torch_linear(),
        GraphClock(torch, stream, on),
        lambda shape: made.setdefault(shape, made.get(shape) or cuda.kernels(shape)),
        cache_bytes=float(runtime.getDeviceProperties(number)["l2CacheSize"]),
        memory_bytes=float(total),
        arena_bytes=min(_ARENA_FRACTION["cuda"] * free, ARENA_LIMIT["cuda"]),
        sense=_nvml_sense(handle),
        wait=torch.cuda.synchronize,
        spare=spare,
        answers=answers,
        exhausted=(MemoryError, cupy.cuda.memory.OutOfMemoryError, torch.cuda.OutOfMemoryError),
        facts=facts,
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_cache() -> float:
    """Bytes of the largest cache that the first core sees; 32 MB where the system does not say."""
    found = [32e6]
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text("utf-8").strip()
        found.append(float(text[:-1]) * {"K": 1024, "M": 1024**2}.get(text[-1:], 1))
    return max(found[1:] or found)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _nvml_handle(card: Any, number: int) -> tuple[Any, Any] | None:
    """The package and its handle of a card (by its UUID, for CUDA may count others); None where NVML does not answer."""
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        try:
            return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{card.uuid}")
        except (AttributeError, TypeError, nvml.NVMLError):
            return nvml, nvml.nvmlDeviceGetHandleByIndex(number)
    except Exception:  # noqa: BLE001 (clocks are good to know; no measurement is given up for them)
        return None


def _nvml_facts(found: tuple[Any, Any] | None) -> dict[str, Any]:
    if found is None:
        return {}
    nvml, handle = found

    def ask(question: Callable[[], Any]) -> Any:
        try:
            answer = question()
        except (AttributeError, nvml.NVMLError):
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    ecc = ask(lambda: nvml.nvmlDeviceGetEccMode(handle))
    facts = {
        "driver": ask(nvml.nvmlSystemGetDriverVersion),
        "vbios": ask(lambda: nvml.nvmlDeviceGetVbiosVersion(handle)),
        "ecc": None if ecc is None else bool(ecc[0]),
        "power_limit_w": ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
        "sm_clock_limit_mhz": ask(
            lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        ),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _nvml_sense(found: tuple[Any, Any] | None) -> Callable[[], tuple[float, float, float]]:
    """Clock, power and temperature now; each NaN where it may not be read."""
    if found is None:
        return lambda: (float("nan"),) * 3
    nvml, handle = found

    def ask(question: Callable[[], float]) -> float:
        try:
            return float(question())
        except (AttributeError, nvml.NVMLError):
            return float("nan")

    return lambda: (
        ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
        ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    )
