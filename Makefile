# One word each: run, test, lint, dash, fast, bench, kernels, gpu. Needs make (3.81 or later), pip (22.3 or later) and a Python 3.11 to 3.13.
# Everything goes into .venv; nothing is installed again until pyproject.toml or constraints.txt change, so a second run works offline.
.DEFAULT_GOAL := help
.PHONY: help run test slow screenshots lint dash fast bench kernels gpu gpu-dry replay-cpu engine readme clean FORCE

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
KERNELS := $(VENV)/kernels
ENGINE := $(VENV)/engine
PAGE := $(if $(wildcard dashboards/app.py),$(STAMPS)/dashboard)

# An environment whose Python no longer starts, or that belongs to another clone, is made again.
ORIGIN := import importlib.util as u; s = u.find_spec("treeline"); print(s.origin if s else "")
HOME_OF = $(shell $(PY) -I -c '$(ORIGIN)' 2>/dev/null)
STALE := $(if $(wildcard $(STAMPS)/core),$(if $(filter-out $(HOME_OF),$(CURDIR)/treeline.py),FORCE))

help:
	@echo "make run     plan the first scenario: the report of scenarios/quickstart.yaml"
	@echo "make test    run the tests that take under three minutes together"
	@echo "make slow    run the tests that take longer, and those in a real browser"
	@echo "make lint    ruff (rules and format) and mypy"
	@echo "make dash    open the page on the runs in runs/ (needs a browser)"
	@echo "make fast    compile the core where there is a C compiler: the same results, sooner (a minute, once)"
	@echo "make bench   how fast the simulator is, beside raw SimPy on the same machine"
	@echo "make kernels compile the CUDA kernels without a GPU (CuPy and NVRTC: 160 MB, once)"
	@echo "make gpu     what needs an NVIDIA GPU: tests, profile, kernel benchmark (gpu-tests, gpu-profile, gpu-bench),"
	@echo "             the replay and Countdown (gpu-replay, gpu-countdown)"
	@echo "make gpu-dry the same host code where there is none"
	@echo "make engine  the tests of the tiny engine that need torch (installs it, apart: large)"
	@echo "make replay-cpu the searches on the real tiny engine, beside their prediction (needs torch)"
	@echo "make readme  put the report of \`make run\`, and the tree, into README.md"
	@echo "make screenshots  take the pictures of the page in docs/pictures (needs a Chromium)"
	@echo "make clean   remove what was built; runs/ and $(VENV) stay"
	@echo
	@echo "Another interpreter: make run PYTHON=/path/to/python3.12"

run: $(STAMPS)/core
	@$(VENV)/bin/treeline run scenarios/quickstart.yaml --out runs/quickstart --force

test: $(STAMPS)/test $(PAGE)
	@$(PY) -m pytest -n 2 --dist loadfile -m "not slow and not e2e"

slow: $(STAMPS)/test $(PAGE) $(STAMPS)/e2e
	@$(PY) -m pytest -n 2 --dist loadfile -m "slow or e2e" || [ $$? -eq 5 ]

lint: $(STAMPS)/test
	@echo "==> ruff check"; $(PY) -m ruff check .
	@echo "==> ruff format --check"; $(PY) -m ruff format --check .
	@echo "==> mypy"; $(PY) -m mypy

dash: $(STAMPS)/dashboard
	@$(VENV)/bin/treeline dash

# Python needs none of it (docs/speed.md); a build of other sources is never used.
fast: $(STAMPS)/test
	@$(PY) tests/fast.py

bench: fast
	@$(PY) tests/bench.py

# Machine code for Hopper and Ampere without a GPU. CuPy and NVRTC lie apart, so that make test stays quick.
kernels: $(STAMPS)/kernels
	@echo "==> every kernel, every shape, for sm_90a and sm_80: compiled, no register spilled"
	@PYTHONPATH=$(KERNELS) LD_LIBRARY_PATH=$(KERNELS)/nvidia/cu13/lib TREELINE_NVRTC=required \
	  $(PY) -m pytest -n 2 tests/hw/test_kernels_compile.py

# What needs an NVIDIA GPU, in parts of under ten minutes each; it runs from a checkout with python3 that has torch, CuPy,
# NumPy, SciPy, scikit-learn, PyYAML, pyarrow, rich and pytest (the replay also SimPy). Results are files under $(GPU_OUT).
GPU_OUT := build/gpu
GPU_PY := env PYTHONPATH=. $(or $(PYTHON),python3)
GPU_PARTS := tests profile bench replay countdown
GPU_MINUTES := timeout -k 10 -s INT 585
define need_gpu
if ! { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }; then \
  echo "No NVIDIA GPU answers here (nvidia-smi -L). On a machine with one: make gpu. Here, make gpu-dry runs the same" >&2; \
  echo "host code on a twin of the launch interface, and make kernels compiles what would be launched." >&2; exit 4; \
fi; mkdir -p $(GPU_OUT)
endef
.PHONY: $(GPU_PARTS:%=gpu-%) $(GPU_PARTS:%=gpu-dry-%)

gpu:
	@$(need_gpu); failed=; for part in $(GPU_PARTS); do \
	  echo "==> make gpu-$$part"; $(MAKE) --no-print-directory gpu-$$part || failed="$$failed gpu-$$part"; \
	done; ls -l $(GPU_OUT); tar -czf $(GPU_OUT).tar.gz -C $(GPU_OUT) . && echo "all of it in one file: $(GPU_OUT).tar.gz"; if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

gpu-tests:
	@$(need_gpu); $(GPU_MINUTES) $(GPU_PY) -m tests.gpu.apart --out $(GPU_OUT) -- \
	  tests/gpu -m gpu -W default -o minversion=7.0 -p no:cacheprovider

# A kernel whose fault takes the GPU from a process costs itself: the next process goes on behind it (tests, profile, bench).
# Interrupted or out of time, the profile goes on where it was when it is called again.
gpu-profile:
	@$(need_gpu); $(GPU_MINUTES) $(GPU_PY) -m hw.measure --device cuda --out $(GPU_OUT)/profile --resume --force

gpu-bench:
	@$(need_gpu); $(GPU_MINUTES) $(GPU_PY) -m hw.contest --device cuda --out $(GPU_OUT)

gpu-replay:
	@$(need_gpu); $(GPU_MINUTES) $(GPU_PY) -m sim.replay --device cuda --seconds 40 --limit 560 --out $(GPU_OUT)/replay

gpu-countdown:
	@$(need_gpu); $(GPU_MINUTES) $(GPU_PY) -m models.countdown.train --preset gpu --limit 560 --out $(GPU_OUT)/countdown

# The same experiment with two tiny models on this machine, outside CI: it takes minutes and wants torch and a quiet core.
replay-cpu:
	@$(or $(PYTHON),$(if $(wildcard $(PY)),$(PY),python3)) -m sim.replay --device cpu --seconds 20 --limit 1500 --out build/replay-cpu

gpu-dry: $(GPU_PARTS:%=gpu-dry-%)

gpu-dry-tests: $(STAMPS)/test
	@$(PY) -m pytest -q -m "not slow" tests/gpu tests/hw/test_kernels_emulated.py tests/hw/test_kernels_on_host.py

gpu-dry-profile: $(STAMPS)/test
	@$(PY) -m pytest -q tests/hw/test_profiler.py
	@$(PY) -m hw.measure --device cuda --dry-run

gpu-dry-bench: $(STAMPS)/test
	@$(PY) -m pytest -q tests/hw/test_contest.py
	@$(PY) -m hw.contest --device cpu --small --out build/gpu-dry

# The engine itself needs torch, which no other part of the house does: where it is missing its tests skip and say so.
gpu-dry-replay: $(STAMPS)/test
	@$(PY) -m pytest -q tests/sim/test_replay.py tests/hw/test_engine_on_kernels.py
	@$(PY) -m sim.replay --device cuda --seconds 40 --dry-run --out build/gpu-dry/replay

# Everything that needs torch, on this machine's CPU: the tiny engine replays searches tick by tick. Torch may be large
# (on Linux its default build brings CUDA along), so only this asks for it; a torch that is at hand is taken.
engine: $(STAMPS)/engine
	@echo "==> the mini-engine, its replay and Countdown's models, on torch"
	@PYTHONPATH=$(ENGINE) $(PY) -c "import torch" && PYTHONPATH=$(ENGINE) $(PY) -m pytest -n 2 --dist loadfile tests/sim/test_replay_on_a_real_engine.py \
	  tests/hw/test_engine.py tests/hw/test_engine_on_kernels.py tests/models/test_countdown.py

gpu-dry-countdown: $(STAMPS)/test
	@$(PY) -m pytest -q tests/models/test_countdown.py
	@if $(PY) -c "import torch" 2>/dev/null; then $(PY) -m models.countdown.train --preset tiny --out build/gpu-dry/countdown; \
	else echo "torch is not installed here: nothing is trained (pip install torch)"; fi

readme: $(STAMPS)/core
	@mkdir -p build
	@COLUMNS=100 $(VENV)/bin/treeline run scenarios/quickstart.yaml --out runs/quickstart --force --quiet > build/quickstart.txt
	@$(PY) tests/readme.py build/quickstart.txt
	@echo "README.md holds the report of scenarios/quickstart.yaml as of now."

screenshots: $(STAMPS)/test $(PAGE) $(STAMPS)/e2e
	@$(PY) -m pytest -q tests/e2e -k "quickstart or pictured"
	@mkdir -p docs/pictures && for one in overview one-query; do cp build/screenshots/$$one.png docs/pictures/; done
	@echo "docs/pictures holds the page as of now, on the quickstart."

clean:
	rm -rf build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "$(VENV) and runs/ stay; remove them by hand if you mean it."

# The first interpreter that really starts (version managers leave shims that do not) and is 3.11 to 3.13.
FITS := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
CANDIDATES := $(PYTHON) python3.12 python3.13 python3.11 python3 python
define make_venv
if ! $(PY) -c '$(FITS)' >/dev/null 2>&1; then \
  if [ -e $(VENV) ] && [ ! -d $(STAMPS) ]; then \
    echo "$(VENV) exists, was not made here, and its Python is not 3.11 to 3.13: move it away, or use make VENV=.venv-treeline" >&2; exit 1; \
  fi; \
  python=; for candidate in $(CANDIDATES); do \
    if "$$candidate" -c '$(FITS)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
  done; \
  if [ -z "$$python" ]; then \
    echo "Treeline needs a Python 3.11, 3.12 or 3.13 that starts; tried: $(CANDIDATES). Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
  fi; \
  echo "==> $(VENV): a new environment of $$("$$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
  "$$python" -m venv --clear --without-pip $(VENV); \
fi
endef

# Any pip that can install into another environment will do; the environment needs none of its own.
define find_pip
pip=; base=$$($(PY) -c 'import sys; print(sys._base_executable)'); \
for candidate in "$$base -m pip" pip3 pip "python3 -m pip"; do \
  if $$candidate --python $(PY) --version >/dev/null 2>&1; then pip="$$candidate --python $(PY)"; break; fi; \
done; \
if [ -z "$$pip" ] && $(PY) -m ensurepip >/dev/null 2>&1; then pip="$(PY) -m pip"; fi; \
if [ -z "$$pip" ]; then \
  echo "No pip 22.3 or later was found. Debian, Ubuntu: apt-get install python3-pip. Elsewhere: python3 -m ensurepip --upgrade" >&2; exit 1; \
fi; \
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
endef

# Stamps are written last: an interrupted install starts again where it was.
$(STAMPS)/core: pyproject.toml constraints.txt $(STALE)
	@set -e; $(make_venv); mkdir -p $(STAMPS); rm -f $@; $(find_pip); \
	echo "==> $(VENV): Treeline and what it needs (about half a gigabyte, once)"; \
	$$pip install -c constraints.txt hatchling; \
	$$pip install -c constraints.txt --no-build-isolation -e .; \
	touch $@

$(STAMPS)/test: $(STAMPS)/core
	@set -e; $(find_pip); \
	echo "==> $(VENV): the test tools (once)"; \
	$$pip install -c constraints.txt --no-build-isolation -e '.[test]'; \
	touch $@

$(STAMPS)/dashboard: $(STAMPS)/core
	@set -e; $(find_pip); \
	echo "==> $(VENV): the page (streamlit, altair; once)"; \
	$$pip install -c constraints.txt --no-build-isolation -e '.[dashboard]'; \
	touch $@

$(STAMPS)/e2e: $(STAMPS)/core
	@set -e; $(find_pip); \
	echo "==> $(VENV): playwright, which drives a Chromium of this machine (once)"; \
	$$pip install -c constraints.txt --no-build-isolation -e '.[e2e]'; \
	touch $@

$(STAMPS)/kernels: $(STAMPS)/test
	@set -e; $(find_pip); \
	echo "==> $(KERNELS): CuPy and NVRTC (160 MB, once)"; \
	rm -rf $(KERNELS); $$pip install -c constraints.txt --no-deps --target $(KERNELS) \
	  cupy-cuda13x nvidia-cuda-nvrtc cuda-pathfinder; \
	touch $@

$(STAMPS)/engine: $(STAMPS)/test
	@set -e; $(find_pip); \
	rm -rf $(ENGINE); if ! $(PY) -c "import torch" 2>/dev/null; then \
	  echo "==> $(ENGINE): torch (200 MB for the CPU build, once)"; \
	  $$pip install -c constraints.txt --target $(ENGINE) torch==2.13.0; \
	fi; \
	touch $@
