"""`treeline profile import`: what somebody else measured becomes a profile file, with its provenance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hw.device import CatalogError, device
from hw.importers import read_foreign, recognise
from hw.profile import Profile, ProfileError, save
from hw.transformer import transformer
from scenarios.errors import UserError


def import_profile(
    path: str, device_name: str, out: str, *, model: str | None, engine: str, force: bool
) -> dict[str, Any]:
    """Read a foreign profile, save it as OUT.parquet and OUT.yaml, and say what is in it.

    Raises: UserError for a path of no known format, an unknown device or model, or an existing OUT.
    """
    target = Path(out).with_suffix(".parquet")
    if target.exists() and not force:
        raise UserError(f"{target} exists already. Name another with --out, or add --force.")
    try:
        chosen, shape = device(device_name), transformer(model) if model else None
        kind = recognise(path)
        profile = read_foreign(path, chosen, shape, engine)
        save(profile, target)
    except (ProfileError, CatalogError) as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}. Name another.") from None
    return {"format": kind, "written": [str(target), str(target.with_suffix(".yaml"))]} | _content(
        profile
    )


def text(found: dict[str, Any]) -> str:
    """The document of `import_profile` for people."""
    rows = ", ".join(f"{count:,} {op}" for op, count in found["operations"].items())
    return (
        f"Read {found['format']}: {found['label']}.\n"
        f"Wrote {' and '.join(found['written'])}: {found['rows']:,} rows on {found['device']} "
        f"({rows}).\nSource: {found['source']}, licence {found['licence']}, as of {found['as_of']}.\n"
        f"Use it in a scenario: latency: {{kind: profile, profile: {_slashed(found['written'][0])}}}"
    )


def _content(profile: Profile) -> dict[str, Any]:
    operations = Counter(profile.columns["op"].tolist())
    return {
        "label": profile.label,
        "device": profile.device,
        "source_kind": profile.source_kind,
        "rows": len(profile.columns["op"]),
        "operations": dict(operations.most_common()),
        **{key: profile.meta.get(key, "") for key in ("source", "licence", "as_of")},
    }


def _slashed(written: str) -> str:
    """A profile's path as a scenario names it: without its suffix, and with a slash in it."""
    path = written.removesuffix(".parquet")
    return path if "/" in path else f"./{path}"
