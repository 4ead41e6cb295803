"""Verifiers that are fooled and what helps: over-optimisation, ensembles, retraining, shift, calibration.

Where nothing was published to the digit, a row is a direction that was (at least, at most), or is shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from models.batch_rollout import samples
from models.calibration import brier, ece
from models.controller import plan
from models.crowd import Bools, Floats
from models.ensemble import (
    Labels,
    best_right,
    combined,
    is_right,
    label_quality,
    learn_router,
    logits,
    members,
    routed,
    trained,
)
from models.hacking import alarm, curve, early_stop, fit_curve, retrained, soft_choice
from models.keyed import Keys, root_keys
from models.meta_calibration import fit_meta
from models.question import question_model
from models.scaling import fit_power_law, frontier
from models.science import Experiment, Row, mean, size
from models.science_search import BANDS, SNELL, asked, beam_of, played
from models.science_tables import SEED
from models.shift import Training, detector_auc, learn_detector, shifted
from models.verifier import VerifierModel, verifier_model
from models.world import QuestionModel

GAO: Final = "Gao, Schulman, Hilton, arXiv 2210.10760: gold d (alpha - beta d)"
MOST: Final = 1024  # the strongest best-of-n


def hacking(scale: float) -> list[Row]:
    """The general verifier under best-of-n: gold turns down while the verifier is ever surer."""
    model, verifier = question_model("math-500"), verifier_model("general")
    keys = root_keys(SEED + 20, 0, 1, size(1_500, scale))
    grown, logit = logits(model, [verifier], keys, MOST)
    right = is_right(grown)
    found = curve(logit[0], right)
    law, told = fit_curve(found), alarm(found)
    n = len(keys)
    residual = float(
        np.abs(law_values(law.alpha, law.beta, found.n) + found.gold[0] - found.gold).max()
    )
    rows = [
        Row("hacking", "alpha of the over-optimisation curve", law.alpha, "at_least", 0.0, 0.0, n,
            law.alpha_se, GAO),
        Row("hacking", "beta: gold turns down", law.beta, "at_least", 0.0, 0.0, n, law.beta_se, GAO),
        Row("hacking", "largest distance of gold from d (alpha - beta d)", residual, "at_most", 0.03, 0.0,
            n, 0.0, GAO),
        Row("hacking", f"gold at its best n = {told.best_n} less at {MOST}", told.fall, "at_least", 0.0,
            0.0, n, told.fall_se, GAO),
        Row("hacking", f"the verifier's belief less gold, growth from n = 1 to {MOST}", told.gap_growth,
            "at_least", 0.1, 0.0, n, source=GAO),
    ]  # fmt: skip
    hunted, all_fooled = (best_right(logit[0][:, :n], right[:, :n]) == 0 for n in (64, MOST))
    judge, share = retrained(verifier, all_fooled & right.any(axis=1), hunted)
    fresh = root_keys(SEED + 21, 0, 1, size(1_500, scale))
    before, after = (curve(*_scored(model, v, fresh)) for v in (verifier, judge))
    ours, se, count = mean(after.correct[-1] - before.correct[-1])
    claim = (
        f"retrained on what n = 64 found (share {share:.2f}): gold gained at {MOST}, new questions"
    )
    rows.append(Row("hacking", claim, ours, "at_least", 0.0, n=count, se=se))
    claim = "... how much its gap of belief and gold shrinks"
    gap = float(before.gap[-1] - after.gap[-1])
    rows.append(Row("hacking", claim, gap, "at_least", 0.0, n=count, se=se))
    stop = early_stop(found)
    test_logit, test_right = _scored(model, verifier, fresh)
    ours, se, count = mean(
        best_right(test_logit[:, :stop], test_right[:, :stop]) - before.correct[-1]
    )
    claim = f"stopping at n = {stop}, as a canary set says: gold gained on new questions"
    rows.append(Row("hacking", claim, ours, "at_least", 0.0, n=count, se=se))
    soft = soft_choice(test_logit, test_right, 0.5) - float(before.gold[-1])
    rows.append(
        Row(
            "hacking", f"soft best-of-{MOST} (temperature 0.5): gold gained", soft, "shown", n=count
        )
    )
    return rows


def law_values(alpha: float, beta: float, n: tuple[int, ...]) -> Floats:
    """d (alpha - beta d) at each n."""
    from models.hacking import pressure

    d = pressure(np.array(n, dtype=np.float64))
    return np.asarray(d * (alpha - beta * d))


def _scored(
    model: QuestionModel, verifier: VerifierModel, keys: Keys, n: int = MOST
) -> tuple[Floats, Bools]:
    """Logits and truth of n answers to each question."""
    grown, logit = logits(model, [verifier], keys, n)
    return logit[0], is_right(grown)


def ensembles(scale: float) -> list[Row]:
    """Four verifiers that share half of what fools them: the mean, a cautious bound, a learned router."""
    model, keys = question_model("math-500"), root_keys(SEED + 22, 0, 1, size(2_000, scale))
    grown, logit = logits(model, members(verifier_model("general"), 4), keys, 256)
    right = is_right(grown)
    one = best_right(logit[0], right)
    rows = []
    source = "Coste et al., arXiv 2310.02743: ensembles help against over-optimisation"
    for claim, score in (
        ("mean of four verifiers less one, best-of-256", combined(logit)),
        ("... cautious: mean less one sd", combined(logit, 1.0)),
    ):
        ours, se, count = mean(best_right(score, right) - one)
        rows.append(Row("ensembles", claim, ours, "at_least", 0.0, n=count, se=se, source=source))
    alike, same = logits(model, members(verifier_model("general"), 4, 1.0), keys, 256)
    gain, se, count = mean(best_right(combined(same), is_right(alike)) - one)
    claim = "... when they share all that fools them: only step errors average out"
    rows.append(
        Row("ensembles", claim, gain, "at_most", rows[0].ours, n=count, se=se, source=source)
    )
    types = ["algebra" if i % 2 else "geometry" for i in range(len(keys))]
    good, bad = verifier_model("math-prm"), verifier_model({"preset": "general", "version": 1})
    strong = [logits(model, [v], keys, 64)[1][0] for v in (good, replace(bad, strength=1.2))]
    odd = np.array([t == "algebra" for t in types])[:, None]
    pair = np.stack([np.where(odd, *strong), np.where(odd, *strong[::-1])])  # each good at one type
    half, few = len(keys) // 2, right[:, :64]
    router = learn_router(types[:half], pair[:, :half], few[:half])
    best = max(best_right(one[half:], few[half:]).mean() for one in pair)
    chosen = best_right(routed(router, types[half:], pair[:, half:]), few[half:])
    ours, se, count = mean(chosen)
    claim = "a learned router over two specialists less the better of them, best-of-64, held out"
    rows.append(Row("ensembles", claim, ours - float(best), "at_least", 0.0, n=count, se=se))
    return rows


def labels(scale: float) -> list[Row]:
    """How the labels of a process verifier's training change what it selects."""
    model, verifier = question_model("math-500"), verifier_model("math-prm")
    latent, keys = (root_keys(SEED + i, 0, 1, size(3_000, scale)) for i in (23, 24))
    reference = label_quality(model, Labels(8), latent)
    source = "Qwen, Lessons of process reward models, arXiv 2501.07301"
    base = best_right(*_scored(model, verifier, keys, 16))
    rows = []
    for claim, how, rule in (
        ("hard labels of 2 rollouts", Labels(2), "at_most"),
        ("hard labels of 32 rollouts (more lucky ones, too)", Labels(32), "shown"),
        ("soft labels of 8 rollouts", Labels(8, "soft"), "at_most"),
        ("hard labels of 8, half the wrong ones filtered out", Labels(8, consensus=0.5), "at_least"),
    ):  # fmt: skip
        judge = trained(verifier, label_quality(model, how, latent), reference)
        ours, se, count = mean(best_right(*_scored(model, judge, keys, 16)) - base)
        text = f"{claim} less hard labels of 8: best-of-16"
        rows.append(Row("labels", text, ours, rule, 0.0, n=count, se=se, source=source))  # type: ignore[arg-type]
    return rows


def shift(scale: float) -> list[Row]:
    """A verifier one and a half spreads from home: what it loses, who notices, what brings it back."""
    model, verifier = question_model("math-500"), verifier_model("math-prm")
    keys, others = (root_keys(SEED + i, 0, 1, size(3_000, scale)) for i in (25, 26))
    half = len(keys) // 2
    source = "over-estimation off the distribution: arXiv 2506.09338"
    away = shifted(verifier, 1.5)
    home_right = best_right(*_scored(model, verifier, keys, 16))
    ours, se, count = mean(best_right(*_scored(model, away, keys, 16)) - home_right)
    rows = [
        Row(
            "shift",
            "best-of-16 far from home less at home",
            ours,
            "at_most",
            0.0,
            0.0,
            count,
            se,
            source,
        )
    ]
    seen = [samples(model, v, k, 4) for v, k in ((verifier, keys[:half]), (away, others[:half]))]
    test = [samples(model, v, k, 4) for v, k in ((verifier, keys[half:]), (away, others[half:]))]
    area = detector_auc(learn_detector(*seen), *test)
    claim = "AUC of telling it from four answers to one question, held out"
    rows.append(Row("shift", claim, area, "at_least", 0.6, n=count - half))
    for claim, how in (
        ("an online update of 500 labelled queries: best-of-16 regained", Training(updates=500)),
        ("robust training: best-of-16 regained", Training(robust=0.7)),
    ):
        better = best_right(*_scored(model, shifted(verifier, 1.5, how), keys, 16))
        ours, se, count = mean(better - best_right(*_scored(model, away, keys, 16)))
        rows.append(Row("shift", claim, ours, "at_least", 0.0, n=count, se=se))
    cost = best_right(*_scored(model, shifted(verifier, 0.0, Training(robust=0.7)), keys, 16))
    ours, se, count = mean(cost - home_right)
    rows.append(
        Row("shift", "robust training at home: best-of-16 paid", ours, "shown", n=count, se=se)
    )
    return rows


def confidence(scale: float) -> list[Row]:
    """Raw scores are no probabilities; per type and with features they become honest ones."""
    parts = {"math-500": "math-prm", "gsm8k": "general", "code": "general"}
    columns, correct, types = [], [], []
    for i, (preset, judge) in enumerate(parts.items()):
        keys = root_keys(SEED + 27 + i, 0, 1, size(2_000, scale))
        grown, logit = logits(question_model(preset), members(verifier_model(judge), 2), keys, 8)
        score = combined(logit)
        top = score.argmax(axis=1)
        row = np.arange(len(keys))
        agree = (grown.wrong == grown.wrong[row, top][:, None]).mean(axis=1)
        spread = np.abs(logit[0] - logit[1])[row, top]
        columns.append(np.stack([score[row, top], agree, spread], axis=1))
        correct.append(is_right(grown)[row, top])
        types += [preset] * len(keys)
    x, y, kinds = np.concatenate(columns), np.concatenate(correct), np.array(types)
    fit = np.random.default_rng(0).random(len(y)) < 0.5
    raw = 1 / (1 + np.exp(-x[~fit, 0]))
    rows = [
        Row(
            "confidence",
            "ECE of the raw score",
            ece(raw, y[~fit].astype(float)),
            "at_least",
            0.05,
            n=int((~fit).sum()),
        )
    ]
    error = brier(raw, y[~fit].astype(float))
    for method in ("isotonic", "beta"):
        meta = fit_meta(x[fit], y[fit], kinds[fit].tolist(), method)
        claimed = meta.confidence(x[~fit], kinds[~fit].tolist())
        worst = max(
            ece(claimed[kinds[~fit] == kind], y[~fit][kinds[~fit] == kind].astype(float))
            for kind in parts
        )
        claim = f"{method} per type, with features: ECE of the worst type, held out"
        rows.append(Row("confidence", claim, worst, "at_most", 0.05, n=len(claimed)))
        gained = error - brier(claimed, y[~fit].astype(float))
        rows.append(
            Row(
                "confidence",
                f"{method}: Brier score gained",
                gained,
                "at_least",
                0.0,
                n=len(claimed),
            )
        )
    return rows


def exponents(scale: float) -> list[Row]:
    """Error against tokens as a power law, by algorithm and band of difficulty."""
    keys, band = asked(size(4_000, scale), SEED + 30)
    rows = []
    for name, make in (("weighted vote", lambda n: plan("weighted_vote", n=n)), ("beam", beam_of)):
        ends = [played(keys, make(n)) for n in (4, 8, 16, 32)]
        for quintile in (1, 2, 3):
            mine = band == quintile
            right = np.array([end.correct[mine].astype(float) for end in ends])
            if (right.mean(axis=1) >= 1).any():
                continue
            law = fit_power_law(np.array([end.tokens[mine].astype(float) for end in ends]), right)
            claim = f"{name}, {BANDS[quintile]} quintile: error falls as tokens to the minus"
            se = (law.high - law.low) / 4
            rows.append(
                Row("exponents", claim, law.gamma, "shown", n=int(mine.sum()), se=se, source=SNELL)
            )
    return rows


def exchange(scale: float) -> list[Row]:
    """Training against inference: the more queries, the smaller the model and the longer its training."""
    target = 2.2
    few, many = (frontier(target, q, 1_000, thinking=(1.0,))[0] for q in (1e6, 1e12))
    source = "Sardana et al., arXiv 2401.00448"
    ratio = few.parameters / many.parameters
    rows = [
        Row("exchange", "parameters at 1e6 queries over those at 1e12", ratio, "at_least", 1.5, source=source),
        Row("exchange", "training tokens a parameter at 1e12 queries over those at 1e6",
            many.train_tokens / many.parameters / (few.train_tokens / few.parameters), "at_least", 2.0,
            source=source),
    ]  # fmt: skip
    rare = frontier(target, 1e3, 1_000)[0]
    often = frontier(target, 1e13, 1_000)[0]
    claim = "thinking at 1e3 queries over thinking at 1e13 (times)"
    source = "Epoch (2023), Snell et al.: inference replaces training where queries are few"
    rows.append(
        Row("exchange", claim, rare.thinking / often.thinking, "at_least", 2.0, source=source)
    )
    return rows


EXPERIMENTS: Final[dict[str, Experiment]] = {
    "hacking": hacking,
    "ensembles": ensembles,
    "labels": labels,
    "shift": shift,
    "confidence": confidence,
    "exponents": exponents,
    "exchange": exchange,
}
