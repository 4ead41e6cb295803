"""Boosted trees as plain arrays: what scikit-learn grew, without scikit-learn, for one row or many.

scikit-learn takes 900 us to predict a single row; these arrays take some 20 us, and less than one a row in
batches. They are stored as numbers, never pickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CHUNK = 4096  # rows that go through the trees together: they stay in the cache


@dataclass(frozen=True, slots=True)
class Forest:
    """A sum of trees. Node i goes to `left[i]` where x[feature[i]] <= threshold[i], else to `right[i]`.

    A leaf has feature -1 and its `value`. `roots` are the trees' first nodes; with `logit` the sum is the
    log-odds of a probability. Tuples, because plain Python reads them faster than arrays.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]
    roots: tuple[int, ...]
    base: float
    logit: bool

    def one(self, x: Sequence[float]) -> float:
        """The prediction for one row."""
        feature, threshold, left, right = self.feature, self.threshold, self.left, self.right
        total = self.base
        for node in self.roots:
            at = feature[node]
            while at >= 0:
                node = left[node] if x[at] <= threshold[node] else right[node]
                at = feature[node]
            total += self.value[node]
        return 1.0 / (1.0 + math.exp(-total)) if self.logit else total

    def many(self, table: Floats) -> Floats:
        """The predictions for the rows of `table`, (rows, features)."""
        leaf = np.array(self.feature) < 0
        own = np.arange(len(leaf))
        feature = np.where(leaf, 0, self.feature)
        threshold = np.where(leaf, np.inf, self.threshold)  # a leaf leads to itself
        sides = (np.where(leaf, own, side) for side in (self.left, self.right))
        child, value = np.stack(list(sides), axis=1).ravel(), np.array(self.value)
        depth = self._depths()
        rows, width = table.shape
        total = np.full(rows, self.base)
        for start in range(0, rows, CHUNK):
            part = np.ascontiguousarray(table[start : start + CHUNK]).ravel()
            sums = total[start : start + CHUNK]
            first = np.arange(len(sums)) * width
            for root in self.roots:
                node = np.full(len(sums), root)
                for _ in range(depth[root]):
                    node = child[2 * node + (part[first + feature[node]] > threshold[node])]
                sums += value[node]
        if self.logit:
            total = 1.0 / (1.0 + np.exp(-total))
        return total

    def _depths(self) -> list[int]:
        """How many steps it is from each node to the farthest leaf below it."""
        depth = [0] * len(self.feature)
        for node in reversed(range(len(depth))):
            if self.feature[node] >= 0:
                depth[node] = 1 + max(depth[self.left[node]], depth[self.right[node]])
        return depth

    def as_dict(self) -> dict[str, Any]:
        """The forest as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


def from_dict(found: Mapping[str, Any]) -> Forest:
    """A forest from JSON values; raises ValueError where it is none (a loop, a node that is not there)."""
    try:
        ints = {k: tuple(map(int, found[k])) for k in ("feature", "left", "right", "roots")}
        floats = {k: tuple(map(float, found[k])) for k in ("threshold", "value")}
        forest = Forest(
            ints["feature"], floats["threshold"], ints["left"], ints["right"], floats["value"],
            ints["roots"], float(found["base"]), bool(found["logit"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a forest: {type(error).__name__}: {error}") from None
    n = len(forest.feature)
    if any(len(getattr(forest, k)) != n for k in ("threshold", "left", "right", "value")):
        raise ValueError("not a forest: its columns differ in length")
    if any(not 0 <= root < n for root in forest.roots):
        raise ValueError("not a forest: a root is no node")
    for node, at in enumerate(forest.feature):
        if at >= 0 and not (node < forest.left[node] < n and node < forest.right[node] < n):
            raise ValueError("not a forest: a child does not come after its parent")
    return forest


def compiled(model: Any) -> Forest:
    """The forest of a fitted HistGradientBoosting model of scikit-learn (regression, or two classes).

    Raises ValueError for any other model, and where its trees are laid out otherwise than known.
    """
    columns: dict[str, list[Any]] = {
        k: [] for k in ("feature", "threshold", "left", "right", "value")
    }
    roots = []
    try:
        for (predictor,) in model._predictors:
            nodes = predictor.nodes
            offset = len(columns["feature"])
            roots.append(offset)
            leaf = nodes["is_leaf"].astype(bool)
            columns["feature"] += np.where(leaf, -1, nodes["feature_idx"]).tolist()
            columns["threshold"] += np.where(leaf, 0.0, nodes["num_threshold"]).tolist()
            columns["left"] += np.where(leaf, 0, nodes["left"].astype(np.int64) + offset).tolist()
            columns["right"] += np.where(leaf, 0, nodes["right"].astype(np.int64) + offset).tolist()
            columns["value"] += np.where(leaf, nodes["value"], 0.0).tolist()
        base = float(np.ravel(model._baseline_prediction)[0])
    except (AttributeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{type(model).__name__} cannot be compiled: {error}") from None
    return Forest(
        tuple(columns["feature"]),
        tuple(columns["threshold"]),
        tuple(columns["left"]),
        tuple(columns["right"]),
        tuple(columns["value"]),
        tuple(roots),
        base,
        hasattr(model, "classes_"),
    )
