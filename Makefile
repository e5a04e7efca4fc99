# The two commands of README.md. Both make .venv first, with all that they need.

PYTHON ?= python3
# A version, so that pip does not choose the largest build of the newest one.
TORCH ?= torch==2.13.0
VENV := .venv
# Without it, torch's threads spin while they wait, and slow down everything else.
export OMP_WAIT_POLICY := passive

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[dev,train]"
	$(BIN)/python -c "open('$@', 'w')"

demo: setup
	$(BIN)/python -m lib_latent_upscale demo

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# BENCH="--reference DIR --models DAT6x6 --sizes 64": see docs/performance.md.
bench: setup
	$(BIN)/python -m lib_latent_upscale.bench --json out/bench.json --plot out/bench.png $(BENCH)

clean:
	rm -rf $(VENV) out build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
