# make setup | setup-libero | bringup | test | lint | docs      ARGS="…" goes to the command or to pytest

VENV ?= .venv
PYTHON := $(VENV)/bin/python
# One environment for each ROS 2 installation, or for the wheels where none is sourced.
READY := $(VENV)/ready-$(or $(ROS_DISTRO),wheels)
# Beside a ROS 2 installation the compiled messages are an overlay, as after colcon build.
OVERLAY := $(if $(ROS_DISTRO),. $(VENV)/share/flashvla_ros/local_setup.bash &&)
SHELL := /bin/bash
# Where this is set, every process compiles PyTorch's modules again: six seconds each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup setup-libero bringup test lint docs clean

setup: $(READY)

$(READY): scripts/setup.sh setup.py setup.cfg pyproject.toml package.xml CMakeLists.txt $(wildcard requirements/* msg/*)
	@VENV=$(VENV) scripts/setup.sh
	@touch $@

setup-libero: setup
	$(PYTHON) -m pip --disable-pip-version-check install --no-deps -r requirements/libero.txt

bringup: setup
	@$(OVERLAY) $(VENV)/bin/flashvla-ros bringup $(ARGS)

# Three workers for two cores: tests of nodes and processes mostly wait, for messages, timeouts and other processes.
# test/conftest.py says which files begin; by itself xdist would leave those with few and long tests for the end.
test: setup
	@$(OVERLAY) $(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

docs: setup
	$(VENV)/bin/flashvla-ros params > docs/parameters.md
	$(VENV)/bin/flashvla-ros params --yaml > config/flashvla.yaml

clean:
	rm -rf $(VENV) build install log flashvla_ros/msg flashvla_ros/*.so flashvla_ros.egg-info
