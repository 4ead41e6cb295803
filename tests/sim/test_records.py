"""Rows become documented columns."""

from __future__ import annotations

import numpy as np
import pytest

from sim.records import (
    PRICED,
    QUERIES,
    TABLES,
    Recorder,
    build,
    concatenate,
    documented,
    measured,
    merge,
    size,
)
from tests.sim import fixtures


def test_columns_have_the_documented_dtypes_and_order() -> None:
    result = fixtures.result(n=5)
    for name, columns in TABLES.items():
        table = getattr(result, name)
        assert list(table) == [column.name for column in columns]
        for column in columns:
            assert table[column.name].dtype.kind == np.dtype(column.dtype).kind, column.name


def test_an_empty_table_has_its_columns_and_dtypes() -> None:
    table = build(QUERIES, [])
    assert size(table) == 0
    assert table["arrival_s"].dtype == np.float64
    assert table["tier"].dtype.kind == "U"


def test_every_column_is_documented_once_and_has_a_meaning() -> None:
    for columns in (*TABLES.values(), (*QUERIES, *PRICED)):
        names = [column.name for column in columns]
        assert len(set(names)) == len(names)
        assert all(column.meaning for column in columns)
    assert documented("gpu_seconds").unit == "GPU-s"
    with pytest.raises(KeyError, match="speed"):
        documented("speed")


def test_a_row_by_name_says_which_columns_are_missing_and_unknown() -> None:
    row = fixtures.query(colour="red")
    del row["finish_s"]
    with pytest.raises(ValueError, match=r"missing \['finish_s'\], unknown \['colour'\]"):
        Recorder().add("queries", **row)


def test_a_row_of_the_wrong_length_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match="row 1 has 2 fields"):
        build(QUERIES, [tuple(fixtures.query().values()), (1, 2)])


def test_replications_merge_in_order_and_keep_their_rows() -> None:
    parts = [fixtures.result(replications=1, n=4), fixtures.result(replications=1, n=6)]
    whole = merge(parts, {"workers": 2})
    assert size(whole.queries) == 10
    assert whole.meta == {"workers": 2}
    assert whole.queries["query_id"].tolist() == [*range(4), *range(6)]
    with pytest.raises(ValueError, match="columns differ"):
        concatenate([whole.queries, whole.pools])


def test_measured_leaves_the_warm_up_out() -> None:
    result = fixtures.result(replications=1, n=20)
    assert size(measured(result.queries)) == 18
