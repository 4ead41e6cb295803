"""Each search against one written the slow, obvious way, over plain paths and without a session."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, prod, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from models.rollout import Rollout, rollout
from models.search_vote import _beats
from models.session import node_path
from models.tree import Node
from tests.models.toy_world import ToyWorld, start

KEYS = st.integers(0, 10_000)
Path = tuple[int, ...]


class Plain:
    """A toy world addressed by paths of ordinals; every node is grown again from the prompt."""

    def __init__(self, key: int, depth: int, last: int = 1_000) -> None:
        self.world = ToyWorld(key, depth=depth)
        self.last = last  # the depth at which a node runs on to the answer

    def node(self, path: Path) -> Node:
        node = self.world.root
        for depth, ordinal in enumerate(path, 1):
            node = self.world.grow(node, ordinal, "answer" if depth == self.last else "step", None)
            self.world.score(node)
        return node

    def score(self, path: Path) -> float:
        return self.node(path).score

    def done(self, path: Path) -> bool:
        return bool(path) and self.node(path).done

    def answer(self, path: Path) -> int | None:
        return self.node(path).answer

    def chain(self, path: Path) -> Path:
        while not self.done(path):
            path = (*path, 0)
        return path


def play(name: str, key: int, depth: int, **params: float | str) -> Rollout:
    world = ToyWorld(key, depth=depth)
    return rollout(start((name, params), world), world)


def first_best(paths: list[Path], value: Callable[[Path], float]) -> Path:
    highest = max(map(value, paths))
    return next(path for path in paths if value(path) == highest)


def leader(plain: Plain, ends: list[Path]) -> tuple[int | None, float]:
    """The answer with the largest sum of scores, and its share of the scores."""
    sums: dict[int | None, float] = {}
    for path in ends:
        sums[plain.answer(path)] = sums.get(plain.answer(path), 0.0) + plain.score(path)
    whole = sum(sums.values())
    sums.pop(None, None)
    if not sums:
        return None, 0.0
    best = max(sums.values())
    label = next(answer for answer in sums if sums[answer] == best)
    return label, best / whole


@given(
    key=KEYS,
    n=st.integers(1, 5),
    how=st.sampled_from(["min", "product", "mean", "max", "last"]),
)
def test_best_of_n_ranks_a_trajectory_by_the_scores_of_all_its_steps(
    key: int, n: int, how: str
) -> None:
    plain = Plain(key, 5)
    reduce: dict[str, Callable[[list[float]], float]] = {
        "min": min,
        "product": prod,
        "mean": lambda scores: sum(scores) / len(scores),
        "max": max,
        "last": lambda scores: scores[-1],
    }

    def value(path: Path) -> float:
        return reduce[how]([plain.score(path[: k + 1]) for k in range(len(path))][::1])

    ends = [plain.chain((ordinal,)) for ordinal in range(n)]
    ends = [path for path in ends if plain.answer(path) is not None]
    got = play("best_of_n", key, 5, n=n, aggregate=how)
    if not ends:
        assert got.answer is None
        return
    best = first_best(ends, lambda path: round(value(path), 12))
    assert (got.answer, got.signal) == (plain.answer(best), pytest.approx(value(best)))


@given(key=KEYS, n=st.integers(1, 8))
def test_the_first_to_finish_is_the_shortest_trajectory_with_an_answer(key: int, n: int) -> None:
    world = ToyWorld(key)
    ends = [world.grow(world.root, ordinal, "answer", None) for ordinal in range(n)]
    ends = [node for node in ends if node.answer is not None]
    got = play("first_finish", key, 4, n=n)
    if not ends:
        assert got.answer is None
        return
    shortest = min(ends, key=lambda node: (node.tokens, node.ordinal))
    assert got.answer == shortest.answer
    assert got.makespan_tokens == shortest.tokens


@given(
    key=KEYS,
    n=st.integers(1, 12),
    window=st.integers(1, 5),
    certainty=st.sampled_from([0.0, 0.6, 0.8, 0.95, 1.0]),
    weighted=st.booleans(),
)
def test_an_adaptive_vote_stops_after_the_first_window_whose_leader_is_certain(
    key: int, n: int, window: int, certainty: float, weighted: bool
) -> None:
    world = ToyWorld(key)
    ends: list[Node] = []
    while len(ends) < n:
        size = min(window, n - len(ends))
        ends += [world.grow(world.root, len(ends) + i, "answer", None) for i in range(size)]
        for node in ends:
            world.score(node)
        sums: dict[int, float] = {}
        for node in ends:
            if node.answer is not None:
                sums[node.answer] = sums.get(node.answer, 0.0) + (node.score if weighted else 1)
        lead, second = sorted([*sums.values(), 0.0, 0.0], reverse=True)[:2]
        if sums and beta.sf(0.5, lead + 1, second + 1) >= certainty:
            break
    name = "adaptive_vote" if weighted else "adaptive_consistency"
    got = play(name, key, 4, n=n, window=window, certainty=certainty)
    assert got.expansions == len(ends)
    assert got.answer == (max(sums, key=lambda a: sums[a]) if sums else None)
    if sums:
        whole = sum(node.score if weighted else 1 for node in ends)
        assert got.signal == pytest.approx((lead + 1) / (whole + 2))


@given(lead=st.integers(0, 40), second=st.integers(0, 40))
def test_the_certainty_of_whole_votes_is_the_tail_of_a_beta_distribution(
    lead: int, second: int
) -> None:
    assert _beats(lead, second) == pytest.approx(beta.sf(0.5, lead + 1, second + 1), abs=1e-12)


@given(key=KEYS, subtrees=st.integers(1, 4), expand=st.integers(1, 3), max_steps=st.integers(1, 6))
def test_dvts_is_a_greedy_path_for_each_subtree_and_the_best_of_their_ends(
    key: int, subtrees: int, expand: int, max_steps: int
) -> None:
    plain = Plain(key, 5, max_steps)
    ends = []
    for tree in range(subtrees):
        first = [(tree * expand + i,) for i in range(expand)]
        path = first_best(first, plain.score)
        while not plain.done(path):
            path = first_best([(*path, i) for i in range(expand)], plain.score)
        ends.append(path)
    ends = [path for path in ends if plain.answer(path) is not None]
    got = play("dvts", key, 5, subtrees=subtrees, expand=expand, max_steps=max_steps)
    if not ends:
        assert got.answer is None
        return
    best = first_best(ends, plain.score)
    assert (got.answer, got.signal) == (plain.answer(best), plain.score(best))


@given(
    key=KEYS,
    n=st.integers(1, 7),
    temperature=st.sampled_from([0.02, 0.2, 1.0, 50.0]),
    max_steps=st.integers(1, 6),
)
def test_rebase_shares_out_by_softmax_and_votes_with_the_scores(
    key: int, n: int, temperature: float, max_steps: int
) -> None:
    plain = Plain(key, 5, max_steps)
    live: list[tuple[Path, int]] = [((), n)]
    ends: list[Path] = []
    while live:
        fresh = [(*path, i) for path, count in live for i in range(count)]
        ends += [path for path in fresh if plain.done(path)]
        growing = [path for path in fresh if not plain.done(path)]
        whole = sum(exp(plain.score(path) / temperature) for path in growing)
        left = n - len(ends)
        quota = {path: left * exp(plain.score(path) / temperature) / whole for path in growing}
        count = {path: int(quota[path] + 1e-9) for path in growing}
        for _ in range(left - sum(count.values())):
            owed = {path: round(quota[path] - count[path], 9) for path in growing}
            count[first_best(growing, owed.__getitem__)] += 1
        live = [(path, count[path]) for path in growing if count[path]]
    assert len(ends) == n
    got = play("rebase", key, 5, n=n, temperature=temperature, max_steps=max_steps)
    label, share = leader(plain, ends)
    assert (got.answer, got.trajectories) == (label, 0 if label is None else n)
    assert got.signal == pytest.approx(share)


@given(
    key=KEYS,
    width=st.integers(1, 3),
    expand=st.integers(1, 2),
    max_children=st.integers(1, 5),
    confidence=st.sampled_from([0.0, 0.5, 0.7, 1.0]),
    margin=st.sampled_from([0.0, 0.2, 1.0]),
    stop=st.sampled_from([0.5, 0.7, 1.0]),
    max_steps=st.integers(1, 6),
)
def test_tree_search_widens_the_unconvinced_prunes_by_margin_and_stops_when_sure(
    key: int, width: int, expand: int, max_children: int, confidence: float, margin: float,
    stop: float, max_steps: int,
) -> None:  # fmt: skip
    plain = Plain(key, 5, max_steps)
    live: list[Path] = [()]
    ends: list[Path] = []
    while live:
        rounds: list[Path] = []
        count = dict.fromkeys(live, 0)
        widen = live
        while widen:
            for path in widen:
                rounds += [(*path, count[path] + i) for i in range(expand)]
                count[path] += expand
            sure = {path[:-1] for path in rounds if plain.score(path) >= confidence}
            widen = [p for p in live if p not in sure and count[p] < max_children]
        pool = [*ends, *rounds]
        kept: list[Path] = []
        while pool and len(kept) < width:
            kept.append(first_best(pool, plain.score))
            pool.remove(kept[-1])
        kept = [p for p in kept if plain.score(p) >= plain.score(kept[0]) - margin]
        ends = [path for path in kept if plain.done(path)]
        live = [path for path in kept if not plain.done(path)]
        if any(plain.score(p) >= stop and plain.answer(p) is not None for p in ends):
            break
        if live and plain.score(live[0]) >= stop:
            ends.append(plain.chain((*live[0], 0)))
            break
    got = play(
        "tree_search", key, 5, width=width, expand=expand, max_children=max_children,
        confidence=confidence, margin=margin, stop=stop, max_steps=max_steps,
    )  # fmt: skip
    answers = [path for path in ends if plain.answer(path) is not None]
    if not answers:
        assert got.answer is None or live
        return
    best = first_best(answers, plain.score)
    assert (got.answer, got.signal) == (plain.answer(best), plain.score(best))


@given(
    key=KEYS,
    simulations=st.integers(1, 12),
    expand=st.integers(1, 3),
    exploration=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    parallel=st.integers(1, 4),
)
def test_mcts_visits_what_puct_says_when_all_visits_are_counted_again_every_time(
    key: int, simulations: int, expand: int, exploration: float, parallel: int
) -> None:
    plain = Plain(key, 4)
    real: list[tuple[Path, float]] = []  # every visit: where it ended and what that was worth
    count: dict[Path, int] = {}  # children of what was expanded

    def visits(path: Path, under_way: list[Path]) -> int:
        ends = [*(at for at, _ in real), *under_way]
        return sum(at[: len(path)] == path for at in ends)

    def puct(path: Path, under_way: list[Path]) -> float:
        value = sum(worth for at, worth in real if at[: len(path)] == path)
        n, above = visits(path, under_way), visits(path[:-1], under_way)
        return value / n + exploration / count[path[:-1]] * sqrt(above) / (1 + n)

    left = simulations
    while left:
        under_way: list[Path] = []
        for _ in range(min(parallel, left)):
            at: Path = ()
            while at in count:
                children = [(*at, i) for i in range(count[at])]
                at = first_best(children, lambda p: round(puct(p, under_way), 9))  # noqa: B023
            at = at[:-1] if plain.done(at) else at
            if at in under_way:
                break
            under_way.append(at)
        left -= len(under_way)
        for path in under_way:
            first = count.get(path, 0)
            count[path] = first + expand
            real += [((*path, first + i), plain.score((*path, first + i))) for i in range(expand)]
    world = ToyWorld(key)
    params = {"simulations": simulations, "expand": expand}
    got = rollout(
        start(("mcts", params | {"exploration": exploration, "parallel": parallel}), world), world
    )
    grown = {node_path(node) for node in world.grown}
    expected = {(*path, i) for path in count for i in range(count[path])}
    ends = [path for path, _ in real if plain.done(path)]
    label, share = leader(plain, ends)
    if label is None:
        assert len(grown - expected) <= 1
        return
    assert grown == expected
    assert (got.answer, got.signal) == (label, pytest.approx(share))


@given(
    key=KEYS,
    n=st.integers(1, 7),
    chains=st.integers(1, 4),
    stop=st.sampled_from([0.0, 0.5, 0.7, 1.0]),
)
def test_revision_goes_on_in_each_chain_until_a_try_scores_enough_and_votes_with_all(
    key: int, n: int, chains: int, stop: float
) -> None:
    world = ToyWorld(key)
    ends: list[Node] = []
    for chain in range(min(chains, n)):
        node, ordinal = world.root, chain
        for _ in range(len(range(chain, n, chains))):
            node = world.grow(node, ordinal, "answer", None)
            world.score(node)
            ends.append(node)
            ordinal = 0
            if node.score >= stop:
                break
    sums: dict[int, float] = {}
    for node in ends:
        if node.answer is not None:
            sums[node.answer] = sums.get(node.answer, 0.0) + node.score
    got = play("revision", key, 4, n=n, chains=chains, inject=1, stop=stop)
    assert (got.expansions, got.scores) == (len(ends), len(ends))
    assert got.answer == (max(sums, key=lambda a: sums[a]) if sums else None)


@given(key=KEYS, least=st.integers(1, 40), most=st.integers(1, 50), waits=st.integers(0, 3))
def test_a_long_chain_waits_when_it_is_too_short_and_concludes_when_it_is_too_long(
    key: int, least: int, most: int, waits: int
) -> None:
    world = ToyWorld(key)
    node = world.grow(world.root, 0, "answer", most)
    thought, answers, grown = node.tokens, [node.answer], 1
    while node.done and len(answers) <= waits and thought < least and thought < most:
        node = world.grow(node, 0, "answer", most - thought)
        thought += node.tokens
        answers.append(node.answer)
        grown += 1
    forced = not node.done
    if forced:
        answers[-1] = world.grow(node, 0, "conclude", None).answer
        grown += 1
    got = play("long_chain", key, 4, min_think=least, max_think=most, waits=waits)
    known = [answer for answer in answers if answer is not None]
    assert got.expansions == grown
    assert got.answer == (known[-1] if known else None)
    if known:
        share = known.count(known[-1]) / (len(known) + 1)
        assert got.signal == (share / 2 if forced else share)
    assert got.makespan_tokens == got.tokens <= most + 2
