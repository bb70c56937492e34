# make install | demo | test | check | bench
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Smaller CPU-only torch: make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Which tests: the quick ones by default; MARK="not benchmark" is all that CI runs.
MARK ?= not slow and not ray and not browser and not postgres and not benchmark
# Processes that share the tests, by files; 0: all in one.
WORKERS ?= 2

.PHONY: install demo test check types house lint imports format bench clean

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/paretopress demo

# More torch threads in sum than cores are ruinous.
test: export OMP_NUM_THREADS ?= 1
test: install
	$(BIN)/pytest -m "$(MARK)" -n $(WORKERS) $(ARGS)

# Its parts need nothing of each other: `make -j 2 -O check` runs two at once.
check: lint types house imports

types: install
	$(BIN)/mypy

house: install
	$(BIN)/pytest -q tests/house_tests

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: install
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# make bench NAME=trial_cost
bench: install
	$(BIN)/python -m tests.benchmarks.$(NAME)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output paretopress-data
