"""`treeline report RUN --html FILE`: the pictures of a run as one file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dashboards import charts, data, words
from pricing.breakdown import breakdown
from pricing.contract import price
from scenarios.errors import UserError
from scenarios.loader import loads

_WIDTH = 720  # px of a picture
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; }
.question { font-style: italic; } .note { color: #777; font-size: 14px; }
.verdict { padding: .6rem 1rem; border-left: .4rem solid; margin: .4rem 0; }
.holds { border-color: #009E73; } .missed { border-color: #D55E00; }
figure { margin: 1rem 0; background: #fff; padding: .5rem; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; } figcaption { color: #555; font-size: 14px; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.35; padding: .8rem; border: 1px solid #8884; }
"""


def write(directory: str, target: str, *, force: bool) -> Path:
    """Write the report of a run directory as one HTML file; return its path.

    Raises: UserError where the run is broken or the file is there already.
    """
    place, out = Path(directory), Path(target)
    run = data.read(place.parent, place.name)
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(page(run))
    except FileExistsError:
        raise UserError(
            f"{out} exists already. Name another, or replace it with --force."
        ) from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}. Name another.") from None
    return out


def page(run: data.Run) -> str:
    """The whole document: verdict, pictures, the report in the terminal, the scenario."""
    summary = run.summary
    title = words.name(str(summary["scenario"]), 100)
    lines = []
    for line in summary["verdict"]["text"]:
        kind = "missed" if str(line).startswith("MISSED") else "holds"
        lines.append(f'<p class="verdict {kind}">{_safe(line)}</p>')
    kinds = sorted({str(kind) for kind in run.stored.result.pools["cost_source_kind"]})
    basis = f"Step costs: {', '.join(kinds)}"
    if kinds != ["measured"]:
        basis += "; nothing here was measured on your GPU"
    pictures = "\n".join(
        f"<h2>{_safe(head)}</h2><figure role='img' aria-label='{_safe(chart.description)}'>"
        f"{_svg(chart)}<figcaption>{_safe(note)}</figcaption></figure>"
        for head, note, chart in _pictures(run)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{_safe(title)} · Treeline</title><style>{_STYLE}</style></head><body>
<h1>{_safe(title)}</h1>
<p class="question">{_safe(summary.get("question") or "")}</p>
{"".join(lines)}
<p><strong>Binding:</strong> {_safe(summary["binding"]["sentence"])}</p>
<p class="note">{_safe(basis)}. Seed {_safe(summary["seed"])}.</p>
{pictures}
<h2>All figures</h2><pre>{_safe(run.report)}</pre>
<h2>The scenario</h2><pre>{_safe(run.stored.resolved)}</pre>
</body></html>
"""


def _pictures(run: data.Run) -> Iterator[tuple[str, str, Any]]:
    summary, result = run.summary, run.stored.result
    tiers = summary["tiers"]
    names = [str(tier["tier"]) for tier in tiers]
    queries = result.queries
    yield (
        "Who waits how long",
        "Dashed lines are objectives: one that holds ends in a circle, a missed one in a cross.",
        charts.latency_cdf(queries, tiers),
    )
    yield "Where the time goes", "", charts.where_time_goes(queries, names)
    for pool in summary["pools"]:
        if pool["role"] == "policy":
            yield (
                f"KV memory of {words.name(pool['pool'])}",
                f"Preempted {pool['num_preemptions']:,} times.",
                charts.kv_over_time(result.timeline, pool["pool"]),
            )
    yield "Quality by latency", "Numbers in the cells: queries.", charts.joint(queries, names)
    yield (
        "Is the confidence true?",
        "On the dashed line, what is stated is true; below it, too much is promised.",
        charts.reliability(tiers),
    )
    priced = price(result, loads(run.stored.resolved, "resolved.yaml").scenario)
    money = [
        {
            "tier": tier.tier,
            "cost_usd": tier.cost_usd,
            "idle_usd": tier.idle_usd,
            "refund_usd": tier.refund_usd,
            "credit_usd": tier.credit_usd,
            "margin_usd": tier.margin_usd,
        }
        for tier in priced.tiers
    ]
    yield "Money", "The parts of each tier add up to its revenue.", charts.money(money)
    groups = breakdown(priced, "difficulty").groups
    yield (
        "Who pays for whom",
        "Margin of each quarter of difficulty against the mean of all queries.",
        charts.transfers(groups),
    )


def _svg(chart: Any) -> str:
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    spec = chart.properties(width=_WIDTH).to_dict()
    return str(vl_convert.vegalite_to_svg(spec, vl_version=version))


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)
