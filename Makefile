# Each target sets up what it needs in .venv first; a second call starts in seconds.
SHELL := /bin/bash
VENV ?= $(CURDIR)/.venv
OUT ?= out
PYTEST_ARGS ?=
MINUTES ?= 60
SOAK ?= 120
GPU_DEVICE ?= 0
FRAMES ?= 10000
# Traffic stays on this machine, the wheels' own bootstrap runs anew in every process, and a sourced
# ROS finds the messages that were built into the environment.
RUN = env -u _ROS_WHEELS_BOOTSTRAP_COMPLETE PATH="$(VENV)/bin:$$PATH" VIRTUAL_ENV="$(VENV)" \
      ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST \
      AMENT_PREFIX_PATH="$(VENV)$${AMENT_PREFIX_PATH:+:$$AMENT_PREFIX_PATH}" \
      LD_LIBRARY_PATH="$(VENV)/lib$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"

.PHONY: help demo test bench drive soak gpu-check lint setup setup-gpu setup-full clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## make .venv for the node (no PyTorch); the targets below do it by themselves
	@VENV="$(VENV)" scripts/setup.sh runtime

setup-gpu:
	@VENV="$(VENV)" scripts/setup.sh gpu

setup-full:  ## the same with the training package, TensorRT-RTX and the tests (8 GB; as root also apt packages)
	@VENV="$(VENV)" scripts/setup.sh full

demo: setup  ## play the sample bag through the node; results in out/demo
	@$(RUN) $(VENV)/bin/python -m mtl_perception.ros.demo --out $(OUT)/demo

test: setup-full lint  ## run the whole test suite
	@$(RUN) scripts/test.sh $(PYTEST_ARGS)

bench: setup-full  ## measure on this machine; results in out/bench
	@$(RUN) $(VENV)/bin/python benchmarks/engines.py --json $(OUT)/bench/engines.json
	@$(RUN) $(VENV)/bin/python benchmarks/node.py --json $(OUT)/bench/node.json
	@$(RUN) $(VENV)/bin/python benchmarks/evaluation.py --json $(OUT)/bench/evaluation.json
	@$(RUN) $(VENV)/bin/python benchmarks/equality.py --json $(OUT)/bench/equality.json
	@$(RUN) $(VENV)/bin/python benchmarks/geometry.py --json $(OUT)/bench/geometry.json
	@$(RUN) $(VENV)/bin/python benchmarks/training.py --json $(OUT)/bench/training.json

drive: setup-full  ## let simulated robots drive for hours; results in out/bench/drive
	@$(RUN) $(VENV)/bin/python benchmarks/drive.py --bundle rooms_five_tasks --json $(OUT)/bench/drive.json

soak: setup-full  ## run the node for MINUTES (60), evaluate FRAMES (10000), and watch memory
	@$(RUN) $(VENV)/bin/python benchmarks/soak.py --minutes $(MINUTES) --json $(OUT)/bench/soak.json
	@$(RUN) $(VENV)/bin/python benchmarks/evaluation.py --soak $(FRAMES) --precision auto --json $(OUT)/bench/evaluation_soak.json

gpu-check: setup-gpu  ## check TensorRT on this machine's GPU (SOAK=seconds, GPU_DEVICE=number); results in out/gpu
	@MTL_PERCEPTION_CACHE="$(abspath $(OUT))/gpu/engines" $(RUN) $(VENV)/bin/python \
	    benchmarks/gpu_check.py --out $(OUT)/gpu --soak $(SOAK) --gpu-device $(GPU_DEVICE)

lint: setup-full  ## check style
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

clean:  ## remove build products and results (keeps .venv)
	rm -rf build install log $(OUT)
