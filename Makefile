# Everything below works on a fresh machine with Python 3.11 or newer. What it needs goes into .venv, which is made when
# it is first needed, made again when requirements.lock changes, and belongs to this file.

PYTHON ?= python3

.PHONY: help demo test faults ui lint types lock clean

help:
	@echo 'make demo    explain the neurons of a small model, with no key, GPU or network; then see `neuronledger --help`'
	@echo 'make ui      open the Dagster UI on the same results'
	@echo 'make test    run the tests'
	@echo 'make faults  run the full set of fault tests, some minutes'
	@echo 'make lint    check style and format'
	@echo 'make types   check types'
	@echo 'make lock    renew requirements.lock from pyproject.toml'
	@echo 'make clean   remove .venv and caches; results stay'
	@echo
	@echo 'Another Python: PYTHON=python3.12 make demo (after make clean, if there is a .venv already).'

demo: .venv/.installed
	.venv/bin/neuronledger demo

ui: .venv/.installed
	.venv/bin/neuronledger ui

# A file of tests goes to one process, since what its tests share is made once for a process.
test: .venv/.installed
	.venv/bin/python -m pytest -n auto --dist loadfile

faults: .venv/.installed
	FAULTS=all .venv/bin/python -m pytest tests/faults

lint: .venv/.installed
	.venv/bin/ruff format --check
	.venv/bin/ruff check

types: .venv/.installed
	.venv/bin/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard assets benchmarks explorer pipeline resources tests) -name __pycache__ -prune -exec rm -rf {} +

# A script of an environment holds the path where it was made, so a folder that was moved needs a new one, and so does
# a Python that is gone.
ifneq ($(shell .venv/bin/python -c '' 2>/dev/null && cat .venv/.locked 2>/dev/null),$(CURDIR))
.PHONY: .venv/.locked
endif

# The mark is written last: what was interrupted is made again from the start.
.venv/.locked: requirements.lock
	$(call environment,.venv)
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.lock
	@pwd > $@

# Without build isolation, because that would fetch a build tool that is not in the lock.
.venv/.installed: .venv/.locked pyproject.toml
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

# What pip finds today for all that this project can use, without the marks of a CPU build (`torch==2.13.0+cpu`). Torch
# is raised by hand: it decides the numbers, so a new version is tried on a CPU and on a GPU first.
TORCH = 2.13.0

lock:
	$(call environment,build/lock)
	build/lock/bin/python -m pip install --disable-pip-version-check hatchling editables
	build/lock/bin/python -m pip install --disable-pip-version-check --no-build-isolation \
		'.[audit,capture,demo,test]' torch==$(TORCH)
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude neuronledger > build/lock/frozen
	sed -n '/^#/p' requirements.lock > build/lock/requirements.lock
	sed -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d' -e 's/+.*//' build/lock/frozen >> build/lock/requirements.lock
	mv build/lock/requirements.lock requirements.lock
	rm -rf build/lock

define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo 'Python 3.11 or newer is needed, and `$(PYTHON)` is not; name one that is: PYTHON=python3.12 make ...' >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo '`$(PYTHON)` cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
@echo 'Setting up $(1), once; this takes a few minutes.'
@$(PYTHON) -m venv --clear $(1)
endef
