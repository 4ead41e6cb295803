"""Launches the kernels' own source on a CPU, compiled by g++ with a small stand-in for CUDA (host_cuda.h)."""

from __future__ import annotations

import ctypes
import re
import subprocess
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


def launcher(shape: ops.Shape, folder: Path, *, late: bool) -> ops.Launch:
    """Compiles each file when it is first needed; `late`: asynchronous copies land when waited for, else at once."""
    libraries: dict[str, ctypes.CDLL] = {}

    def library(name: str) -> ctypes.CDLL:
        if name not in libraries:
            code, out = folder / f"{name}.cpp", folder / f"{name}.so"
            code.write_text(translated(name), "utf-8")
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
        function = getattr(library(cuda.KERNELS[name]), f"run_{name}")
        for x in range(grid[0]):
            for y in range(grid[1] if len(grid) > 1 else 1):
                function(x, y, threads, slots)

    return launch
