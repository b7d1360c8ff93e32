# The first call of any target makes a virtual environment; a second call is fast.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SHARED := ../shared/data/college_msg.txt

# Each of the tests' hundreds of processes would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo unit test suite long chaos soak partitions serve-ingresses lint type floors docs package lowest matrix bench check clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## sticky routing at work, on a real message log where there is one
	RAY_ADDRESS=local $(BIN)/ray-route demo --kill --scale-out $(if $(wildcard $(SHARED)),--trace $(SHARED))

unit: WORKERS = 4  # they wait for half of the time
unit: $(READY)  ## what needs neither servers nor Ray
	$(SUITE) -m 'not long and not slow' tests/unit

# As many processes as a small machine has cores: a third saves up to a quarter of the time, and starves
# the others on a busy machine. Each has a Ray and servers of its own; one that crashes fails the run.
WORKERS ?= 2
SUITE = $(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder --max-worker-restart 0
test: $(READY)  ## what answers within minutes: all but what is marked slow
	$(SUITE) -m 'not long and not slow'

suite: $(READY)  ## the whole suite, short forms of long tests included
	$(SUITE)

long: $(READY)  ## what is too slow for every run: load on a cluster, metrics on their way, autoscaling
	$(BIN)/python -m pytest -m long

soak: $(READY)  ## five minutes of faults of Redis and pods; repeat one with SOAK_SEED
	SOAK_S=$${SOAK_S:-300} $(BIN)/python -m pytest -s tests/chaos/test_soak.py

chaos: $(READY)  ## seeded faults: five minutes of each kind of load, ten of all; repeat one with CHAOS_SEED
	CHAOS_S=$${CHAOS_S:-300} $(BIN)/python -m pytest -s -m 'long or not long' tests/chaos/test_chaos.py tests/chaos/test_states_on_their_way.py
	CHAOS_S=$${CHAOS_S:-600} $(BIN)/python -m pytest -s tests/chaos/test_planned.py

partitions: $(READY)  ## every cut of a real network, 72 of them, as root; repeat a run with NET_SEED
	NET_CUTS=$${NET_CUTS:-0} $(BIN)/python -m pytest -s -m long tests/chaos/test_net.py

serve-ingresses: $(READY)  ## sessions by every way into Ray Serve; each needs a Ray of its own
	$(BIN)/python -m pytest -s -m 'long or not long' tests/ray/test_serve_ingresses.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

floors: $(READY)  ## imports go downward only
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

package: $(READY)  ## build the wheel, install it into an empty environment, follow the tutorial
	rm -rf dist build/package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/package
	build/package/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	$(BIN)/python tests/tutorial.py build/package/bin

lowest: package  ## the same with the lowest versions of what it needs
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint tests/lowest.txt dist/*.whl
	$(BIN)/python tests/tutorial.py build/lowest/bin

# One by its name, `all`, or `today`, which is another each day of the week; `list` names them.
CELL ?= all
matrix: $(READY)  ## the suite's core on other Pythons, Rays and redis-pys; that of the store on other servers
	$(BIN)/python tests/matrix.py $(CELL)

bench: $(READY)  ## every benchmark, with plots beside the JSON
	$(BIN)/python -m benchmarks all

check: lint type floors docs suite  ## what CI runs first: see .ci/run

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
