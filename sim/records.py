"""Append-only rows become documented columns: what a run leaves behind, what each column means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Table: TypeAlias = dict[str, NDArray[Any]]
Row: TypeAlias = tuple[Any, ...]

# Only "answered" and "cut" (stopped by a budget, answered with what it had) hold an answer.
STATUSES = ("answered", "cut", "refused", "unfinished")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its name, NumPy dtype, unit ("" for none) and meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


QUERIES: tuple[Column, ...] = (
    Column("replication", "i4", "", "number of the replication, from 0"),
    Column(
        "query_id",
        "i8",
        "",
        "index of the query in its replication's arrivals; the same in every what-if",
    ),
    Column("measured", "bool", "", "arrived after the warm-up and within the measured horizon"),
    Column("arrival_s", "f8", "s", "when it arrived"),
    Column("class", "U", "", "class of the workload it belongs to"),
    Column("tier", "U", "", "tier that serves it"),
    Column(
        "status",
        "U",
        "",
        "answered, cut (by its budget; it still answers), refused (shed, or longer than memory) or unfinished",
    ),
    Column("input_tokens", "i8", "tokens", "length of the prompt"),
    Column(
        "output_tokens", "i8", "tokens", "all tokens the policy generated for it, in every branch"
    ),
    Column("answer_tokens", "i8", "tokens", "tokens of the answer that was delivered"),
    Column("trajectories", "i4", "", "complete solutions that its search produced"),
    Column("expansions", "i4", "", "branches grown"),
    Column("scores", "i4", "", "nodes scored by the verifier"),
    Column("first_scheduled_s", "f8", "s", "when its first token was first computed; NaN if never"),
    Column("first_token_s", "f8", "s", "when its first output token came out; NaN if never"),
    Column(
        "first_answer_token_s",
        "f8",
        "s",
        "when the first token of its answer came out; NaN if never",
    ),
    Column("finish_s", "f8", "s", "when its answer was complete; NaN if never"),
    Column("verify_s", "f8", "s", "time spent waiting for the verifier and nothing else"),
    Column("correct", "bool", "", "the answer is right (the latent truth, which no server sees)"),
    Column("signal", "f8", "", "raw signal of the search for its answer; NaN without one"),
    Column(
        "confidence", "f8", "", "calibrated probability that the answer is right; NaN without one"
    ),
    Column(
        "accepted",
        "bool",
        "",
        "answered, and confidence reaches the tier's promise or there is none",
    ),
    Column("difficulty", "f8", "", "latent pass rate of one attempt"),
    Column("num_preemptions", "i4", "", "times that one of its branches was preempted"),
    Column("peak_kv_pages", "i8", "pages", "most unique KV pages it held at once"),
    Column("gpu_seconds", "f8", "GPU-s", "attributed to it: policy and verifier"),
    Column("policy_gpu_seconds", "f8", "GPU-s", "attributed to it in policy pools"),
    Column("verifier_gpu_seconds", "f8", "GPU-s", "attributed to it in verifier pools"),
    Column("first_pool", "U", "", "policy pool where it started"),
    Column("first_gpu_seconds", "f8", "GPU-s", "attributed to it there, of policy_gpu_seconds"),
    Column("first_output_tokens", "i8", "tokens", "generated there, of output_tokens"),
    Column(
        "policy_pool", "U", "", "policy pool that served it last: not the first if it escalated"
    ),
    Column("replica", "i4", "", "replica of that pool; -1 if never placed"),
)

PRICED: tuple[Column, ...] = (
    Column(
        "cost_usd",
        "f8",
        "USD",
        "attributed GPU-seconds at the rates of their pools, idle time excluded",
    ),
    Column("charge_usd", "f8", "USD", "what its contract charges before refunds and credits"),
    Column("refund_usd", "f8", "USD", "paid back because the answer was wrong"),
    Column("credit_usd", "f8", "USD", "credited because the end-to-end objective was missed"),
)

TIMELINE: tuple[Column, ...] = (
    Column("replication", "i4", "", "number of the replication, from 0"),
    Column("time_s", "f8", "s", "when the sample was taken"),
    Column("pool", "U", "", "pool of the fleet"),
    Column("replica", "i4", "", "replica of that pool"),
    Column("running", "i4", "", "sequences in the batch"),
    Column("waiting", "i4", "", "sequences waiting for the batch"),
    Column("pages_total", "i8", "pages", "KV pages of the replica"),
    Column("pages_pinned", "i8", "pages", "unique pages that the running sequences hold"),
    Column("pages_cached", "i8", "pages", "reclaimable pages that hold reusable KV"),
    Column("pages_naive", "i8", "pages", "what the running sequences would hold without sharing"),
    Column("active_searches", "i4", "", "queries admitted and not finished"),
    Column("waiting_queries", "i4", "", "queries not yet admitted"),
)

POOLS: tuple[Column, ...] = (
    Column("replication", "i4", "", "number of the replication, from 0"),
    Column("pool", "U", "", "pool of the fleet"),
    Column("role", "U", "", "policy or verifier"),
    Column("replicas", "i4", "", "replicas in the pool"),
    Column("gpus", "i4", "GPUs", "GPUs of one replica"),
    Column("device", "U", "", "device of the pool"),
    Column("span_s", "f8", "s", "length of the measured span"),
    Column(
        "busy_s", "f8", "s", "time the replicas computed, summed over them, in the whole simulation"
    ),
    Column("total_s", "f8", "s", "length of the whole simulation, warm-up and drain included"),
    Column("busy_gpu_seconds", "f8", "GPU-s", "busy_s times GPUs"),
    Column("fleet_gpu_seconds", "f8", "GPU-s", "total_s times replicas times GPUs"),
    Column("attributed_gpu_seconds", "f8", "GPU-s", "attributed to queries"),
    Column("idle_gpu_seconds", "f8", "GPU-s", "fleet less attributed: idle and headroom"),
    Column("iterations", "i8", "", "iterations of the engine"),
    Column(
        "regimes", "i8", "", "spans of constant composition that the simulator advanced in one step"
    ),
    Column("branch_steps", "i8", "", "branches finished (policy) or nodes scored (verifier)"),
    Column("num_preemptions", "i8", "", "preemptions"),
    Column("pages_total", "i8", "pages", "KV pages of one replica"),
    Column("pages_mean", "f8", "pages", "mean pinned pages of a replica over time"),
    Column("pages_max", "i8", "pages", "most pinned pages of a replica"),
    Column("prefix_hit_tokens", "i8", "tokens", "tokens of context found in the prefix cache"),
    Column("computed_tokens", "i8", "tokens", "tokens computed, prefill and decode"),
    Column("cost_label", "U", "", "where the step cost comes from, in words"),
    Column("cost_source_kind", "U", "", "measured, imported or roofline"),
)

TABLES: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {"queries": QUERIES, "timeline": TIMELINE, "pools": POOLS}
)


def documented(name: str) -> Column:
    """Find a column's documentation by its name, in any table; raises KeyError if unknown."""
    for column in (*QUERIES, *PRICED, *TIMELINE, *POOLS):
        if column.name == name:
            return column
    raise KeyError(f"no column is called {name!r}")


def build(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Turn rows (tuples in the order of `columns`) into columns of the documented dtypes.

    Raises ValueError when a row has another number of fields than there are columns.
    """
    width = len(columns)
    for index, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(
                f"row {index} has {len(row)} fields, but the table has {width} columns"
            )
    values: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else ((),) * width
    return {
        column.name: np.array(value, dtype=np.dtype(column.dtype))
        for column, value in zip(columns, values, strict=True)
    }


def concatenate(tables: Sequence[Table]) -> Table:
    """Stack tables of the same columns (one per replication); raises ValueError if they differ."""
    if not tables:
        raise ValueError("at least one table is needed")
    names = list(tables[0])
    for table in tables:
        if list(table) != names:
            raise ValueError(f"columns differ: {sorted(set(names) ^ set(table))}")
    return {name: np.concatenate([table[name] for table in tables]) for name in names}


def select(table: Table, mask: NDArray[Any]) -> Table:
    """Keep the rows that a boolean mask or an index array of shape (rows,) picks."""
    if mask.dtype == np.bool_:
        if mask.all():
            return dict(table)
        mask = np.flatnonzero(mask)
    return {name: values.take(mask, axis=0) for name, values in table.items()}


def size(table: Table) -> int:
    """Count the rows of a table."""
    return len(next(iter(table.values()))) if table else 0


def measured(queries: Table) -> Table:
    """Keep the queries that statistics cover: those of the measured horizon."""
    return select(queries, queries["measured"])


@dataclass(slots=True)
class Recorder:
    """Collects rows of the three tables of a run: tuples in the documented order, or by name.

    `recorder.queries.append(row)` is fast; `recorder.add("queries", arrival_s=...)` checks names.
    """

    queries: list[Row] = field(default_factory=list)
    timeline: list[Row] = field(default_factory=list)
    pools: list[Row] = field(default_factory=list)

    def add(self, table: str, **fields: Any) -> None:
        """Append one row by column names; raises ValueError naming missing and unknown ones."""
        columns = TABLES[table]
        if len(fields) != len(columns) or any(column.name not in fields for column in columns):
            names = {column.name for column in columns}
            missing, unknown = sorted(names - set(fields)), sorted(set(fields) - names)
            raise ValueError(f"{table}: missing {missing}, unknown {unknown}")
        getattr(self, table).append(tuple(fields[column.name] for column in columns))

    def tables(self) -> tuple[Table, Table, Table]:
        """Build the columns once, at the end: queries, timeline, pools."""
        return (
            build(QUERIES, self.queries),
            build(TIMELINE, self.timeline),
            build(POOLS, self.pools),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario left behind: three tables of all replications, and facts about the run.

    `meta` holds JSON values only (versions, wall_s, digests, events); it names no machine or user.
    """

    scenario_name: str
    seed: int
    queries: Table
    timeline: Table
    pools: Table
    meta: dict[str, Any] = field(default_factory=dict)


def merge(results: Sequence[Result], meta: dict[str, Any] | None = None) -> Result:
    """Join the results of single replications of one scenario into one, in the order given."""
    if not results:
        raise ValueError("at least one result is needed")
    first = results[0]
    return Result(
        first.scenario_name,
        first.seed,
        concatenate([result.queries for result in results]),
        concatenate([result.timeline for result in results]),
        concatenate([result.pools for result in results]),
        dict(first.meta if meta is None else meta),
    )
