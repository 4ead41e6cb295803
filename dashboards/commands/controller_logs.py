"""`treeline fit controller --from-logs FILE`: a router learned from outcomes, judged on the half it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from models.from_logs import FromLogs, learn, read
from scenarios.errors import UserError


def learn_from(path: str, prices: Sequence[str], seed: int) -> FromLogs:
    """Read a CSV of outcomes and learn from it. Raises UserError that says what is wrong with it."""
    import pyarrow as pa
    import pyarrow.csv

    try:
        options = pyarrow.csv.ReadOptions(use_threads=False)
        table = pyarrow.csv.read_csv(path, read_options=options)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}") from None
    given: dict[str, float] = {}
    for text in prices:
        name, _, value = text.partition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"--price {text} is not PLAN=NUMBER, for example gpt4=30") from None
    try:
        return learn(read(table.to_pydict(), given), seed)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def document(found: FromLogs) -> dict[str, Any]:
    """The result as JSON values."""
    return asdict(found) | {"worth": found.worth}


def text(found: FromLogs) -> str:
    """The result for people."""
    low, high = found.interval
    lines = [
        f"{found.trained:,} questions trained, {found.held_out:,} others judge.",
        "",
        f"  {'':16} {'USD a query':>12}  right",
    ]
    for row in (*found.single, found.oracle):
        lines.append(f"  {row.name:16} {row.cost:12.6f}  {100 * row.accuracy:5.1f} %")
    lines.append("")
    seen = set()
    for row in found.curve:
        shares = ", ".join(f"{100 * share:.0f} %" for share in row.shares)
        if shares not in seen:
            seen.add(shares)
            lines.append(
                f"  {'learned':16} {row.cost:12.6f}  {100 * row.accuracy:5.1f} %   ({shares})"
            )
    verdict = "worth it" if found.worth else "NOT worth it: use the best single plan"
    lines += [
        "",
        (
            f"Against a random mix in the same shares: {100 * found.gain:+.2f} points "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]: {verdict}."
        ),
    ]
    return "\n".join(lines)
