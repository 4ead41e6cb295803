"""Writes sim/steady.yaml, the constants of engines, from the public serving points: python tests/steady.py DATA"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sim.points import read_points  # noqa: E402
from sim.points_accuracy import calibrated, to_yaml  # noqa: E402
from sim.points_modelled import modelled  # noqa: E402

SOURCE = (
    "least relative error on the public half of NVIDIA AIConfigurator's Hopper serving points "
    "(silicon_sample.csv, Apache-2.0), 2026-11-25"
)


def main(folder: str) -> None:
    """Calibrate on every point that the cost model covers."""
    found, left = modelled(read_points(folder))
    text = to_yaml(calibrated(found), SOURCE, len(found))
    (ROOT / "sim" / "steady.yaml").write_text(text, encoding="utf-8")
    print(f"sim/steady.yaml: constants from {len(found)} points, {len(left)} not modelled")


if __name__ == "__main__":
    main(sys.argv[1])
