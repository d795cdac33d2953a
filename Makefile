# The main job and the checks, each from a fresh checkout: a virtual environment is made in .venv when needed.
# Nothing is installed twice: a file in .venv stands for what is there, and is as old as the install.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
#: Arguments for the programs, e.g. make fig7 ARGS="--seeds 1", make test ARGS="-k trace".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help fig7 test test-calibrate lint bench docs validation readme pins clean

help: ## Say what there is to make.
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

fig7: $(VENV)/core ## Install argus-sim and run the main comparison: all policies, two traces, five seeds.
	$(BIN)/argus-sim run experiments/fig7.yaml $(ARGS)

test: lint ## Install the test tools and run all checks. With ARGUS_DATA set, on the recorded data sets too.
	$(BIN)/python -m pytest -n 2 --dist loadfile -p no:benchmark $(ARGS)

test-calibrate: $(VENV)/calibrate ## Install torch, diffusers and Ray as well and test the calibration harness and real workers.
	$(BIN)/python -m pytest tests/calibration tests/live -n 2 --dist loadfile -p no:benchmark $(ARGS)

lint: $(VENV)/test ## Run the checks that need no run: ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test ## Measure requests/s and memory.
	$(BIN)/python -m pytest tests/bench $(ARGS)

docs: $(VENV)/test ## Build the documentation into build/site; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html; with its search: python3 -m http.server --directory build/site"

validation: $(VENV)/test ## Run the analytic and golden tests and write what they found into docs/validation.md.
	$(BIN)/python docs/validation.py

readme: $(VENV)/core ## Bring README's table and picture up to date with runs/fig7.
	$(BIN)/argus-sim table runs/fig7 --into README.md
	$(BIN)/python -c "from PIL import Image; Image.open('runs/fig7/figures/timeline-bursty.png').convert('RGB')\
	  .quantize(128, dither=Image.Dither.NONE).save('docs/fig7-bursty.png', optimize=True)"

pins: ## Renew constraints.txt: the newest versions that an empty environment gets.
	rm -rf $(VENV)-pins
	$(PYTHON) -m venv $(VENV)-pins
	$(VENV)-pins/bin/python -m pip install --quiet --disable-pip-version-check '.[test]'
	sed -n '1,/^[^#]/{/^#/p}' constraints.txt > $(VENV)-pins/constraints.txt
	$(VENV)-pins/bin/python -m pip freeze --exclude argus-sim >> $(VENV)-pins/constraints.txt
	sed -n '/^# calibrate/,$$p' constraints.txt >> $(VENV)-pins/constraints.txt
	mv $(VENV)-pins/constraints.txt constraints.txt
	rm -rf $(VENV)-pins

clean: ## Remove the environment, results and caches.
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "argus-sim needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/core

# DeepCache and tomesd ask for versions of torch and diffusers that they do not need.
$(VENV)/calibrate: $(VENV)/test
	$(PIP) -e '.[test,calibrate,ray,qdrant]'
	$(PIP) --no-deps deepcache tomesd
	@touch $@
