"""`treeline profile show`: what a profile holds, its roofs, and how near each operation comes to them, as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw.device import devices
from hw.profile import Profile, ProfileError, load
from scenarios.errors import UserError, printable

WIDTH, HEIGHT = 66, 17
_MODELS = 4  # that are named
_ROOFS = ("copy_bytes_per_s", "read_bytes_per_s", "gemm_flops_bf16")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read(path: str) -> Profile:
    """The profile at `path`; raises UserError where it cannot be trusted."""
    try:
        return load(path)
    except ProfileError as error:
        raise UserError(str(error)) from None


def show(profile: Profile) -> dict[str, Any]:
    """What a profile holds, as one JSON document."""
    return {
        "device": profile.device,
        "source_kind": profile.source_kind,
        "label": profile.label,
        "digest": profile.digest,
        "points": len(profile.columns["op"]),
        "holdout": int(profile.columns["is_holdout"].sum()),
        "models": sorted(set(profile.columns["model_shape"].tolist()) - {""}),
        "ceilings": roofs(profile)[0],
        "ceilings_from": roofs(profile)[1],
        "operations": operations(profile),
        "not_measured": _problems(profile),
        "meta": dict(profile.meta),
    }


def roofs(profile: Profile) -> tuple[dict[str, float], str]:
    """A profile's own roofs, else the catalogue's of its device, and whose they are; empty where nobody knows."""
    if profile.ceilings:
        return dict(profile.ceilings), "the profile"
    known = devices().get(profile.device)
    if known is None:
        return {}, "nobody"
    return {key: float(getattr(known, key)) for key in _ROOFS}, "the catalogue"


def operations(profile: Profile) -> list[dict[str, Any]]:
    """Each operation's points: how many, least and greatest time in us, and the fraction of the floor reached."""
    found = []
    table = profile.columns
    ok = table["status"] == "ok"
    for op in sorted(set(table["op"].tolist())):
        rows = ok & (table["op"] == op)
        if not rows.any():
            continue
        times, reached = table["t_us_median"][rows], table["frac_floor"][rows]
        spread = (table["t_us_p90"][rows] - table["t_us_p10"][rows]) / times
        flop, moved = table["flop"][rows], table["bytes_floor"][rows]
        best = int(np.argmax(reached))
        found.append({
            "op": op, "points": int(rows.sum()), "t_us_min": float(times.min()), "t_us_max": float(times.max()),
            "of_floor_median": float(np.median(reached)), "of_floor_best": float(reached[best]),
            "spread_median": float(np.median(spread)),
            "best_tflops": float((flop / times).max() / 1e6), "best_gbps": float((moved / times).max() / 1e3),
        })  # fmt: skip
    return found


def text(found: dict[str, Any], profile: Profile) -> str:
    """The document of `show` for people, with the picture."""
    kind = found["source_kind"]
    label = found["label"] if kind in found["label"] else f"{found['label']} ({kind})"
    models = found["models"]
    more = f" and {len(models) - _MODELS} others" if len(models) > _MODELS else ""
    head = [
        f"{label}; device {found['device']}",
        f"{found['points']:,} points, {found['holdout']:,} of them held out of every fit",
    ]
    if models:
        head.append(f"models and shapes: {', '.join(models[:_MODELS])}{more}")
    if tops := found["ceilings"]:
        moves = f"copy {tops['copy_bytes_per_s'] / 1e9:,.1f} GB/s, read {tops['read_bytes_per_s'] / 1e9:,.1f} GB/s"
        computes = f"bf16 matrix product {tops['gemm_flops_bf16'] / 1e12:,.2f} TFLOP/s"
        head.append(f"roofs (of {found['ceilings_from']}): {moves}, {computes}")
    drift = found["meta"].get("drift", {})
    if "median" in drift:
        head.append(
            f"drift from start to end: median {drift['median']:+.1%}, worst {drift['worst']:+.1%}"
        )
    if found["meta"].get("complete") is False:
        head.append("INCOMPLETE: the run was interrupted; measure the rest with --resume")
    rates = f"{'TFLOP/s':>10}{'GB/s':>10}"
    columns = f"{'operation':<20}{'points':>7}{'least us':>11}{'greatest us':>13}{'of floor':>10}{'best':>7}"
    table = ["", f"{columns}{'p10-p90':>9}{rates}"]
    table += [
        f"{op['op']:<20}{op['points']:>7}{op['t_us_min']:>11,.1f}{op['t_us_max']:>13,.1f}{op['of_floor_median']:>10.0%}"
        f"{op['of_floor_best']:>7.0%}{_spread(op['spread_median']):>9}{op['best_tflops']:>10,.2f}{op['best_gbps']:>10,.1f}"
        for op in found["operations"]
    ]
    problems = [f"{count} points: {reason}" for reason, count in found["not_measured"].items()]
    picture = roofline(profile)
    return printable("\n".join([*head, *table, *problems, *([""] if picture else []), *picture]))


def roofline(profile: Profile) -> list[str]:
    """The picture: FLOP/s reached over FLOP a byte, both axes in powers of ten, under the roofs; empty without any."""
    table = profile.columns
    rows = (table["status"] == "ok") & (table["flop"] > 0) & (table["bytes_floor"] > 0)
    tops, _ = roofs(profile)
    if not rows.any() or not {"copy_bytes_per_s", "gemm_flops_bf16"} <= set(tops):
        return []
    moves, computes = tops["copy_bytes_per_s"], tops["gemm_flops_bf16"]
    x = np.log10(table["flop"][rows] / table["bytes_floor"][rows])
    y = np.log10(table["flop"][rows] / (table["t_us_median"][rows] * 1e-6))
    low, high = min(float(x.min()), 0.0), max(float(x.max()), np.log10(computes / moves) + 0.5)
    top = np.log10(computes) + 0.3
    bottom = max(float(np.quantile(y, 0.02)), top - 6)
    canvas = [[" "] * WIDTH for _ in range(HEIGHT)]

    def cell(value: float, begin: float, end: float, cells: int) -> int:
        return int(np.clip((value - begin) / (end - begin) * cells, 0, cells - 1))

    for column in range(WIDTH):
        intensity = low + (column + 0.5) / WIDTH * (high - low)
        roof = min(np.log10(computes), np.log10(moves) + intensity)
        if roof >= bottom:
            canvas[cell(roof, bottom, top, HEIGHT)][column] = (
                "-" if roof == np.log10(computes) else "/"
            )
    letters = dict(zip(dict.fromkeys(table["op"][rows].tolist()), _LETTERS, strict=False))
    for op, a, b in zip(table["op"][rows].tolist(), x.tolist(), y.tolist(), strict=True):
        if op in letters and b >= bottom:
            canvas[cell(b, bottom, top, HEIGHT)][cell(a, low, high, WIDTH)] = letters[op]
    lines = [
        f"roofline: reached FLOP/s over FLOP a byte (roof: {computes / 1e12:,.2f} TFLOP/s, {moves / 1e9:,.1f} GB/s)"
    ]
    for number in reversed(range(HEIGHT)):
        level = bottom + (number + 0.5) / HEIGHT * (top - bottom)
        lines.append(f"{_flops(level):>9} |{''.join(canvas[number])}")
    lines.append(f"{'':>9} +{'-' * WIDTH}")
    marks = {
        cell(power, low, high, WIDTH): f"{10.0**power:g}"
        for power in range(int(np.ceil(low)), int(high) + 1)
    }
    axis = [" "] * (WIDTH + 6)
    for at, mark in marks.items():
        axis[at : at + len(mark)] = mark
    lines.append(f"{'':>11}{''.join(axis).rstrip()}  FLOP a byte")
    lines.append("  ".join(f"{letter} {op}" for op, letter in letters.items()))
    return lines


def _spread(share: float) -> str:
    """A share of the median; a dash where each point is one number, as imported ones are."""
    return f"{share:.0%}" if share else "-"


def _flops(power: float) -> str:
    for scale, name in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if power >= scale:
            return f"{10 ** (power - scale):,.3g} {name}"
    return f"{10**power:,.3g}"


def _problems(profile: Profile) -> dict[str, int]:
    status = profile.columns["status"]
    return {
        reason: int((status == reason).sum()) for reason in sorted(set(status.tolist()) - {"ok"})
    }
