"""Runs the GPU tests in as few processes as will do: a fault that takes the device, a crash or a hang costs one test, not the rest."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HANGS_S = 200.0
"""A test that says nothing for so long is ended. What takes longest: FlashInfer, which may compile for three minutes."""
_STARTS_S = 90.0  # until the first test begins: imports, on a busy machine
_PROCESSES = 40
_POLL_S = 0.5


def run(
    folder: Path, words: Sequence[str], limit_s: float, hangs_s: float = HANGS_S
) -> dict[str, dict[str, str]]:
    """What happened to each test: outcome (passed, failed, skipped, crashed, hung) and text.

    `words` are pytest's; `folder` gets tests.jsonl, a line as each test begins and ends. Stops after `limit_s` seconds.
    """
    journal = folder / "tests.jsonl"
    journal.unlink(missing_ok=True)
    until = time.monotonic() + limit_s
    for _ in range(_PROCESSES):
        before = len(_lines(journal))
        why = _process(journal, words, until, hangs_s)
        found = outcomes(journal)
        for name, what in found.items():
            if what["outcome"] == "began":
                _append(journal, {"test": name, "outcome": why or "crashed", "text": ""})
        if not why or len(_lines(journal)) == before or time.monotonic() > until:
            break
    return outcomes(journal)


def _process(journal: Path, words: Sequence[str], until: float, hangs_s: float) -> str:
    """One process; what ended it before its tests were done, empty where nothing did."""
    environment = os.environ | {"TREELINE_GPU_JOURNAL": str(journal)}
    child = subprocess.Popen([sys.executable, "-m", "pytest", *words], env=environment)
    before = seen = journal.read_text("utf-8") if journal.exists() else ""
    at = time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)
            now = journal.read_text("utf-8") if journal.exists() else ""
            seen, at = (now, time.monotonic()) if now != seen else (seen, at)
            if time.monotonic() > until:
                return "out of time"
            if time.monotonic() - at > (hangs_s if seen != before else max(hangs_s, _STARTS_S)):
                return "hung"
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
    # 0: all passed; 1: some failed; 5: none were left. Anything else (17: device lost; a signal) did not finish.
    return "" if child.returncode in (0, 1, 5) else "crashed"


def outcomes(journal: Path) -> dict[str, dict[str, str]]:
    """The last word on each test of a journal."""
    found: dict[str, dict[str, str]] = {}
    for line in _lines(journal):
        what = json.loads(line)
        if what["outcome"] != "passed" or found.get(what["test"], {}).get("outcome") == "began":
            found[what["test"]] = {"outcome": what["outcome"], "text": what.get("text", "")}
    return found


def _lines(journal: Path) -> list[str]:
    return journal.read_text("utf-8").splitlines() if journal.exists() else []


def _append(journal: Path, what: dict[str, str]) -> None:
    with journal.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(what) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 where some passed and none failed, crashed or hung; writes tests.txt, the outcomes in short."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.apart", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--limit", type=float, default=560.0, help="seconds in all")
    parser.add_argument("words", nargs="*", help="words of pytest's, after --")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    found = run(given.out, given.words, given.limit)
    counts = Counter(what["outcome"] for what in found.values())
    lines = [
        ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        or "no test ran"
    ]
    for name, what in found.items():
        if what["outcome"] not in ("passed", "skipped"):
            lines.append(f"{what['outcome']}: {name}\n{what['text']}".rstrip())
    (given.out / "tests.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join([lines[0], *(line.partition("\n")[0] for line in lines[1:])]))
    # Where nothing passed, nothing was tested: all skipped is no success on a machine with a GPU.
    good = set(counts) <= {"passed", "skipped"} and counts["passed"] > 0
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
