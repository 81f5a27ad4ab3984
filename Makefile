# Windows: the lines under each name work as they stand in Git Bash with BIN = .venv/Scripts.
PYTHON ?= python3
BIN := .venv/bin
WANTED := --quiet --constraint constraints.txt --editable ".[projects,dev]"

UV := $(shell command -v uv 2>/dev/null)

.PHONY: train test faults all-faults reference docs commands ui servers lower-bounds mlflow-next clean

train: .venv/ready            ## train the segmentation project as an MLflow run
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mlflow run . --experiment-name segmentation --env-manager local

test: .venv/ready             ## lint, types, unit tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not faults and not slow" --ignore tests/test_documented_commands.py

faults: .venv/ready           ## a seeded sample of the fault tests: signals, kills, a server, damage, pipelines
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m faults tests/checkpoint tests/store tests/distributed tests/projects/tool_wear tests/cli/test_train.py tests/test_manager.py tests/test_mlflow_run.py $(addprefix tests/faults/test_,signals.py random_signals.py server.py damage.py pipeline.py random_kills.py ranks.py adapters_lightning.py adapters_ignite.py engines.py engines_server.py)

all-faults: .venv/ready       ## the samples of all fault tests (disks as root, retention, outages, sabotage …): half an hour or more
	$(BIN)/python -m pytest -q -m faults tests

reference: .venv/ready        ## trains the systems in full and compares with the figures in docs/ (about ten minutes)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not faults" --ignore tests/test_documented_commands.py

docs: .venv/ready             ## the documentation as a site, in site/; a broken link is an error
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

commands: .venv/ready         ## every command of README and docs, typed page by page in an empty store (some six minutes)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_documented_commands.py tests/test_documentation.py::test_the_readme_from_the_first_training_to_the_pulled_model tests/test_mlflow_run.py::test_a_training_and_its_resume_are_one_visible_run

ui: .venv/ready               ## MLflow's pages in a real Chromium (apt-get install chromium); pictures go to MLTRAIN_UI_PICTURES
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ui]"
	MLTRAIN_UI=1 $(BIN)/python -m pytest -q -s tests/ui --timeout 900

servers: .venv/ready          ## claims, delivery and deduplication on a real PostgreSQL (apt-get install postgresql)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[servers]"
	MLTRAIN_SERVERS=1 $(BIN)/python -m pytest -q tests/servers --timeout 900

# An environment of its own each, so that .venv stays as constraints.txt has it. TESTS= chooses what runs there. The engines of
# mltrain/adapters are left out: they want newer packages. Warnings are no errors: old packages warn of newer ones.
TESTS ?= tests/tracking tests/compat tests/delivery tests/store tests/run tests/commands tests/checkpoint tests/cli
TOOLS := pytest pytest-timeout hypothesis "moto[s3,server]" boto3
ELSEWHERE := -W default -m "not faults and not slow" --ignore tests/commands/test_foreign_run.py
lower-bounds:                 ## the tests at the oldest dependencies allowed; INSTEAD="torch==2.13.0" for what a registry lacks
	$(PYTHON) -m venv .venv-lower
	$(PYTHON) .ci/lower_bounds.py $(INSTEAD) > .venv-lower/constraints.txt
	.venv-lower/bin/python -m pip install --quiet --constraint .venv-lower/constraints.txt --editable ".[projects]" $(TOOLS)
	.venv-lower/bin/python -m pytest -q $(ELSEWHERE) $(TESTS)

# Over the present release, because registries may have mlflow some time before mlflow-skinny and mlflow-tracing, which it wants;
# mlflow alone holds the files of both. Nothing is left to the environment, so that every child process has this release too.
mlflow-next:                  ## the tests at MLflow's next release
	$(PYTHON) -m venv .venv-next
	.venv-next/bin/python -m pip install $(WANTED)
	.venv-next/bin/python -m pip uninstall --quiet --yes mlflow mlflow-skinny mlflow-tracing
	.venv-next/bin/python -m pip install --quiet --no-deps "mlflow>=3.18"
	.venv-next/bin/python -m pytest -q $(ELSEWHERE) $(TESTS)

# uv installs in a fraction of the time, where it is there and finds the packages.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(if $(UV),"$(UV)" pip install --python $(BIN)/python $(WANTED) || )$(BIN)/python -m pip install $(WANTED)
	touch $@

clean:
	rm -rf .venv site
