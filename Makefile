# make demo   set up, then videos from four prompts with the shipped model
# make test   set up, then the default test suite
# make lint   ruff and pyright
# make docs   the documentation as a web site, in site/
# make clean  remove the environment and what the tools left behind (not outputs/)
#
# Set-up happens once, into .venv, with the versions of constraints.txt. Where nvidia-smi finds no GPU, Linux gets
# torch's CPU build, so nothing of CUDA is downloaded; with a GPU, and on other systems, torch comes as pip finds it.

# The first Python that runs, is 3.11 or newer and can make environments (a name on the PATH may do none of these).
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	if $$p -c "$(USABLE)" >/dev/null 2>&1; then echo $$p; break; fi; done)

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
WANTS_CPU_TORCH := $(shell test "$$(uname -s)" = Linux && ! nvidia-smi -L >/dev/null 2>&1 && echo yes)

.PHONY: demo test lint docs clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/python -m contentmotion generate "a cat" "clown face" "red heart" "thumbs up" \
		--output_dir outputs/demo
	@echo "The videos (mp4, gif) and their sheet (sheet.png) are in $(CURDIR)/outputs/demo"

test: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation is in $(CURDIR)/site: open index.html"

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found: make PYTHON=/path/to/python" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
ifeq ($(WANTS_CPU_TORCH),yes)
	@echo "No NVIDIA GPU found: installing the CPU build of torch $(TORCH)"
	@# pip where it knows a source of the CPU build; else uv, which knows PyTorch's own.
	@$(PIP) "torch==$(TORCH)+cpu" 2>/dev/null || { $(PIP) uv && \
		$(BIN)/python -m uv pip install --python $(BIN)/python --torch-backend cpu -c constraints.txt torch; }
endif
	@touch $@

.venv/installed: .venv/torch pyproject.toml
	@echo "Installing contentmotion into .venv"
	@$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing the development tools"
	@$(PIP) -e ".[dev]"
	@touch $@
