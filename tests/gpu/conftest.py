"""What happened to each GPU test is written down at once, and a lost device ends the process: tests/gpu/apart.py begins another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

LOST = 17
"""Exit code of a process that cannot use the GPU any more."""


def journal() -> Path | None:
    """Where it is written down; None where nobody asked."""
    asked = os.environ.get("TREELINE_GPU_JOURNAL")
    return Path(asked) if asked else None


def note(**what: object) -> None:
    """One more line."""
    if (path := journal()) is not None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(what) + "\n")


def answers() -> bool:
    """Whether the GPU still does what it is asked; True where there is none to lose."""
    try:
        import torch

        if not torch.cuda.is_available():
            return True
        torch.cuda.synchronize()
        return int(torch.ones(1, dtype=torch.int32, device="cuda").item()) == 1
    except ImportError:
        return True
    except Exception:  # noqa: BLE001 (whatever it says: it does not answer)
        return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that an earlier process began are not begun again."""
    path = journal()
    if path is None or not path.exists():
        return
    begun = {json.loads(line)["test"] for line in path.read_text("utf-8").splitlines()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in begun])
    items[:] = [item for item in items if item.nodeid not in begun]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    note(test=item.nodeid, outcome="began")
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        text = report.longreprtext if report.failed else ""
        if report.skipped and isinstance(report.longrepr, tuple):
            text = str(report.longrepr[2])
        note(test=report.nodeid, outcome=report.outcome, text=text[-3000:])
    if report.failed and journal() is not None and not answers():
        pytest.exit("the GPU answers this process no more", returncode=LOST)
