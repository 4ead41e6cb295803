"""Compile the core with mypyc, where a C compiler and Python's headers are at hand: `make fast`.

What the core is, and when a build is used, says models/compiled.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # our models/, not tests/models
os.environ["TREELINE_CORE"] = "interpreted"  # whatever lies in build/ has no part in what is built

from models.compiled import MODULES, ROOT, builds, digest

# No fused multiply-add: the same sums to the last bit as Python's. No debug information.
FLAGS = ("-ffp-contract=off", "-g0")
FAILED_LINES = 30  # of a failed build that are shown


def lacking() -> str:
    """Say what a build would need and this machine does not have; empty where nothing is lacking."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"no C compiler: {compiler} is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "no Python.h: the headers of this Python are not installed"
    return ""


def build(root: Path = ROOT) -> Path:
    """Compile the core of the sources at `root`, take older builds away, and return the folder.

    It is whole or absent: made beside its place, then renamed. Raises: CalledProcessError with the output.
    """
    place = builds(root) / digest(root)
    if place.is_dir():
        return place
    builds(root).mkdir(parents=True, exist_ok=True)
    older = [folder for folder in builds(root).iterdir() if len(folder.name) == len(place.name)]
    with tempfile.TemporaryDirectory(dir=builds(root), ignore_cleanup_errors=True) as beside:
        made = Path(beside) / "core"
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), str(made)],
            cwd=root,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not place.is_dir():  # somebody may have built the same beside us
            made.rename(place)
    for folder in older:
        shutil.rmtree(folder, ignore_errors=True)
    return place


def compile_into(made: Path) -> None:
    """Compile the modules of the working directory into the folder `made`, with the C code beside it."""
    from mypyc.build import mypycify
    from setuptools import setup

    paths = [f"{room}/{name}.py" for room, names in MODULES.items() for name in names]
    between = made.with_name("between")
    extensions = mypycify(paths, target_dir=str(between), group_name="treeline", opt_level="2")
    for extension in extensions:
        extension.extra_compile_args += FLAGS
    script = ["build_ext", "--build-lib", str(made), "--build-temp", str(between)]
    setup(name="treeline-core", packages=[], ext_modules=extensions, script_args=script)


def main(say: Callable[[str], object] = print) -> int:
    """Build, or say why not: the interpreted core does the same. Returns the exit code."""
    reason = lacking()
    if reason:
        say(f"The core stays interpreted ({reason}): the same results, later.")
        return 0
    count = sum(len(names) for names in MODULES.values())
    if (builds() / digest()).is_dir():
        say(f"The core, {count} modules, is compiled already.")
        return 0
    say(f"==> compiling the core: {count} modules with mypyc, about a minute ...")
    began = time.perf_counter()
    try:
        build()
    except subprocess.CalledProcessError as error:
        say("\n".join(error.stdout.splitlines()[-FAILED_LINES:]))
        say("The core could not be compiled, and stays interpreted: the same results, later.")
        return 1
    say(f"The core is compiled ({time.perf_counter() - began:.0f} s). Every command uses it from now on, "
        "until a source changes.")  # fmt: skip
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        compile_into(Path(sys.argv[1]))
    else:
        sys.exit(main(lambda text: print(text, flush=True)))
