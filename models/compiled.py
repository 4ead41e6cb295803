"""The compiled core: the modules in which a run spends its time, as `make fast` compiles them with mypyc.

Python is the one source and needs none of this; compiled, it gives the same bytes sooner. A build lies in a
folder named after the digest of every source that it may depend on, so one of other sources is never used.
TREELINE_CORE=interpreted looks for no build, TREELINE_CORE=compiled insists on one.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

from scenarios.errors import UserError

ROOT: Final = Path(__file__).resolve().parents[1]
ROOMS: Final = ("scenarios", "hw", "models", "sim")  # whatever the core imports lies here
MODULES: Final = {
    "models": (
        "keyed", "rollout", "search_beam", "search_chain", "search_parts", "search_staged", "search_tree",
        "search_vote", "session", "tree", "world",
    ),
    "sim": (
        "admission", "batch", "branch", "fleet", "freequeue", "kv", "ledger", "limits", "pages", "query",
        "reading", "replica", "retell", "stepper",
    ),
}  # fmt: skip
CHOICE: Final = "TREELINE_CORE"
COMPILED: Final = "compiled"
INTERPRETED: Final = "interpreted"


def digest(root: Path = ROOT) -> str:
    """Name the sources of the rooms of `root` as they are now, for this interpreter."""
    found = blake2b(EXTENSION_SUFFIXES[0].encode(), digest_size=16)
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            text = path.read_bytes()
            found.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode())
            found.update(text)
    return found.hexdigest()


def builds(root: Path = ROOT) -> Path:
    """Return the folder in which builds lie."""
    return root / "build" / "core"


def find(choice: str, root: Path = ROOT) -> Path | None:
    """Return the build of exactly these sources, None where there is none or `choice` wants none.

    Raises: UserError for another choice than "", "compiled" and "interpreted", and where "compiled" finds none.
    """
    if choice not in ("", COMPILED, INTERPRETED):
        raise UserError(f"{CHOICE} must be {COMPILED} or {INTERPRETED}, not {choice!r}.")
    if choice == INTERPRETED:
        return None
    if builds(root).is_dir():
        place = builds(root) / digest(root)
        if place.is_dir():
            return place
    if choice == COMPILED:
        raise UserError(f"{CHOICE}={COMPILED}, but these sources are not compiled: make fast.")
    return None


@lru_cache(maxsize=1)
def _chosen() -> Path | None:
    return find(os.environ.get(CHOICE, ""))


def ahead(room: str) -> list[str]:
    """Return where the modules of a room are looked for before its own folder."""
    place = _chosen()
    if place is None:
        return []
    if str(place) not in sys.path:
        sys.path.append(str(place))  # the library that all of them share
    return [str(place / room)]


def core() -> str:
    """Say whether this process runs the core compiled or interpreted."""
    return INTERPRETED if _chosen() is None else COMPILED
