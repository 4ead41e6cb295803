"""`treeline validate` on serving points: errors of TTFT and TPOT by group, what calibration buys, bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dashboards.terminal import Tell, plain
from hw.device import device
from scenarios.errors import UserError
from sim.points import is_points, read_points
from sim.points_accuracy import (
    Errors,
    errors,
    expected,
    groups,
    kind_of,
    load_of,
    other_half,
    playable,
    played_errors,
    shipped,
    summary,
    terms_of,
)
from sim.points_bands import AIM, NOMINAL, Bands, Survey, bands, survey
from sim.points_modelled import SYSTEMS, Modelled, Unmodelled, modelled
from sim.renewal import Floats
from sim.steady import Terms

__all__ = ["document", "is_points", "picture", "validate_points"]

# AIConfigurator's own errors on the public dense rows: what to be no worse than.
# Source: aiconfigurator 0.12 run on the public half of its Hopper samples, 2026-11-23.
PEER_TPOT_MEDIAN, PEER_TTFT_MEAN = 0.102, 0.53
_SHIPPED, _EXPECTED = "shipped", "expected"


def _octave(clients: int) -> str:
    top = 1 << (clients - 1).bit_length()
    return f"{top // 2 + 1} to {top}" if top > 2 else f"up to {top}"


_BY: dict[str, Callable[[Modelled], str]] = {
    "model": lambda item: item.point.model.rpartition("/")[2],
    "engine": lambda item: item.point.engine,
    "GPU": lambda item: item.point.system,
    "weights": lambda item: item.point.precision or "bf16",
    "load test": lambda item: item.point.harness,
    "clients": lambda item: _octave(item.point.clients),
    "input tokens": lambda item: f"{item.point.input_tokens} in",
    "output tokens": lambda item: f"{item.point.output_tokens} out",
}
Both = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class PointsReport:
    """Everything that the command says of a file of points."""

    found: list[Modelled]
    left: list[Unmodelled]
    ways: dict[str, Both]  # by constants: those that ship, those one expects, those of other halves
    played: tuple[list[Modelled], Both]  # those that the simulator's batch can play
    bands: dict[str, tuple[Bands, ...]]  # dense models, all models
    surveys: dict[str, Survey]

    @property
    def holds(self) -> bool:
        """Whether dense models are predicted no worse than by AIConfigurator; so without any."""
        dense = _kinds(self.found, self.ways[_SHIPPED]).get("dense")
        if dense is None:
            return True
        rate, first = summary(dense[0]), summary(dense[1])
        return rate.median <= PEER_TPOT_MEDIAN and first.mean <= PEER_TTFT_MEAN


def validate_points(
    path: str, given: Mapping[str, object] | None = None, tell: Tell | None = None
) -> PointsReport:
    """Read serving points and predict each of them.

    `given` are options that only runs take. Raises: UserError for what cannot be read, and for those.
    """
    if stray := [name for name, value in (given or {}).items() if value]:
        raise UserError(
            f"{path} holds serving points, which name their own engines and devices: "
            f"leave out {', '.join(stray)}."
        )
    found, left = modelled(read_points(path), tell)
    batch = playable(found)
    if not found:
        reasons = sorted({item.reason.rstrip(".") for item in left})
        raise UserError(f"{path}: no point can be modelled: {'; '.join(reasons)}.")
    ways = {
        _SHIPPED: errors(found, partial(terms_of, constants=shipped())),
        _EXPECTED: errors(found, expected),
        "simulator's gap": errors(found, _simulators),
        "other half of loads": other_half(found, load_of),
        "other half of models": other_half(found),
    }
    kinds = {"dense models": [item for item in found if not item.experts], "all models": found}
    surveys = {name: made for name, kind in kinds.items() if (made := survey(kind)) is not None}
    halves = {name: bands(kind) for name, kind in kinds.items()}
    return PointsReport(found, left, ways, (batch, played_errors(batch, tell)), halves, surveys)


def _simulators(item: Modelled) -> Terms:
    """The expected constants with the host's time of the simulator: the device's gap and nothing a sequence."""
    gap_s = device(SYSTEMS[item.point.system]).step_gap_s
    return replace(expected(item), gap_s=gap_s, each_s=0.0)


def document(report: PointsReport) -> dict[str, Any]:
    """Everything as JSON values."""
    best = report.ways[_SHIPPED]
    return {
        "format": "serving points",
        "points": len(report.found) + len(report.left),
        "modelled": len(report.found),
        "not_modelled": _reasons(report.left),
        "step_cost": sorted({item.step_source for item in report.found}),
        "errors": {
            way: {kind: _both(part) for kind, part in _kinds(report.found, both).items()}
            for way, both in report.ways.items()
        },
        "played": {kind: _both(part) for kind, part in _kinds(*report.played).items()},
        "by": {name: _grouped(report, by, best) for name, by in _BY.items()},
        "by_model_expected": _grouped(report, _BY["model"], report.ways[_EXPECTED]),
        "bands": {
            which: {
                "nominal": NOMINAL,
                "halves": [asdict(half) for half in made],
                "every_half": asdict(report.surveys[which]) if which in report.surveys else None,
            }
            for which, made in report.bands.items()
        },
        "peer": {"tpot_median": PEER_TPOT_MEDIAN, "ttft_mean": PEER_TTFT_MEAN},
    }


def picture(report: PointsReport) -> RenderableType:
    """The report for a terminal of 100 columns."""
    sources = sorted({item.step_source for item in report.found})
    parts: list[RenderableType] = [
        Text(f"{len(report.found)} of {len(report.found) + len(report.left)} points modelled.",
             style="bold"),
        *(Text(f"Step costs: {plain(source)}") for source in sources),
        *(Text(f"Not modelled: {count} points: {plain(reason)}")
          for reason, count in _reasons(report.left).items()),
        Text(""),
        _verdict(report),
        Text(""),
        _ways(report),
        Text("Error: predicted / measured - 1; median, mean and p90 of its size, and its signed median."),
        Text("Shipped constants saw the public points; each other half is predicted by what the rest says."),
        Text("Expected constants are one set for all models, chosen in sight of the public points; the row below"),
        Text("has the simulator's own time of the host instead: its gap between steps, nothing a sequence."),
        *_played(report),
        Text(""),
    ]  # fmt: skip
    best = report.ways[_SHIPPED]
    parts += [_groups(name, groups(report.found, by, best)) for name, by in _BY.items()]
    models = groups(report.found, _BY["model"], report.ways[_EXPECTED])
    parts += [_groups("model, expected", models)]
    if not any(report.bands.values()):
        return Group(*parts, Text("Bands are learned on half of the models: one model has none."))
    parts += [Text(""), _bands(report), *_surveys(report)]
    return Group(*parts)


def _verdict(report: PointsReport) -> Text:
    dense = _kinds(report.found, report.ways[_SHIPPED]).get("dense")
    if dense is None:
        return Text("No dense model among the points: nothing to hold beside a peer.", style="bold")
    rate, first = summary(dense[0]), summary(dense[1])
    return Text(
        f"{'NO WORSE' if report.holds else 'WORSE'} than AIConfigurator on dense models: TPOT median "
        f"{rate.median:.1%} (its {PEER_TPOT_MEDIAN:.1%}), TTFT mean {first.mean:.0%} "
        f"(its {PEER_TTFT_MEAN:.0%}), median {first.median:.1%}.",
        style="bold",
    )


def _kinds(found: list[Modelled], both: Both) -> dict[str, Both]:
    kinds = [kind_of(item) for item in found]
    marks = {
        name: [i for i, kind in enumerate(kinds) if kind == name] for name in sorted(set(kinds))
    }
    return {kind: (both[0][at], both[1][at]) for kind, at in marks.items()}


def _grouped(report: PointsReport, by: Callable[[Modelled], str], both: Both) -> dict[str, Any]:
    return {
        value: {"tpot": asdict(rate), "ttft": asdict(first)}
        for value, (rate, first) in groups(report.found, by, both).items()
    }


def _both(part: Both) -> dict[str, Any]:
    return {"tpot": asdict(summary(part[0])), "ttft": asdict(summary(part[1]))}


def _reasons(left: list[Unmodelled]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in left:
        reason = item.reason.partition(". ")[0].rstrip(".")
        found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    return table


def _cells(found: Errors) -> tuple[str, ...]:
    return (f"{found.median:.1%}", f"{found.mean:.1%}", f"{found.p90:.1%}", f"{found.signed:+.1%}")


_HEADS = ("points", "TPOT median", "mean", "p90", "signed", "TTFT median", "mean", "p90", "signed")


def _ways(report: PointsReport) -> Table:
    table = _table("Constants", *_HEADS)
    for way, both in report.ways.items():
        for kind, part in _kinds(report.found, both).items():
            rate, first = summary(part[0]), summary(part[1])
            table.add_row(f"{way}, {kind}", str(rate.points), *_cells(rate), *_cells(first))
    return table


def _played(report: PointsReport) -> list[Text]:
    return [
        Text(f"Played tick by tick by the simulator's batch ({kind}, {summary(part[0]).points} points of vLLM under "
             f"InferenceMAX): TPOT median {summary(part[0]).median:.1%}, mean {summary(part[0]).mean:.1%}; TTFT median "
             f"{summary(part[1]).median:.1%}, mean {summary(part[1]).mean:.1%}, signed {summary(part[1]).signed:+.1%}.")
        for kind, part in _kinds(*report.played).items()
    ]  # fmt: skip


def _groups(name: str, found: dict[str, tuple[Errors, Errors]]) -> Table:
    table = _table(f"By {name}", *_HEADS)
    for value, (rate, first) in found.items():
        table.add_row(plain(value), str(rate.points), *_cells(rate), *_cells(first))
    return table


def _bands(report: PointsReport) -> Table:
    table = _table(
        f"Bands of TPOT, nominal {NOMINAL:.0%}", "learned on", "points", "inside", "width +-"
    )
    for which, made in report.bands.items():
        for half in made:
            names = ", ".join(name.rpartition("/")[2] for name in half.learned_on)
            table.add_row(which, plain(names), str(half.points), f"{half.coverage:.1%}",
                          f"{half.width:.1%}")  # fmt: skip
    return table


def _surveys(report: PointsReport) -> list[Text]:
    return [
        Text(f"Over all {made.splits} halves of {which}: {made.coverage:.1%} inside (one deviation {made.deviation:.1%}, "
             f"{made.aimed:.0%} of the halves from {AIM[0]:.0%} to {AIM[1]:.0%}), width +-{made.width:.1%} "
             f"(nine in ten up to {made.width_p90:.1%}).")
        for which, made in report.surveys.items()
    ]  # fmt: skip
