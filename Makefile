# `make run` and `make test` work on a bare machine with Python 3.11 or newer; the environment is made once.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.PHONY: run test test-cluster test-triton test-all check format docs release clean

run: $(STAMP)
	$(BIN)/ddstudy run --grid

# threads that wait do not spin; bytecode is kept, since dozens of processes start
PYTEST := OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(BIN)/pytest

# more workers than processors: much of it waits for servers and browsers
test: $(STAMP)
	$(PYTEST) -m "not cluster and not triton" -n 3 --dist loadfile --no-loadscope-reorder

# clusters of Ray that stand beside a run: some minutes of processes that start
test-cluster: $(STAMP)
	$(PYTEST) -m cluster

# the Triton kernels: on a GPU where there is one, and in Triton's interpreter, which takes its time
test-triton: $(STAMP)
	$(PYTEST) -m triton -n 2 --dist loadfile

test-all: test-cluster test-triton test

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the pages need no network, neither to be made, once mkdocs is installed, nor to be read
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python docs/reference.py
	$(BIN)/mkdocs build --strict --quiet

# what users install: built, installed into a bare environment of each of PYTHONS, and run there, away from this folder
PYTHONS ?= $(PYTHON)
release: $(STAMP)
	rm -rf dist .release
	mkdir .release
	$(BIN)/python -m hatchling build
	set -e; for python in $(PYTHONS); do \
		name=$$(basename $$python); bare=$(CURDIR)/.release/$$name/bin; \
		$$python -m venv .release/$$name; \
		$$bare/python -m pip install --quiet --constraint constraints.txt dist/*.whl; \
		(cd .release && $$bare/ddstudy run --grid --store sqlite:///$$name.db && \
			$$bare/ddstudy report --store sqlite:///$$name.db --out $$name.html); \
		$$bare/python -m pip install --quiet --no-deps --force-reinstall dist/*.tar.gz; \
		(cd .release && $$bare/ddstudy status --store sqlite:///$$name.db); \
	done

# made anew when pyproject.toml changes. Kernels are compiled here, once: in a fresh clone each worker of the suite, and
# each program that a test starts, would do it
$(STAMP):
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -e '.[test]'
	$(BIN)/python tests/compile_kernels.py float32 & $(BIN)/python tests/compile_kernels.py float64; wait
	touch $@

clean:
	rm -rf .venv site dist .release .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
