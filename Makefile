# Two commands do everything on a fresh machine: `make bench` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out
RECORDS ?= $(OUT)/records.jsonl

.PHONY: help bench test newest-triton lint gpu report clean

help:
	@echo "make bench   environment, doctor, gate, a sweep over real proteins, the report (about 5 minutes, no GPU needed)"
	@echo "make test    environment, lint, all tests"
	@echo "make newest-triton   the fused kernels with the newest triton on the registry, in a folder that goes again"
	@echo "make gpu     everything that needs a CUDA GPU, bounded by BUDGET_S (default 540); call again to go on"
	@echo "make report  the page from RECORDS (default $(RECORDS)) into OUT (default $(OUT))"
	@echo "make lint    ruff and pyright"
	@echo "make clean   removes the environment and everything made by the commands above"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0]) if not (3, 11) <= sys.version_info[:2] <= (3, 12) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,structures,triton,xformers,asv,test]'
	touch $@

bench: $(READY)
	$(BIN)/python -m benchmarks bench --out $(OUT)

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

newest-triton: $(READY)
	scripts/newest_triton.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

BUDGET_S ?= 540
gpu: $(READY)
	$(BIN)/python -m benchmarks gpu --budget-s $(BUDGET_S) --out $(OUT)/gpu

report: $(READY)
	$(BIN)/python -m reports $(RECORDS) --out $(OUT)

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .ruff_cache .hypothesis build *.egg-info
