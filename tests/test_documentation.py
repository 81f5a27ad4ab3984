"""README and docs: their commands exist, their blocks of Python run, their links lead somewhere."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.main import get_command

import mltrain
from mltrain.cli import app
from mltrain.run.checkpoints import open_checkpoints
from tests.support.database import use_database
from tests.support.documentation import (
    CHECKOUT,
    EXECUTED,
    NOT_EXECUTED,
    NOT_INSTALLED,
    OTHER_PROGRAMS,
    PAGES,
    names_of_tests,
    refuse_unknown_keys,
    selections,
    started_by,
    typed,
)
from tests.support.pages import blocks, execute
from tests.support.runs import manifest_of
from tests.support.workplace import Workplace


@pytest.mark.parametrize(("page", "command"), typed())
def test_every_command_in_the_documentation_exists_with_its_options(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    if program == "mltrain":
        name, *given = words
        if name.startswith("-"):
            return
        known = get_command(app).commands[name]  # type: ignore[attr-defined]
        known.make_context(name, list(given))  # refuses options that it does not have
        options = {option for parameter in known.params for option in parameter.opts}
        assert {word.split("=")[0] for word in given if word.startswith("--")} <= options
        projects = [word for word in given if word in ("segmentation", "tool_wear", "style_transfer", "cardiac")]
        projects += [word for word in given if word.endswith(".py")]
        if name in ("train", "pipeline") and projects:
            refuse_unknown_keys(projects[0], [word for word in given if re.fullmatch(r"[a-z_.]+=.*", word)])
    elif program == "mlflow":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow's own modules
            group: Any = importlib.import_module("mlflow.cli").cli
        while words and words[0] in getattr(group, "commands", {}):
            group, words = group.commands[words[0]], words[1:]
        known_options = {option for parameter in group.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("-")} <= known_options
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
    elif program == "python":
        assert (CHECKOUT / words[0]).is_file()
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program in OTHER_PROGRAMS, f"{page}: nothing checks {command!r}"


def test_every_selection_of_tests_on_a_page_finds_some() -> None:
    found = list(selections())
    assert {page for page, _, _ in found} >= {"reliability.md", "CONTRIBUTING.md"}
    tests = {path: names_of_tests(path) for _, paths, _ in found for path in paths if (CHECKOUT / path).exists()}
    missing = [f"{page}: {path}" for page, paths, _ in found for path in paths if path not in tests]
    missing += [
        f"{page}: {' '.join(paths)} -k {name}"
        for page, paths, names in found
        for name in names
        if not any(name in test for path in paths for test in tests.get(path, []))
    ]
    assert missing == []


def test_every_block_names_its_language_and_text_holds_no_command() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        languages = set(fences[::2])
        assert languages <= {"python", "bash", *NOT_EXECUTED}, f"{page.name}: {languages}"
        for block in blocks(page, "text"):
            assert not re.search(r"^(mltrain|mlflow|python|pip) ", block, re.MULTILINE), block


def test_what_launchers_start_is_a_command_that_there_is() -> None:
    page = CHECKOUT / "docs" / "distributed.md"
    kubeflow, skypilot = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    assert kubeflow.keys() == {"apiVersion", "kind", "metadata", "spec"}
    trainer = kubeflow["spec"]["trainer"]
    assert trainer.keys() <= {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}
    assert skypilot.keys() <= {"name", "num_nodes", "resources", "envs", "workdir", "setup", "run"}
    scripts = [block for block in blocks(page, "bash") if "torchrun" in block]
    lines = "\n".join([*scripts, skypilot["run"]]).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if "torchrun" in line]
    commands = [words[words.index("torchrun") :] for words in commands]
    assert len(commands) == 3
    for words in [*commands, trainer["command"]]:
        numbers = [re.sub(r"^\$\w+$", "2", word) for word in words]
        program, command, *given = started_by(numbers)
        assert (program, command) == ("mltrain", "train")
        known = get_command(app).commands[command]  # type: ignore[attr-defined]
        assert known.make_context(command, given).params["run_key"] == "auto"


def test_the_readme_project_trains_and_resumes(workplace: Workplace) -> None:
    (workplace.folder / "my_project.py").write_text(blocks(CHECKOUT / "README.md", "python")[0], encoding="utf-8")
    first = workplace.mltrain("train", "my_project.py", "lr=3e-4", "epochs=1")
    assert first.code == 0, first.err
    again = workplace.mltrain("train", "--resume-run", first.run_id, "epochs=2")
    assert again.code == 0, again.err


def test_the_block_of_the_page_on_resuming_continues_a_run(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = workplace.mltrain("train", "tiny.py", "epochs=1")
    for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    monkeypatch.chdir(workplace.folder)
    execute("resume", 0, {}, RUN_ID=repr(first.run_id))
    assert capsys.readouterr().out.startswith("all epochs done 12 ")


PYTHON = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"))
]


def test_every_python_block_is_executed_by_a_test() -> None:
    assert {str(block.id) for block in PYTHON} == EXECUTED.keys()
    for block, test in EXECUTED.items():
        if not test.endswith(".py"):
            assert test in globals(), test
        else:
            page, number = block.replace(".md", "").rsplit("-", 1)
            assert f'execute("{page}", {number}' in (CHECKOUT / "tests" / test).read_text(encoding="utf-8"), block


def test_the_other_blocks_of_the_page_on_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, folder, steps = blocks(CHECKOUT / "docs" / "loops.md", "python")
    names: dict[str, Any] = {"mltrain": mltrain, "CheckpointManager": mltrain.CheckpointManager}
    exec(folder.replace('"cuda"', '"cpu"'), names)
    state = {"model": torch.nn.Linear(2, 1).state_dict(), "epoch": 99}
    names["manager"].save_epoch_checkpoint({**state, "epoch": 98}, 98, {"loss": 1.0})
    names["manager"].save_epoch_checkpoint(state, 99, {"loss": 1.0})
    names["manager"].save_best_model(state, 1.0)
    names["manager"].save_interrupt_checkpoint({**state, "step": 100})
    names["manager"].close()
    (tree,) = blocks(CHECKOUT / "docs" / "loops.md", "text")
    shown = set(re.findall(r"── ([\w.]+)", tree))
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == shown
    exec(blocks(CHECKOUT / "README.md", "python")[0], names)
    names["config"] = names["Config"](epochs=1, device="cpu", num_threads=1)
    names["task"] = names["build"](names["config"])
    exec(steps, names)
    assert "val/loss" in names["trainer"].measured


@pytest.mark.parametrize("block", PYTHON)
def test_every_python_block_takes_names_that_exist(block: str) -> None:
    """Imports and names of ``mltrain`` in all blocks exist."""
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if str(node.module).split(".")[0] in NOT_INSTALLED:
                continue
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mltrain":
            assert hasattr(mltrain, node.attr), ast.unparse(node)


def test_the_ten_lines_of_the_guide_for_loops_save_and_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_database(monkeypatch, tmp_path)
    lines = blocks(CHECKOUT / "docs" / "loops.md", "python")[0]
    net = torch.nn.Linear(2, 1)
    names = {"net": net, "optimizer": torch.optim.Adam(net.parameters()), "accuracy": 0.5}
    exec(lines, names | {"run_id": None, "epoch": 0, "epochs": 1})
    run_id = capsys.readouterr().out.partition("run_id=")[2].strip()
    exec(lines, names | {"run_id": run_id, "epoch": 0, "epochs": 3})
    found = [manifest.epoch for manifest in open_checkpoints(run_id).all()]
    assert found == [1, 2, 3], "the second run of the lines went on from the first one's checkpoint"


def test_a_policy_of_ones_own_is_written_as_the_page_says() -> None:
    (policy,) = blocks(CHECKOUT / "docs" / "retention.md", "python")
    names: dict[str, Any] = {"mltrain": mltrain, "dataclass": dataclass}
    exec(policy, names)
    manifests = [manifest_of(number, epoch=number) for number in range(1, 31)]
    kept = (names["OnePerTen"]() | mltrain.Latest(1)).keep(manifests, None)
    assert sorted(identity.step for identity in kept) == [10, 20, 30]


@pytest.mark.parametrize("which", ["exactly", pytest.param("kills", marks=pytest.mark.slow)])
def test_the_tests_of_the_page_on_projects_are_tests(tmp_path: Path, workplace: Workplace, which: str) -> None:
    block = blocks(CHECKOUT / "docs" / "own_project.md", "python")[0]
    project = blocks(CHECKOUT / "README.md", "python")[0]
    (tmp_path / "my_project.py").write_text(project, encoding="utf-8")
    (tmp_path / "test_mine.py").write_text(block, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-k", which, "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=workplace.environment, capture_output=True, text=True, timeout=200)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_every_page_is_on_the_site_once() -> None:
    listed = re.findall(r"([a-z_]+\.md)$", (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (CHECKOUT / "docs").glob("*.md"))


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_conda_yaml_is_complete_and_agrees_with_the_constraints() -> None:
    from mlflow.utils.environment import _PythonEnv

    environment = _PythonEnv.from_conda_yaml(CHECKOUT / "conda.yaml")
    assert environment.python == "3.11"
    constraints = dict(
        line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    pinned = dict(line.split("==") for line in environment.dependencies if "==" in line)
    assert pinned
    assert {name: constraints[name] for name in pinned} == pinned
    content = yaml.safe_load((CHECKOUT / "conda.yaml").read_text())
    assert any(isinstance(entry, dict) and "pip" in entry for entry in content["dependencies"])


def test_the_placeholders_of_mlproject_stand_outside_quotes() -> None:
    entries = yaml.safe_load((CHECKOUT / "MLproject").read_text())["entry_points"]
    command = " ".join(entry["command"] for entry in entries.values())
    assert "'" not in command
    assert '"' not in command


def test_the_reference_is_that_of_the_public_names() -> None:
    script = CHECKOUT / "docs" / "generate_reference.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], cwd=CHECKOUT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_readme_from_the_first_training_to_the_pulled_model(workplace: Workplace) -> None:
    """The commands of the first screen, on the quick preset; ``make`` itself is what runs this test."""
    bin_folder = Path(sys.executable).parent
    environment = {**workplace.environment, "PATH": f"{bin_folder}:{workplace.environment['PATH']}"}
    del environment["MLFLOW_EXPERIMENT_ID"]  # the README names the experiment
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    launch = next(line for line in text.splitlines() if "-P preset=quick" in line)

    def run(command: str) -> str:
        command = command.replace("mlflow run .", f"mlflow run {CHECKOUT}").replace("epochs=60", "epochs=4")
        done = subprocess.run(
            shlex.split(command), cwd=workplace.folder, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    said = run(launch)
    run_id = next(line for line in said.splitlines() if line.startswith("run_id=")).removeprefix("run_id=")
    first_screen = re.findall(r"^mltrain .*", text.split("## Install")[0], re.MULTILINE)
    for command in first_screen:
        if command.startswith("mltrain ui "):
            continue  # it serves until Ctrl+C: see tests/cli/test_ui.py
        run(re.sub(r"\bID\b", run_id, command.split("#")[0]))
    assert (workplace.folder / "evaluation" / "per_image.csv").is_file()
    assert (workplace.folder / "model" / "model.safetensors").is_file()
