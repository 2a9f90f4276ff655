# Everything a person or CI does here. Each target makes .venv first where it is missing.
# `make TORCH_INDEX=<url> ...` and `make ALLOW_CUDA=1 ...`: see scripts/install.
.DEFAULT_GOAL := help
.PHONY: help install serve demo test quick prove check format reference bench bench-kv bench-router bench-fidelity bench-simulator bench-placement bench-disaggregate bench-planner clean
SHELL := /bin/bash
export TORCH_INDEX ALLOW_CUDA PYTHON
unexport PYTHONDONTWRITEBYTECODE  # tests start hundreds of processes: what they import is compiled once
run := .venv/bin/python
pytest := $(run) -m pytest
alone = $(if $(filter tests/%,$(ARGS)),,$(shell grep -rl --include="*.py" "mark[.]alone" tests))  # judge by the clock
parallel := -n logical --dist loadfile --max-worker-restart 0  # a crash would leave the rest waiting for ever

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install:  ## make .venv with the pinned dependencies (instant when it is there)
	@scripts/install

serve: install  ## router + 1 prefill + 1 decode on this machine with the shipped model; Ctrl-C drains
	@exec .venv/bin/penstock serve $(ARGS)

demo: install  ## the same, bounded: three answers with their timelines, then stop
	@exec .venv/bin/penstock demo $(ARGS)

test: install  ## all tests but the longest (under 10 minutes)
	$(pytest) -q $(parallel) -m "not alone and not prove and not gpu" $(ARGS) || [ $$? = 5 ]
	$(pytest) -q -m "alone and not prove and not gpu" $(ARGS) $(alone) || [ $$? = 5 ]

quick: install  ## the fast tests (under a minute)
	$(pytest) -q $(parallel) -m "not slow and not prove and not gpu" $(ARGS)

prove: install  ## every test at full length, what judges by the clock last; resumes where it stopped (ARGS=--restart: anew)
	$(run) scripts/prove $(ARGS)

check: install  ## lint, format, types, stubs, structure
	$(run) -m ruff check .
	$(run) -m ruff format --check .
	$(run) -m mypy
	scripts/proto --check
	$(run) scripts/reference --check
	$(pytest) -q tests/structure

format: install  ## format and sort what can be
	$(run) -m ruff check --fix .
	$(run) -m ruff format .

reference: install  ## write into the docs what the code says: configuration keys, examples
	$(run) scripts/reference

bench: install  ## load a local cluster and report latencies (ARGS="--help")
	$(run) -m bench.serving $(ARGS)

bench-kv: install  ## every KV transport beside memcpy, bare sockets, bare NIXL (ARGS="--help")
	$(run) -m bench.kv_transfer $(ARGS)

bench-fidelity: install  ## the simulator beside real local clusters (ARGS="--help")
	$(run) -m bench.fidelity $(ARGS)

bench-simulator: install  ## a million requests on 100 workers, in processor seconds (ARGS="--help")
	$(run) -m bench.simulator_speed $(ARGS)

bench-disaggregate: install  ## auto beside always and never splitting, in every split of 8 workers (ARGS="--help")
	$(run) -m bench.disaggregate $(ARGS)

bench-planner: install  ## the planner beside the best fixed number of workers (ARGS="--help")
	$(run) -m bench.planner $(ARGS)

bench-placement: install  ## the default placement rule beside the best of each cell (ARGS="--help")
	$(run) -m bench.placement $(ARGS)

bench-router: install  ## what a decision, an event, a request cost the router (ARGS="--help")
	$(run) -m bench.router $(ARGS)

clean:  ## remove .venv, caches and recorded proofs
	rm -rf .venv .prove .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
