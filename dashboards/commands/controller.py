"""`treeline fit controller` and `treeline controller`: train one from scratch, and judge it beside fixed plans and oracles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hw.device import CatalogError, device
from hw.profile import ProfileError
from hw.profile import load as load_profile
from hw.shipped import default_profile, find_profile
from hw.transformer import transformer
from models import judging
from models.fallback import best_plan, guarded, lead
from models.judging import Played, Weighed, bootstrap, cost_at
from models.latency import LatencyError, step_cost
from models.learned import RATE, WITH_BEAMS, Learned, load, save
from models.mix import CALIBRATE, CHECK, HOLD_OUT, TRAIN, Drawn, Mix, draw, mix, questions_of
from models.promise import certify, sample_for
from models.staged import Prices, staged
from models.token_prices import token_prices
from models.training import fit
from scenarios.errors import UserError

DEVICE, MODEL, JUDGE = "h200-sxm-141gb", "llama-3.1-8b", "qwen2.5-math-prm-7b"
PROMISES: Final = (0.90, 0.95, 0.97)
LEAST_COVERAGE: Final = 0.10  # a promise that sells less than this is not won, stated beforehand
CALIBRATION: Final = 6_000  # questions of a class behind a promise
POOL: Final = (
    4 * CALIBRATION
)  # questions of a class from which calibrations are redrawn; the rest judge them
REDRAWS: Final = 100
ORACLE: Final = "O1: knows class, pass rate and steps"
CHECKED: Final = (
    14_000  # questions on which a new controller must hold up, some 2,000 of the rarest class
)
LOADS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
Tell = Callable[[float, str], None] | None


def prices_of(profile: str | None = None) -> Prices:
    """What tokens cost on the default device by its profile. Raises UserError for a profile that is none."""
    try:
        chosen = device(DEVICE)
        path = find_profile(profile) if profile else default_profile(DEVICE)
        measured = load_profile(path) if path is not None else None
        policy, judge = (step_cost(transformer(name), chosen, measured) for name in (MODEL, JUDGE))
    except (ProfileError, CatalogError, LatencyError) as error:
        raise UserError(str(error)) from None
    return token_prices(policy, judge)


def train(
    out: str, questions: int, seed: int, *, profile: str | None, force: bool, tell: Tell
) -> dict[str, Any]:
    """Fit a controller from scratch and write it. Raises UserError where the file is there already."""
    target = Path(out)
    if target.exists() and not force:
        raise UserError(f"{target} exists already. Name another with --out, or add --force.")
    chosen, prices = mix(), prices_of(profile)
    if tell is not None:
        tell(0.0, "drawing questions")
    drawn = draw(chosen, questions, TRAIN, seed)
    try:
        found = fit(chosen, drawn, prices, seed, tell)
        found = guarded(found, drawn, draw(chosen, questions // 2, CHECK, seed), prices)
        save(found, target)
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}. Name another.") from None
    return {
        "written": str(target),
        "questions": len(drawn),
        "falls_back": dict(found.falls_back),
        "provenance": dict(found.provenance),
    }


def evaluate(path: str | None, questions: int, seed: int, tell: Tell) -> dict[str, Any]:
    """Judge a controller on questions it never saw: the document that `text` shows."""
    say = tell or (lambda share, word: None)
    try:
        controller = load(Path(path) if path else WITH_BEAMS)
    except ValueError as error:
        raise UserError(str(error)) from None
    chosen, prices = mix(), prices_of()
    names = chosen.classes
    if controller.classes != names:
        raise UserError("This controller was fitted on another mix of classes: fit it again.")
    say(0.02, "held-out questions")
    held = draw(chosen, questions, HOLD_OUT, seed)
    train_set = draw(chosen, questions, TRAIN, seed)
    weighed = judging.weigh(controller, staged(held, controller.mean_tokens, prices))
    say(0.15, "fixed plans and the controller")
    plans, trained = judging.fixed_plans(held, prices), judging.fixed_plans(train_set, prices)
    curve = judging.learned(weighed)
    by = {plan.name: plan for plan in plans}
    catalogue = [plan for plan in plans if not plan.name.startswith("sharp")]
    equal = [
        _equal(curve, plans, by[f"{kind} 64"], len(held)) for kind in ("best_of_n", "weighted_vote")
    ]
    unit = controller.unit_gpu_s
    say(0.3, "oracles")
    prices_s = [rate / unit for rate in judging.PRICES]
    cells = judging.bands(
        train_set, held, ("pass_rate", judging.BANDS), ("steps", judging.STEP_BANDS)
    )
    first = [judging.pick_plan(cells, plans, trained, rate, ORACLE) for rate in prices_s]
    say(0.35, "an oracle that stops as it does")
    second = _second_oracle(chosen, prices, controller, questions, seed)
    others = [judging.exact_verifier(held, prices, 64), judging.clairvoyant(held, prices, 64)]
    low, high = (float(by[f"best_of_n {n}"].gpu_s.mean()) for n in (1, 64))
    areas = {
        "best fixed": judging.area(plans, low, high),
        "learned": judging.area(curve, low, high),
        "O1": judging.area(first, low, high),
        "O2": judging.area(second, low, high),
    }
    say(0.6, "promises")
    single = judging.play(weighed, RATE)
    cheap = judging.random_stops(weighed.table, single, seed)
    promises = list(_promises(controller, chosen, prices, seed))
    say(0.8, "ablations and robustness")
    return {
        "questions": len(held),
        "provenance": dict(controller.provenance),
        "prices": prices.label,
        "source_kind": prices.source_kind,
        "curve": [_point(p) for p in curve],
        "fixed": [_point(p) for p in judging.best_of(plans)],
        "fixed_in_catalogue": [_point(p) for p in judging.best_of(catalogue)],
        "oracles": [_point(p) for p in (*first[::4], *second[::4], *others)],
        "random": _point(cheap),
        "at": _point(single),
        "equal": equal,
        "areas": areas,
        "closed": {name: _closed(areas, name) for name in ("O1", "O2")},
        "classes": list(_classes(controller, single, held, train_set, plans, trained)),
        "falls_back": dict(controller.falls_back),
        "hard": _hard(held, curve, plans),
        "promises": promises,
        "map": _map(weighed),
        "variants": list(_variants(controller, chosen, prices, questions // 2, seed)),
        "calibration": _calibration(single),
    }


def _equal(curve: list[Played], plans: list[Played], target: Played, n: int) -> dict[str, Any]:
    """Cost at the accuracy of `target`, against its own and the best fixed plan's, with 95 % intervals."""
    cost, accuracy = target.point
    ours, fixed = cost_at(curve, accuracy), cost_at(plans, accuracy)
    rows = {
        "of_it": lambda at: (
            cost_at(curve, float(target.right[at].mean()), at) / float(target.gpu_s[at].mean())
        ),
        "of_best_fixed": lambda at: (
            cost_at(curve, float(target.right[at].mean()), at)
            / cost_at(plans, float(target.right[at].mean()), at)
        ),
    }
    intervals = {name: bootstrap(function, n, 100) for name, function in rows.items()}
    return {
        "target": target.name,
        "accuracy": accuracy,
        "gpu_s": cost,
        "learned_gpu_s": ours,
        "of_it": ours / cost,
        "of_it_interval": intervals["of_it"],
        "of_best_fixed": ours / fixed,
        "of_best_fixed_interval": intervals["of_best_fixed"],
    }


def _second_oracle(
    chosen: Mix, prices: Prices, controller: Learned, questions: int, seed: int
) -> list[Played]:
    """O2: the same learner, of as many questions, but told the latent difficulty itself and the number of steps."""
    known = int(controller.provenance["questions"])
    knows = replace(chosen, informativeness=1.0)
    oracle = fit(knows, draw(knows, known, TRAIN, seed), prices, seed, told_steps=True)
    table = staged(draw(knows, questions, HOLD_OUT, seed), oracle.mean_tokens, prices, True)
    return judging.learned(judging.weigh(oracle, table), name="O2")


def _closed(areas: dict[str, float], oracle: str) -> float:
    gap = areas[oracle] - areas["best fixed"]
    return (areas["learned"] - areas["best fixed"]) / gap if gap > 0 else math.nan


def _classes(
    controller: Learned,
    single: Played,
    held: Drawn,
    train_set: Drawn,
    plans: list[Played],
    trained: list[Played],
) -> Iterator[dict[str, Any]]:
    """Each class: utility against the fixed plan that was best on its training questions, paired."""
    rate_s = RATE / controller.unit_gpu_s
    by = {plan.name: plan for plan in plans}
    for number, name in enumerate(controller.classes):
        mine = held.klass == number
        best = by[best_plan(trained, train_set.klass == number, rate_s).name]
        gain, bound = lead(single, best, mine, rate_s)
        yield {
            "class": name,
            "n": int(mine.sum()),
            "best_fixed": best.name,
            "accuracy": float(single.right[mine].mean()),
            "accuracy_best_fixed": float(best.right[mine].mean()),
            "gpu_s": float(single.gpu_s[mine].mean()),
            "gpu_s_best_fixed": float(best.gpu_s[mine].mean()),
            "utility_gain": gain,
            "bound": bound,
        }


def _hard(held: Drawn, curve: list[Played], plans: list[Played]) -> dict[str, Any]:
    """The hard band, a pass rate of .001 to .05: cost at the accuracy of max best-of-64, of the controller and of a beam."""
    rows = np.flatnonzero((held.pass_rate >= 0.001) & (held.pass_rate <= 0.05))
    target = next(plan for plan in plans if plan.name == "best_of_n 64")
    beams = [plan for plan in plans if plan.name.startswith("beam")]

    def cheaper(by: list[Played], at: Any) -> float:
        cost = cost_at(by, float(target.right[at].mean()), at)
        return float(target.gpu_s[at].mean()) / cost if math.isfinite(cost) else 0.0

    ours = cheaper(curve, rows)
    return {
        "n": len(rows),
        "accuracy": float(target.right[rows].mean()),
        "gpu_s": float(target.gpu_s[rows].mean()),
        "cheaper": ours or None,
        "cheaper_interval": bootstrap(lambda at: cheaper(curve, rows[at]), len(rows), 100),
        "cheaper_by_a_beam": cheaper(beams, rows) or None,
    }


def _promises(
    controller: Learned, chosen: Mix, prices: Prices, seed: int
) -> Iterator[dict[str, Any]]:
    """Each class and promise: how often redrawn calibration breaks it, what it sells, what that costs."""
    even = dict.fromkeys(chosen.classes, 1.0 / len(chosen.classes))
    pool = draw(replace(chosen, shares=even), POOL * len(even), CALIBRATE, seed)
    table = staged(pool, controller.mean_tokens, prices)
    single = judging.play(judging.weigh(controller, table), RATE / 4)  # a promise thinks longer
    random = np.random.default_rng(seed)
    for number, name in enumerate(chosen.classes):
        rows = np.flatnonzero(pool.klass == number)
        signal, right, cost = single.confidence[rows], single.right[rows], single.gpu_s[rows]
        for promise in PROMISES:
            ideal = _ideal(signal, right, promise)
            broken, coverage, refused, precision = 0, [], 0, []
            for _ in range(REDRAWS):
                sample = random.choice(len(rows), min(CALIBRATION, len(rows) // 2), replace=False)
                found = certify(signal[sample], right[sample], promise)
                if found is None:
                    refused += 1
                    continue
                others = np.ones(len(rows), dtype=np.bool_)  # never judged on what it was fitted to
                others[sample] = False
                sold = others & (signal >= found.threshold)
                coverage.append(float(sold.sum() / others.sum()))
                if sold.any():
                    precision.append(float(right[sold].mean()))
                    broken += precision[-1] < promise
            mean = float(np.mean(coverage)) if coverage else 0.0
            yield {
                "class": name,
                "promise": promise,
                "redraws": REDRAWS,
                "refused": refused,
                "broken": broken,
                "coverage": mean,
                "ideal_coverage": ideal,
                "precision": float(np.mean(precision)) if precision else None,
                "gpu_s_per_sold": float(cost.mean()) / mean if mean > 0 else None,
                "won": mean >= LEAST_COVERAGE,
                "sample_needed": sample_for(promise, float(np.mean(precision or [right.mean()]))),
            }


def _ideal(signal: Any, right: Any, promise: float) -> float:
    """The largest coverage at which the promise holds, if the truth were known."""
    order = np.argsort(-signal, kind="stable")
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    holds = np.flatnonzero(precision >= promise)
    return float((holds[-1] + 1) / len(order)) if len(holds) else 0.0


def _map(weighed: Weighed) -> dict[str, Any]:
    """Mean trajectories by difficulty (fifths of the hint, easiest first) and load (price of GPU time)."""
    hint = weighed.table.drawn.hint
    edges = np.quantile(hint, np.linspace(0, 1, 6)[1:-1])
    fifth = 4 - np.searchsorted(edges, hint)
    cells = []
    for load_ in LOADS:
        grown = judging.play(weighed, RATE * load_).trajectories
        cells.append([float(grown[fifth == band].mean()) for band in range(5)])
    return {"loads": list(LOADS), "trajectories": cells}


def _variants(
    controller: Learned, chosen: Mix, prices: Prices, questions: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Ablations and what happens when the world is not as it was learned, each beside fixed plans in that world."""
    train_set = draw(chosen, questions, TRAIN, seed)
    trained = judging.fixed_plans(train_set, prices)
    best = [
        best_plan(trained, train_set.klass == k, RATE / controller.unit_gpu_s).name
        for k in range(len(chosen.classes))
    ]

    def row(
        name: str, told: Learned, held: Drawn, price: Prices = prices, beams: bool = True
    ) -> dict[str, Any]:
        table = staged(held, told.mean_tokens, price)
        ours = judging.play(judging.weigh(told, table, beams), RATE)
        return _beside(name, ours, held, price)

    def _beside(name: str, ours: Played, held: Drawn, price: Prices) -> dict[str, Any]:
        plans = {plan.name: plan for plan in judging.fixed_plans(held, price)}
        rate_s = RATE / controller.unit_gpu_s
        theirs = np.empty(len(held))
        for klass, plan in enumerate(best):
            mine = held.klass == klass
            theirs[mine] = (plans[plan].right - rate_s * plans[plan].gpu_s)[mine]
        more = ours.right - rate_s * ours.gpu_s - theirs
        error = 1.96 * float(more.std(ddof=1)) / math.sqrt(len(more))
        mean = float(more.mean())
        return {"variant": name, "gain": mean, "interval": (mean - error, mean + error)} | _point(
            ours
        )

    held = draw(chosen, questions, HOLD_OUT, seed)
    yield row("as it is", controller, held)
    yield row("no escalation (never a beam)", controller, held, beams=False)
    cells = judging.bands(train_set, held, ("hint", judging.BANDS))
    plans = judging.fixed_plans(held, prices)
    rate_s = RATE / controller.unit_gpu_s
    once = judging.pick_plan(cells, plans, trained, rate_s, "chosen beforehand")
    yield _beside("no stopping (a plan by class and hint)", once, held, prices)
    for share, name in (
        (0.0, "no features (a hint that says nothing)"),
        (0.3, "a hint of R2 0.3"),
        (0.6, "a hint of R2 0.6"),
    ):
        other = replace(chosen, informativeness=share)
        told = fit(other, draw(other, questions, TRAIN, seed), prices, seed)
        yield row(name, told, draw(other, questions, HOLD_OUT, seed))
    shares = dict(zip(chosen.classes, reversed(list(chosen.shares.values())), strict=True))
    swapped = draw(replace(chosen, shares=shares), questions, HOLD_OUT, seed)
    yield row("another mix (shares reversed)", controller, swapped)
    models = {name: questions_of(name)[1] for name in chosen.classes}
    drifted = {name: replace(model, bias=model.bias + 0.7) for name, model in models.items()}
    moved = draw(chosen, questions, HOLD_OUT, seed, verifiers=drifted)
    yield row("a verifier that drifted (+0.7 logits)", controller, moved)
    wrong = replace(prices, scored_s=10 * prices.scored_s)
    yield row("a wrong profile (scoring ten times dearer than learned)", controller, held, wrong)


def _calibration(single: Played) -> dict[str, float]:
    from sim.metrics import calibration

    found = calibration(single.confidence, single.right)
    return {"mean_confidence": found.mean_confidence, "ece": found.ece, "brier": found.brier}


def _point(played: Played) -> dict[str, Any]:
    cost, accuracy = played.point
    return {
        "name": played.name,
        "gpu_s": cost,
        "accuracy": accuracy,
        "trajectories": float(played.trajectories.mean()),
    }


# -- for people ----------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The document of `evaluate` for people."""
    at, calibration = found["at"], found["calibration"]
    lines = [
        (
            f"{found['questions']:,} questions held out, of a frozen mix; trained on "
            f"{found['provenance']['questions']:,} others."
        ),
        f"GPU-seconds ({found['source_kind']}): {found['prices']}.",
        "",
        "Cost against accuracy",
        *_picture(found),
        "",
        "At equal accuracy, the learned controller spends",
    ]
    for row in found["equal"]:
        low, high = row["of_it_interval"]
        below, above = row["of_best_fixed_interval"]
        lines.append(
            f"  {100 * row['of_it']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {row['target']} "
            f"({100 * row['accuracy']:.1f} % right), and {100 * row['of_best_fixed']:.0f} % "
            f"[{100 * below:.0f}, {100 * above:.0f}] of the best fixed plan there"
        )
    hard = found["hard"]
    low, high = hard["cheaper_interval"]
    hard_word = (
        f"{hard['cheaper']:.1f} [{low:.1f}, {high:.1f}] times cheaper"
        if hard["cheaper"]
        else "not reached"
    )
    if hard["cheaper_by_a_beam"]:
        hard_word += f"; a beam for each of them: {hard['cheaper_by_a_beam']:.1f} times"
    lines += [
        (
            f"  on hard questions (pass rate .001 to .05, {hard['n']:,} of them) at the {100 * hard['accuracy']:.1f} % of "
            f"best_of_n 64: {hard_word}"
        ),
        "",
        "Oracles (accuracy averaged over log cost, from best_of_n 1 to 64)",
        "  " + ", ".join(f"{name} {value:.4f}" for name, value in found["areas"].items()),
        "  gap from the best fixed plans closed: "
        + ", ".join(f"{100 * value:.0f} % to {name}" for name, value in found["closed"].items()),
        *(
            f"  {row['name']:44} {row['gpu_s']:8.3f} GPU-s  {100 * row['accuracy']:5.1f} %"
            for row in found["oracles"]
        ),
        "",
        (
            f"At one price of GPU time ({at['name']}): {at['gpu_s']:.3f} GPU-s, {100 * at['accuracy']:.1f} % right, "
            f"{at['trajectories']:.1f} trajectories; the same stops on other questions: "
            f"{100 * found['random']['accuracy']:.1f} % at {found['random']['gpu_s']:.3f} GPU-s."
        ),
        f"Its confidence: {100 * calibration['mean_confidence']:.1f} % stated on average, ECE {calibration['ece']:.4f}.",
        "",
        "By class, against the fixed plan that was best on its training questions",
        f"  {'class':10} {'n':>6}  {'best fixed':20} {'accuracy':>16}  {'GPU-s':>14}  utility, 95 % bound",
    ]
    for row in found["classes"]:
        lines.append(
            f"  {row['class']:10} {row['n']:6,}  {row['best_fixed']:20} "
            f"{100 * row['accuracy_best_fixed']:5.1f} -> {100 * row['accuracy']:5.1f} %  "
            f"{row['gpu_s_best_fixed']:5.3f} -> {row['gpu_s']:5.3f}  {100 * row['utility_gain']:+5.1f} %, "
            f"> {100 * row['bound']:+.1f} %"
        )
    lines += [
        f"  {name} falls back to its best fixed plan: {why}"
        for name, why in found["falls_back"].items()
    ]
    lines += [
        "",
        (
            f"Promises by Learn-then-Test, {CALIBRATION:,} calibration questions a class, {REDRAWS} redraws (at least "
            f"{100 * LEAST_COVERAGE:.0f} % must be sold)"
        ),
        f"  {'class':10} {'promise':>7}  {'broken':>6} {'refused':>7}  {'sold':>6} {'ideal':>6}  {'right':>6}  GPU-s/sold",
    ]
    for row in found["promises"]:
        right = "-" if row["precision"] is None else f"{100 * row['precision']:.1f} %"
        cost = "-" if row["gpu_s_per_sold"] is None else f"{row['gpu_s_per_sold']:.3f}"
        lines.append(
            f"  {row['class']:10} {100 * row['promise']:5.0f} %  {row['broken']:6} {row['refused']:7}  "
            f"{100 * row['coverage']:5.1f} % {100 * row['ideal_coverage']:4.1f} %  {right:>6}  {cost}"
        )
    lines += ["", "Trajectories by difficulty (fifths of the hint) and load (price of GPU time)"]
    head = "".join(f"{word:>10}" for word in ("easiest", "easy", "middle", "hard", "hardest"))
    lines.append(f"  {'load':>5}{head}")
    most = max(max(row) for row in found["map"]["trajectories"])
    for load_, row in zip(found["map"]["loads"], found["map"]["trajectories"], strict=True):
        cells = "".join(f"{_shade(n / most)} {n:7.1f}" for n in row)
        lines.append(f"  {load_:4g}x{cells}")
    lines += [
        "",
        "What if (the last column: points of utility over each class's best fixed plan in that world)",
    ]
    lines += [
        f"  {row['variant']:56} {row['gpu_s']:6.3f} GPU-s  {100 * row['accuracy']:5.1f} %  "
        f"{100 * row['gain']:+.2f} [{100 * row['interval'][0]:+.2f}, {100 * row['interval'][1]:+.2f}]"
        for row in found["variants"]
    ]
    return "\n".join(lines)


def _shade(share: float) -> str:
    return " " + "░▒▓█"[min(3, int(4 * share))]


def _picture(found: dict[str, Any], width: int = 72, height: int = 14) -> list[str]:
    """Accuracy over the logarithm of cost: L the controller, f fixed plans, o oracles."""
    groups = (("f", found["fixed"]), ("o", found["oracles"]), ("L", found["curve"]))
    points = [(letter, row["gpu_s"], row["accuracy"]) for letter, rows in groups for row in rows]
    costs, reached = [math.log(p[1]) for p in points], [p[2] for p in points]
    left, right, low, high = min(costs), max(costs), min(reached), 1.0
    grid = [[" "] * width for _ in range(height)]
    for letter, cost, accuracy in points:
        x = round((math.log(cost) - left) / (right - left) * (width - 1))
        y = round((high - accuracy) / (high - low) * (height - 1))
        grid[y][x] = letter
    shown = []
    for number, row in enumerate(grid):
        level = high - (high - low) * number / (height - 1)
        shown.append(f"  {100 * level:5.1f} % |{''.join(row).rstrip()}")
    ends = f"{math.exp(left):.3g}", f"{math.exp(right):.3g} GPU-s a query"
    shown.append(f"          {ends[0]}{' ' * (width - len(ends[0]) - len(ends[1]))}{ends[1]}")
    return [*shown, "          L learned, f fixed plans, o oracles; cost on a logarithmic axis"]
