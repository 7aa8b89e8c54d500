# Two commands do it all on a fresh machine: `make serve` and `make test`. Options of the server are HEED_* variables.
PYTHON ?= python3
BIN := .venv/bin
export HEED_LOG_FORMAT ?= console

.PHONY: serve test check format load bench generate clean

serve: .venv/serve.stamp  ## start the server on the models in model_store/
	$(BIN)/python -m service

test: .venv/dev.stamp  ## run every test
	$(BIN)/python -m tests

check: .venv/dev.stamp  ## lint, types, import boundaries, generated code
	$(BIN)/python -m tests.check

format: .venv/dev.stamp  ## put the code in order
	$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format --quiet .

load: .venv/dev.stamp  ## Locust against a server that it starts; non-zero when load_tests/slo.toml is missed
	$(BIN)/python -m load_tests

bench: .venv/dev.stamp  ## throughput, latency and cost beside the limits
	$(BIN)/python -m load_tests.bench --document docs/benchmarks.md

generate: .venv/dev.stamp  ## protobuf code of proto/*.proto
	$(BIN)/python -m proto.generate

clean:  ## what can be made again in minutes; trained runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,load,dev]'
	touch $@ .venv/serve.stamp
