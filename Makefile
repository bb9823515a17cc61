# The two commands of a fresh machine are `make demo` and `make test`; `make setup` is their shared part.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test lint browser bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "refine needs Python 3.11: install it, or say which one with PYTHON=python3.12 make setup"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Debian's chromium, for the tests of a report's page; where it cannot be had they skip, and say so
browser:
	@command -v chromedriver >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		chromium chromium-driver; } >/dev/null 2>&1; } || echo "no chromium: the tests of a report's page are skipped"

test: lint browser
	$(BIN)/pytest -n 3 --dist worksteal

demo: setup
	$(BIN)/refine run chitchat-planted --out data/runs/planted
	$(BIN)/refine audit data/runs/planted
	$(BIN)/refine report data/runs/planted
	$(BIN)/refine compare raw refined --run data/runs/planted --screen --out reports/planted-compare
	@echo "The damage was planted: the table of the audit says which of it the rules found. Look at"
	@echo "reports/planted/index.html, reports/planted-compare/index.html, and data/runs/planted: README.md (the dataset"
	@echo "card), refined/, rejected/. Then: $(BIN)/refine show data/runs/planted"
	@echo "and, in about half an hour, the experiment itself: $(BIN)/refine compare raw refined --run data/runs/planted"

# refine dedup beside its peers, which get a venv of their own: a table in Markdown
bench: setup .venv-bench/.ready
	$(BIN)/python -m tests.bench.dedup_table --peers .venv-bench/bin/python

.venv-bench/.ready:
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	echo '*' > .venv-bench/.gitignore
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check rensa datasketch xxhash pyarrow numpy
	touch $@

clean:
	rm -rf .venv .venv-bench
