# Two commands do everything: `make demo` runs the main job on the embedded lab, `make test` runs the tests.
# `make gpu-check` checks and measures everything on a GPU (docs/gpu.md).
# Variables: PYTHON=python3.12, PIP_FLAGS="..." (an index with another torch build), OUT=runs/lab, ARGS="..." for the run.
PYTHON ?= python3
PIP_FLAGS ?=
OUT ?= runs/lab
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_FLAGS) --constraint constraints.txt
# pip would compile one file after the other; this does it on all cores, without the libraries' own tests. Templates that are
# not Python cannot be compiled, as with pip, and nothing imports them.
COMPILE := @$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib mechprobe sae_training || true

# A GPU machine without network has no environment of its own: there, python3 runs the check.
DEVICE ?= cuda
SIZE ?= full
CHECK_PYTHON = $(firstword $(wildcard $(BIN)/python) $(PYTHON))

.PHONY: demo test test-all kills check lint types lab docs gpu-check gpu-wheels clean

demo: .venv/.run
	$(BIN)/mechprobe run --out $(OUT) $(ARGS)

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" --durations 25 $(ARGS)

# Everything, the slow ones too: killed ranks, interrupted emergence, kernels compiled for a GPU; and new random cases of
# every property, where `make test` has the same ones each time.
test-all: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile default $(ARGS)

# Fifty kills of `mechprobe cache` at random moments, each store byte-identical to an uninterrupted one.
kills: .venv/.dev
	$(BIN)/python experiments/lab/kill_cache.py $(ARGS)

check: lint types test

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/.dev
	$(BIN)/basedpyright

# The documentation site, in build/site/html; it opens from the file system. A warning is an error.
docs: .venv/.dev
	$(BIN)/python docs/site/build.py

lab: .venv/.dev
	$(BIN)/mechprobe lab build --out runs/lab-built $(ARGS)

gpu-check:
	$(CHECK_PYTHON) -m benchmarks.gpu_check --device $(DEVICE) --size $(SIZE) $(if $(filter command,$(firstword $(origin OUT))),--out $(OUT)) $(ARGS)

# The wheels that a GPU machine without network lacks, and the size of all that travels.
gpu-wheels:
	$(CHECK_PYTHON) -m benchmarks.gpu_check.carry $(ARGS)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mechprobe needs Python 3.11 or later; choose one, for example: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable .
	$(COMPILE)
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev]'
	$(COMPILE)
	@touch $@ .venv/.run

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
