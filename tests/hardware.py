"""The table of measured hardware, from the profiles and kernel benchmarks that ship: `make readme` puts it where it is quoted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hw.device import device, devices
from hw.profile import Profile, load
from hw.shipped import FOLDER

QUOTED = (("decode_step", "a decode step"), ("expansion", "an expansion"))
_PREFIX = 8192  # tokens of prefix at which whole steps are quoted


def hardware(folder: Path = FOLDER) -> str:
    """Markdown: a line for each profile, then what one that we measured says of whole steps and of the goals.

    The goals are those of NAME-kernels.json beside NAME.parquet, which `make gpu-bench` writes as kernels.json.
    """
    found = {path.stem: load(path.with_suffix("")) for path in sorted(folder.glob("*.parquet"))}
    lines = ["| profile | figures are | points | copy | read | bf16 product | held-out error |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [_line(name, profile) for name, profile in found.items()]
    own = {name: profile for name, profile in found.items() if profile.source_kind == "measured"}
    for name, profile in own.items():
        lines += ["", f"{profile.label} (`{name}`):", "", *_steps(profile)]
        bench = folder / f"{name}-kernels.json"
        if bench.exists():
            goals = json.loads(bench.read_text("utf-8"))["goals"]
            lines += ["", "```text", *goals, "```"]
    if not own:
        lines += [
            "",
            "No profile of our own on a GPU ships yet: roofs are the catalogue's (hw/catalog.yaml), times those that others measured.",
        ]
    return "\n".join(lines)


def _line(name: str, profile: Profile) -> str:
    roofs = [
        profile.ceilings.get(key)
        for key in ("copy_bytes_per_s", "read_bytes_per_s", "gemm_flops_bf16")
    ]
    units = ((1e12, "TB/s"), (1e12, "TB/s"), (1e12, "TFLOP/s"))
    if profile.device in devices() and not all(roofs):
        known = device(profile.device)
        roofs = [known.copy_bytes_per_s, known.read_bytes_per_s, known.gemm_flops_bf16]
    cells = [
        f"{roof / scale:.3g} {unit}" if roof else ""
        for roof, (scale, unit) in zip(roofs, units, strict=True)
    ]
    ok = int((profile.columns["status"] == "ok").sum())
    return f"| {name} | {profile.source_kind} | {ok:,} | {' | '.join(cells)} | {profile.error or 'not noted'} |"


def _steps(profile: Profile) -> Iterator[str]:
    """Whole steps at one prefix: milliseconds, and the fraction of the floor that was reached."""
    whole = [(words, profile.rows(op)) for op, words in QUOTED]
    whole = [(words, rows) for words, rows in whole if (rows["P"] == _PREFIX).any()]
    if not whole:
        return
    many = sorted({int(b) for _, rows in whole for b in rows["B"][rows["P"] == _PREFIX]})
    yield f"| {_PREFIX:,} tokens of prefix, branches | " + " | ".join(map(str, many)) + " |"
    yield "|---|" + "---|" * len(many)
    for words, rows in whole:
        cells = []
        for b in many:
            here = (rows["P"] == _PREFIX) & (rows["B"] == b)
            took, floor = (
                float(np.median(rows[name][here])) if here.any() else 0.0
                for name in ("t_us_median", "floor_us")
            )
            cells.append(
                f"{took / 1e3:.3g} ms ({floor / took:.0%} of its floor's speed)" if took else ""
            )
        yield f"| {words} | " + " | ".join(cells) + " |"
