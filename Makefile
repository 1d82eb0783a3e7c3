# `make demo` and `make test` work from a fresh clone: they need Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS := runs/demo-$(shell date +%Y%m%d-%H%M%S)

NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
RECIPE := fashion-mnist-resnet20

# Threads that wait for each other sleep instead of spinning: on cores that other processes use too,
# spinning makes a training step several times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test docs bench bench-step gpu-check lint format clean

demo: $(VENV)/.installed ## Quantize the embedded network to 4 and to 3 bits
	$(BIN)/gdfq quantize --recipe $(RECIPE) --weight-bits 4 --act-bits 4 --out $(RUNS)/w4a4
	$(BIN)/gdfq quantize --recipe $(RECIPE) --weight-bits 3 --act-bits 3 --out $(RUNS)/w3a3
	$(BIN)/gdfq report $(RUNS)/w4a4 $(RUNS)/w3a3 --out $(RUNS)/report.html
	@echo "What came out, side by side: $(RUNS)/report.html"

test: $(VENV)/.test-tools ## Run the tests, two files at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# In quiet, mkdocs says what is wrong and nothing else; a link or reference that leads nowhere is an error.
docs: $(VENV)/.docs-tools ## Build the documents into site/, which works without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

bench: $(VENV)/.bench-tools ## Time the operators; writes benchmarks/results/operators-cpu.*
	$(BIN)/python -m benchmarks.table

bench-step: $(VENV)/.bench-tools ## Time a training step; writes benchmarks/results/step-cpu.*
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
	rm -rf $(VENV) build site *.egg-info gdfq/*.so

# torch and torchvision together, so that they fit each other; the kernels are built against torch.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "gdfq: $(PYTHON) is older than Python 3.10; use make PYTHON=python3.x"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo "gdfq: no C++ compiler found: install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.11' torchvision
	$(BIN)/python -m pip install --quiet 'setuptools>=77' 'cmake>=3.22' ninja 'pybind11>=2.13'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.test-tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/.docs-tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[docs]'
	@touch $@

$(VENV)/.bench-tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[bench]'
	@touch $@

$(VENV)/.dev-tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@
