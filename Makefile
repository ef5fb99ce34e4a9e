# `make demo` and `make test` first set up the virtual environment that they need.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo browser test lint format clean distclean

# Run the interpreter to find it, as a version manager may put a python3.11 on the path that it refuses to run.
PYTHON ?= $(shell python3.11 -c "import sys; print(sys.executable)" 2>/dev/null || echo python3)
STACK ?= original
TESTS = tests
ARGS =

ifeq ($(filter original onedl,$(STACK)),)
$(error STACK=$(STACK) is not a stack, give STACK=original or STACK=onedl)
endif

VENV := $(if $(filter original,$(STACK)),.venv,.venv-$(STACK))
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_CONFIG := configs/detection/retinanet_care_s1.py
DEMO := work_dirs/demo
# bfloat16 saves time if the processor computes in it, and costs time otherwise.
DEMO_AMP := $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo --amp)

help:
	@echo "make demo       train a detector on generated pictures, test it, draw its detections and curves"
	@echo "make test       run the tests (TESTS=tests/package for some of them, ARGS='-k name' for pytest options)"
	@echo "make browser    install Chromium and npm for the tests, as root on Debian; without them some are skipped"
	@echo "make lint       check style and formatting; make format fixes them"
	@echo "make setup      only set up the environment, $(VENV)"
	@echo "make clean      remove caches and build files; make distclean also removes the environments"
	@echo
	@echo "STACK=onedl runs any of them on the maintained successors of OpenMMLab's packages, in .venv-onedl."

setup: $(VENV)/.ready

# The stamp is written last, so an interrupted installation starts again, with --clear from scratch. mmcv's operators are
# compiled without debugging symbols, and with a precompiled header if the compiler is gcc.
$(VENV)/.stack: requirements/build.txt requirements/runtime.txt requirements/$(STACK).txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -r requirements/runtime.txt -r requirements/build.txt
	@echo "Installing the $(STACK) stack; the first time on a machine, compiling mmcv's operators takes a few minutes."
	@# Print every fifth of ninja's progress counts, such as [5/77]; the compiler's output goes to the log.
	@CXX=$(CURDIR)/requirements/mmcv-c++.sh PRECOMPILED=$(CURDIR)/$(VENV)/precompiled CFLAGS="-O3 -DNDEBUG -fwrapv -g0" \
	    $(PIP) install -v --no-build-isolation -r requirements/$(STACK).txt 2>&1 | tee $(LOG) \
	    | sed -un -e 's/^ *Collecting \([^ (]*\).*/  \1/p' -e 's/^ *\(\[[0-9]*[05]\/[0-9]*\]\).*/  compiled \1/p' \
	    || { grep -m 5 -E "(error|Error|ERROR): |not found" $(LOG) | cut -c -200 || true; \
	         echo "error: the $(STACK) stack was not installed, for the reason in $(LOG)" >&2; exit 1; }
	@rm -rf $(VENV)/precompiled
	$(BIN)/python -m mmcare.stack
	@touch $@

$(VENV)/.ready: $(VENV)/.stack requirements/test.txt requirements/classification-$(STACK).txt \
    requirements/data.txt requirements/onnx.txt requirements/openvino.txt \
    requirements/executorch.txt requirements/litert.txt requirements/litert-torch.txt requirements/coreml.txt \
    requirements/lint.txt setup.py \
    pyproject.toml mmcare/version.py
	$(PIP) install -r requirements/test.txt
	$(PIP) install -r requirements/classification-$(STACK).txt
	$(PIP) install --no-deps -r requirements/litert-torch.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@if [ -e $(DEMO) ]; then mv -v $(DEMO) $(DEMO)-until-$$(date +%Y%m%d-%H%M%S); fi
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --sample $(DEMO_AMP) --work-dir $(DEMO)
	$(BIN)/python tools/test.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --sample --work-dir $(DEMO)/test --show-dir pictures
	$(BIN)/python tools/analyze_logs.py $(DEMO) --out $(DEMO)/curves.png
	@echo
	@echo "Pictures:   $$(find $(DEMO)/test -type d -name pictures)"
	@echo "Curves:     $(DEMO)/curves.png"
	@echo "Checkpoint: $$(cat $(DEMO)/last_checkpoint)"

# What the tests of `mmcare export --format web` need besides; without it they are skipped.
browser:
	@missing="$$(command -v chromium >/dev/null || echo chromium) $$(command -v npm >/dev/null || echo npm)"; \
	if [ -n "$${missing// }" ]; then \
	    { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q \
	      && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; } \
	    || echo "warning: the page for browsers will not be tested, for want of $$missing: install it" >&2; \
	fi

# One process for each core, with one thread each: with more threads than cores, tests take many times longer.
# The tests of a file run in one process, as they share fixtures; in the order of their names, or the files with few and
# long tests would come last, when a process has nothing else to do. A process that dies is not replaced: pytest-xdist
# would wait for ever.
test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(TESTS) $(ARGS)

# Linting needs only ruff, in a separate environment.
.venv-lint/.ready: requirements/lint.txt
	$(PYTHON) -m venv --clear .venv-lint
	.venv-lint/bin/python -m pip --disable-pip-version-check install -q -r requirements/lint.txt
	@touch $@

lint: .venv-lint/.ready
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .

format: .venv-lint/.ready
	.venv-lint/bin/ruff check --fix .
	.venv-lint/bin/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find configs mmcare tests tools -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-onedl .venv-lint
