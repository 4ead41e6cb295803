"""Countdown: exact values, legal moves, worlds that searches grow in, models that learn something."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.countdown.task import LARGEST, SLOTS, chance, moved, over, puzzles, results, solvable


def brute(state: tuple[int, ...], target: int) -> bool:
    """Whether a target can be reached, by trying everything."""
    if len(state) == 1:
        return state[0] == target
    for a, b in itertools.permutations(range(len(state)), 2):
        x, y = state[a], state[b]
        rest = tuple(state[i] for i in range(len(state)) if i not in (a, b))
        options = [x + y, x - y, x * y] + ([x // y] if y and x % y == 0 else [])
        if any(1 <= v <= LARGEST and brute((*rest, v), target) for v in options):
            return True
    return False


@settings(max_examples=60)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(1, LARGEST))
def test_the_exact_value_says_what_trying_everything_says(numbers: list[int], target: int) -> None:
    assert solvable(tuple(numbers), target) == brute(tuple(numbers), target)


def test_the_exact_value_of_random_play_is_what_random_play_comes_to() -> None:
    rng = np.random.default_rng(0)
    state, target = np.array([[9, 4, 2, 0, 0, 0]]), 17
    states = np.repeat(state, 40_000, 0)
    for _ in range(2):
        legal = results(states) > 0
        states = moved(states, np.where(legal, rng.random(legal.shape), -1).argmax(1))
    assert over(states).all()
    share = float((states[:, 0] == target).mean())
    assert share == pytest.approx(chance((9, 4, 2), target), abs=0.008)
    assert 0 < share < 1


def test_values_of_moves_average_to_the_value_of_the_state() -> None:
    states, targets, _ = puzzles(np.random.default_rng(1), 20, 4)
    for state, target in zip(states, targets.tolist(), strict=True):
        legal = np.flatnonzero(results(state[None])[0])
        after = moved(np.repeat(state[None], len(legal), 0), legal)
        below = [chance(tuple(row[row > 0].tolist()), target) for row in after]
        assert np.mean(below) == pytest.approx(chance(tuple(state[state > 0].tolist()), target))


@pytest.mark.parametrize("numbers", [2, 3, 5, SLOTS])
def test_puzzles_come_with_a_solution(numbers: int) -> None:
    states, targets, trace = puzzles(np.random.default_rng(2), 200, numbers)
    assert len(states) == len(targets) == 200
    assert ((states > 0).sum(1) == numbers).all()
    for before, moves in trace:
        assert (before == states).all()
        assert (results(before)[np.arange(200), moves] > 0).all()
        states = moved(before, moves)
    assert over(states).all()
    assert (states[:, 0] == targets).all()


def test_other_numbers_of_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match='"numbers" must be 2 to 6'):
        puzzles(np.random.default_rng(0), 1, 7)


# -- with torch -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    """A small policy after a few seconds, and a reward model from its rollouts."""
    torch = pytest.importorskip("torch", reason="Countdown's models need torch (extra: torch)")
    from models.countdown import net
    from models.countdown.learn import Schedule, fit_policy, fit_rewards, judged
    from models.countdown.net import Size
    from models.countdown.world import Models

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    size, rng = Size(32, 1, 4), np.random.default_rng(0)
    policy, fresh = net.new(size, 1), net.new(size, 1)
    fit_policy(policy, size, Schedule(100, 192, 5e-3), rng, (3,))
    rewards = {name: tensor.detach().clone().requires_grad_() for name, tensor in policy.items()}
    states, targets, shares, _ = judged(policy, size, rng, 200, 3, rollouts=4)
    fit_rewards(rewards, size, Schedule(80, 192, 5e-3), rng, (states, targets, shares))
    yield Models(size, policy, rewards), fresh
    torch.set_num_threads(threads)


def world(models, key: int, numbers=(9, 7, 4), target: int = 20):
    from models.countdown.world import CountdownWorld

    return CountdownWorld(models, numbers, target, key)


def test_the_policy_learns_to_solve_more_than_an_untrained_one(learned) -> None:
    from models.countdown.train import sampled

    models, fresh = learned
    before = sampled(fresh, models.size, 3, 200, 4)["pass@1"]
    after = sampled(models.policy, models.size, 3, 200, 4)["pass@1"]
    assert after > before + 0.03


def test_the_reward_model_tells_right_ends_from_wrong_ones(learned) -> None:
    from models.countdown import net
    from models.countdown.learn import auc, play, solved

    models, _ = learned
    states, targets, _ = puzzles(np.random.default_rng(9), 400, 3)
    ends, _ = play(models.policy, models.size, states, targets, np.random.default_rng(8))
    scores = net.chances(models.rewards, ends, targets, models.size.heads)
    assert auc(scores, solved(ends, targets)) > 0.6


@pytest.mark.parametrize("cap", [3, 8, 11, 16])
def test_a_chain_cut_anywhere_and_resumed_is_the_chain_left_alone(learned, cap: int) -> None:
    models, _ = learned
    for key in range(20):
        whole = world(models, key).grow(world(models, key).root, 0, "answer")
        place = world(models, key)
        node = place.grow(place.root, 0, "answer", cap)
        assert node.tokens <= cap
        while not node.done and node.hidden[0]:
            node = place.grow(node, 0, "answer")
        assert (node.path_tokens, node.answer) == (whole.path_tokens, whole.answer)


def test_the_same_generators_search_here_and_answers_are_graded_exactly(learned) -> None:
    from models.rollout import rollout
    from models.search import ALGORITHMS
    from models.tree import Tree

    models, _ = learned
    states, targets, _ = puzzles(np.random.default_rng(5), 25, 3)
    solved = {}
    for name, parameters in {
        "direct": {},
        "best_of_n": {"n": 8},
        "beam": {"width": 2, "expand": 4, "max_steps": 3},
    }.items():
        search = partial(ALGORITHMS[name].function, **parameters)
        right = 0
        for key, (state, target) in enumerate(zip(states, targets.tolist(), strict=True)):
            place = world(models, key, tuple(state[state > 0].tolist()), target)
            end = rollout(search(Tree(place.root)), place)
            assert end.correct == (end.answer == target)
            assert all(0 < leaf.score < 1 or leaf.score != leaf.score for leaf in end.tree.leaves)
            right += end.correct
        solved[name] = right
    assert max(solved.values()) > 0


def test_a_reward_model_that_sees_the_end_is_another_one(learned) -> None:
    from dataclasses import replace

    models, _ = learned
    blind, oracle = world(models, 1), world(replace(models, sees_end=True), 1)
    ends = [place.grow(place.root, 0, "answer") for place in (blind, oracle)]
    assert ends[0].answer == ends[1].answer
    step = blind.grow(blind.root, 0)
    assert blind.score(ends[0]) == blind.score(step)
    assert oracle.score(ends[1]) != blind.score(ends[0])


def test_models_come_back_from_their_file_and_other_files_are_refused(
    learned, tmp_path: Path
) -> None:
    from models.countdown import net

    models, _ = learned
    path = tmp_path / "countdown.npz"
    net.save(path, models.size, policy=models.policy, rewards=models.rewards)
    size, found = net.load(path)
    assert size == models.size
    assert set(found) == {"policy", "rewards"}
    states, targets, _ = puzzles(np.random.default_rng(3), 10, 3)
    logs = [net.log_policy(w, states, targets, 4) for w in (models.policy, found["policy"])]
    assert (logs[0] == logs[1]).all()
    np.savez(path, other=np.zeros(1))
    with pytest.raises(ValueError, match="holds no Countdown models"):
        net.load(path)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    from models.countdown.learn import auc

    scores, right = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert auc(scores, right) == pytest.approx(3.5 / 4)
    assert np.isnan(auc(scores, np.ones(4, bool)))
