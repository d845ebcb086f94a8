# `make demo`: from nothing to a night of offline research. `make test`: the tests. Both set themselves up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench gpu-check soak clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/ready: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/nightshift prepare
	$(BIN)/nightshift --offline --hours 0.15 --slots auto

test: .venv/ready
	PYTHONUTF8=1 $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: .venv/ready
	$(BIN)/python -m benchmarks

gpu-check: .venv/ready
	$(BIN)/python -m benchmarks.gpu_check

soak: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[cluster]'
	PYTHONUTF8=1 NIGHTSHIFT_HUNT=1 $(BIN)/python -m pytest -m 'soak or hypothesis' -n 2 --timeout 3600

clean:
	rm -rf .venv data sessions build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
