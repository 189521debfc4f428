# `make help` lists the targets. Any python3 from 3.10 on runs this; the rest is installed into .host/.
PYTHON ?= python3
ARGS ?=
HOST_PYTHON = $$($(PYTHON) "$(CURDIR)/scripts/host.py" --print python)
CHECK = .host/check/bin
MYPY = $(CHECK)/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" --python-executable "$(HOST_PYTHON)"

.PHONY: help host demo test test-hosts unit check format clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

host: ## a real ComfyUI in .host/ (COMFYUI_DIR and COMFYUI_PYTHON use your own)
	@$(PYTHON) scripts/host.py

demo: host ## a picture, its masks, an overlay and a table into ./output (ARGS="--seed 7")
	@$(HOST_PYTHON) scripts/demo.py $(ARGS)

test: host ## all tests, against the real ComfyUI (ARGS="-k words")
	@GOCA_REQUIRE_HOST=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(HOST_PYTHON) -m pytest $(ARGS)

test-hosts: host ## tests/host on the oldest supported ComfyUI, then on the newest (ARGS="--only oldest -- -k families")
	@$(PYTHON) scripts/test_hosts.py $(ARGS)

unit: host ## the tests of the method alone
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(HOST_PYTHON) -m pytest tests/unit $(ARGS)

# The nodes reach goca_core relatively, as the host imports them; under these links the checker sees one package.
check: host $(CHECK)/done ## lint, formatting, types (of web/js too, where there is npm) and the registry's rules
	$(CHECK)/ruff check .
	$(CHECK)/ruff format --check .
	@mkdir -p .host/types/goca_pack
	@for part in __init__.py goca_core nodes; do ln -sfn "../../../$$part" ".host/types/goca_pack/$$part"; done
	$(MYPY) -p scripts
	cd .host/types && "$(CURDIR)"/$(MYPY) -p goca_pack.goca_core -p goca_pack.nodes
	$(PYTHON) scripts/check_browser_types.py $(CHECK)/../js
	$(PYTHON) scripts/check_registry.py $(CHECK)/comfy

format: $(CHECK)/done ## format the code and apply the linter's fixes
	$(CHECK)/ruff check --fix .
	$(CHECK)/ruff format .

$(CHECK)/done: requirements-check.txt
	@echo "Installing the check tools ..."
	@$(PYTHON) -m venv .host/check
	@$(CHECK)/python -m pip --disable-pip-version-check install --quiet -r requirements-check.txt
	@touch $@

clean: ## remove outputs and caches, keep the host
	rm -rf output .pytest_cache .ruff_cache .mypy_cache .cache .host/pycache
	find . -name __pycache__ -not -path './.host/*' -prune -exec rm -rf {} +

distclean: clean ## remove the host too
	rm -rf .host
