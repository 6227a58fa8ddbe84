# One word for each thing one does here. `make` alone lists them.

SHELL := /bin/sh
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$name; break; }; done)
VENV := .venv
RUN := $(VENV)/bin
SERVES := $(VENV)/serves
STAMP := $(VENV)/installed
VIEWERS ?= 200

export COMPANION_DATA_DIR ?= $(CURDIR)/.data

.PHONY: help demo test test-floor test-cluster load soak bench screenshots docs lint fix browser clean

help:
	@echo "make demo         a sample brand goes live; prints the addresses (VIEWERS=200, ARGS=--fresh)"
	@echo "make test         everything that is checked"
	@echo "make test-floor   the tests on Debian's PostgreSQL 15 and Redis 7.0"
	@echo "make test-cluster the tests with Redis as a Cluster of three nodes"
	@echo "make load         locust against a server of its own; writes an HTML report"
	@echo "make soak         the same for half an hour, the heavy tests, an evening, an outage, a million fuzzed frames,"
	@echo "                  20,000 claims, 300 rounds of kill -9, 10,000 walks through the shop: about two hours"
	@echo "make bench        our server and its peers at the same fan-out; writes a table and plots"
	@echo "make screenshots  pictures of the pages into docs/"
	@echo "make docs         write the pages made from code"
	@echo "make lint         what can be judged without running; make fix repairs it"

demo: $(SERVES)
	@exec $(RUN)/companion demo --tied --viewers $(VIEWERS) $(ARGS)

test: lint browser
	$(RUN)/python -m pytest -n 3 --dist loadfile $(ARGS)

test-floor: $(STAMP) browser
	@deploy/install_floor
	TEST_FLOOR=1 $(RUN)/python -m pytest -n 3 --dist loadfile $(ARGS)

test-cluster: $(STAMP) browser
	TEST_CLUSTER=1 $(RUN)/python -m pytest -n 3 --dist loadfile $(ARGS)

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

fix: $(STAMP)
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

load: $(STAMP) $(VENV)/load
	$(RUN)/python -m loadtests $(ARGS)

soak: $(STAMP) $(VENV)/load
	$(RUN)/python -m loadtests --minutes 30 $(ARGS)
	$(RUN)/python -m pytest -m heavy
	$(RUN)/python -m loadtests.evening --small all
	$(RUN)/python -m loadtests.outage --viewers 200 --frozen-s 15
	$(RUN)/python -m loadtests.fuzz --frames 1000000
	$(RUN)/python -m loadtests.storm --claimants 20000 --quota 100
	$(RUN)/python -m loadtests.rounds --rounds 300 --seed 20261122
	$(RUN)/python -m tests.commerce.machine --examples 10000

bench: $(STAMP) $(VENV)/bench
	$(RUN)/python -m loadtests.fanout $(ARGS)

screenshots: $(STAMP) browser
	$(RUN)/python -m docs.screenshots $(ARGS)

docs: $(STAMP)
	$(RUN)/python docs/tables.py
	$(RUN)/python docs/rules.py
	$(RUN)/python -m tests.live.test_autobahn

browser:
	@deploy/install_browser

# Installed anew when the list of what is needed changes: what serves, and on top of it what tests.
$(SERVES): pyproject.toml deploy/fetch_frontend.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: apt-get install python3 python3-venv" >&2; exit 1; }
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "venv is missing: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	$(RUN)/python deploy/fetch_frontend.py
	@touch $@

$(STAMP): $(SERVES)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,test]'
	@touch $@

$(VENV)/load: $(STAMP)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[load]'
	@touch $@

$(VENV)/bench: $(STAMP)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist live/static/vendor
