"""Runs in a process of their own: the page starts, watches and cancels them, and may be reloaded meanwhile.

A job is a folder `.jobs/ID` beside the runs: the scenario and the files it extends, what was asked,
and files that its process writes (progress, output, exit code). The process is `treeline run`, so
the page can do what the command line can, and a run directory is whole or absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

JOBS: Final = ".jobs"
ASKED, PROGRESS, OUT, ERR, EXIT, PID = (
    "asked.json", "progress.json", "out.json", "err.txt", "exit", "pid",
)  # fmt: skip
STALE_S: Final = 7 * 86_400  # finished jobs are forgotten after a week
_TREELINE: Final = Path(__file__).resolve().parent.parent / "treeline.py"
_DETACH: Final = "--detach"
_ID: Final = re.compile(r"[0-9a-f]{12}")
State = Literal["running", "done", "failed", "cancelled", "lost"]


@dataclass(frozen=True, slots=True)
class Job:
    """A run under way or over.

    `share` in [0, 1] and `doing` say how far it is; `problems` are the scenario's errors as
    `treeline run --json` lists them (where, message, hint), `error` their whole text.
    """

    id: str
    name: str
    state: State
    share: float
    doing: str
    started: float
    error: str
    problems: tuple[Mapping[str, str], ...]


def start(
    runs: Path, name: str, files: Mapping[str, str], main: str, options: Sequence[str] = ()
) -> str:
    """Start `treeline run` on `main`, one of `files` (name -> text), into `runs/name`; return the job.

    `options` are further words of the command, such as --set KEY=VALUE.
    """
    for file in (*files, name):
        assert file == Path(file).name and not file.startswith("."), f"{file} is not a plain name"
    job = uuid.uuid4().hex[:12]
    folder = runs / JOBS / job
    folder.mkdir(parents=True)
    (runs / JOBS / ".gitignore").write_text("*\n", encoding="utf-8")
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    asked = {"name": name, "main": main, "options": list(options), "started": time.time()}
    (folder / ASKED).write_text(json.dumps(asked), encoding="utf-8")
    here = str(Path(__file__).resolve())
    subprocess.run([sys.executable, here, str(folder), str(runs / name), _DETACH], check=True)  # noqa: S603
    return job


def watch(runs: Path, job: str) -> Job:
    """Return how a job is doing. Raises KeyError for one that does not exist."""
    folder = _folder(runs, job)
    asked = _json(folder / ASKED) or {}
    progress = _json(folder / PROGRESS) or {}
    out = _json(folder / OUT) or {}
    code = _text(folder / EXIT).strip()
    state: State = "running"
    if code:
        state = {"0": "done", "3": "done", "130": "cancelled"}.get(code, "failed")  # type: ignore[assignment]
    elif not _alive(_text(folder / PID)):
        code = _text(folder / EXIT).strip()  # it may have ended between the two looks
        state = "lost" if not code else watch(runs, job).state
    error = str(out.get("error", "")) or (_text(folder / ERR) if state == "failed" else "")
    return Job(
        job,
        str(asked.get("name", "")),
        state,
        1.0 if state == "done" else float(progress.get("share", 0.0)),
        str(progress.get("doing", "starting")),
        float(asked.get("started", 0.0)),
        error,
        tuple(out.get("problems", ())),
    )


def listed(runs: Path) -> list[Job]:
    """Return all jobs, the newest first, and forget those that ended long ago."""
    folder = runs / JOBS
    found = []
    for item in folder.iterdir() if folder.is_dir() else ():
        if _ID.fullmatch(item.name) and item.is_dir():
            job = watch(runs, item.name)
            if job.state != "running" and time.time() - job.started > STALE_S:
                shutil.rmtree(item, ignore_errors=True)
            else:
                found.append(job)
    return sorted(found, key=lambda job: -job.started)


def cancel(runs: Path, job: str, patience_s: float = 10.0) -> None:
    """Stop a job as Ctrl-C would: nothing half-written stays. Raises KeyError for an unknown job."""
    folder = _folder(runs, job)
    pid = _text(folder / PID)
    if not _alive(pid):
        return
    for kind in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(OSError):
            os.killpg(int(pid), kind)
        until = time.monotonic() + patience_s
        while _alive(pid) and time.monotonic() < until:
            time.sleep(0.05)
    if not _text(folder / EXIT):
        _write(folder / EXIT, "130")


def forget(runs: Path, job: str) -> None:
    """Remove what is noted of a job that is over; its run stays. Raises KeyError for an unknown job."""
    folder = _folder(runs, job)
    if watch(runs, job).state != "running":
        shutil.rmtree(folder, ignore_errors=True)


def _folder(runs: Path, job: str) -> Path:
    folder = runs / JOBS / job
    if not _ID.fullmatch(job) or not folder.is_dir():
        raise KeyError(job)
    return folder


def _alive(pid: str) -> bool:
    if not pid.strip().isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError:
        return False
    return True


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(_text(path) or "null")
    except ValueError:  # half-written: it is there at the next look
        return None
    return found if isinstance(found, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _detach(folder: Path, place: str) -> None:
    """Start the process of a job in a session of its own: it outlives the page, a cancel reaches it all."""
    here = str(Path(__file__).resolve())
    with (folder / OUT).open("wb") as out, (folder / ERR).open("wb") as err:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
            [sys.executable, here, str(folder), place],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    _write(folder / PID, str(process.pid))
    os._exit(0)  # nobody waits for it


def _work(folder: Path, place: Path) -> int:
    """The process of a job: run the command, note how it ended."""
    asked = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    environment = {**os.environ, "TREELINE_PROGRESS": str(folder / PROGRESS)}
    command = [
        sys.executable, str(_TREELINE), "run", os.path.relpath(folder / asked["main"]),
        "--out", str(place), "--json", *asked["options"],
    ]  # fmt: skip
    child = subprocess.Popen(command, env=environment)  # noqa: S603
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:  # the child got it too, and tidies up
            continue
    code = 130 if code in (-signal.SIGINT, 130) else code
    _write(folder / EXIT, str(code))
    return code


if __name__ == "__main__":
    if sys.argv[3:] == [_DETACH]:
        _detach(Path(sys.argv[1]), sys.argv[2])
    sys.exit(_work(Path(sys.argv[1]), Path(sys.argv[2])))
