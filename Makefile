# The two commands of a fresh machine are `make demo` and `make test`; `make setup` is their shared part.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test lint bench clean

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

test: lint
	$(BIN)/pytest -n 2

demo: setup
	$(BIN)/refine run --out data/runs/demo
	@echo "Look at data/runs/demo: README.md (the dataset card), refined/, rejected/; or type: $(BIN)/refine show data/runs/demo"

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
