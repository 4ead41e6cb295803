"""What every test shares: Hypothesis profiles, and the reason why a test that needs a GPU is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from contextlib import suppress
from functools import lru_cache

import pytest

os.environ.setdefault("TREELINE_CORE", "interpreted")  # what coverage sees; see models/compiled.py

with warnings.catch_warnings(), suppress(ModuleNotFoundError):  # tests/gpu need no hypothesis
    warnings.simplefilter("ignore")  # hypothesis looks at what else is installed
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
    )
    settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "default")


@lru_cache(maxsize=1)
def no_gpu() -> str:
    """Why no GPU can be used; empty where one answers."""
    found = shutil.which("nvidia-smi")
    if found is None:
        return "no NVIDIA GPU: nvidia-smi is not installed"
    asked = subprocess.run([found, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return "" if asked.returncode == 0 else "no NVIDIA GPU: nvidia-smi -L lists none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ["TREELINE_CORE"] == "compiled":
        for item in items:
            if item.get_closest_marker("reaches_in"):
                item.add_marker(pytest.mark.skip(reason="it changes methods of the core"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
