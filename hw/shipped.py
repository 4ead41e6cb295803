"""The profiles that ship with Treeline, and which one a device gets when nobody names one."""

from __future__ import annotations

from pathlib import Path

from hw.profile import ProfileError

FOLDER = Path(__file__).resolve().parent / "profiles"
# What a scenario that names no profile gets: our own measurement, else imported tables.
_DEFAULTS = ("{device}", "{device}-aiconfigurator")


def shipped() -> tuple[str, ...]:
    """The names of all profiles that ship."""
    return tuple(sorted({path.stem for path in FOLDER.rglob("*.parquet")}))


def default_profile(device: str) -> Path | None:
    """The best profile that ships for a device: measured by us, else imported, else None (roofline)."""
    for pattern in _DEFAULTS:
        if (found := _at(FOLDER / pattern.format(device=device))) is not None:
            return found
    return None


def find_profile(name: str) -> Path:
    """The profile of that name (shipped) or at that path (with a slash in it); raises ProfileError."""
    found = _at(Path(name) if "/" in name else FOLDER / name)
    if found is None:
        raise ProfileError(
            f"there is no profile {name!r}; shipped are {', '.join(shipped()) or 'none'}, a path "
            "needs a slash, and `latency: {kind: roofline}` needs none"
        )
    return found


def _at(path: Path) -> Path | None:
    """PATH.parquet, or the profile of the same name inside a folder PATH; with or without its suffix."""
    stem = path.with_suffix("") if path.suffix in (".parquet", ".yaml") else path
    for place in (stem, stem / stem.name):
        if place.with_name(place.name + ".parquet").is_file():
            return place
    return None
