# Two commands for a new user: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= results
# Test processes side by side; each takes about 3 GB of memory.
WORKERS ?= 2

.NOTPARALLEL:  # two installations at once into one environment
.PHONY: demo demo-vision ledger test test-all lint docs bench check-tpu clean

# One resolution and one installation each, from nothing or on top of what is there; bytecode is then compiled by all
# processors, where pip would take one. Stamps, so that a second run installs nothing: what the tests need is more than
# what the demo needs.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable
COMPILE = $(BIN)/python -m compileall -q -j 0 -x '/site-packages/.*/tests/' $(VENV)/lib > $(VENV)/compiled.log || true

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "massive_jax needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(INSTALL) .
	$(COMPILE)
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	$(INSTALL) '.[test]'
	$(COMPILE)
	touch $(VENV)/.installed $@

$(VENV)/.installed-test-all: pyproject.toml | $(VENV)/.made
	$(INSTALL) '.[test-all]'
	$(COMPILE)
	touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-data $(VENV)/.installed-docs: $(VENV)/.installed-%: pyproject.toml | $(VENV)/.made
	$(INSTALL) '.[$*]'
	$(COMPILE)
	touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.reproduce --workdir=$(WORKDIR)

# The same on images: a vision transformer trained without registers and with four, both side by side, and a report.
DATASET ?= fashion_mnist
VIT := $(WORKDIR)/vit
demo-vision: $(VENV)/.installed-data
	$(BIN)/python -m experiments.train_vit --dataset=$(DATASET) --workdir=$(VIT)
	$(BIN)/python -m experiments.train_vit --dataset=$(DATASET) --registers=4 --workdir=$(VIT)/registers
	$(BIN)/python -m experiments.compare_bias --models=$(VIT)/model,$(VIT)/registers/model --images=$(VIT)/samples --workdir=$(VIT)
	$(BIN)/python -m experiments.reproduce --model=$(VIT)/model --images=$(VIT)/samples --workdir=$(VIT)

# What papers claim, and what is found of it here: runs what $(WORKDIR)/ledger lacks. TEXT is what --text takes.
TEXT ?= python
ledger: $(VENV)/.installed
	$(BIN)/python -m experiments.ledger --workdir=$(WORKDIR)/ledger --page=docs/ledger.md --text=$(TEXT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(VENV)/.installed-test-all
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m ''

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning is an error: mkdocs.yml says so. The pages open from disk: build/site/index.html.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --quiet

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.forward
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.parity

# What runs on a TPU, compiled for three kinds of it on a machine without one. libtpu is a few hundred MB.
$(VENV)-tpu/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --editable '.[tpu]'
	touch $@

check-tpu: $(VENV)-tpu/.installed
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(VENV)-tpu/bin/python -m benchmarks.tpu

clean:
	rm -rf $(VENV) $(VENV)-tpu build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
