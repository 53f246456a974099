# `make run` shows it, `make test` proves it; both set up what they need, once.

PYTHON ?= $(shell .ci/interpreters | head -n 1 | cut -d ' ' -f 2-)
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: help run test long faults faults-root bench lint types venv venvs clean

help:
	@echo "make run     a server and four processes that log to it, until Ctrl-C"
	@echo "make test    the tests, with workers on every Python from 3.11 on that is found"
	@echo "make long    the tests that take minutes, alone"
	@echo "make faults  what must hold when servers, workers, networks and disks fail; some minutes"
	@echo "make faults-root   the same, where making them fail takes root"
	@echo "make bench   aiolog beside what else one could pick; make bench RUNS=1 LOADS=flood is the short one"
	@echo "make lint    ruff"
	@echo "make types   mypy"
	@echo "make venv    .venv for development"
	@echo "make clean   remove what the others made, but no logs"

run: .venv/.server
	@.venv/bin/aiolog demo --serve

test: .venv/.test venvs
	.venv/bin/python -m pytest

long: .venv/.test venvs
	.venv/bin/python -m pytest -m long -rP

# AIOLOG_SEED=… repeats a run, AIOLOG_KILLS=200 makes F1 longer; AIOLOG_FIGURES=file collects the figures.
faults: .venv/.test
	.venv/bin/python -m pytest tests/faults -m faults -rPs

faults-root: .venv/.test
	.venv/bin/python -m pytest tests/faults -m root -rPs

# LOADS="flood paced", RIVALS="aiolog rsyslog": by how their names begin. BASE=directory is another checkout of this
# project, which then is a rival. DOCUMENT=docs/performance.md writes the figures there. rsyslog and Fluent Bit are
# measured where they are installed (apt install rsyslog).
RUNS ?= 5
bench: .venv/.bench
	BASE="$(abspath $(BASE))" .venv/bin/python -m benchmarks --runs $(RUNS) --loads "$(LOADS)" --rivals "$(RIVALS)" \
		$(if $(DOCUMENT),--document "$(DOCUMENT)")

lint: .venv/.dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: .venv/.dev
	.venv/bin/mypy

venv: .venv/.dev

# The stamps .venv/.server, .venv/.test, .venv/.bench and .venv/.dev: what of pyproject.toml's extras is installed.
.venv/.%: pyproject.toml | .venv/bin/python
	.venv/bin/python $(PIP_INSTALL) -e '.[$*]'
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 on with venv and pip was found. make PYTHON=/its/path/python3"; exit 1; }
	$(PYTHON) -m venv .venv

# For each other Python one environment with the base package, which is all that a process that logs needs, and with
# the services whose processes end in ways of their own.
venvs: | .venv/bin/python
	@here=$$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	.ci/interpreters | while read -r version python; do \
		test "$$version" = "$$here" && continue; \
		$(MAKE) --silent --no-print-directory ".venvs/$$version/.base" OTHER="$$python" </dev/null \
			|| echo "No tests on Python $$version: its environment could not be made."; \
	done

.venvs/%/.base: pyproject.toml
	@"$(OTHER)" -m venv .venvs/$* && .venvs/$*/bin/python $(PIP_INSTALL) -e . celery gunicorn uvicorn || { rm -rf .venvs/$*; exit 1; }
	@touch $@

clean:
	rm -rf .venv .venvs .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
