"""A learned controller: the same evidence in columns and one by one, trees as arrays, decisions that follow the price."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import judging
from models.controller import Features, Plan, plan, search_for
from models.evidence import SEEN, seen, seen_one
from models.fallback import guarded
from models.forest import compiled, from_dict
from models.learned import SHIPPED, WITH_BEAMS, Learned, load, save
from models.learned_controller import LearnedController, rounds
from models.mix import HOLD_OUT, TRAIN, Drawn, beams_of, draw, hints, mix, questions_of
from models.rollout import rollout
from models.search_staged import Leave, staged_vote
from models.staged import Prices, staged
from models.switch import BEAMS, found_one, found_rows, size
from models.training import fit
from models.tree import Tree

PRICES = Prices(1e-4, 1.5e-5, 4e-5, "given", "0", "roofline")


def weighed(held: Drawn, controller: Learned | None = None) -> judging.Weighed:
    controller = controller or load()
    return judging.weigh(controller, staged(held, controller.mean_tokens, PRICES))


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.floats(0.01, 0.99), st.integers(1, 4000)),
        min_size=1,
        max_size=20,
    )
)
def test_evidence_in_columns_is_that_of_one_search(rows: list[tuple[int, float, int]]) -> None:
    wrong, score, tokens = (np.array([column]) for column in zip(*rows, strict=True))
    table = seen(wrong, score, tokens)
    one, lead = seen_one(wrong[0].tolist(), score[0].tolist(), tokens[0].tolist())
    assert len(one) == len(SEEN)
    np.testing.assert_allclose(table.table[0], one, rtol=1e-9, atol=1e-9)
    assert table.wrong[0] == lead


def test_a_tie_goes_to_the_first_answer_and_never_to_the_right_one() -> None:
    nan = np.full((2, 2), np.nan)
    wrong = np.array([[3, 0], [0, 3]])
    assert seen(wrong, nan, np.ones((2, 2), dtype=int)).wrong.tolist() == [3, 0]
    assert seen_one([3, 0], [float("nan")] * 2, [1, 1])[1] == 3


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_compiled_trees_say_what_scikit_learn_says(kind: str) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    random = np.random.default_rng(3)
    x = random.normal(size=(600, 5))
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * random.normal(size=600)
    if kind == "regressor":
        model = HistGradientBoostingRegressor(max_iter=15).fit(x, y)
        wanted = model.predict(x)
    else:
        model = HistGradientBoostingClassifier(max_iter=15).fit(x, y > 0)
        wanted = model.predict_proba(x)[:, 1]
    forest = from_dict(json.loads(json.dumps(compiled(model).as_dict())))
    np.testing.assert_allclose(forest.many(x), wanted, rtol=1e-9, atol=1e-12)
    assert [forest.one(row) for row in x[:20].tolist()] == pytest.approx(wanted[:20].tolist())


@pytest.mark.parametrize(
    "change",
    [{"left": [0, 0, 0]}, {"feature": [0]}, {"roots": [9]}, {"value": ["x", 0, 0]}, {"base": None}],
)
def test_a_broken_forest_is_refused(change: dict[str, object]) -> None:
    good = {
        "feature": [0, -1, -1], "threshold": [0.5, 0, 0], "left": [1, 0, 0], "right": [2, 0, 0],
        "value": [0, 1.0, 2.0], "roots": [0], "base": 0.0, "logit": False,
    }  # fmt: skip
    assert from_dict(good).one([0.0]) == 1.0
    with pytest.raises(ValueError, match="not a forest"):
        from_dict({**good, **change})


def test_the_shipped_controller_was_fitted_on_the_frozen_mix_and_says_where_from() -> None:
    shipped = load()
    assert shipped.classes == mix().classes
    told = shipped.provenance
    assert told["questions"] >= 12_000
    assert told["informativeness"] == mix().informativeness
    assert len(told["data_sha256"]) == len(told["prices_sha256"]) == 64
    assert SHIPPED.stat().st_size < 1_000_000


def test_a_file_that_is_no_controller_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for text in ("", "[]", '{"format": "x"}', SHIPPED.read_text()[:-200]):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match="treeline fit controller"):
            load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("policy", "judge", "said"),
    [
        ("measured", "measured", "measured"),
        ("measured", "roofline", "roofline"),
        ("imported", "measured", "imported"),
        ("roofline", None, "roofline"),
    ],
)
def test_prices_never_claim_more_than_the_step_costs_behind_them(
    policy: str, judge: str | None, said: str
) -> None:
    from dataclasses import replace

    from models.latency import StepCost
    from models.token_prices import token_prices

    plain = StepCost.linear(1e-2, 1e-5, 1e-5, 1e-9)
    other = replace(plain, source_kind=judge) if judge is not None else None
    assert token_prices(replace(plain, source_kind=policy), other).source_kind == said


def test_a_hint_has_the_correlation_with_the_difficulty_that_is_asked_for() -> None:
    from scipy.special import ndtri

    from models.keyed import root_keys, uniform_array
    from models.world import DIFFICULTY

    keys = root_keys(5, 0, HOLD_OUT, 20_000)
    latent = ndtri(uniform_array(keys, DIFFICULTY))
    for told in (0.0, 0.3, 0.5, 1.0):
        found = np.corrcoef(latent, hints(keys, told))[0, 1] ** 2
        assert found == pytest.approx(told, abs=0.02)


def test_the_dearer_gpu_time_is_the_less_everybody_thinks() -> None:
    held = draw(mix(), 2_000, HOLD_OUT)
    played = judging.learned(weighed(held), (0.0005, 0.005, 0.05, 0.5))
    grown = [p.trajectories.mean() for p in played]
    assert grown == sorted(grown, reverse=True)
    assert grown[0] > 4 * grown[-1]


def test_the_shipped_controller_beats_the_best_fixed_plan_at_its_cost() -> None:
    held = draw(mix(), 6_000, HOLD_OUT, seed=1)
    curve = judging.learned(weighed(held))
    plans = judging.fixed_plans(held, PRICES)
    by = {p.name: p for p in plans}
    best, weighted = by["best_of_n 64"], by["weighted_vote 64"]
    assert judging.cost_at(curve, best.right.mean()) < 0.10 * best.gpu_s.mean()
    assert judging.cost_at(curve, weighted.right.mean()) < 0.30 * weighted.gpu_s.mean()
    accuracy = float(weighted.right.mean())
    assert judging.cost_at(curve, accuracy) < 0.65 * judging.cost_at(plans, accuracy)


def test_stops_that_look_at_nothing_are_worse_at_the_same_cost() -> None:
    held = draw(mix(), 4_000, HOLD_OUT, seed=2)
    known = weighed(held)
    ours = judging.play(known, 0.005)
    blind = judging.random_stops(known.table, ours)
    assert blind.right.mean() < ours.right.mean() - 0.03
    assert blind.gpu_s.mean() > 0.9 * ours.gpu_s.mean()


def test_a_fit_is_the_same_every_time_and_survives_its_file(tmp_path: Path) -> None:
    drawn = draw(mix(), 500, TRAIN)
    first, second = (fit(mix(), drawn, PRICES) for _ in range(2))
    assert first.right == second.right
    assert first.switch == second.switch
    save(first, tmp_path / "c.json")
    again = load(tmp_path / "c.json")
    assert again.switch is not None
    row = [1.0, 0.0, 0.0, 0.0, 0.3, *([0.5] * len(SEEN))]
    assert again.confidence(3, row) == pytest.approx(first.confidence(3, row), rel=1e-5)
    with pytest.raises(ValueError, match="too few"):
        fit(mix(), drawn.of(np.arange(100)), PRICES)


def test_decisions_in_batches_take_less_than_twenty_microseconds_each() -> None:
    held = draw(mix(), 4_000, HOLD_OUT)
    controller = load()
    known = weighed(held)
    began = time.process_time()
    for stage in range(len(controller.stages) - 1):
        rows, chance = known.table.rows[stage], known.chance[stage]
        controller.decisions(stage, rows, 0.005, chance, known.beams[stage])
    each = (time.process_time() - began) / len(held) / (len(controller.stages) - 1)
    assert each < 4 * 20e-6  # four times the promise, for machines that are busy


# -- in service ------------------------------------------------------------------------------------------


def served(rate: float = 0.005, gain: float = 0.0, most: int = 12) -> LearnedController:
    return LearnedController(load(), rate, 0.5, gain, most)


def test_a_tier_without_a_vote_and_an_unknown_class_get_what_the_tier_says() -> None:
    beam, vote = plan("beam"), plan("weighted_vote", n=16)
    assert served().plan(Features(beam, preset="math-500")) is beam
    assert served().plan(Features(vote, preset="aime")) is vote
    assert served().plan(Features(vote, preset="math-500")).algorithm == "staged_vote"


def test_a_staged_vote_stops_where_the_columns_say_it_does() -> None:
    held = draw(mix(), 400, HOLD_OUT)
    controller = served()
    ours = judging.play(weighed(held), controller.rate)
    for place in range(0, len(held), 7):
        name = mix().classes[held.klass[place]]
        model, verifier = questions_of(name)
        key = int(held.key[place])
        world = model.world(key, 100, verifier)
        chosen = controller.plan(Features(plan("weighted_vote", n=64), preset=name, key=key))
        found = rollout(search_for(chosen, Tree(world.root)), world)
        assert found.trajectories == ours.trajectories[place]
        assert found.signal == pytest.approx(ours.confidence[place], abs=1e-6)


def test_pressure_makes_a_query_think_less() -> None:
    model, verifier = questions_of("math-500")

    def grown(load_: float) -> int:
        controller = served(gain=10.0)
        total = 0
        for key in range(1, 60):
            known = Features(
                plan("weighted_vote", n=64), preset="math-500", key=key, load=lambda: load_
            )
            world = model.world(key, 100, verifier)
            total += rollout(
                search_for(controller.plan(known), Tree(world.root)), world
            ).trajectories
        return total

    assert grown(4.0) < 0.7 * grown(0.0)


@pytest.mark.parametrize(
    ("most", "wanted"),
    [(1, (0, 64)), (2, (0, 8, 64)), (4, (0, 3, 8, 24, 64)), (12, load().stages)],
)
def test_rounds_are_spread_over_the_stages(most: int, wanted: tuple[int, ...]) -> None:
    stages = load().stages
    assert tuple(stages[i] for i in rounds(stages, most)) == wanted


def test_a_budget_cuts_a_staged_vote_with_what_it_has() -> None:
    model, verifier = questions_of("math-500")
    for limit in (50, 400, 2_000, 8_000):
        for key in range(1, 25):
            base = plan("weighted_vote", n=64, max_tokens=limit)
            chosen: Plan = served(1e-4).plan(Features(base, preset="math-500", key=key))
            world = model.world(key, 100, verifier)
            found = rollout(search_for(chosen, Tree(world.root)), world, limit)
            assert found.tokens <= limit
            if limit >= 8_000:
                assert found.answer is not None


def test_a_cut_before_the_first_stage_is_judged_as_that_stage() -> None:
    model, verifier = questions_of("gsm8k")
    asked: list[int] = []

    def decide(stage: int, seen: list[float] | None) -> float | None:
        asked.append(stage)
        return 0.5 if stage < 0 else None

    for key in range(1, 40):
        world = model.world(key, 100, verifier)
        rollout(staged_vote(Tree(world.root), decide, (0, 8, 64)), world, 900)
    assert -2 in asked and -1 not in asked  # -1: nothing was grown, so it can tell nothing


# -- leaving for a beam, falling back ---------------------------------------------------------------------


def test_what_is_found_by_a_beam_is_the_same_in_columns_and_for_one_search() -> None:
    random = np.random.default_rng(4)
    wrong, score = random.integers(0, 4, (200, 6)), random.uniform(0.01, 0.99, (200, 6))
    lead, end, end_score = wrong[:, 0], random.integers(0, 5, 200), random.uniform(size=200)
    table = found_rows(wrong, score, lead, end, end_score)
    for place in range(200):
        one = found_one(
            wrong[place].tolist(), score[place].tolist(), lead[place], end[place], end_score[place]
        )
        np.testing.assert_allclose(table[place], one)
    assert found_rows(wrong[:, :0], score[:, :0], lead, end, end_score)[:, 1:].max() == 0.0


def test_a_search_that_leaves_for_a_beam_is_the_beam_of_the_columns() -> None:
    held = draw(mix(), 600, HOLD_OUT)
    learned = load(WITH_BEAMS)
    controller = LearnedController(learned, 0.003, 0.5, 0.0, 12)
    ours = judging.play(weighed(held, learned), 0.003)
    left = 0
    for place in np.flatnonzero(mix().classes.index("math-500") == held.klass)[:60].tolist():
        model, verifier = questions_of("math-500")
        key = int(held.key[place])
        world = model.world(key, 100, verifier)
        chosen = controller.plan(Features(plan("weighted_vote", n=64), preset="math-500", key=key))
        asked: list[Leave] = []

        def decide(stage: int, seen: list[float] | None, ask=chosen.params["decide"], told=asked):  # type: ignore[no-untyped-def]
            found = ask(stage, seen)
            told += [found] if isinstance(found, Leave) else []
            return found

        tree = Tree(world.root)
        stages = chosen.params["stages"]
        found = rollout(staged_vote(tree, decide, stages), world)
        if not asked:
            assert found.trajectories == ours.trajectories[place]
            continue
        left += 1
        beam = BEAMS.index((asked[0].width, asked[0].expand))
        grown = int(ours.trajectories[place]) - size(beam)
        _, _, tokens = beams_of(model, verifier, held.key[[place]], grown)
        assert found.tokens == held.tokens[place, :grown].sum() + tokens[0, beam]
    assert left > 5


def test_beams_find_on_hard_questions_what_votes_do_not() -> None:
    held = draw(mix(), 6_000, HOLD_OUT, seed=3)
    hard = held.of(np.flatnonzero((held.pass_rate >= 0.001) & (held.pass_rate <= 0.05)))
    learned = load(WITH_BEAMS)
    table = staged(hard, learned.mean_tokens, PRICES)
    with_beams = judging.play(judging.weigh(learned, table), 0.002)
    votes = judging.play(judging.weigh(learned, table, beams=False), 0.002)
    assert with_beams.right.mean() > 1.5 * votes.right.mean()


def test_a_class_with_too_few_questions_falls_back_to_its_best_fixed_plan_and_says_so(
    tmp_path: Path,
) -> None:
    drawn, check = draw(mix(), 600, TRAIN), draw(mix(), 800, HOLD_OUT)
    learned = guarded(fit(mix(), drawn, PRICES, beams=False), drawn, check, PRICES)
    assert set(learned.falls_back) == set(mix().classes)
    assert "1,000 are the least" in learned.falls_back["gsm8k"]
    save(learned, tmp_path / "c.json")
    again = load(tmp_path / "c.json")
    assert again.falls_back == dict(learned.falls_back)
    best = again.best_fixed("gsm8k", 0.005, 16)
    served = LearnedController(again, 0.005, 0.5)
    chosen = served.plan(Features(plan("weighted_vote", n=16, max_tokens=9000), preset="gsm8k"))
    assert (chosen.algorithm, chosen.max_tokens) == (best.algorithm, 9000)
    played = judging.play(weighed(check, again), 0.005)
    mine = check.klass == mix().classes.index("gsm8k")
    assert len(set(played.trajectories[mine].tolist())) == 1


def test_a_class_that_may_lose_to_its_best_fixed_plan_falls_back_with_the_bound() -> None:
    drawn = draw(mix(), 4_000, TRAIN)
    blind = replace(
        load(), right=load().right[:2] * 6 + load().right[:1], gain=load().gain[:1] * 12
    )
    guarded_ = guarded(blind, drawn, draw(mix(), 2_000, HOLD_OUT), PRICES)
    assert "may be -" in guarded_.falls_back["math-500"]  # it never stops before 64
