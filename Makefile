# make demo          the whole chain on the shipped recipe, on a CPU, and the page to open
# make vit-s         the demo, then the latency of a ViT-S-size network on the same page: 4 to 9 minutes more
# make test          everything CI checks; STRICT=1 makes skips for missing system packages failures
# make slow          the tests that take minutes
# make zoo           networks of published size through the chain; writes bench/results/zoo.json
# make kernels       cubins of every target and their index, gated by a budget, without a GPU; 3 minutes
# make mutants       seed faults into the kernels one at a time; a test must notice each; 10 minutes
# make system-deps   what pip cannot install, by apt-get; says what it does
# make lock          write constraints.txt anew

PYTHON ?= python3
STRICT ?= 0
OUT ?= out

BIN := .venv/bin
STAMP := .venv/edgekd-stamp
PYTEST := OMP_NUM_THREADS=1 EDGEKD_STRICT=$(STRICT) $(BIN)/python -m pytest
# They compile kernels: `make kernels` has the compiler and runs them, `make test` has none.
NVCC_TESTS := tests/kernels/test_whole_gate.py tests/kernels/test_wrappers.py

.PHONY: demo vit-s test slow zoo kernels mutants system-deps lock
.DELETE_ON_ERROR:

demo: $(STAMP)
	@report=$$($(BIN)/edgekd run digits-vit --target a100-sxm4-80gb-trt11.4 \
	  --target jetson-agx-orin-64gb-jp6.2 --target cpu --scenario single-stream --out $(OUT)) && echo "The report: $$report"

vit-s: demo
	$(BIN)/python bench/vit_s/run.py --out $(OUT)

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow" $(NVCC_TESTS:%=--ignore=%) -n auto --maxprocesses 8 --dist loadscope
	@echo "make test: lint, format, types, import contracts and tests are all good"

slow: $(STAMP)
	$(PYTEST) -m slow
	$(BIN)/python bench/results.py slow

zoo: $(STAMP)
	$(BIN)/python bench/zoo/run.py

kernels: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train,rtx,dev,cuda]'
	$(PYTEST) $(NVCC_TESTS)
	$(BIN)/python bench/kernels/compiled.py

mutants: $(STAMP)
	$(BIN)/python bench/kernels/mutants.py

system-deps:
	@missing=""; \
	command -v c++ >/dev/null || missing="$$missing g++"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if grep -rqs --include='*.py' chromium tests; then \
	  command -v chromium chromium-browser google-chrome >/dev/null || missing="$$missing chromium"; fi; \
	for found in python3.10 $$HOME/.pyenv/versions/3.10*/bin/python; do \
	  $$found -c 'import ensurepip' 2>/dev/null && break; found=""; done; \
	if [ -z "$$found" ] && apt-cache show python3.10-venv >/dev/null 2>&1; then \
	  missing="$$missing python3.10-venv"; \
	elif [ -z "$$found" ]; then \
	  echo "system-deps: no package of python3.10 here: pyenv install 3.10 makes one"; fi; \
	if [ -z "$$missing" ]; then echo "system-deps: every package is there"; \
	elif [ "$$(id -u)" != 0 ]; then echo "system-deps: as root, run: apt-get install$$missing"; \
	else echo "system-deps: apt-get install$$missing"; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing; fi

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	  "Python %d.%d found, 3.11 or later needed: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train,rtx,dev]'
	@touch $@

# What a plain install takes today. The libraries of a CUDA torch are left to torch, which pins them.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --dry-run --report .venv-lock/report -e '.[train,rtx,dev]'
	$(PYTHON) -c 'import json; print(*["{name}=={version}".format(**package["metadata"]) \
	  for package in json.load(open(".venv-lock/report"))["install"]], sep="\n")' \
	  | sed -E -e 's/\+.*//' -e '/^(edgekd|triton|cuda-.*|nvidia-(cu|nccl|nv).*)=/d' \
	  | LC_ALL=C sort -f > .venv-lock/pins
	{ sed -n '/^#/p' constraints.txt; cat .venv-lock/pins; } > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock
