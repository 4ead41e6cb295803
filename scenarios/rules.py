"""What ties keys of a scenario together: shares that add up, names that exist, searches that can run.

Each rule reads the plain data and is silent where it is not well formed, because the schema says
that; so one report holds the wrong keys and the broken rules together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from scenarios import units
from scenarios.schema import BUDGETS, NEEDS_VERIFIER, PARAMETERS, SEARCH_PARAMETERS

Keys = tuple[str, ...]
Finding = tuple[Keys, str, str]  # where, what is wrong, the way out


def check(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Every broken rule of a scenario's plain data, as (path, message, hint)."""
    tiers, fleet = _mapping(data, "tiers"), _mapping(data, "fleet")
    workload = _mapping(data, "workload")
    classes = _mapping(workload, "classes")
    yield from _pools(fleet)
    yield from _escalation(fleet, tiers, classes)
    if "drift" in _mapping(data, "pricing") and any(
        "escalate" in _mapping(tiers, n) for n in tiers
    ):
        message = "what a drifted verifier does to a tier that escalates is not known"
        yield ("pricing", "drift"), message, "remove drift, or escalate from the tiers"
    yield from _shares(("tiers",), {name: _share(tier) for name, tier in tiers.items()})
    shares = {name: _share(item) for name, item in classes.items()}
    yield from _shares(("workload", "classes"), shares)
    for name, item in classes.items():
        trace = _mapping(workload, "arrivals").get("kind") == "trace"
        yield from _class(("workload", "classes", name), item, tiers, trace)
    roles = {str(_mapping(fleet, name).get("role", "policy")) for name in fleet}
    verifier = "verifier" in roles or not roles <= {"policy"}  # a misspelt role may be meant as one
    segments = _mapping(_mapping(data, "pricing"), "segments")
    yield from _shares(("pricing", "segments"), {n: _share(item) for n, item in segments.items()})
    for name in segments:
        own = _mapping(segments, name).get("classes")
        for place, item in enumerate(own if isinstance(own, list) else []):
            if item not in classes:
                where = ("pricing", "segments", name, "classes", str(place))
                yield where, f"there is no class {item!r}", nearest(item, classes)
    for name, tier in tiers.items():
        if isinstance(tier, dict):
            yield from _search(("tiers", name), tier, verifier)
            if isinstance(tier.get("escalate"), dict):
                again = {"search": _mapping(tier["escalate"], "search")}
                yield from _search(("tiers", name, "escalate"), again, verifier)
            yield from _price(("tiers", name), tier)


def nearest(name: object, known: Iterator[str] | Mapping[str, Any] | tuple[str, ...]) -> str:
    """`did you mean X?` when a known name is near, or the list of all of them; "" without any."""
    names = [str(item) for item in known]
    text = str(name)
    close = difflib.get_close_matches(text.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if close:
        return f"did you mean {next(n for n in names if n.lower() == close[0])}?"
    shown = ", ".join(names[:24]) + (", ..." if len(names) > 24 else "")
    return f"known: {shown}" if names else ""


def _mapping(data: Any, key: str) -> dict[str, Any]:
    found = data.get(key) if isinstance(data, Mapping) else None
    return found if isinstance(found, dict) else {}


_MISSING: Final = object()


def _share(item: Any) -> Any:
    return item.get("share", _MISSING) if isinstance(item, dict) else _MISSING


def _shares(path: Keys, shares: dict[str, Any]) -> Iterator[Finding]:
    """A sole share is 100 % unless given; several are all given and add up to 1."""
    if not shares:
        return
    missing = [name for name, share in shares.items() if share is _MISSING]
    if len(shares) == 1 and missing:
        return
    amounts: dict[str, float] = {}
    for name, share in shares.items():
        if share is not _MISSING:
            try:
                amounts[name] = units.parse(share, "share")
            except units.UnitError:
                return
    total = sum(amounts.values())
    rest = units.show(max(0.0, 1 - total) / max(1, len(missing)), "share")
    if missing:
        names = ", ".join(missing)
        hint = f"add share: {rest}{' to each' if len(missing) > 1 else ''}"
        yield path, f"no share for {names}; the others add up to {total:.6g}", hint
    elif abs(total - 1) > 1e-6:
        yield path, f"the shares add up to {_percent(total)}, not 100%", _scaled(amounts, total)


def _percent(share: float) -> str:
    return f"{share * 100:.6g}%"


def _scaled(amounts: dict[str, float], total: float) -> str:
    """Shares in proportion, as the fix; only the last one differs when it can make up for the rest."""
    if total == 0:
        return "give at least one a share"
    *_, last = amounts
    others = total - amounts[last]
    if 0 < 1 - others <= 1:
        return f"for example {last}: {_percent(1 - others)}"
    return "for example " + ", ".join(f"{n}: {_percent(a / total)}" for n, a in amounts.items())


def _pools(fleet: dict[str, Any]) -> Iterator[Finding]:
    roles = {
        name: item.get("role", "policy") for name, item in fleet.items() if isinstance(item, dict)
    }
    for role in ("policy", "verifier"):
        pools = [name for name, its in roles.items() if its == role]
        most = 2 if role == "policy" else 1
        if len(pools) > most:
            message = f"{len(pools)} pools with role {role} ({', '.join(pools)})"
            many = f"one {role} pool" if most == 1 else f"two {role} pools"
            hint = f"this version routes to {many}; merge them"
            yield ("fleet", pools[most]), message, hint
        elif not pools and role == "policy" and len(roles) == len(fleet) and fleet:
            hint = "add a pool with role: policy, the model that answers"
            yield ("fleet",), "no pool answers: every pool is a verifier", hint


def _escalation(
    fleet: dict[str, Any], tiers: dict[str, Any], classes: dict[str, Any]
) -> Iterator[Finding]:
    """A second policy pool is there to escalate to, and somebody does; what its model makes of each class is said."""
    policies = [
        n for n, its in fleet.items() if _mapping(fleet, n).get("role", "policy") == "policy"
    ]
    asking = [name for name in tiers if "escalate" in _mapping(tiers, name)]
    if len(policies) == 2 and not asking:
        message = f"no tier escalates to {policies[1]}, so nothing would ever run there"
        hint = f"add escalate: {{below: 80%}} to a tier, or role: verifier to {policies[1]}, or remove it"
        yield ("fleet", policies[1]), message, hint
    for name in asking:
        tier = _mapping(tiers, name)
        where: Keys = ("tiers", name, "escalate")
        if len(policies) == 1:
            hint = "add a second policy pool, for example large: {model: llama-3.1-70b, device: h200-sxm-141gb}"
            yield where, "there is no pool to escalate to", hint
        own = tier["escalate"]
        promise = _mapping(tier, "promise")
        if isinstance(own, dict) and not ("below" in own or "confidence" in promise):
            yield where, "nothing says how sure an answer has to be", "add below: 80%"
        budget = promise.get("budget")
        if budget is not None:
            message = "a promised budget bounds a whole query, and this one may search twice"
            yield (*where[:2], "promise", "budget"), message, "write max_tokens into each search"
    for name, item in classes.items():
        said = isinstance(item, dict) and "escalated" in item
        if asking and isinstance(item, dict) and not said:
            hint = "add escalated: {pass_rate: {kind: beta, a: 8, b: 1}}, or escalated: {} where it is no better"
            message = "nothing says what the model that doubtful queries escalate to makes of these"
            yield ("workload", "classes", name), message, hint
        elif said and not asking:
            path: Keys = ("workload", "classes", name, "escalated")
            yield path, "no tier escalates", "add escalate: {below: 80%} to a tier, or remove it"


def _class(path: Keys, item: Any, tiers: dict[str, Any], trace: bool) -> Iterator[Finding]:
    if not isinstance(item, dict):
        return
    if "preset" not in item and "question" not in item:
        hint = "add preset: chat (or math-500, gsm8k, code, aime, game-24, thinking-r1)"
        yield path, "nothing says what these queries ask", hint
    elif not (trace or {"preset", "prompt_tokens"} & {*item, *_mapping(item, "question")}):
        hint = "add prompt_tokens: {kind: lognormal, median: 600, sigma: 0.9}, or a preset"
        yield path, "nothing says how long these prompts are", hint
    own = _mapping(item, "tiers")
    for name in own:
        if name not in tiers:
            yield (*path, "tiers", name), f"there is no tier {name!r}", nearest(name, tiers)
    yield from _shares((*path, "tiers"), own)


_SEARCH_KEYS: Final = frozenset({"algorithm", *PARAMETERS, *BUDGETS})


def _search(path: Keys, tier: dict[str, Any], verifier: bool) -> Iterator[Finding]:
    search = _mapping(tier, "search")
    algorithm = search.get("algorithm", "direct")
    allowed = SEARCH_PARAMETERS.get(algorithm) if isinstance(algorithm, str) else None
    if allowed is None or not set(search) <= _SEARCH_KEYS:
        return
    for key in PARAMETERS:
        if key in search and key not in allowed:
            takes = f"{algorithm} takes {', '.join((*allowed, *BUDGETS))}"
            users = [name for name, parameters in SEARCH_PARAMETERS.items() if key in parameters]
            message = f"{algorithm} has no {key}"
            yield (*path, "search", key), message, f"{takes}; {key} belongs to {', '.join(users)}"
    if algorithm in NEEDS_VERIFIER and not verifier:
        hint = (
            "add to fleet: judge: {role: verifier, model: qwen2.5-math-prm-7b, device: "
            "h200-sxm-141gb}; direct and self_consistency need none"
        )
        where = (*path, "search", "algorithm")
        yield where, f"{algorithm} scores with a verifier, and no pool has role: verifier", hint
    budget, n = _mapping(tier, "promise").get("budget"), search.get("n")
    if isinstance(budget, str) and "traj" in budget and isinstance(n, int) and "n" in allowed:
        try:
            most = units.parse(budget, "count")
        except units.UnitError:
            return
        if n > most:
            message = f"n: {n} is more than the promised budget of {budget}"
            yield (*path, "search", "n"), message, f"write n: {most:g}, or budget: {n} trajectories"


CHARGES: Final = (
    "per_mtok_in", "per_mtok_out", "per_query", "per_trajectory", "per_answer", "levels",
    "per_outcome",
)  # fmt: skip


def _price(path: Keys, tier: dict[str, Any]) -> Iterator[Finding]:
    price = _mapping(tier, "price")
    targets = _mapping(tier, "slo")
    credited = price.get("late_credit", 0) not in (0, "0%")
    if credited and not any(str(name).startswith("e2e_") for name in targets):
        where = (*path, "price", "late_credit")
        yield where, "late_credit needs an end-to-end target", "add slo: {e2e_p95: 60s}"
    charged = any(key in price for key in CHARGES)
    if "refund" in price and not charged:
        where = (*path, "price", "refund")
        yield where, "refund pays back a charge, and this tier has none", "add per_answer: 0.02 USD"
    if "committed" in price and not charged:
        where = (*path, "price", "committed")
        message = "nothing says what queries beyond the committed rate pay"
        yield where, message, "add per_query: 0.02 USD, or another price per use"
    promise = _mapping(tier, "promise")
    budget = promise.get("budget")
    in_usd = "usd" in budget if isinstance(budget, dict) else "USD" in str(budget)
    if in_usd and not charged:
        where = (*path, "promise", "budget")
        message = "a budget in USD buys at the tier's prices, and this tier has none"
        yield where, message, "add price: {per_mtok_out: 2.00 USD}"
    if promise.get("basis") == "score" and "confidence" not in promise:
        where = (*path, "promise", "basis")
        yield where, "basis says what a promised confidence rests on", "add confidence: 90%"
