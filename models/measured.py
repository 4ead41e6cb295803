"""The usable rows of a profile by operation, in the few columns that the cost model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hw.profile import COLUMNS, Column, Profile

Table = dict[str, Column]
_READ = ("op", "model_shape", "dtype", "B", "P", "S", "sum_s", "m", "n", "k", "splits", "calls",
         "t_us_median", "bytes_floor", "flop", "floor_us", "frac_floor", "variant")  # fmt: skip
_FEW = ("m", "n", "k", "calls", "t_us_median", "bytes_floor", "flop", "dtype", "op")


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows with status ok that are not held out, by operation; `products` are all matrix products."""

    operations: Mapping[str, Table]
    products: Table = field(repr=False)

    def rows(self, op: str) -> Table:
        """The rows of one operation; none where it was not measured."""
        found = self.operations.get(op)
        if found is None:
            kinds = {"s": "U1", "i": "int64", "f": "float64", "e": "float64"}
            return {name: np.empty(0, kinds[COLUMNS[name][0]]) for name in _READ}
        return found


def measured(profile: Profile, leave_out: Column | None = None) -> Measured:
    """What a profile measured; `leave_out` marks further rows to hold out."""
    table = {name: profile.columns[name] for name in _READ}
    keep = (profile.columns["status"] == "ok") & (profile.columns["is_holdout"] == 0)
    if leave_out is not None:
        keep &= ~leave_out
    names, index = np.unique(table["op"], return_inverse=True)
    found = {str(name): where(table, keep & (index == i)) for i, name in enumerate(names.tolist())}
    sized = (table["n"] > 0) & (table["k"] > 0) & (table["m"] > 0) & (table["S"] == 0)
    attends = np.char.endswith(names.astype(str), "attention")[index]
    product = keep & sized & (table["sum_s"] == 0) & ~attends
    return Measured(found, where({name: table[name] for name in _FEW}, product))


def where(table: Table, keep: Column) -> Table:
    """The rows of a table that `keep` marks."""
    return {name: column[keep] for name, column in table.items()}


def per_call(rows: Table, calls: int = 1) -> Column:
    """Median seconds of one call; a row that does not say how many it covers covers `calls`."""
    covered = np.where(rows["calls"] > 0, rows["calls"], calls)
    found: Column = 1e-6 * rows["t_us_median"] / covered
    return found
