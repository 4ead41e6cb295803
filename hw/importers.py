"""Importing: which of the known formats a path holds, and its content as a profile."""

from __future__ import annotations

from pathlib import Path

from hw.aiconfigurator import BEST, is_aiconfigurator, read_aiconfigurator
from hw.device import Device
from hw.profile import Profile, ProfileError
from hw.servingsim import is_servingsim, read_servingsim
from hw.transformer import Transformer
from hw.vidur import is_vidur, read_vidur

FORMATS = {
    "llmservingsim": "LLMServingSim's profile folder (dense.csv, attention.csv, per_sequence.csv)",
    "vidur": "Vidur's attention.csv, mlp.csv, all_reduce.csv, or a folder of them",
    "aiconfigurator": "NVIDIA AIConfigurator's measured tables (package aiconfigurator-core)",
}
INSTALLED = "aiconfigurator"
"""The path that means: the package that is installed here."""


def recognise(path: str | Path) -> str:
    """The format at a path (a key of FORMATS); raises ProfileError where there is none."""
    where = Path(path)
    if str(path) == INSTALLED and not where.exists():
        return "aiconfigurator"
    if not where.exists():
        raise ProfileError(f"there is nothing at {path}.")
    for name, holds in (
        ("llmservingsim", is_servingsim), ("vidur", is_vidur), ("aiconfigurator", is_aiconfigurator)
    ):  # fmt: skip
        if holds(where):
            return name
    raise ProfileError(
        f"{path} holds none of the formats that can be imported: {'; '.join(FORMATS.values())}."
    )


def read_foreign(
    path: str | Path, device: Device, shape: Transformer | None = None, engine: str = BEST
) -> Profile:
    """The profile that somebody else measured on a device, `source_kind` imported.

    `shape` names the model where the files do not (llmservingsim) or chooses among several (vidur);
    `engine` chooses among AIConfigurator's. Raises ProfileError, CatalogError.
    """
    kind, where = recognise(path), Path(path)
    if kind == "llmservingsim":
        return read_servingsim(where, device, shape)
    if kind == "vidur":
        return read_vidur(where, device, shape)
    return read_aiconfigurator(where if where.exists() else None, device, engine)
