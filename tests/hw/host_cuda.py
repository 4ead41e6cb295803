"""Launches the kernels' own source on a CPU, compiled by g++ with a small stand-in for CUDA (host_cuda.h)."""

from __future__ import annotations

import ctypes
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hw import cuda, ops

HEADER = Path(__file__).parent / "host_cuda.h"


def translated(name: str) -> str:
    """The source of one file of hw/kernels without what the stand-in brings: functions of inline assembly, `memory`."""
    text = cuda.source(name)
    text = re.sub(r"extern __shared__ __align__\(1024\) char memory\[\];", "", text)
    text, cut = re.subn(
        r"(?m)^(template <int left> )?__device__ __forceinline__ \w+ "
        r"(shared_at|copy16|commit|wait|load_matrices|load_transposed|mma|pack|pow2)\(.*?(\}$|^\})",
        "",
        text,
        flags=re.DOTALL,
    )
    assert cut == 9, cut
    assert "asm" not in text
    entries = [
        f'extern "C" void run_{kernel}(int x, int y, int threads, void** p) {{ run({kernel}, x, y, threads, p); }}'
        for kernel, file in cuda.KERNELS.items()
        if file == name
    ]
    return "\n".join([f'#include "{HEADER}"', text, *entries])


@dataclass
class Knobs:
    """Which warps run ahead of which (see host_cuda.h), and the number of the barrier that is left out (-1: none)."""

    schedule: int = 0
    left_out: int = -1


def numbered(text: str) -> tuple[str, int]:
    """A translated source whose barriers can be left out one by one, and how many they are.

    A wait for asynchronous copies that is left out waits for one group less.
    """
    count = 0

    def one(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        skip = f"if (left_out == {count - 1}) "
        if found["left"] is None:
            return skip + "; else __syncthreads();"
        return f"{{ {skip}wait<{found['left']} + 1>(); else wait<{found['left']}>(); }}"

    text = re.sub(r"__syncthreads\(\);|\bwait<(?P<left>[^>]+)>\(\);", one, text)
    return text, count


def launcher(
    shape: ops.Shape,
    folder: Path,
    *,
    late: bool,
    knobs: Knobs | None = None,
) -> ops.Launch:
    """Compiles each file when it is first needed; `late`: asynchronous copies land when waited for, else at once.

    With `knobs` barriers are numbered, and every launch looks at what they say.
    """
    libraries: dict[str, ctypes.CDLL] = {}

    def library(name: str) -> ctypes.CDLL:
        if name not in libraries:
            code, out = folder / f"{name}.cpp", folder / f"{name}.so"
            text = translated(name) if knobs is None else numbered(translated(name))[0]
            code.write_text(text, "utf-8")
            command = ["g++", "-O1", "-w", "-fPIC", "-shared", *shape.options(), str(code)]
            subprocess.run([*command, *(["-DLATE"] if late else []), "-o", str(out)], check=True)
            libraries[name] = ctypes.CDLL(str(out))
        return libraries[name]

    def launch(name, grid, threads, shared, arguments):
        assert shared == ops.shared_bytes(shape).get(name, 0)
        kept = [a if isinstance(a, np.ndarray) else np.array([a]) for a in arguments]
        pointers = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(given, np.ndarray) else None
            for a, given in zip(kept, arguments, strict=True)
        ]
        slots = (ctypes.c_void_p * len(kept))(
            *(
                a.ctypes.data if pointer is None else ctypes.addressof(pointer)
                for a, pointer in zip(kept, pointers, strict=True)
            )
        )
        if knobs is not None:
            library(cuda.KERNELS[name]).set_knobs(knobs.schedule, knobs.left_out)
        function = getattr(library(cuda.KERNELS[name]), f"run_{name}")
        for x in range(grid[0]):
            for y in range(grid[1] if len(grid) > 1 else 1):
                function(x, y, threads, slots)

    return launch
