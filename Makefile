# make install   .venv with everything, pinned by constraints.txt
# make train     install, then train the quickstart on all local devices
# make test      install, then the test suite
# make lint      ruff and mypy, as in pre-commit and .ci/run
# make mutants   bring back each bug of tests/mutants/ and show that its test goes red
# make docs      the documentation as a site in site/, to be opened from the file
# make wheels    wheels/ for a GPU machine without a network

# The first Python that is new enough and can make virtual environments; name another with `make PYTHON=…`.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install train test lint mutants docs wheels
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv found. Install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing into .venv: about two minutes, once"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

train: install
	$(BIN)/trainer train experiment=quickstart

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: install
	$(BIN)/python tests/mutants/run.py

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

wheels: install
	$(BIN)/python benchmarks/wheels.py wheels
