"""The twins against brute force: dense attention in float64, plain token lists, sorted nuclei, published Philox."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import reference
from hw.kvtree import plan
from tests.hw.trees import dense, grow

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=15, deadline=None)


@FEW
@given(
    SEEDS,
    st.sampled_from([16, 64]),
    st.sampled_from([1, 4, 5, 7, 8]),
    st.integers(2, 4),
    st.sampled_from([16, 64, 128]),
)
def test_tree_attention_in_parts_equals_dense_attention(seed, page, group, min_branches, tile):
    tree = grow(seed, page)
    queries = np.random.default_rng(seed).standard_normal((tree.live, 2 * group, 128))
    step = plan(
        tree.tables[: tree.live],
        tree.lengths[: tree.live],
        page=page,
        group=group,
        kv_heads=2,
        row_tile=tile,
        min_branches=min_branches,
        min_keys=64,
    )
    assert np.allclose(
        reference.tree_attention(queries, tree.pool, step), dense(tree, queries), atol=1e-12
    )


@FEW
@given(SEEDS, st.sampled_from([16, 64]))
def test_every_key_of_every_branch_is_read_exactly_once(seed, page):
    tree = grow(seed, page)
    group, tile = 5, 16
    step = plan(
        tree.tables[: tree.live],
        tree.lengths[: tree.live],
        page=page,
        group=group,
        kv_heads=2,
        row_tile=tile,
        min_keys=64,
    )
    reads = {b: [] for b in range(tree.live)}
    rows = {}
    for first, branches, row0, at, begin, end, slot, _ in step.prefix.tolist():
        for r in range(row0, min(row0 + tile, branches * group)):
            branch = int(step.order[first + r // group])
            rows.setdefault((branch, r % group), []).append((slot, at, begin, end))
    for (branch, head), items in rows.items():
        assert sorted(items) == sorted(rows[branch, 0]), head
        if head == 0:
            reads[branch] += items
    for branch, at, begin, end, slot, *_ in step.suffix.tolist():
        reads[branch].append((slot, at, begin, end))
    for branch, items in reads.items():
        items.sort()
        assert [i[0] for i in items] == list(range(step.parts[branch + 1] - step.parts[branch]))
        keys = [
            (int(step.pages[at + k // page]), k % page)
            for _, at, begin, end in items
            for k in range(begin, end)
        ]
        assert keys == [
            (int(tree.tables[branch, k // page]), k % page) for k in range(tree.lengths[branch])
        ]


def test_a_shared_prefix_is_one_list_of_work_and_nested_ones_are_another():
    tables = [[0, 1, 2], [0, 1, 3], [0, 4], [5]]
    step = plan(tables, [40, 40, 20, 3], page=16, group=4, kv_heads=2)
    assert step.order.tolist() == [3, 2, 0, 1]
    assert sorted(map(tuple, step.prefix[:, [0, 1, 4, 5, 6]].tolist())) == [
        (1, 3, 0, 16, 0),
        (2, 2, 0, 16, 1),
    ]
    assert step.parts.tolist() == [0, 3, 6, 8, 9]


def test_an_item_ends_with_its_share_of_the_keys():
    step = plan([range(64)] * 2, [1024] * 2, page=16, group=4, kv_heads=1, ctas=4)
    assert step.prefix[:, 4:7].tolist() == [[256 * i, 256 * i + 256, i] for i in range(4)]


def test_a_table_too_short_for_its_length_is_refused():
    with pytest.raises(ValueError, match="branch 1 has 33 tokens, but its 2 pages hold 32"):
        plan([[0], [1, 2]], [3, 33], page=16, group=4, kv_heads=2)
    with pytest.raises(ValueError, match="min_branches must be >= 2"):
        plan([[0]], [3], page=16, group=4, kv_heads=2, min_branches=1)


@FEW
@given(SEEDS, st.sampled_from([1, 16]))
def test_forks_and_prunes_keep_every_branch_and_count_every_page(seed, page):
    tree = grow(seed, page, most=30)
    assert int((tree.refs > 0).sum()) + int(tree.free_count[0]) == tree.pages
    counts = np.zeros(tree.pages, int)
    for row in range(tree.live):
        assert tree.lengths[row] == len(tree.tokens[row])
        held = tree.tables[row, : -(-int(tree.lengths[row]) // page)]
        counts += np.bincount(held, minlength=tree.pages)
        keys, values = reference.gather(tree.pool, held, 0, len(tree.tokens[row]))
        for at, (k, v) in enumerate(tree.tokens[row]):
            assert (keys[at] == k).all()
            assert (values[at] == v).all()
    assert (counts == tree.refs).all()
    tree.prune(list(range(tree.live)))
    assert not tree.refs.any()
    assert sorted(tree.free.tolist()) == list(range(tree.pages))


@given(st.integers(1, 6), st.integers(1, 5), SEEDS)
@FEW
def test_merging_parts_is_attention_over_all_their_keys(parts, heads, seed):
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((heads, 128))
    pieces = [rng.standard_normal((2, rng.integers(0, 9), 1, 128)) * 3 for _ in range(parts)]
    each = [reference.attend(queries, k, v) for k, v in pieces]
    out, total = reference.merge(np.stack([o for o, _ in each]), np.stack([s for _, s in each]))
    k, v = np.concatenate(pieces, 1)
    expected, expected_total = reference.attend(queries, k, v)
    assert np.allclose(out, expected, atol=1e-12)
    assert np.allclose(total, expected_total)


def test_philox_gives_the_published_words():
    """Known answers of Philox4x32-10. Source: Random123 1.09, tests/kat_vectors."""
    ones = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, words in (
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, [0xA4093822, 0x299F31D0], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        got = reference.philox(np.array(counter, np.uint32), np.array(key, np.uint32))
        assert got.tolist() == words


def test_samples_follow_the_softmax_of_the_scaled_logits():
    logits = np.array([1.0, 0.0, -1.0, 2.0, 0.5], np.float32)
    expected = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    drawn = reference.sample(
        np.tile(logits, (4000, 1)), inverse_temperature=1.25, top_p=1.0, step=3, seed=2**40 + 7
    )
    shares = np.bincount(drawn, minlength=5) / 4000
    assert np.abs(shares - expected).max() < 4.5 * np.sqrt(0.25 / 4000)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=50), st.floats(0.01, 0.999))
@FEW
def test_the_nucleus_is_the_least_set_of_best_tokens_that_reaches_top_p(tenths, top_p):
    logits = np.array(tenths, np.float32) / 10
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    kept = set(reference.nucleus(logits, 1.0, top_p).tolist())
    least = min(p[list(kept)])
    assert kept == {i for i in range(len(p)) if p[i] > least * (1 - 1e-5)}
    assert sum(p[list(kept)]) >= top_p - 1e-9
    assert sum(p[i] for i in kept if p[i] > least * (1 + 1e-5)) < top_p + 1e-9
    assert len(reference.nucleus(logits, 1.0, 1.0)) == len(logits)


def test_a_sample_depends_on_its_row_step_and_seed_and_on_nothing_else():
    logits = np.zeros((3, 1000), np.float32)
    draw = {"inverse_temperature": 1.0, "top_p": 0.9}
    base = reference.sample(logits, step=0, seed=1, **draw)
    assert (base == reference.sample(logits, step=0, seed=1, **draw)).all()
    assert base[0] == reference.sample(logits[:1], step=0, seed=1, **draw)[0]
    assert len(set(base)) == 3
    assert (base != reference.sample(logits, step=1, seed=1, **draw)).any()
    assert (base != reference.sample(logits, step=0, seed=1 + 2**32, **draw)).any()


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_bf16_rounds_to_the_nearest_value(value):
    x = np.array([value], np.float32)
    back = reference.bf16_values(reference.bf16_bits(x))
    assert abs(float(back[0]) - float(x[0])) <= abs(float(x[0])) * 2**-8 + 1e-40
    assert (reference.bf16_bits(back) == reference.bf16_bits(x)).all()
