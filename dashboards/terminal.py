"""The terminal's edge: results to stdout, progress to stderr, and nothing from outside that could steer it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from scenarios.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

WIDTH = 100  # columns of what goes to a file or a pipe
Tell: TypeAlias = Callable[[float, str], None]


def stdout() -> Console:
    """A console for results: as wide as the terminal, `WIDTH` columns elsewhere."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(width=width, highlight=False, emoji=False, markup=False)


@contextmanager
def progress(what: str, *, quiet: bool, doing: str = "simulating") -> Iterator[Tell | None]:
    """A bar on stderr that is gone when the work is done; one line where stderr is no terminal.

    Yields the function to tell the finished share in [0, 1] and a word on it; None for silence.
    Where the environment names a file in TREELINE_PROGRESS, progress goes there as JSON.
    """
    what = plain(what)
    if file := os.environ.get("TREELINE_PROGRESS"):
        yield _told_to(Path(file), what)
    elif quiet:
        yield None
    elif not sys.stderr.isatty():
        print(f"{doing} {what}", file=sys.stderr, flush=True)
        yield None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share, text: bar.update(
                task, completed=share, description=f"{what}: {plain(text)}"
            )


def _told_to(file: Path, what: str) -> Tell:
    """Write progress to a file, a few times a second, for a page that watches the run."""
    last = 0.0

    def tell(share: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.2 and share < 1.0:
            return
        last = now
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps({"share": share, "doing": f"{what}: {text}"}), encoding="utf-8")
        part.replace(file)

    return tell


def plain(text: str) -> str:
    """One line of text from a user or a file, with every control character made visible."""
    return printable(text).replace("\n", "\\n")


def quoted(text: str) -> str:
    """A word of a command that can be pasted into a shell."""
    return shlex.quote(plain(text))


def program() -> str:
    """How this program was called, so that the commands it prints can be pasted."""
    import shutil

    called = Path(sys.argv[0])
    if called.suffix == ".py":
        return f"{quoted(_short(Path(sys.executable)))} {quoted(_short(called))}"
    found = shutil.which(called.name)
    if found is not None and Path(found).resolve() == called.resolve():
        return quoted(called.name)
    return quoted(_short(called))


def _short(path: Path) -> str:
    """The shorter of the path from here and the absolute one; links are not followed."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)
    return min(relative, str(path.absolute()), key=len)


def near(asked: str, names: Iterable[str]) -> str:
    """A sentence that offers the nearest of the names; empty when none is near."""
    from difflib import get_close_matches

    folded = {name.casefold(): name for name in names}
    close = get_close_matches(asked.casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def as_json(document: Any) -> str:
    """A JSON document, indented; raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(document, indent=2, allow_nan=False)
