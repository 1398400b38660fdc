# `make` lists the targets. Each sets up what it needs: a virtual environment in .venv with the pinned packages.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2
RECORDS ?= results
N ?= 10000
CHECKED := build/check

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults slurm-test lint types check tables leaderboard methods tasks bench-analysis browser-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## virtual environment with the pinned packages

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: zobench needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1); make PYTHON=..."; exit 1; }
	@echo "setting up $(VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## a small sweep on the CPU, its tables and plot (minutes, no download but packages)
	@$(PY) -m runners.sweep suite=demo jobs=$(JOBS)
	@$(PY) -m analysis.build --records results/demo
	@echo
	@echo "records     results/demo/*.jsonl, one a run; the trajectory beside it rebuilds the tuned weights:"
	@echo "              $(PY) -m runners.replay $$(ls results/demo/zo_sgd-toy-tiny-full-*-s1-*.jsonl | head -n 1)"
	@echo "tables      results/demo/tables/: accuracy, memory, throughput, equal_forwards ... (.md, .csv, .tex)"
	@echo "plots       results/demo/figures/: accuracy.png, accuracy_vs_forwards.png, _seconds.png, _memory.png"
	@echo "what the model sees"
	@echo "              $(PY) -m runners.show task=toy split=validation rows=0:3 model=tiny"
	@echo "try next    $(PY) -m runners.train model=tiny task=toy optimizer=zo_sgd optimizer.lr=1e-4 optimizer.q=4"
	@echo "              $(PY) -m runners.train model=opt-125m task=sst2 scheme=lora optimizer=zo_sgd   (from the hub)"

test: setup ## the tests
	@$(PY) -m pytest -n $(JOBS) --dist worksteal

faults: setup ## sweeps that are killed fifty times, on full disks, in read-only folders, two at once (many minutes)
	@ZOBENCH_FAULT_KILLS=50 $(PY) -m pytest -v -s tests/test_sweep_faults.py

slurm-test: setup ## a sweep on a real Slurm: three nodes on this machine (root; apt-get install slurm-wlm munge)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[slurm]'
	@ZOBENCH_SLURM_TEST=1 $(PY) -m pytest -v -rs tests/slurm

lint: setup ## ruff
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup ## mypy, strict
	@$(PY) -m mypy

check: lint types test ## all that CI checks: lint, types, tests, and the demo's path in small
	@rm -rf $(CHECKED)
	@$(PY) -m runners.sweep suite=demo jobs=$(JOBS) out=$(CHECKED) budget.amount=60 budget.n_eval=1 task.n_dev=50 task.n_test=50
	@$(PY) -m analysis.build --records $(CHECKED) --out $(dir $(CHECKED))
	@$(PY) -m analysis.leaderboard --records $(CHECKED) --out $(CHECKED)/leaderboard
	@$(PY) -m runners.replay $$(ls $(CHECKED)/zo_sgd-toy-tiny-full-*-s1-*.jsonl)

tables: setup ## regenerate tables and plots of every suite from its records
	@$(PY) -m analysis.build --records $(RECORDS)

leaderboard: setup ## regenerate results/leaderboard from the records of every suite
	@$(PY) -m analysis.leaderboard --records $(RECORDS) --out $(RECORDS)/leaderboard

methods: setup ## regenerate docs/methods.md from docstrings and yamls
	@$(PY) -m runners.methods

tasks: setup ## regenerate docs/tasks.md from yamls
	@$(PY) -m runners.tasks_page

bench-analysis: setup ## seconds and memory of 10,000 synthetic records (N=...)
	@PYTHONPATH=tests $(PY) tests/bench_analysis.py --n $(N)

browser-test: setup ## the leaderboard page in a real browser; needs Chromium and its driver
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	@$(PY) -m pytest tests/test_browser.py -rs

clean: ## remove the environment and what checks wrote
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
