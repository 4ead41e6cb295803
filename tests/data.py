"""Where measurements of real engines lie beside the project, and the reason to skip where they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TREELINE_DATA", ROOT.parent / "shared" / "data"))


def needs(folder: str) -> pytest.MarkDecorator:
    """Skip a test, with the reason, where a folder of measurements is absent."""
    place = DATA / folder
    return pytest.mark.skipif(
        not place.is_dir(), reason=f"no measurements at {place} (TREELINE_DATA names their folder)"
    )
