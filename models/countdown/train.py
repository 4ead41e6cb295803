"""Train the Countdown models, search with them, close the loop, and say what came of it.

    PYTHONPATH=. python -m models.countdown.train --preset cpu --out build/countdown

Presets: cpu (a few minutes on one core) and gpu (a larger network, under ten minutes on one GPU).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from models.countdown import net
from models.countdown.learn import (
    Schedule,
    auc,
    fit_policy,
    fit_rewards,
    imitate,
    judged,
    play,
    solved,
)
from models.countdown.net import Size, Weights
from models.countdown.task import Ints, moved, puzzles, results
from models.countdown.world import CountdownWorld, Models
from models.keyed import root_key
from models.rollout import rollout
from models.search import ALGORITHMS
from models.tree import Node, Tree

_HELD_OUT: Final = 77  # seed of the puzzles that are only ever graded
_SEARCHED: Final = 1_000  # that of the puzzles whose solutions the closed loop learns from


@dataclass(frozen=True, slots=True)
class Preset:
    """How large and how long."""

    device: str
    size: Size
    policy: Schedule
    rewards: Schedule
    again: Schedule
    judged: int  # puzzles a number of numbers whose rollouts the reward model learns from
    graded: int  # held-out puzzles for pass@1
    searched: int  # held-out puzzles for the search table
    found: int  # puzzles that the closed loop searches
    numbers: tuple[int, ...] = (3, 4, 5)


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "tiny": Preset(
            "cpu", Size(32, 1, 4), Schedule(60, 128), Schedule(60, 128), Schedule(20, 128), 24, 60,
            12, 12, (3, 4),
        ),
        "cpu": Preset(
            "cpu", Size(64, 2, 4), Schedule(2_400, 256), Schedule(1_000, 384), Schedule(300, 256),
            1_000, 2_000, 100, 200,
        ),
        "gpu": Preset(
            "cuda", Size(256, 8, 8), Schedule(6_000, 8_192, 1e-3), Schedule(2_500, 8_192, 1e-3),
            Schedule(800, 8_192, 5e-4), 20_000, 20_000, 50, 150, (3, 4, 5, 6),
        ),
    }
)  # fmt: skip


def sampled(w: Weights, size: Size, numbers: int, count: int, tries: int) -> dict[str, float]:
    """pass@1 and coverage of held-out puzzles by sampling alone."""
    rng = np.random.default_rng([_HELD_OUT, numbers])
    states, targets, _ = puzzles(rng, count, numbers)
    ends, _ = play(w, size, np.repeat(states, tries, 0), np.repeat(targets, tries), rng)
    right = solved(ends, np.repeat(targets, tries)).reshape(-1, tries)
    return {"pass@1": float(right.mean()), f"coverage@{tries}": float(right.any(1).mean())}


def depths(models: Models, numbers: int, count: int) -> dict[str, float]:
    """AUC of the reward model on held-out puzzles, by depth: does a sampled end below the state turn out right?"""
    rng = np.random.default_rng([_HELD_OUT, numbers, 1])
    states, targets, _ = puzzles(rng, count, numbers)
    ends, way = play(models.policy, models.size, states, targets, rng)
    right = solved(ends, targets)
    return {
        str(depth): auc(net.chances(models.rewards, some, targets, models.size.heads), right)
        for depth, some in enumerate(way[1:-1], 1)
    }


def searches(models: Models, numbers: int, count: int, budget: int) -> dict[str, float]:
    """Share of held-out puzzles that each search solves with `budget` trajectories, graded exactly."""
    states, targets, _ = puzzles(np.random.default_rng([_HELD_OUT, numbers, 2]), count, numbers)
    width = max(1, int(budget**0.5))
    asked: dict[str, dict[str, int]] = {
        "direct": {},
        "self_consistency": {"n": budget},
        "best_of_n": {"n": budget},
        "beam": {"width": width, "expand": budget // width, "max_steps": numbers},
    }
    found = {}
    for name, parameters in asked.items():
        search = partial(ALGORITHMS[name].function, **parameters)
        right = 0
        for number, (state, target) in enumerate(zip(states, targets.tolist(), strict=True)):
            world = CountdownWorld(
                models, tuple(state[state > 0].tolist()), target, root_key(_HELD_OUT, numbers, 3, number)
            )  # fmt: skip
            right += rollout(search(Tree(world.root)), world).correct
        found[name] = right / count
    return found


def solutions(models: Models, numbers: int, count: int) -> tuple[Ints, Ints, Ints]:
    """What beam search solves of new puzzles: (states, targets, moves) of the whole ways."""
    states, targets, _ = puzzles(np.random.default_rng([_SEARCHED, numbers]), count, numbers)
    rows: list[tuple[Ints, int, int]] = []
    for number, (state, target) in enumerate(zip(states, targets.tolist(), strict=True)):
        world = CountdownWorld(
            models, tuple(state[state > 0].tolist()), target, root_key(_SEARCHED, numbers, 3, number)
        )  # fmt: skip
        search = ALGORITHMS["beam"].function(Tree(world.root), width=4, expand=4, max_steps=numbers)
        end = rollout(search, world)
        if end.correct:
            rows += _way(next(leaf for leaf in end.tree.leaves if leaf.answer == target), target)
    if not rows:
        empty = np.zeros((0, states.shape[1]), np.int64)
        return empty, empty[:, 0], empty[:, 0]
    return (
        np.stack([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
    )


def _way(leaf: Node, target: int) -> list[tuple[Ints, int, int]]:
    """The moves that lead to `leaf`, found again from its states."""
    from models.countdown.world import padded

    rows = []
    node: Node | None = leaf
    while node is not None and node.parent is not None:
        before, after = padded(node.parent.hidden[0]), padded(node.hidden[0])
        gives = results(before)[0]
        for move in np.flatnonzero(gives):
            if (moved(before, np.array([move])) == after).all():
                rows.append((before[0], target, int(move)))
                break
        node = node.parent
    return rows


def train(preset: Preset, out: Path, tell: Any, limit_s: float) -> dict[str, Any]:
    """Everything in order: policy, reward model, searches, one closed loop; files in `out`.

    The loop is left out where more than half of `limit_s` has passed by then.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng, began = np.random.default_rng(1), time.monotonic()
    size, ks = preset.size, preset.numbers
    policy = net.new(size, 2, preset.device)
    loss = fit_policy(policy, size, preset.policy, rng, ks, partial(tell, "policy"))
    report: dict[str, Any] = {
        "parameters": sum(tensor.numel() for tensor in policy.values()),
        "policy": {"loss": loss, "seconds": time.monotonic() - began},
    }
    rewards = _rewards(policy, preset, rng, tell)
    models = Models(size, policy, rewards)
    report["rounds"] = [_grade(models, preset, tell)]
    if time.monotonic() - began < limit_s / 2:
        tell("closed loop: new puzzles are searched", 0.0, "")
        found = [solutions(models, k, preset.found) for k in ks]
        states, targets, moves = (np.concatenate(columns) for columns in zip(*found, strict=True))
        report["closed_loop"] = {"steps_learned_from": len(states)}
        if len(states):
            imitate(policy, size, preset.again, rng, (states, targets, moves), ks)
            models = Models(size, policy, _rewards(policy, preset, rng, tell))
            report["rounds"].append(_grade(models, preset, tell))
    else:
        report["closed_loop"] = {"left_out": f"more than half of {limit_s:.0f} s had passed"}
    report["seconds"] = time.monotonic() - began
    net.save(out / "countdown.npz", size, policy=models.policy, rewards=models.rewards)
    (out / "countdown.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _rewards(policy: Weights, preset: Preset, rng: np.random.Generator, tell: Any) -> Weights:
    """A reward model that starts from the policy's trunk and learns from its rollouts."""
    rewards = {name: tensor.detach().clone().requires_grad_() for name, tensor in policy.items()}
    data = []
    for k in preset.numbers:
        tell("rollouts", 0.0, f"{k} numbers")
        data.append(judged(policy, preset.size, rng, preset.judged, k)[:3])
    states, targets, shares = (np.concatenate(columns) for columns in zip(*data, strict=True))
    fit_rewards(
        rewards, preset.size, preset.rewards, rng, (states, targets, shares), partial(tell, "rewards")
    )  # fmt: skip
    return rewards


def _grade(models: Models, preset: Preset, tell: Any) -> dict[str, Any]:
    grades: dict[str, Any] = {}
    for k in preset.numbers:
        tell("grading", 0.0, f"{k} numbers")
        tries = max(1, preset.graded // 30)
        grades[str(k)] = {
            **sampled(models.policy, models.size, k, max(30, preset.graded // 10), min(64, tries)),
            "auc": depths(models, k, preset.graded),
            "search": {
                str(n): searches(models, k, preset.searched, n) for n in (4, 16)
            },
        }  # fmt: skip
    return grades


def text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['parameters']:,} parameters a model, {report['seconds']:.0f} s in all."]
    for number, grades in enumerate(report["rounds"]):
        lines.append(
            f"\nRound {number}" + (": after imitating what beam search found" if number else "")
        )
        for k, row in grades.items():
            shares = ", ".join(f"{name} {row[name]:.3f}" for name in row if "@" in name)
            scores = ", ".join(f"depth {d} {value:.2f}" for d, value in row["auc"].items())
            lines.append(f"  {k} numbers: {shares}; AUC {scores}")
            for n, table in row["search"].items():
                cells = ", ".join(f"{name} {share:.3f}" for name, share in table.items())
                lines.append(f"    {n} trajectories: {cells}")
    if "left_out" in report["closed_loop"]:
        lines.append(f"\nNo closed loop: {report['closed_loop']['left_out']}.")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Train by the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.countdown.train",
        description="Train a policy and a reward model on Countdown, and search with them.",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the models and the report"
    )
    parser.add_argument("--limit", type=float, default=1_800.0, help="s; see the closed loop")
    asked = parser.parse_args(given)
    try:
        import torch
    except ModuleNotFoundError:
        print("Countdown needs torch: pip install 'treeline[torch]'", file=sys.stderr)
        return 4
    preset = PRESETS[asked.preset]
    if preset.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device answers here; --preset cpu trains on this machine", file=sys.stderr)
        return 4
    if preset.device == "cpu":
        torch.set_num_threads(1)
    last = [0.0]

    def tell(what: str, share: float, word: str) -> None:
        if time.monotonic() - last[0] > 3.0:
            last[0] = time.monotonic()
            print(f"{what}: {share:.0%} {word}".rstrip(), file=sys.stderr, flush=True)

    print(text(train(preset, asked.out, tell, asked.limit)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
