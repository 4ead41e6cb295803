"""Fills what the README quotes: the tree, a line a file, and the report of the first scenario: `make readme`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import yaml

if __package__ is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hardware import hardware

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PROFILE = ROOT / "docs" / "profile.md"
ROOMS = ("scenarios", "hw", "models", "sim", "pricing", "dashboards")
DATA = (".yaml", ".json", ".cu", ".parquet")


def first_line(path: Path) -> str:
    """The idea of a file in a sentence: its docstring's, its comment's, or a scenario's question."""
    if path.suffix not in {".py", ".yaml"}:
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif asked := re.search(r"^question: (.+)$", text, re.M):
        return asked[1]
    elif path.parent.name == "profiles":
        return str(yaml.safe_load(text).get("label", ""))
    else:
        text = re.sub(r"^#\s*", "", text, flags=re.M)
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) ", paragraph, maxsplit=1)[0]


def tree() -> str:
    """Every file of the rooms with its first line, and a line for each folder of tests."""
    lines = []
    for room in ROOMS:
        lines.append(f"{room + '/':26}{first_line(ROOT / room / '__init__.py')}".rstrip())
        files = sorted(p for p in (ROOT / room).rglob("*") if p.suffix in {".py", *DATA})
        for path in files:
            if path.name != "__init__.py":
                name = path.relative_to(ROOT / room).as_posix()
                lines.append(f"  {name:23} {first_line(path)}".rstrip())
    lines.append(f"{'treeline.py':26}{first_line(ROOT / 'treeline.py')}")
    lines.append(f"{'tests/':26}{first_line(ROOT / 'tests' / '__init__.py')}")
    return "\n".join(lines)


def filled(page: str, section: str, text: str, *, fence: bool = True) -> str:
    """A page with one marked section replaced, in a block of code or not; raises ValueError without its marks."""
    pattern = re.compile(rf"(<!-- {section}: begin[^\n]*-->\n).*?(<!-- {section}: end -->)", re.S)
    block = f"```text\n{text.rstrip()}\n```\n" if fence else f"\n{text.rstrip()}\n\n"
    new, count = pattern.subn(lambda found: found[1] + block + found[2], page)
    if count != 1:
        raise ValueError(f"the page has {count} sections {section!r}, not one")
    return new


def with_hardware(page: str) -> str:
    """A page with the table of measured hardware filled in, where it has the place for it."""
    return (
        filled(page, "hardware", hardware(), fence=False)
        if "<!-- hardware: begin" in page
        else page
    )


def main() -> None:
    """Fill the tree and the hardware, and the report from the file that is named."""
    readme = filled(README.read_text(encoding="utf-8"), "tree", tree())
    if len(sys.argv) > 1:
        report = Path(sys.argv[1]).read_text(encoding="utf-8")
        lines = "\n".join(line.rstrip() for line in report.splitlines())
        readme = filled(readme, "report", lines)
    README.write_text(with_hardware(readme), encoding="utf-8")
    PROFILE.write_text(with_hardware(PROFILE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
