"""Compiles the kernels in hw/kernels with NVRTC and launches them on an NVIDIA GPU through CuPy, an optional package."""

from __future__ import annotations

import hashlib
import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.ops import Kernels, Launch, Shape, shared_bytes

KERNELS = {
    "prefix_attention": "prefix",
    "suffix_attention": "suffix",
    "merge_parts": "merge",
    "append_tokens": "append",
    "fork_branches": "fork",
    "release_pages": "prune",
    "reclaim_pages": "prune",
    "sample_tokens": "sample",
}


class GpuError(RuntimeError):
    """No CuPy, no NVIDIA GPU, or one that the kernels do not run on; the message says what to do."""


class DeviceLost(RuntimeError):
    """A fault of a kernel took the GPU's context with it: this process can use the GPU no more, a new one can."""


@dataclass(frozen=True, slots=True)
class _Handle:
    """A stream of another package, as the CUDA stream protocol asks: (version, address)."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.address)


def on_stream(cupy: Any, address: int) -> AbstractContextManager[Any]:
    """Lets CuPy launch on the stream at this address, which its owner keeps alive."""
    adopt = getattr(cupy.cuda.Stream, "from_external", None)
    stream: AbstractContextManager[Any]
    stream = cupy.cuda.ExternalStream(address) if adopt is None else adopt(_Handle(address))
    return stream


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel takes: registers a thread, bytes of stack a thread (0: nothing spilled)."""

    registers: int
    stack_bytes: int


def source(name: str) -> str:
    """The CUDA C++ of one file of hw/kernels, with what all kernels share in front."""
    folder = Path(__file__).parent / "kernels"
    return "\n".join((folder / f"{part}.cu").read_text("utf-8") for part in ("common", name))


def compile_cubin(name: str, arch: str, shape: Shape) -> bytes:
    """Machine code of one file of hw/kernels for `arch` (sm_90a, sm_80, ...); needs CuPy and NVRTC, but no GPU."""
    _cupy()
    from cupy.cuda import compiler

    program = compiler._NVRTCProgram(source(name), f"{name}.cu", method="cubin")
    compiled = program.compile((f"-arch={arch}", *shape.options()))
    return bytes(compiled[0] if isinstance(compiled, tuple) else compiled)


def resources(cubin: bytes) -> dict[str, Resources]:
    """Registers and stack of each kernel in a cubin, read from its ELF section .nv.info.

    Raises ValueError for anything but a 64-bit little-endian ELF file with that section.
    Source: attribute numbers 0x2f (register count) and 0x11 (frame size), as `cuobjdump -elf` of CUDA 13.0 names them.
    """
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a cubin: a 64-bit little-endian ELF file was expected")
    table, entry, count, names_at = (
        struct.unpack_from("<Q", cubin, 0x28)[0],
        *struct.unpack_from("<3H", cubin, 0x3A),
    )
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry) for i in range(count)]

    def text(start: int) -> str:
        return cubin[start : cubin.index(b"\0", start)].decode()

    sections = {text(headers[names_at][4] + h[0]): h for h in headers}
    if ".nv.info" not in sections or ".symtab" not in sections:
        raise ValueError(
            "a cubin without .nv.info or .symtab: was it compiled with a method other than cubin?"
        )
    symbols = sections[".symtab"]
    strings = headers[symbols[6]][4]

    def symbol(index: int) -> str:
        return text(strings + struct.unpack_from("<I", cubin, symbols[4] + index * 24)[0])

    found: dict[int, dict[str, int]] = {0x2F: {}, 0x11: {}}
    at, end = sections[".nv.info"][4], sections[".nv.info"][4] + sections[".nv.info"][5]
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        if form == 4 and attribute in found:
            index, value = struct.unpack_from("<II", cubin, at + 4)
            found[attribute][symbol(index)] = value
        at += 4 + (size if form == 4 else 0)
    return {name: Resources(n, found[0x11].get(name, 0)) for name, n in found[0x2F].items()}


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise GpuError(
            f"the kernels need CuPy, which does not import here ({error}); install the extra: pip install 'treeline[gpu]'"
        ) from error
    return cupy


def architecture() -> str:
    """The architecture to compile for on the current GPU; raises GpuError where there is none that fits."""
    cupy = _cupy()
    try:
        major, minor = divmod(int(cupy.cuda.Device().compute_capability), 10)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise GpuError(
            f"no NVIDIA GPU answers here ({error}); run this on a machine where nvidia-smi -L lists one"
        ) from error
    if major < 8:
        raise GpuError(
            f"this GPU has compute capability {major}.{minor}; the kernels need 8.0 (A100) or later"
        )
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"


def launcher(shape: Shape) -> Launch:
    """What launches the kernels on CuPy's current stream; each file is compiled when one of its kernels is first used.

    A first launch may therefore not be inside the capture of a graph.
    """
    cupy = _cupy()
    options = (f"-arch={architecture()}", *shape.options())
    shared_most = shared_bytes(shape)
    functions: dict[str, Any] = {}

    def function(name: str) -> Any:
        if name not in functions:
            module = cupy.RawModule(code=source(KERNELS[name]), options=options, backend="nvrtc")
            functions[name] = module.get_function(name)
            if name in shared_most:
                functions[name].max_dynamic_shared_size_bytes = shared_most[name]
        return functions[name]

    def launch(
        name: str, grid: tuple[int, ...], threads: int, shared: int, arguments: tuple[Any, ...]
    ) -> None:
        function(name)(grid, (threads,), arguments, shared_mem=shared)

    return launch


def fingerprint() -> str:
    """SHA-256 of all that the kernels are compiled from."""
    return hashlib.sha256(
        "\0".join(source(name) for name in sorted(set(KERNELS.values()))).encode()
    ).hexdigest()


def kernels(shape: Shape) -> Kernels:
    """The kernels on the current GPU; raises GpuError without CuPy or a GPU."""
    return Kernels(shape, launcher(shape), _cupy())
