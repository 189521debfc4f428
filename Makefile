# `make help` lists the targets. Needs python3 3.10 or newer; everything else is installed into .host/.
PYTHON ?= python3
ARGS ?=
# Each process of pytest loads ComfyUI and may start a server and a browser. One file's tests stay together.
PARALLEL = -n auto --maxprocesses 4 --dist loadfile
HOST_PYTHON = $$($(PYTHON) "$(CURDIR)/scripts/host.py" --print python)
CHECK = .host/check/bin
MYPY = $(CHECK)/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" --python-executable "$(HOST_PYTHON)"

.PHONY: help host demo test test-hosts unit mutation check format clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

host: ## set up a real ComfyUI in .host/ (or use your own: COMFYUI_DIR, COMFYUI_PYTHON)
	@$(PYTHON) scripts/host.py

demo: host ## generate an image, masks, an overlay and a table into ./output (ARGS="--seed 7")
	@$(HOST_PYTHON) scripts/demo.py $(ARGS)

test: host ## run all tests on a real ComfyUI (ARGS="-k words"; GOCA_DEVICE=cuda: on the GPU)
	@GOCA_REQUIRE_HOST=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(HOST_PYTHON) -m pytest $(PARALLEL) $(ARGS)

test-hosts: ## run tests/host on the oldest ComfyUI, the newest, and yours in COMFYUI_DIR (ARGS="--only oldest -- -k families")
	@$(PYTHON) scripts/test_hosts.py $(ARGS)

unit: host ## run only the tests of the method (tests/unit)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(HOST_PYTHON) -m pytest $(PARALLEL) tests/unit $(ARGS)

mutation: host ## measure how many small errors in goca_core the unit tests find (ARGS="heads words")
	@$(HOST_PYTHON) scripts/mutation.py $(ARGS)

# The nodes import goca_core relatively, because ComfyUI imports the pack. These links make it one package for mypy.
check: host $(CHECK)/done ## check lint, formatting, types, who imports whom (web/js too, if npm is installed) and the registry's rules
	$(CHECK)/ruff check .
	$(CHECK)/ruff format --check .
	@mkdir -p .host/types/goca_pack
	@for part in __init__.py goca_core nodes; do ln -sfn "../../../$$part" ".host/types/goca_pack/$$part"; done
	$(MYPY) -p scripts -p benchmarks
	cd .host/types && "$(CURDIR)"/$(MYPY) -p goca_pack.goca_core -p goca_pack.nodes
	cd .host/types && PYTHONPATH=. "$(CURDIR)"/$(CHECK)/lint-imports "$(CURDIR)/pyproject.toml"
	$(PYTHON) scripts/check_browser_types.py $(CHECK)/../js
	$(PYTHON) scripts/check_registry.py $(CHECK)

format: $(CHECK)/done ## format the code and apply the linter's fixes
	$(CHECK)/ruff check --fix .
	$(CHECK)/ruff format .

$(CHECK)/done: requirements-check.txt
	@echo "Installing the tools for make check ..."
	@$(PYTHON) -m venv .host/check
	@$(CHECK)/python -m pip --disable-pip-version-check install --quiet -r requirements-check.txt
	@touch $@

clean: ## remove outputs and caches
	rm -rf output .pytest_cache .ruff_cache .mypy_cache .hypothesis .cache .host/pycache
	find . -name __pycache__ -not -path './.host/*' -prune -exec rm -rf {} +

distclean: clean ## remove .host/ too
	rm -rf .host
