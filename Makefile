.DEFAULT_GOAL := help
CONFIG ?= configs/ml100k.toml
SET ?=
EXPORT ?= exports/ml100k
TARGET ?= localhost:8500/ml100k
ASK ?= --user 196
PEERS ?= als bpr sasrec bert4rec
SECONDS ?= 300
WORKERS ?= 2
PYTHON ?= python3
BIN := .venv/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

.venv-peers/installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement $<
	.venv-peers/bin/python -m pip install --quiet --no-deps recbole==1.2.1
	@touch $@

install: .venv/installed ## create .venv and install the package

train-cluster: .venv/installed ## the same with 2 workers on this machine, started again when they are killed (WORKERS=2)
	$(BIN)/python tools/train_cluster.py --workers $(WORKERS) $(CONFIG) $(SET)

prepare train evaluate export serve: .venv/installed
	$(BIN)/tfrec $@ $(CONFIG) $(SET)

train: ## prepare, train, evaluate, export and verify (CONFIG=configs/ml100k.toml SET="key=value …")
prepare: ## tables, vocabularies and features only
evaluate: ## measure a trained run beside baselines
export: ## export a trained run again
serve: ## serve the newest export over gRPC

verify: .venv/installed ## run an export as TensorFlow Serving does (EXPORT=exports/ml100k)
	$(BIN)/tfrec verify $(EXPORT)

query: .venv/installed ## ask a running server (TARGET=localhost:8500/ml100k ASK="--user 196")
	$(BIN)/tfrec query $(TARGET) $(ASK)

test: .venv/tested ## quick tests, about 33 CPU-minutes
	TF_NUM_INTRAOP_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: .venv/tested ## everything else: real weights, kills, older TensorFlow releases
	$(BIN)/python -m pytest -q -m slow
	$(BIN)/python -m pytest -q -n 2 -m "hypothesis and not slow" --hypothesis-profile random

check: .venv/tested ## format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed ## one ratio a script, appended to benchmarks/results.json (use a quiet machine)
	for script in train_two_tower optimizers train_memory encode_text evaluate serve_overhead serve_throughput \
		swap_under_load soak reindex cascade_latency ivf_1m brute_1m_b32 prepare_10m batches step_scaling; do \
		$(BIN)/python benchmarks/$$script.py || exit 1; done

bench-torch: .venv/installed .venv-peers/installed ## the ratio against PyTorch, which has an environment of its own
	$(BIN)/python benchmarks/train_two_tower_torch.py --torch-python .venv-peers/bin/python

peers: .venv-peers/installed ## ALS, BPR, SASRec and BERT4Rec of other packages on a prepared run (CONFIG, SET, PEERS="als bpr", SECONDS=300)
	PYTHONPATH=$(CURDIR) .venv-peers/bin/python benchmarks/peers/run.py $(CONFIG) $(SET) --peers $(PEERS) --seconds $(SECONDS)

clean: ## remove environments and caches; runs and exports stay
	rm -rf .venv .venv-peers build *.egg-info .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install prepare train train-cluster evaluate export serve verify query test test-slow check bench bench-torch peers clean
