# `make demo` and `make test` work from a fresh clone: they need Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS := runs/demo-$(shell date +%Y%m%d-%H%M%S)

NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py
PACKAGING := pyproject.toml setup.py
RECIPE := fashion-mnist-resnet20

# Threads that wait for each other sleep instead of spinning: on cores that other processes use too,
# spinning makes a training step several times slower.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call install,ARGUMENTS,WHAT): with pip, its errors alone, and a sentence where that fails.
NO_PIP = pip could not install $(1): the lines above say why. Without a network, put an index or a \
  folder of wheels into PIP_INDEX_URL or PIP_FIND_LINKS.
install = $(BIN)/python -m pip install --quiet --quiet $(1) || { echo "gdfq: $(call NO_PIP,$(2))"; exit 1; }

.PHONY: demo test test-all test-thorough wheel docs bench bench-step gpu-check lint format clean

demo: $(VENV)/.built $(VENV)/.installed ## Quantize the embedded network to 4 and to 3 bits
	$(BIN)/gdfq quantize --recipe $(RECIPE) --weight-bits 4 --act-bits 4 --out $(RUNS)/w4a4
	$(BIN)/gdfq quantize --recipe $(RECIPE) --weight-bits 3 --act-bits 3 --out $(RUNS)/w3a3
	$(BIN)/gdfq report $(RUNS)/w4a4 $(RUNS)/w3a3 --out $(RUNS)/report.html
	@echo "What came out, side by side: $(RUNS)/report.html"

# Two processes; the one that is done takes over tests of the other.
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: $(VENV)/.built $(VENV)/.test-tools ## Run the tests that say whether everything works here
	@echo "gdfq: running the tests; about ten minutes on two cores ..."
	@$(PYTEST) -m 'not thorough'

test-all: $(VENV)/.built $(VENV)/.test-tools ## Run all tests
	@echo "gdfq: running all tests; about half an hour on two cores ..."
	@$(PYTEST)

test-thorough: $(VENV)/.built $(VENV)/.test-tools ## Run what test-all has beyond test
	@$(PYTEST) -m 'thorough or hypothesis'  # with all examples

# The environment variables of a build hold here too; docs/install.md lists them.
wheel: export GDFQ_CUDA_ARCHITECTURES ?= all
wheel: $(VENV)/.torch ## Build a wheel into dist/, for the torch that is in .venv
	@rm -rf build/lib* build/bdist*
	@$(BIN)/python setup.py -q build_ext --inplace
	@$(BIN)/python -m pip wheel --quiet --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@echo "gdfq: built" dist/*.whl

# In quiet, mkdocs says what is wrong and nothing else; a link or reference that leads nowhere is an error.
docs: $(VENV)/.built $(VENV)/.docs-tools ## Build the documents into site/, which works without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

bench: $(VENV)/.built $(VENV)/.bench-tools ## Time the operators; writes benchmarks/results/operators-cpu.*
	$(BIN)/python -m benchmarks.table

bench-step: $(VENV)/.built $(VENV)/.bench-tools ## Time a training step; writes benchmarks/results/step-cpu.*
	$(BIN)/python -m benchmarks.step

gpu-check: ## Build, test and time the kernels on this machine's GPU, with whatever torch is there
	$(PYTHON) -m benchmarks.gpu_check

lint: $(VENV)/.dev-tools ## Check formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')
	$(BIN)/mypy

format: $(VENV)/.dev-tools ## Format everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

clean: ## Remove what was built and installed
	rm -rf $(VENV) build dist site *.egg-info gdfq/*.so

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "gdfq: $(PYTHON) is older than Python 3.10; use make PYTHON=python3.x"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo "gdfq: no C++ compiler found: install g++"; exit 1; }
	@test -w . || { echo "gdfq: this folder cannot be written to: run make in a copy of it"; exit 1; }
	@echo "gdfq: installing torch into $(VENV); one to two minutes, and the download ..."
	@$(PYTHON) -m venv $(VENV)
	@$(call install,'torch>=2.11' 'setuptools>=77' 'cmake>=3.22' ninja 'pybind11>=2.13',torch)
	@touch $@

# In the package's folder, where an editable installation looks for it.
$(VENV)/.built: $(VENV)/.torch $(NATIVE)
	@echo "gdfq: compiling what changed of the kernels; all of them take about a minute on two cores ..."
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# $(call extras,NAMES)
extras = $(call install,--no-build-isolation --editable '.$(1)',gdfq$(1))

$(VENV)/.installed: $(PACKAGING) | $(VENV)/.built
	@echo "gdfq: installing what gdfq needs; about ten seconds ..."
	@$(call extras,)
	@touch $@

$(VENV)/.test-tools: $(VENV)/.installed
	@echo "gdfq: installing what the tests need; one to two minutes ..."
	@$(call extras,[test])
	@touch $@

$(VENV)/.docs-tools: $(VENV)/.installed
	@echo "gdfq: installing what builds the documents; about ten seconds ..."
	@$(call extras,[docs])
	@touch $@

$(VENV)/.bench-tools: $(VENV)/.installed
	@echo "gdfq: installing what the benchmarks need; about ten seconds ..."
	@$(call extras,[bench])
	@touch $@

$(VENV)/.dev-tools: $(VENV)/.installed
	@echo "gdfq: installing what make lint and the tests need; one to two minutes ..."
	@$(call extras,[dev])
	@touch $@
