# Two commands do it all on a fresh machine: `make serve` and `make test`. Options of the server are HEED_* variables.
PYTHON ?= python3
BIN := .venv/bin
export HEED_LOG_FORMAT ?= console

.PHONY: serve torchserve test test-slow test-families check lint format load load-ci bench soak stalls gpu-check compose-test generate clean

serve: .venv/serve.stamp  ## start the server on the models in model_store/
	$(BIN)/python -m service

test: .venv/dev.stamp  ## run every test
	$(BIN)/python -m tests

test-slow: .venv/dev.stamp  ## the tests that `make test` leaves out for the time they take
	$(BIN)/python -m tests --slow

test-families: .venv/dev.stamp  ## every family of text encoders with every task and precision; writes docs/families.md
	$(BIN)/python -m tests --families

torchserve: .venv/torchserve.stamp  ## pack the models for TorchServe and start it on them; needs Java 17
	$(BIN)/python -m export archive && $(BIN)/python -m export.torchserve

check: .venv/dev.stamp  ## lint, types, import boundaries, unused names, generated code
	$(BIN)/python -m tests.check

lint: .venv/dev.stamp  ## the part of `check` that takes a second: linter and format
	$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

format: .venv/dev.stamp  ## put the code in order
	$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format --quiet .

load: .venv/dev.stamp  ## Locust against a server that it starts; non-zero when load_tests/slo.toml is missed
	$(BIN)/python -m load_tests

load-ci: .venv/dev.stamp  ## all tasks at once for a minute, at a constant rate and up to saturation: the gate of slo.toml
	$(BIN)/python -m load_tests.ci

bench: .venv/dev.stamp  ## throughput, latency and cost beside the limits
	$(BIN)/python -m load_tests.bench --document docs/benchmarks.md

soak: .venv/dev.stamp  ## a million mixed requests while servers are rolled and files overwritten; hours; goes on where it stopped
	$(BIN)/python -m load_tests.soak --document docs/benchmarks.md

stalls: .venv/dev.stamp  ## how long one request keeps the others waiting, and what attacks cost in memory
	$(BIN)/python -m load_tests.stalls --document docs/benchmarks.md

gpu-check: .venv/gpu.stamp  ## parity, throughput and utilisation on a GPU; at most 8 minutes
	$(BIN)/python -m load_tests.gpu_check --document docs/benchmarks.md

compose-test: .venv/dev.stamp  ## docker-compose.yml built, used, stopped under load; WITHOUT=grafana leaves a service out
	$(BIN)/python -m tests.compose $(addprefix --without ,$(WITHOUT))

generate: .venv/dev.stamp  ## protobuf code of proto/*.proto, and the dashboard
	$(BIN)/python -m proto.generate && $(BIN)/python -m service.monitoring.dashboard

clean:  ## what can be made again in minutes; trained runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# What training and conversion need, beside the server.
.venv/train.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@ .venv/serve.stamp

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,load,bench,dev,torchserve,tracing]'
	touch $@ .venv/serve.stamp .venv/train.stamp .venv/torchserve.stamp

# The two builds of ONNX Runtime are one package: the one with CUDA takes the place of the other.
.venv/gpu.stamp: .venv/dev.stamp
	$(BIN)/python -m pip uninstall --quiet --yes onnxruntime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'onnxruntime-gpu[cuda,cudnn]'
	touch $@

.venv/torchserve.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torchserve]'
	touch $@ .venv/serve.stamp
