"""The slow replica against event logs worked out by hand from docs/engine.md."""

import random

import pytest

from tests.reference.slow import DoesNotFitError, Settings, SlowBatch


class Cost:
    """A cost whose parts can be told apart; it notes every (b, c) it is asked for."""

    def __init__(self, saturation=4.0):
        self.saturation = saturation
        self.kv_s = 0.25
        self.copy_s = 0.5
        self.asked = []

    def base_s(self, b, c):
        self.asked.append((b, c))
        return 100.0 + 10 * b + c

    def reading(self, b, c, read):
        return self.kv_s * read, self.kv_s, float("inf")

    def alpha(self, b, mixed):
        return 0.0

    def context_s(self, c):
        return c / 8


def replica(block_size, num_gpu_blocks, max_num_seqs=8, budget=64, saturation=4.0, **more):
    settings = Settings(block_size, num_gpu_blocks, max_num_seqs, budget, **more)
    return SlowBatch(settings, Cost(saturation))


def log(batch, *nodes, until=None):
    """One row per tick: tick, finished branches, used pages, resident tokens of the nodes."""
    rows = []
    while batch.tick != until:
        finished = batch.step()
        if finished is None:
            break
        row = (batch.tick, [branch.number for branch in finished], batch.used_pages())
        rows.append(row + tuple(batch.resident(node) for node in nodes))
    return rows


def test_one_branch_prefills_its_prompt_and_writes_into_its_last_page():
    batch = replica(4, 4)
    root = batch.prompt(0, 6)
    branch = batch.branch(root, 3)
    assert log(batch, root, branch.node) == [
        (1, [], (2, 0, 2), 5, 1),
        (2, [], (2, 0, 2), 5, 2),
        (3, [0], (0, 2, 2), 5, 3),
    ]
    assert (batch.pages(root), batch.pages(branch.node)) == (2, 0)
    assert batch.cost.asked == [(0, 6), (1, 0), (1, 0)]
    # 106 + 6/8 * (0 + 3); then 110 + (5 + 1) / 4; then 110 + (5 + 2) / 4.
    assert (branch.first_token_tick, branch.first_token_s) == (1, 108.25)
    assert (branch.finish_tick, branch.finish_s) == (3, 108.25 + 111.5 + 111.75)
    assert batch.step() is None
    assert batch.tick == 3


@pytest.mark.parametrize(
    ("attention", "saturation", "second", "third"),
    [("shared", 4.0, 8, 10), ("shared", 1.0, 13, 15), ("naive", 4.0, 13, 15)],
)
def test_the_second_child_copies_the_tail_and_samples_from_the_same_logits(
    attention, saturation, second, third
):
    batch = replica(4, 8, saturation=saturation, attention=attention)
    root = batch.prompt(0, 6)
    first, other = batch.branch(root, 3), batch.branch(root, 3)
    assert log(batch, root, first.node, other.node) == [
        (1, [], (3, 0, 5), 5, 1, 2),
        (2, [], (3, 0, 5), 5, 2, 3),
        (3, [0, 1], (0, 3, 5), 5, 3, 4),
    ]
    assert (batch.pages(first.node), batch.pages(other.node)) == (0, 1)
    assert batch.cost.asked == [(0, 6), (2, 0), (2, 0)]
    assert other.first_token_s == 106 + 2.25 + 0.5
    assert batch.now == other.first_token_s + 120 + second / 4 + 120 + third / 4


def test_a_recomputed_tail_is_prefill():
    batch = replica(4, 8, fork="recompute_tail")
    root = batch.prompt(0, 6)
    first, other = batch.branch(root, 3), batch.branch(root, 3)
    assert log(batch, root, first.node, other.node)[0] == (1, [], (3, 0, 5), 5, 1, 2)
    assert batch.cost.asked == [(0, 8), (2, 0), (2, 0)]
    # Two chunks: 6 tokens over nothing, then 2 tokens over the 5 just computed.
    assert other.first_token_s == 108 + 6 / 8 * 3 + 2 / 8 * (5 + 1)


def test_a_recomputed_tail_waits_for_token_budget():
    batch = replica(4, 8, budget=7, fork="recompute_tail")
    root = batch.prompt(0, 6)
    first, other = batch.branch(root, 3), batch.branch(root, 3)
    assert log(batch, first.node, other.node) == [
        (1, [], (3, 0, 5), 1, 1),
        (2, [], (3, 0, 5), 2, 2),
        (3, [0], (3, 0, 5), 3, 3),
        (4, [1], (0, 3, 5), 3, 4),
    ]
    assert batch.cost.asked == [(0, 7), (1, 1), (2, 0), (1, 0)]
    assert (first.first_token_tick, other.first_token_tick) == (1, 2)


def test_a_long_prompt_is_prefilled_in_chunks_beside_a_decoder():
    batch = replica(4, 16, budget=4)
    decoder = batch.branch(batch.prompt(0, 1), 6)
    assert batch.step() == []
    root = batch.prompt(1, 8)
    late = batch.branch(root, 2)
    assert log(batch, decoder.node, root, late.node) == [
        (2, [], (2, 0, 14), 2, 3, 0),
        (3, [], (3, 0, 13), 3, 6, 0),
        (4, [], (3, 0, 13), 4, 7, 1),
        (5, [1], (2, 3, 11), 5, 7, 2),
        (6, [0], (0, 5, 11), 6, 7, 2),
    ]
    assert batch.cost.asked == [(1, 0), (1, 3), (1, 3), (1, 2), (2, 0), (1, 0)]
    assert (late.first_token_tick, late.finish_tick) == (4, 5)


def test_the_partial_prefill_rests_while_decoders_use_the_whole_budget():
    batch = replica(4, 8, budget=4)
    root = batch.prompt(0, 3)
    for _ in range(4):  # one computes, three sample from its logits: 3 of 4 tokens of budget
        batch.branch(root, 2)
    late = batch.prompt(1, 3)
    batch.branch(late, 1)
    assert log(batch, late) == [
        (1, [], (5, 0, 3), 1),
        (2, [0, 1, 2, 3], (1, 4, 3), 1),
        (3, [4], (0, 5, 3), 2),
    ]
    assert batch.cost.asked == [(0, 4), (4, 0), (0, 2)]


def test_nothing_new_is_admitted_beside_an_unfinished_chunk():
    batch = replica(4, 8, budget=2)
    a = batch.branch(batch.prompt(0, 1), 2)
    batch.branch(batch.prompt(1, 4), 1)
    assert batch.step() == []
    batch.branch(a.node.parent, 3)  # its query goes first, but not yet
    assert [row[:2] for row in log(batch)] == [(2, [0]), (3, [1]), (4, []), (5, []), (6, [2])]
    assert batch.cost.asked == [(1, 1), (1, 1), (0, 2), (1, 0), (1, 0), (1, 0)]


def test_overflow_preempts_the_tail_which_recomputes_what_was_reclaimed():
    batch = replica(2, 4)
    old = batch.branch(batch.prompt(0, 1), 5)
    young = batch.branch(batch.prompt(1, 1), 5)
    assert log(batch, old.node, young.node) == [
        (1, [], (2, 0, 2), 1, 1),
        (2, [], (2, 0, 2), 2, 2),
        (3, [], (4, 0, 0), 3, 3),
        (4, [], (4, 0, 0), 4, 4),
        (5, [0], (0, 4, 0), 5, 2),  # the young one stops and loses a page
        (6, [1], (0, 4, 0), 2, 5),  # it computes 2 tokens again, and its last
    ]
    assert batch.cost.asked == [(2, 0)] * 4 + [(1, 0), (0, 3)]
    assert (old.num_preemptions, young.num_preemptions, batch.num_preemptions) == (0, 1, 1)


def test_nothing_is_admitted_in_a_tick_that_preempted():
    batch = replica(2, 4)
    old = batch.branch(batch.prompt(0, 1), 7)
    batch.branch(batch.prompt(1, 1), 5)
    log(batch, until=4)
    small = batch.branch(old.node.parent, 1)
    assert batch.step() == []
    assert small.first_token_tick is None
    assert batch.step() == [small]
    assert small.finish_tick == 6


def test_a_query_that_does_not_fit_alone_is_an_error():
    growing = replica(2, 2)
    growing.branch(growing.prompt(0, 1), 5)
    with pytest.raises(DoesNotFitError):
        log(growing)
    large = replica(2, 2)
    large.branch(large.prompt(0, 9), 5)
    with pytest.raises(DoesNotFitError):
        log(large)


def test_pages_are_reclaimed_from_the_youngest_query_and_the_latest_node_first():
    batch = replica(2, 6)
    root = batch.prompt(0, 1)
    a, b = batch.branch(root, 2), batch.branch(root, 2)
    c = batch.branch(batch.prompt(1, 1), 4)
    log(batch)
    assert (batch.tick, batch.used_pages()) == (4, (0, 4, 2))
    d = batch.branch(batch.prompt(2, 1), 12)
    rows = log(batch, a.node, b.node, c.node)
    assert [row[0] for row in rows] == list(range(5, 17))
    assert [row[3:] for row in rows] == (
        [(2, 2, 4)] * 4  # ticks 5 and 7 take the free pages
        + [(2, 2, 2)] * 2
        + [(2, 2, 0)] * 2
        + [(2, 0, 0)] * 2
        + [(0, 0, 0)] * 2
    )
    assert d.finish_tick == 16


def test_a_child_keeps_its_tokens_in_the_parents_page_until_that_page_goes():
    batch = replica(4, 4)
    root = batch.prompt(0, 6)
    child = batch.branch(root, 5)
    log(batch)
    assert (batch.tick, batch.pages(root), batch.pages(child.node)) == (5, 2, 1)
    batch.branch(batch.prompt(1, 1), 13)
    rows = log(batch, root, child.node)
    assert [row[3:] for row in rows] == ([(5, 5)] * 4 + [(5, 3)] * 4 + [(4, 0)] * 4 + [(0, 0)])


def test_a_tail_page_shared_by_three_generations_takes_all_their_tokens_with_it():
    batch = replica(8, 2)
    root = batch.prompt(0, 3)
    child = batch.branch(root, 2)
    log(batch)
    grandchild = batch.branch(child.node, 2)
    log(batch)
    assert batch.used_pages() == (0, 1, 1)
    other = batch.branch(batch.prompt(1, 1), 9)
    rows = log(batch, root, child.node, grandchild.node)
    assert [row[3:] for row in rows] == [(2, 2, 2)] * 8 + [(0, 0, 0)]
    assert other.finish_tick == 4 + 9


def test_the_second_query_finds_the_prefix_of_the_first():
    batch = replica(2, 16)
    chain = (("system", 2), ("tools", 2))
    first = batch.prompt(0, 6, chain)
    batch.branch(first, 1)
    assert log(batch) == [(1, [0], (0, 3, 13))]
    batch.drop(first)
    assert batch.used_pages() == (0, 2, 14)
    second = batch.prompt(1, 8, chain)
    assert second.parent is first.parent
    batch.branch(second, 1)
    # 3 own tokens from the start of a page, the last token, and a first write in place.
    assert log(batch, second) == [(2, [1], (0, 4, 12), 3)]
    batch.branch(batch.prompt(2, 4, chain[:1]), 1)
    assert log(batch) == [(3, [2], (0, 5, 11))]
    assert batch.cost.asked == [(0, 6), (0, 4), (0, 2)]
    assert batch.now == 106 + 0.75 * 3 + 104 + 0.5 * (4 + 2) + 102 + 0.25 * (2 + 1)


def test_prefix_nodes_are_reclaimed_first_and_leaf_first_and_come_back_when_needed():
    batch = replica(2, 4)
    root = batch.prompt(0, 6, (("system", 2), ("tools", 2)))
    child = batch.branch(root, 1)
    tools, system = root.parent, root.parent.parent
    assert log(batch) == [(1, [0], (0, 3, 1))]
    other = batch.branch(batch.prompt(1, 1), 5)
    assert [row[2:] for row in log(batch, system, tools, root, child.node)] == [
        ((1, 3, 0), 2, 2, 1, 1),
        ((1, 3, 0), 2, 2, 1, 1),
        ((2, 2, 0), 2, 0, 1, 1),
        ((2, 2, 0), 2, 0, 1, 1),
        ((0, 4, 0), 0, 0, 1, 1),
    ]
    batch.drop(other.node.parent)
    batch.branch(root, 1)  # a copy: its tail of 1 token comes with its first write
    assert log(batch, system, tools, root) == [(7, [2], (0, 4, 0), 2, 2, 1)]
    assert batch.cost.asked[-1] == (0, 5)


def test_the_prefix_unpinned_longest_ago_is_reclaimed_first():
    batch = replica(2, 5)
    roots = [batch.prompt(query, 3, ((key, 2),)) for query, key in enumerate("ab")]
    batch.branch(roots[0], 2)  # unpins "a" in tick 2
    batch.branch(roots[1], 1)  # unpins "b" in tick 1
    log(batch)
    assert batch.used_pages() == (0, 4, 1)
    batch.branch(batch.prompt(2, 1), 5)
    rows = log(batch, roots[0].parent, roots[1].parent)
    assert [row[3:] for row in rows] == [(2, 2)] * 2 + [(2, 0)] * 2 + [(0, 0)]


def test_dropping_a_running_node_frees_its_pages_and_stops_its_branch():
    batch = replica(2, 8)
    root = batch.prompt(0, 3)
    a, b = batch.branch(root, 4), batch.branch(root, 4)
    assert log(batch, until=2) == [(1, [], (3, 0, 5)), (2, [], (3, 0, 5))]
    batch.drop(a.node)
    assert batch.used_pages() == (2, 0, 6)
    assert log(batch) == [(3, [], (3, 0, 5)), (4, [1], (0, 3, 5))]
    assert batch.cost.asked == [(0, 3), (2, 0), (1, 0), (1, 0)]
    assert (a.finish_tick, b.finish_tick) == (None, 4)
    again = batch.branch(root, 1)
    assert again.node.in_place, "the dropped child left its place"
    batch.drop(root)
    assert batch.used_pages() == (0, 0, 8)
    assert batch.step() is None


def test_dropping_the_partial_prefill_lets_the_next_one_in():
    batch = replica(2, 8, budget=4)
    long = batch.prompt(0, 9)
    batch.branch(long, 1)
    batch.branch(batch.prompt(1, 2), 1)
    assert log(batch, long, until=1) == [(1, [], (2, 0, 6), 4)]
    batch.drop(long)
    assert log(batch) == [(2, [1], (0, 1, 7))]


def test_a_prefill_only_branch_brings_given_tokens_in_and_writes_nothing():
    batch = replica(4, 8, budget=8)
    root = batch.prompt(0, 6)
    given = batch.given(root, 4)
    scoring = batch.prefill(given)
    assert log(batch, root, given) == [
        (1, [], (2, 0, 6), 5, 3),
        (2, [0], (0, 3, 5), 5, 4),
    ]
    assert batch.cost.asked == [(0, 8), (0, 2)]
    assert (scoring.first_token_tick, scoring.finish_tick) == (None, 2)
    again = batch.prefill(given)  # nothing is missing: a chunk of one token over 9
    below = batch.branch(given, 1)
    assert log(batch, given, below.node) == [(3, [1, 2], (0, 3, 5), 4, 1)]
    assert batch.cost.asked[-1] == (1, 1)
    assert again.finish_s - scoring.finish_s == 111 + 9 / 4 + (9 + 1 / 2) / 8


def test_the_tail_of_a_given_copy_is_computed():
    batch = replica(4, 8)
    root = batch.prompt(0, 6)
    batch.branch(root, 1)
    given = batch.given(root, 4)
    log(batch)
    batch.prefill(given)
    assert log(batch, given) == [(2, [1], (0, 4, 4), 5)]
    assert batch.cost.asked[-1] == (0, 6)


def test_no_more_than_max_num_seqs_branches_run():
    batch = replica(2, 8, max_num_seqs=2)
    root = batch.prompt(0, 1)
    branches = [batch.branch(root, ticks) for ticks in (2, 3, 2)]
    assert log(batch) == [
        (1, [], (2, 0, 6)),
        (2, [0], (1, 1, 6)),
        (3, [1], (1, 3, 4)),
        (4, [2], (0, 4, 4)),
    ]
    assert [branch.first_token_tick for branch in branches] == [1, 1, 3]


def test_a_search_waits_until_an_active_one_is_dropped():
    batch = replica(2, 8, max_active_searches=1)
    first, second = batch.prompt(0, 1), batch.prompt(1, 1)
    batch.branch(second, 1)
    batch.drop(second)  # never admitted, so it never was active
    other = batch.branch(batch.prompt(2, 1), 1)
    batch.branch(first, 1)
    assert log(batch) == [(1, [2], (0, 1, 7))]
    assert batch.step() is None
    assert other.finish_tick is None
    batch.drop(first)
    assert log(batch) == [(2, [1], (0, 1, 7))]


def test_branches_of_admitted_queries_go_before_new_queries():
    batch = replica(2, 8, max_num_seqs=1)
    late = batch.prompt(1, 1)
    batch.branch(late, 1)
    batch.step()
    early = batch.branch(batch.prompt(0, 1), 1)
    batch.branch(late, 1)
    assert [row[1] for row in log(batch)] == [[2], [1]]
    assert early.finish_tick == 3


@pytest.mark.parametrize("attention", ["shared", "naive"])
def test_without_sharing_the_second_child_copies_all_it_reads(attention):
    batch = replica(4, 8, sharing="per_branch", attention=attention)
    root = batch.prompt(0, 6)
    first, other = batch.branch(root, 2), batch.branch(root, 2)
    assert log(batch, root, first.node, other.node) == [
        (1, [], (4, 0, 4), 5, 1, 6),
        (2, [0, 1], (0, 4, 4), 5, 2, 7),
    ]
    assert batch.cost.asked == [(0, 6), (2, 0)]
    assert batch.now == (106 + 2.25 + 5 * 0.5) + (120 + (5 + 1 + 6) / 4)


def random_replica(rng, sharing):
    p = rng.choice([1, 2, 3, 4])
    return replica(
        p,
        40 // p + rng.choice([0, 0, 10]),
        max_num_seqs=rng.choice([1, 3, 8]),
        budget=rng.choice([2, 5, 64]),
        max_active_searches=rng.choice([None, None, 3]),
        sharing=sharing,
        fork=rng.choice(["copy_tail", "recompute_tail"]),
        attention=rng.choice(["shared", "naive"]),
    )


def random_prompt(rng, batch, query):
    p, m = batch.settings.block_size, rng.randint(1, 9)
    keys = [rng.choice("xy") for _ in range((m - 1) // p)][: rng.randint(0, 2)]
    chain = [(key, p) for key in keys] if batch.settings.sharing == "tree" else []
    return batch.prompt(query, m, chain)


def random_act(rng, batch, roots, complete, made):
    """One submission, drop or tick; new complete nodes and branches are appended."""
    what = rng.random()
    if what < 0.1 and len(roots) < 4:
        roots.append(random_prompt(rng, batch, len(roots)))
        complete.append(roots[-1])
    elif what < 0.5 and complete:
        made.append(batch.branch(rng.choice(complete), rng.randint(1, 6)))
    elif what < 0.54 and complete:
        complete.append(batch.given(rng.choice(complete), rng.randint(1, 6)))
    elif what < 0.58 and complete:
        made.append(batch.prefill(rng.choice(complete)))
    elif what < 0.62 and len(complete) > 4:
        batch.drop(rng.choice(complete))
    else:
        complete.extend(branch.node for branch in batch.step() or [])


def run_until_idle(batch):
    while batch.step() is not None:
        pass


@pytest.mark.parametrize("seed", range(40))
def test_random_worlds_keep_every_invariant_and_end_with_all_pages_free(seed):
    rng = random.Random(seed)
    batch = random_replica(rng, rng.choice(["tree", "tree", "per_branch"]))
    roots, complete, made = [], [], []
    for _ in range(80):
        random_act(rng, batch, roots, complete, made)
        shallow = [node for node in dict.fromkeys(complete) if node.path <= 21]
        complete = [node for node in shallow if node.alive]
    run_until_idle(batch)
    for root in roots:
        if root.alive:
            batch.drop(root)
        run_until_idle(batch)
    assert all(branch.finish_tick is not None for branch in made if branch.node.alive)
    pinned, cached, _ = batch.used_pages()
    assert pinned == 0
    assert cached == sum(batch.pages(node) for node in batch.nodes)
    assert all(node.kind == "prefix" for node in batch.nodes)
