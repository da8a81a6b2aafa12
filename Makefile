# `make demo` and `make test` set themselves up in .venv; see README.md.
PYTHON ?= python3
# The version the project is developed with. Where pip brings a CUDA build of it, that works too.
TORCH ?= torch==2.13.0
DEMO ?= runs/demo

BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/.train
	$(BIN)/dynaconv train recipes/demo.yaml --output $(DEMO) --resume
	$(BIN)/dynaconv evaluate $(DEMO) $(DEMO)/test.tsv --samples 5 --json $(DEMO)/scores.json
	@echo
	@echo "model   $(DEMO)"
	@echo "curves  $(DEMO)/curves.png"
	@echo "next    echo \"Dieses Paket enthält die Dokumentation.\" | $(BIN)/dynaconv translate $(DEMO)"

test: .venv/.dev
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check

bench: .venv/.dev
	$(BIN)/dynaconv bench cpu --compile --output benchmarks/results/operators_cpu.json

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.%: .venv/bin/python pyproject.toml
	@echo "setting up .venv for $* (a minute or two)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[$*]"
	@touch $@
