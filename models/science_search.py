"""What nobody put in by hand: where search wins, where it loses, and what makes it lose.

Every row follows from the same question model and verifier; the ablations take one mechanism out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from models.batch_rollout import Outcomes, batch_rollout, samples
from models.controller import Plan, plan
from models.crowd import Floats, Ints
from models.fit_table import chosen
from models.keyed import Keys, root_keys
from models.question import question_model
from models.science import Experiment, Row, mean, size
from models.science_tables import SEED
from models.verifier import VerifierModel, verifier_model

SNELL: Final = "Snell et al., arXiv 2408.03314"
BANDS: Final = ("hardest", "fourth", "third", "second", "easiest")
EASY: Final = (3, 4)  # the two easiest quintiles of BANDS
FOURTH: Final = 1
LOOK: Final = 4  # answers from which the difficulty of a question is predicted


def beam_of(n: int) -> Plan:
    """A beam that grows n children a step, four of each path it keeps."""
    return plan("beam", width=max(1, n // 4), expand=4)


def asked(questions: int, seed: int) -> tuple[Keys, Ints]:
    """Keys of math-500 questions, and the quintile of each one's pass rate (0: hardest)."""
    keys = root_keys(seed, 0, 1, questions)
    p = samples(question_model("math-500"), None, keys, 1).difficulty
    quintile: Ints = np.searchsorted(np.quantile(p, [0.2, 0.4, 0.6, 0.8]), p)
    return keys, quintile


def played(
    keys: Keys, chosen_plan: Plan, verifier: str | Mapping[str, Any] = "math-prm"
) -> Outcomes:
    """The outcomes of one plan on questions of math-500."""
    return batch_rollout(question_model("math-500"), verifier_model(verifier), keys, chosen_plan)


def beam_and_bands(scale: float) -> list[Row]:
    """Beam search against the weighted vote of as many answers, in quintiles of difficulty."""
    keys, band = asked(size(4_000, scale), SEED + 10)
    rows, beams = [], {}
    for n in (4, 16, 64, 256):
        beams[n] = played(keys, beam_of(n)).correct.astype(float)
        gain = beams[n] - played(keys, plan("weighted_vote", n=n)).correct
        if n <= 16:
            ours, se, count = mean(gain[band == FOURTH])
            claim = f"fourth quintile, N = {n}: beam less weighted vote"
            rows.append(Row("bands", claim, ours, "at_least", 0.0, n=count, se=se, source=SNELL))
        for quintile in EASY if n >= 16 else ():
            ours, se, count = mean(gain[band == quintile])
            claim = f"{BANDS[quintile]} quintile, N = {n}: beam less weighted vote"
            rows.append(Row("bands", claim, ours, "at_most", 0.0, n=count, se=se, source=SNELL))
    for quintile in EASY:
        ours, se, count = mean((beams[256] - beams[16])[band == quintile])
        claim = f"{BANDS[quintile]} quintile: beam at N = 256 less at 16"
        rows.append(Row("bands", claim, ours, "at_most", -0.02, n=count, se=se, source=SNELL))
    return rows


ABLATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no class error": {"class_sigma": 0.0},
    "class error drawn afresh at every step": {"class_sigma": 0.0, "step_sigma": math.hypot(1.05, 1.55)},
    "no blind spots": {"blind_share": 0.0},
    "neither": {"class_sigma": 0.0, "blind_share": 0.0},
}  # fmt: skip


def ablations(scale: float) -> list[Row]:
    """Beam search no longer falls where wrong answers do not inherit an error, or none is a blind spot."""
    keys, band = asked(size(4_000, scale), SEED + 11)
    easy = keys[band >= EASY[0]]
    rows = []
    for name, change in ABLATIONS.items():
        judge = {"preset": "math-prm"} | dict(change)
        few, many = (played(easy, beam_of(n), judge).correct.astype(float) for n in (16, 256))
        ours, se, count = mean(many - few)
        claim = f"{name}: beam at N = 256 less at 16, two easiest quintiles"
        rows.append(Row("ablations", claim, ours, "at_least", -0.02, n=count, se=se, source=SNELL))
    return rows


def bottleneck(scale: float) -> list[Row]:
    """Questions of the bottleneck class with a pass rate under 1 %: samples find them, selection does not."""
    spec = {"preset": "math-500", "bottleneck": 0.999}
    model, verifier = question_model(spec), verifier_model("math-prm")
    keys = root_keys(SEED + 12, 0, 1, size(3_000, scale))
    rows = []
    for name, make in {
        "best-of-n": lambda n: plan("best_of_n", n=n),
        "weighted vote": lambda n: plan("weighted_vote", n=n),
        "majority": lambda n: plan("self_consistency", n=n),
        "beam": beam_of,
    }.items():
        few, many = (batch_rollout(model, verifier, keys, make(n)).correct for n in (4, 64))
        ours, se, count = mean(many.astype(float) - few)
        claim = f"bottleneck under 1 %, {name}: accuracy at N = 64 less at 4"
        rows.append(Row("bottleneck", claim, ours, "at_most", 0.02, n=count, se=se, source=SNELL))
    p = samples(question_model("math-500"), None, root_keys(SEED + 13, 0, 1, 20_000), 1).difficulty
    logs = np.log1p(-np.minimum(p, 1 - 1e-12))
    ours, se, count = mean(np.exp(100 * logs) - np.exp(10_000 * logs))
    claim = "all questions: coverage at 10,000 less at 100"
    source = "Large Language Monkeys, arXiv 2407.21787"
    rows.append(Row("bottleneck", claim, ours, "at_least", 0.05, n=count, se=se, source=source))
    return rows


def unsolved_puzzles(scale: float) -> list[Row]:
    """Game of 24: search on steps solves puzzles on which 100 whole samples never succeed."""
    model = question_model("game-24")
    verifier = verifier_model(model.verifier)
    keys = root_keys(SEED + 14, 0, 1, size(1_000, scale))
    sampled = samples(model, None, keys, 100).right
    never = keys[~sampled.any(axis=1)]
    search = plan("beam", width=5, expand=8)
    source = "Tree of Thoughts (arXiv 2305.10601): breadth 5 solves .74, 100 chains of thought .49"
    ours, se, count = mean(batch_rollout(model, verifier, never, search).correct)
    claim = "share of the puzzles that 100 samples never solve which a beam of 5 x 8 solves"
    rows = [Row("puzzles", claim, ours, "at_least", 0.10, n=count, se=se, source=source)]
    ours, se, count = mean(batch_rollout(model, verifier, keys, search).correct)
    claim = "share of all puzzles that a beam of 5 x 8 solves"
    rows.append(Row("puzzles", claim, ours, "within", 0.74, 0.10, count, se, source))
    flat = question_model({"preset": "game-24", "diversity": 0.0})
    ours, se, count = mean(batch_rollout(flat, verifier, never, search).correct)
    claim = "... of the never solved, when siblings repeat one another (phi = 0)"
    rows.append(Row("puzzles", claim, ours, "shown", n=count, se=se))
    return rows


def plateaus(scale: float) -> list[Row]:
    """Votes stall while coverage rises; a weak verifier chooses worse than a vote."""
    model, keys = question_model("math-500"), root_keys(SEED + 15, 0, 1, size(3_000, scale))
    found = samples(model, verifier_model("math-prm"), keys, 256)
    source = "Large Language Monkeys, arXiv 2407.21787: selection stalls at about 100 samples"
    rows = []
    for method, rule, bound in (("majority", "at_most", 0.02), ("coverage", "at_least", 0.02)):
        ours, se, count = mean(chosen(found, method, 256) - chosen(found, method, 64))
        claim = f"{method}: N = 256 less 64"
        rows.append(Row("plateaus", claim, ours, rule, bound, n=count, se=se, source=source))  # type: ignore[arg-type]
    weak = samples(model, verifier_model({"preset": "math-prm", "strength": 1.0}), keys, 8)
    ours, se, count = mean(chosen(weak, "best_of_n", 8) - chosen(weak, "majority", 8))
    claim = "a weak verifier (strength 1.0): best-of-8 less majority"
    source = "Qwen, Lessons of process reward models, arXiv 2501.07301"
    rows.append(Row("plateaus", claim, ours, "at_most", 0.0, n=count, se=se, source=source))
    return rows


def ladder(verifier: VerifierModel, keys: Keys) -> dict[str, tuple[Floats, Floats]]:
    """Correctness and tokens of a ladder of plans on math-500 questions, by plan."""
    model = question_model("math-500")
    plans = {f"weighted vote {n}": plan("weighted_vote", n=n) for n in (1, 2, 4, 8, 16, 32, 64)}
    plans |= {f"beam {n}": beam_of(n) for n in (4, 8, 16, 32)}
    found = {}
    for name, one in plans.items():
        end = batch_rollout(model, verifier, keys, one)
        found[name] = (end.correct.astype(np.float64), end.tokens.astype(np.float64))
    return found


def adaptive(scale: float) -> list[Row]:
    """A plan for each predicted difficulty reaches the weighted vote of 64 with a share of its tokens.

    Difficulty is predicted from the mean score of LOOK answers, which are paid for. The plans are chosen
    on one half of the questions, by the largest accuracy less a price of tokens, and judged on the other;
    the price is the highest at which the choice still reaches the vote.
    """
    gain, share = adapted(size(8_000, scale), LOOK)
    ours, se, count = mean(gain)
    claim = (
        "accuracy of a plan per predicted difficulty less that of the weighted vote of 64, held out"
    )
    rows = [Row("adaptive", claim, ours, "at_least", -0.01, n=count, se=se, source=SNELL)]
    ours, se, count = mean(share)
    claim = "its tokens as a share of that vote's"
    rows.append(Row("adaptive", claim, ours, "within", 0.25, 1 / 12, count, se, SNELL))
    return rows


def adapted(questions: int, looks: int) -> tuple[Floats, Floats]:
    """What a plan per difficulty, predicted from so many answers, gains on the vote of 64, and its share of tokens.

    Both per held-out question; see `adaptive`.
    """
    keys, _ = asked(questions, SEED + 16)
    verifier = verifier_model("math-prm")
    found = ladder(verifier, keys)
    look = samples(question_model("math-500"), verifier, keys, looks)
    score = look.score.mean(axis=1)
    band: Ints = np.searchsorted(np.quantile(score, [0.2, 0.4, 0.6, 0.8]), score)
    paid = look.tokens.sum(axis=1)
    half = np.arange(len(keys)) % 2 == 0
    names = [name for name in found if name.startswith("beam") or int(name.split()[-1]) >= looks]
    extra = {name: paid * name.startswith("beam") for name in names}  # a vote counts those answers
    target = float(found["weighted vote 64"][0][half].mean())
    spent = float(found["weighted vote 64"][1].mean())

    def table(column: Mapping[str, Floats]) -> Floats:
        return np.array([[column[n][half & (band == q)].mean() for n in names] for q in range(5)])

    right = table({name: found[name][0] for name in names})
    cost = table({name: found[name][1] + extra[name] for name in names})
    best = np.full(5, names.index("weighted vote 64"))
    for price in np.geomspace(1e-7, 1e-3, 200):
        pick = (right - price * cost).argmax(axis=1)
        if right[np.arange(5), pick].mean() < target:
            break
        best = pick
    mine = [names[best[q]] for q in band.tolist()]
    tested = np.flatnonzero(~half)
    gain = np.array([found[mine[i]][0][i] - found["weighted vote 64"][0][i] for i in tested])
    tokens = np.array([found[mine[i]][1][i] + extra[mine[i]][i] for i in tested])
    return gain, tokens / spent


def tuned(scale: float) -> list[Row]:
    """Constants that were set in sight of a claim above: it holds over a range of each."""
    keys = root_keys(SEED + 14, 0, 1, size(1_000, scale))
    never = keys[~samples(question_model("game-24"), None, keys, 100).right.any(axis=1)]
    rows = []
    for phi in (0.2, 0.4, 0.6, 0.8, 0.9):
        model = question_model({"preset": "game-24", "diversity": phi})
        judge = verifier_model(model.verifier)
        ours, se, count = mean(
            batch_rollout(model, judge, never, plan("beam", width=5, expand=8)).correct
        )
        claim = f"phi = {phi}: share of the never solved puzzles which a beam of 5 x 8 solves"
        rows.append(Row("tuned", claim, ours, "at_least", 0.10, n=count, se=se))
    keys, band = asked(size(4_000, scale), SEED + 11)
    easy = keys[band >= EASY[0]]
    for sigma in (0.8, 1.05, 1.3):
        for boost in (2.2, 2.7, 3.2):
            fall = []
            for share in (0.03, 0.0):
                judge_of = {"preset": "math-prm", "class_sigma": sigma}
                judge_of |= {"blind_boost": boost, "blind_share": share}
                few, many = (played(easy, beam_of(n), judge_of).correct for n in (16, 256))
                fall.append(few.astype(float) - many)
            ours, se, count = mean(fall[0] - fall[1])
            claim = f"class error {sigma}, blind spots {boost}: fall of the beam that goes without blind spots"
            rows.append(Row("tuned", claim, ours, "at_least", 0.0, n=count, se=se))
    for looks in (2, 4, 8):
        ours, se, count = mean(adapted(size(8_000, scale), looks)[1])
        claim = f"difficulty from {looks} answers: share of the vote's tokens"
        rows.append(Row("tuned", claim, ours, "at_most", 1 / 3, n=count, se=se))
    return rows


def outcome_verifier(scale: float) -> list[Row]:
    """A verifier that knows right from wrong at the end alone cannot guide a beam."""
    keys, _ = asked(size(3_000, scale), SEED + 17)
    found = (
        played(keys, beam_of(16), judge).correct.astype(float) for judge in ("math-orm", "math-prm")
    )
    ours, se, count = mean(np.subtract(*found))
    source = "Lightman et al., Let's Verify Step by Step, arXiv 2305.20050; Snell et al., section 5"
    claim = "beam of 16: outcome less process verifier of the same strength"
    return [Row("outcome", claim, ours, "at_most", 0.0, n=count, se=se, source=source)]


EXPERIMENTS: Final[dict[str, Experiment]] = {
    "bands": beam_and_bands,
    "ablations": ablations,
    "bottleneck": bottleneck,
    "puzzles": unsolved_puzzles,
    "plateaus": plateaus,
    "adaptive": adaptive,
    "outcome": outcome_verifier,
    "tuned": tuned,
}
