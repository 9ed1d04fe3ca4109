# make compare   the main job: full, linformer and linear attention at 8192 tokens, beside none at all
# make test      lint, types, tests
# make check NAME=linformer   the laws and tests of one backend
# make bench     what the project promises about time, on an idle machine (about 2 minutes)
# make bench-peers   time and memory beside public packages (about 80 minutes)
# make readme    the tables and results in README.md and docs
# make results   pages, charts and tables of the committed records
# make docs      the documentation, in site/
# make setup     the virtual environment alone
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: compare test setup check lint readme bench bench-peers results docs clean

compare: setup
	$(BIN)/python -m compare

test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m 'not long and not bench and not alone'
	$(BIN)/python -m pytest -m 'alone and not bench and not long' $$(grep -rl --include='*.py' mark.alone tests)

check: $(if $(NAME),setup,lint)
	$(BIN)/python -m pytest tests/contract tests/backends $(if $(NAME),-k $(NAME))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pytest -m bench

bench-peers: setup
	$(BIN)/python -m benchmarks.peers

readme: setup
	$(BIN)/python -m compare list --write README.md docs/backends.md docs/tasks.md docs/findings.md docs/tips.md docs/limits.md

results: setup
	for records in results/*/*/records.jsonl; do \
		$(BIN)/python -m compare report $$(dirname $$records) || exit 1; \
	done

docs: setup
	$(BIN)/python -m mkdocs build --strict

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev --group peers
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
