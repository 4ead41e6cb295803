"""Questions: the same chain however it is grown, published figures, and lengths."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.keyed import root_key
from models.lengths import quantile
from models.presets import catalogue
from models.question import question_model
from models.rollout import rollout
from models.search import beam
from models.tree import Node, Tree
from models.verifier import verifier_model
from models.world import World

PRESETS = sorted(catalogue()["questions"])
KEYS = st.integers(0, 2**64 - 1)
OVERRIDES: list[dict[str, Any]] = [
    {},
    {"output_tokens": {"kind": "lognormal", "median": 300, "sigma": 0.7}},
    {"output_tokens": {"kind": "constant", "value": 3}},
    {"output_tokens_given": 123},
]


@cache
def model(name: str) -> Any:
    return question_model(name)


def world(name: str, key: int, **kwargs: Any) -> World:
    built = model(name)
    return built.world(key, 200, verifier_model(built.verifier), **kwargs)


def worlds(name: str, n: int, seed: int = 0, **kwargs: Any) -> list[World]:
    return [world(name, root_key(seed, 0, 1, i), **kwargs) for i in range(n)]


def chain(w: World, node: Node, ordinal: int, cuts: list[int] | None = None) -> list[Node]:
    """Grow to the end of the answer: step by step, or with `cuts` in pieces of so many tokens."""
    nodes: list[Node] = []
    for i in range(10_000):
        until, cap = ("step", None) if cuts is None else ("answer", cuts[i % len(cuts)])
        node = w.grow(node, 0 if nodes else ordinal, until, cap)  # type: ignore[arg-type]
        nodes.append(node)
        if node.done:
            return nodes
    raise AssertionError("the chain never ends")


def state(nodes: list[Node]) -> tuple[Any, ...]:
    end = nodes[-1]
    tokens, shown = sum(n.tokens for n in nodes), sum(n.answer_tokens for n in nodes)
    return end.key, end.depth, end.answer, end.path_tokens, tokens, shown, end.done


@pytest.mark.parametrize("name", PRESETS)
@given(key=KEYS, ordinal=st.integers(0, 20), override=st.sampled_from(OVERRIDES))
@settings(max_examples=30)
def test_a_whole_answer_equals_the_same_chain_grown_step_by_step(
    name: str, key: int, ordinal: int, override: dict[str, Any]
) -> None:
    w = world(name, key, **override)
    whole, steps = w.grow(w.root, ordinal, "answer", None), chain(w, w.root, ordinal)
    assert state([whole]) == state(steps)
    assert w.score(whole) == w.score(steps[-1])
    assert whole.depth == len(steps)
    assert all(n.tokens >= 1 and n.answer is None and not n.done for n in steps[:-1])


@pytest.mark.parametrize("name", PRESETS)
@given(
    key=KEYS,
    cuts=st.lists(st.integers(20, 900), min_size=1, max_size=4),
    override=st.sampled_from(OVERRIDES),
)
@settings(max_examples=30)
def test_a_chain_cut_anywhere_and_resumed_equals_the_chain_left_alone(
    name: str, key: int, cuts: list[int], override: dict[str, Any]
) -> None:
    w = world(name, key, **override)
    whole, pieces = w.grow(w.root, 1, "answer", None), chain(w, w.root, 1, cuts)
    assert state([whole]) == state(pieces)
    assert w.score(whole) == w.score(pieces[-1])
    for piece, cap in zip(pieces[:-1], cuts * len(pieces), strict=False):
        assert (piece.tokens, piece.done, piece.answer) == (cap, False, None)
        assert 0 <= piece.answer_tokens <= piece.tokens


@given(key=KEYS, order=st.permutations(range(6)))
@settings(max_examples=30)
def test_nothing_depends_on_the_order_of_calls(key: int, order: list[int]) -> None:
    first, second = world("math-500", key), world("math-500", key)
    straight = [first.grow(first.root, o, "answer") for o in range(6)]
    scores = [first.score(n) for n in straight]
    mixed = {}
    for o in order:
        mixed[o] = second.grow(second.root, o, "answer")
        second.grow(mixed[o].parent or second.root, o + 100)  # something else in between
        second.score(mixed[o])
    assert [state([mixed[o]]) for o in range(6)] == [state([n]) for n in straight]
    assert [mixed[o].score for o in range(6)] == scores


def test_children_of_a_truncated_node_share_its_remainder_and_part_after_it() -> None:
    for w in worlds("math-500", 200):
        cut = w.grow(w.root, 0, "step", 5)
        if cut.hidden[4] is None:
            continue  # the step had at most 5 tokens
        a, b = w.grow(cut, 0), w.grow(cut, 1)
        assert (a.tokens, a.depth, a.hidden[:3]) == (b.tokens, b.depth, b.hidden[:3])
        assert a.key != b.key
        assert a.tokens + 5 == w.grow(w.root, 0).tokens


def test_math_500_reaches_the_published_accuracy_of_majority_best_of_n_and_weighted_vote() -> None:
    """Design notes on search, MATH-500 table: the fitted model, within .03 on 2,500 questions (SE .01)."""
    right: Counter[tuple[str, int]] = Counter()
    tokens, questions = 0, 2_500
    for w in worlds("math-500", questions, seed=1):
        nodes = [w.grow(w.root, o, "answer") for o in range(16)]
        scores = [w.score(n) for n in nodes]
        tokens += sum(n.tokens for n in nodes)
        for n in (2, 4, 8, 16):
            votes, weights = Counter[int | None](), Counter[int | None]()
            for node, score in zip(nodes[:n], scores, strict=False):
                votes[node.answer] += 1
                weights[node.answer] += score  # type: ignore[assignment]
            best = max(range(n), key=scores.__getitem__)
            chosen = {
                "majority": votes.most_common(1)[0][0],
                "best-of-n": nodes[best].answer,
                "weighted": weights.most_common(1)[0][0],
            }
            right.update((rule, n) for rule, answer in chosen.items() if w.is_correct(answer))
    published = {
        "majority": (0.419, 0.526, 0.600, 0.643),
        "best-of-n": (0.523, 0.600, 0.653, 0.687),
        "weighted": (0.523, 0.608, 0.669, 0.710),
    }
    for rule, row in published.items():
        reached = [right[rule, n] / questions for n in (2, 4, 8, 16)]
        assert reached == pytest.approx(row, abs=0.03), rule
    assert tokens / questions == pytest.approx(7_976, rel=0.03)


def test_math_500_beam_finds_more_than_its_verifier_can_select() -> None:
    """Design notes on search, beam at N = 16: .790 any of the final beams, .719 selected by the verifier."""
    selected = found = 0
    questions = 1_000
    for w in worlds("math-500", questions, seed=2):
        search = beam(Tree(w.root), width=4, expand=4, max_steps=20)
        result = rollout(search, w)
        selected += result.correct
        found += any(w.is_correct(n.answer) for n in result.tree.leaves)
    assert selected / questions == pytest.approx(0.719, abs=0.045)
    assert found / questions == pytest.approx(0.790, abs=0.045)


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        (
            "game-24",
            {1: 0.040, 2: 0.073, 5: 0.143, 10: 0.215, 20: 0.296, 50: 0.407, 100: 0.490},
            0.02,
        ),
        ("aime", {1: 0.403, 2: 0.525, 4: 0.624, 8: 0.710}, 0.02),
        ("math-500", {100: 0.882, 10_000: 0.957}, 0.02),
    ],
)
def test_pass_at_k_follows_the_published_coverage(
    name: str, published: dict[int, float], tolerance: float
) -> None:
    p = np.array([w.difficulty for w in worlds(name, 6_000)])
    reached = {k: float(np.mean(1 - (1 - p) ** k)) for k in published}
    assert reached == pytest.approx(published, abs=tolerance)


@pytest.mark.parametrize("name", PRESETS)
def test_the_pass_rate_of_each_question_is_its_latent_difficulty(name: str) -> None:
    z = []
    for w in worlds(name, 150, seed=3):
        p, n = w.difficulty, 40
        right = sum(w.is_correct(w.grow(w.root, o, "answer").answer) for o in range(n))
        if 0.05 < p < 0.95:
            z.append((right - n * p) / math.sqrt(n * p * (1 - p)))
    assert len(z) > 15
    assert abs(np.mean(z)) < 4 / math.sqrt(len(z))
    assert 0.6 < np.std(z) < 1.4


def test_wrong_answers_repeat_as_often_as_gem_says() -> None:
    same = pairs = 0
    for w in worlds("math-500", 1_500):
        a, b = (w.grow(w.root, o, "answer").answer for o in (0, 1))
        if not w.is_correct(a) and not w.is_correct(b):
            pairs += 1
            same += a == b
    assert same / pairs == pytest.approx(1 / 8, abs=0.045)  # 1 / (1 + theta), theta = 7


def test_diversity_lets_further_children_survive_more_and_leaves_whole_tries_alone() -> None:
    base = {"preset": "game-24", "pass_rate": {"kind": "beta", "a": 50, "b": 50}, "kappa": 50}
    alive: dict[float, list[float]] = {}
    for phi in (0.0, 0.5):
        built = question_model({**base, "diversity": phi})
        counts = []
        for i in range(1_500):
            w = built.world(root_key(2, 0, 1, i), 100)
            first = w.grow(w.root, 0)
            if first.hidden[1] == 0:
                counts.append([w.grow(first, o).hidden[1] == 0 for o in range(4)])
        alive[phi] = np.mean(counts, axis=0).tolist()
    assert alive[0.0] == pytest.approx([0.5**0.63] * 4, abs=0.06)
    assert alive[0.5] == pytest.approx([0.5**0.63] + [0.5**0.315] * 3, abs=0.06)


def test_recovery_brings_dead_solutions_back() -> None:
    accuracy = []
    for r in (0.0, 0.3):
        built = question_model({"preset": "math-500", "recovery": r})
        tries = [built.world(root_key(4, 0, 1, i), 100) for i in range(800)]
        accuracy.append(np.mean([w.is_correct(w.grow(w.root, 0, "answer").answer) for w in tries]))
    assert accuracy[1] > accuracy[0] + 0.1


def test_chat_answers_have_the_length_that_the_preset_promises_and_are_all_visible() -> None:
    nodes = [w.grow(w.root, 0, "answer") for w in worlds("chat", 4_000)]
    lengths = np.array([n.tokens for n in nodes])
    assert 250 < lengths.mean() < 300
    assert np.median(lengths) == pytest.approx(200, rel=0.06)
    assert all(n.answer_tokens == n.tokens for n in nodes)


def test_thinking_r1_has_the_published_lengths_and_reasoning_share() -> None:
    nodes = [w.grow(w.root, 0, "answer") for w in worlds("thinking-r1", 12_000)]
    total = np.array([n.tokens for n in nodes], dtype=float)
    share = 1 - np.array([n.answer_tokens for n in nodes]) / total
    assert total.mean() == pytest.approx(1527, rel=0.06)
    assert np.percentile(total, [50, 95, 99]) == pytest.approx([792, 5701, 12607], rel=0.12)
    assert total.max() <= 32_768
    assert share.mean() == pytest.approx(0.702, abs=0.015)
    assert 0.743 < np.average(share, weights=total) < 0.817


def test_aime_accuracy_under_a_cap_and_the_length_of_wrong_answers_are_as_published() -> None:
    right, wrong, questions = Counter[int](), [], 4_000
    for w in worlds("aime", questions):
        for cap in (4_096, 8_192, 16_384):
            right[cap] += w.is_correct(w.grow(w.root, 0, "answer", cap).answer)
        lengths: dict[bool, list[int]] = {True: [], False: []}
        for o in range(8):
            node = w.grow(w.root, o, "answer")
            lengths[w.is_correct(node.answer)].append(node.tokens)
        if lengths[True] and lengths[False]:
            wrong.append(np.mean(np.log(lengths[False])) - np.mean(np.log(lengths[True])))
    reached = [right[cap] / questions for cap in (4_096, 8_192, 16_384)]
    assert reached == pytest.approx([0.182, 0.364, 0.403], abs=0.025)
    assert math.exp(np.mean(wrong)) == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_a_traces_length_is_one_step_of_exactly_that_many_tokens(name: str) -> None:
    w = world(name, 99, output_tokens_given=777)
    for o in range(5):
        node = w.grow(w.root, o)
        assert (node.tokens, node.done, node.depth, node.path_tokens) == (777, True, 1, 977)


@pytest.mark.parametrize("name", PRESETS)
def test_a_class_that_fixes_the_output_length_gets_exactly_that(name: str) -> None:
    for w in worlds(name, 20, output_tokens=quantile(500)):
        assert w.grow(w.root, 0, "answer").tokens == 500


def test_two_tries_at_one_question_have_correlated_lengths() -> None:
    pairs = [[math.log(w.grow(w.root, o).tokens) for o in (0, 1)] for w in worlds("chat", 4_000)]
    assert np.corrcoef(np.array(pairs).T)[0, 1] == pytest.approx(0.5, abs=0.06)


def test_every_catalogue_figure_says_where_it_comes_from_and_when() -> None:
    for presets in catalogue().values():
        for name, figures in presets.items():
            for parameter, figure in figures.items():
                where = f"{name}.{parameter}"
                assert len(figure.source) >= 7, where
                assert figure.as_of or figure.source == "definition", where


def test_a_cap_of_nothing_is_refused() -> None:
    w = world("chat", 1)
    with pytest.raises(ValueError, match='"cap" must be >= 1 token, got 0'):
        w.grow(w.root, 0, "answer", 0)
    assert not w.is_correct(None)


@pytest.mark.parametrize("name", ["math-500", "aime", "chat", "game-24"])
def test_a_revision_repeats_what_it_sees_or_tries_afresh(name: str) -> None:
    surprise = {True: 0.0, False: 0.0}
    variance = {True: 0.0, False: 0.0}
    repeated, lengths, firsts = [], [], []
    for w in worlds(name, 1500):
        first = w.grow(w.root, 0, "answer")
        again = w.grow(first, 0, "answer")
        assert again.done
        assert again.path_tokens == w.root.tokens + first.tokens + again.tokens
        firsts.append(first.tokens)
        lengths.append(again.tokens)
        was_right = w.is_correct(first.answer)
        seen = w.model.revise_keep if was_right else w.model.revise_stuck
        p = (1 - seen) * w.difficulty + seen * was_right
        surprise[was_right] += w.is_correct(again.answer) - p
        variance[was_right] += p * (1 - p)
        if not was_right:
            repeated.append(again.answer == first.answer)
    for case, total in surprise.items():
        assert abs(total) < 4 * math.sqrt(variance[case]) + 1
    assert np.mean(repeated) >= w.model.revise_stuck - 4 * math.sqrt(0.1 / len(repeated))
    assert np.mean(lengths) / np.mean(firsts) == pytest.approx(w.model.revise_length, rel=0.08)


@given(key=st.integers(0, 2**64 - 1), cap=st.integers(1, 3000))
def test_a_truncated_revision_resumes_to_the_same_end(key: int, cap: int) -> None:
    w = world("math-500", key)
    first = w.grow(w.root, 0, "answer")
    whole = w.grow(first, 1, "answer")
    part = w.grow(first, 1, "answer", cap)
    assert part.tokens == min(cap, whole.tokens)
    end = part if part.done else w.grow(part, 0, "answer")
    assert (end.answer, end.path_tokens) == (whole.answer, whole.path_tokens)
    assert w.score(end) == w.score(whole)


def test_a_forced_conclusion_is_right_in_proportion_to_how_far_the_chain_had_come() -> None:
    expected = variance = right = 0.0
    for w in worlds("aime", 3000):
        whole = w.grow(w.root, 0, "answer")
        part = w.grow(w.root, 0, "answer", max(1, whole.tokens // 2))
        end = w.grow(part, 0, "conclude")
        assert end.done
        assert end.answer_tokens == end.tokens < whole.tokens
        p = part.tokens / whole.tokens * w.is_correct(whole.answer)
        expected += p
        variance += p * (1 - p)
        right += w.is_correct(end.answer)
        if not w.is_correct(whole.answer):
            assert end.answer == whole.answer
    assert abs(right - expected) < 4 * math.sqrt(variance)
    assert expected > 300


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mth-500", "Did you mean 'math-500'"),
        ({"kind": "stps"}, "Did you mean 'steps'"),
        ({}, 'needs a "preset" or a "kind"'),
        ({"kind": "steps", "preset": "chat"}, "of kind 'single_step', not 'steps'"),
        ({"preset": "math-500", "kapa": 3}, "Did you mean 'kappa'"),
        ({"preset": "math-500", "kappa": -1}, '"kappa" must be a number from 0.001'),
        ({"preset": "math-500", "theta": float("nan")}, '"theta" must be a number'),
        ({"preset": "math-500", "verifier": "mathprm"}, "Did you mean 'math-prm'"),
        ({"preset": "math-500", "weights": [1, 2]}, "one number > 0 per step"),
        ({"preset": "math-500", "steps": {"kind": "poison"}}, "Did you mean 'poisson'"),
        ({"preset": "math-500", "bottleneck_range": [0, 1]}, "0 < low <= high <= 1"),
        ({"preset": "math-500", "bottleneck_range": "wide"}, "0 < low <= high <= 1"),
        ({"preset": "math-500", "steps": "many"}, "Unknown kind of steps 'many'"),
        ({"preset": "game-24", "weights": ["a", 1, 1]}, "one number > 0 per step"),
        ({"preset": "aime", "lengths_of": "some"}, "all or solved"),
        ({"preset": "chat", "pass_rate": 0.7}, "must look like"),
        ({"preset": "chat", "pass_rate": {"a": 1, "c": 1}}, "Unknown key of pass_rate"),
        ({"preset": "chat", "output_tokens": {"kind": "pareto"}}, "Unknown kind of distribution"),
    ],
)
def test_a_wrong_question_is_refused_with_the_way_out(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question_model(spec)


@pytest.mark.parametrize(
    ("spec", "u", "expected"),
    [
        (12, 0.3, 12),
        ({"kind": "constant", "value": 7}, 0.9, 7),
        ({"kind": "uniform", "low": 10, "high": 20}, 0.25, 12.5),
        ({"kind": "lognormal", "median": 100, "sigma": 0.5}, 0.5, 100),
        ({"kind": "lognormal", "median": 100, "sigma": 0.5, "max": 90}, 0.5, 90),
        ({"kind": "lognormal", "median": 100, "sigma": 0.5, "min": 120}, 0.5, 120),
        ({"kind": "empirical", "values": [5, 1], "probs": [3, 1]}, 0.2, 1),
        ({"kind": "empirical", "values": [5, 1], "probs": [3, 1]}, 0.3, 5),
        ({"kind": "quantiles", "probs": [0.1, 0.5, 0.9], "values": [1, 10, 50]}, 0.9, 50),
        ({"kind": "quantiles", "probs": [0.1, 0.5, 0.9], "values": [1, 10, 50]}, 0.1, 1),
    ],
)
def test_a_quantile_function_gives_the_value_at_its_probability(
    spec: Any, u: float, expected: float
) -> None:
    assert quantile(spec)(u) == pytest.approx(expected)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "constant"},
        {"kind": "constant", "value": -1},
        {"kind": "lognormal", "median": 0, "sigma": 1},
        {"kind": "lognormal", "median": float("nan"), "sigma": 1},
        {"kind": "uniform", "low": 3, "high": 2},
        {"kind": "empirical", "values": [1], "probs": [0]},
        {"kind": "empirical", "values": [1], "probs": [0.5, 0.5]},
        {"kind": "quantiles", "probs": [0.5, 0.4], "values": [1, 2]},
        {"kind": "quantiles", "probs": [0.4, 0.5], "values": [0, 2]},
        {"kind": "constant", "value": 5, "min": 3, "max": 2},
    ],
)
def test_an_impossible_distribution_is_refused(spec: Any) -> None:
    with pytest.raises(ValueError, match="distribution|must"):
        quantile(spec)
