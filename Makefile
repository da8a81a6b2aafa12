# `make demo` and `make test` set themselves up in .venv; see README.md. Versions are those of the lock.
PYTHON ?= python3
LOCK := requirements.lock
LOCKED_TORCH := torch==2.13.0
# Where pip brings a CUDA build of it, that works too. To try another: make clean test TORCH=torch==2.12.0
TORCH ?= $(LOCKED_TORCH)
DEMO ?= runs/demo
# What meets Hugging Face's libraries, and is tested with the oldest and the newest of them.
HUGGINGFACE_TESTS := tests/models tests/grafting tests/tasks tests/data tests/test_package.py

# Compiled when the package is installed.
KERNELS := $(wildcard src/dynaconv/kernels/cpu/*.cpp src/dynaconv/kernels/cpu/*.h)

BIN := .venv/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
# Two workers of one thread each, in about 60% of the time; plain pytest has one worker of two threads.
PYTEST := -m pytest -n 2 --dist worksteal
VERSIONS := -m pip --disable-pip-version-check freeze --exclude-editable

.PHONY: demo test test-oldest test-newest lint bench lock clean

demo: .venv/.train
	$(BIN)/dynaconv train recipes/translation/demo.yaml --output $(DEMO) --resume
	$(BIN)/dynaconv evaluate $(DEMO) $(DEMO)/test.tsv --samples 5 --json $(DEMO)/scores.json
	@echo
	@echo "model   $(DEMO)"
	@echo "curves  $(DEMO)/curves.png"
	@echo "next    echo \"Dieses Paket enthält die Dokumentation.\" | $(BIN)/dynaconv translate $(DEMO)"

test: .venv/.dev
	$(BIN)/python $(PYTEST)

# The lower bounds of pyproject.toml, but not of torch: 2.10 has no build for CPUs in the package index, only for CUDA.
test-oldest: .venv-oldest/bin/python
	.venv-oldest/bin/python .ci/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python $(INSTALL) -c .venv-oldest/constraints.txt "$(TORCH)" -e ".[dev]"
	.venv-oldest/bin/python $(VERSIONS)
	.venv-oldest/bin/python $(PYTEST) $(HUGGINGFACE_TESTS)

# The newest versions of the day, but not of torch, for the same reason.
test-newest: .venv-newest/bin/python
	.venv-newest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager "$(TORCH)" -e ".[dev]"
	.venv-newest/bin/python $(VERSIONS)
	.venv-newest/bin/python $(PYTEST) $(HUGGINGFACE_TESTS)

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check

bench: .venv/.dev
	$(BIN)/dynaconv bench cpu --output benchmarks/results/operators_cpu.json

# Renews the lock: the newest versions of everything but torch, for every Python that transformers supports.
lock: .venv-lock/bin/python
	.venv-lock/bin/python $(INSTALL) --upgrade uv
	echo "$(LOCKED_TORCH)" | .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--no-annotate --custom-compile-command "make lock" --extra dev -o $(LOCK) pyproject.toml -

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-lock

.venv/bin/python .venv-oldest/bin/python .venv-newest/bin/python .venv-lock/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)

# Another torch than the locked one brings its own Triton and CUDA libraries.
.venv/.%: .venv/bin/python pyproject.toml $(LOCK) $(KERNELS)
	@echo "setting up .venv for $* (a minute or two)"
	grep -vE "$(if $(filter $(LOCKED_TORCH),$(TORCH)),^$$,^(torch|triton|nvidia|cuda)[-a-z0-9]*==)" $(LOCK) > .venv/constraints.txt
	$(BIN)/python $(INSTALL) -c .venv/constraints.txt "$(TORCH)" -e ".[$*]"
	@touch $@
