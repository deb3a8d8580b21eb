# One command for each thing a newcomer wants. `make` alone lists them.
PYTHON ?= python3
# pip picks the torch build: the CPU wheel where its index offers one. On a machine with a GPU name another build of the
# same version, for example TORCH=torch==2.13.0+cu130 (with PIP_EXTRA_INDEX_URL set to the index that has it).
TORCH ?= torch==2.13.0
# Optional parts to install: dev, gym, or dev,gym.
EXTRAS ?= dev
# Test processes, and where `make quickstart` puts its run.
JOBS ?= auto
SEED ?= 0
DIR ?= runs/quickstart

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt
CORE := .venv/.installed-core
STAMP := .venv/.installed-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help setup lint test quick faults chaos fuzz quickstart claims bench

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with everything that is needed to develop

# pip first: old ones mishandle the names of extras. Then torch by itself, so that no other package chooses its build.
$(CORE): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: make setup PYTHON=python3.12 (remove .venv first)" % v[:2])'
	@echo "setting up .venv (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --quiet --upgrade pip
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable .
	@touch $@

$(STAMP): $(CORE)
	@$(PIP) --editable ".[$(EXTRAS)]"
	@touch "$@"

lint: setup ## style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/ty check

test: lint ## everything that must hold before a change is merged
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

quick: setup ## the tests alone; T=tests/tasks for a part
	@$(BIN)/python -m pytest $(T)

faults: setup ## every fault of docs/reliability.md injected; prints the matrix
	@$(BIN)/python -m pytest -m fault -n $(JOBS) --dist loadfile

KILLS ?= 50
chaos: setup ## runs killed at random instants end in the same bits; KILLS=50 SEED=1
	@$(BIN)/python tests/chaos.py --kills $(KILLS) --seed $(SEED)

MINUTES ?= 60
fuzz: setup ## damaged files are read or refused, never a crash; MINUTES=60 SEED=1
	@$(BIN)/python tests/fuzz.py --minutes $(MINUTES) --seed $(SEED)

quickstart: $(CORE) ## from nothing to a model that thinks; SEED=1 DIR=runs/other
	@$(BIN)/school quickstart --seed $(SEED) --dir $(DIR)

CLAIM ?= grpo
claims: $(CORE) ## published effects and their ablations into docs/claims; CLAIM="grpo baseline"
	@for claim in $(CLAIM); do $(BIN)/school claim run $$claim --results docs/claims || exit 1; done

# Other libraries in other places: VLLM=path/of/its/python NANOCHAT=path/of/its/checkout. Without them their benchmarks are left out.
VLLM ?=
NANOCHAT ?=
BENCH := runs/bench

bench: setup ## compare with other libraries, then write docs/performance.md (long); VLLM=PYTHON NANOCHAT=CHECKOUT
	@mkdir -p $(BENCH)
	$(BIN)/school bench sampler --against transformers --dtype float32 --json $(BENCH)/sampler-transformers-3M.json
	$(BIN)/school bench grpo --against trl --json $(BENCH)/grpo-trl-3M.json
	$(BIN)/school bench learner --against trainer --json $(BENCH)/learner-trainer-3M.json
	$(BIN)/school bench sampler --against transformers --dtype float32 --size 30M --problems 4 --json $(BENCH)/sampler-transformers-30M.json
	$(BIN)/school bench grpo --against trl --size 30M --problems 4 --json $(BENCH)/grpo-trl-30M.json
	$(BIN)/school bench learner --against trainer --size 30M --problems 4 --json $(BENCH)/learner-trainer-30M.json
ifneq ($(VLLM),)
	$(BIN)/school bench sampler --against vllm --python $(VLLM) --dtype float32 --json $(BENCH)/sampler-vllm-3M.json
	$(BIN)/school bench sampler --against vllm --python $(VLLM) --size 30M --json $(BENCH)/sampler-vllm-30M.json
endif
ifneq ($(NANOCHAT),)
	$(BIN)/school bench pretrain --against nanochat --source $(NANOCHAT) --json $(BENCH)/pretrain-nanochat.json
endif
	$(BIN)/school bench profile --json $(BENCH)/profile.json
	$(BIN)/school bench page --json $(BENCH)
