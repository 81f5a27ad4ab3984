"""The house: which module may import which, and what no module imports."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.sources import ROOT, files, imported, modules, name_of, source

FLOORS = (
    ("errors", "redaction"),
    ("provenance",),
    ("compat",),
    ("store",),
    ("checkpoint",),
    (
        "configuration",
        "config",
        "device",
        "rng",
        "restoring",
        "state",
        "history",
        "stopping",
        "schedules",
        "steps",
        "gradient_norm",
        "stream",
        "metrics",
        "batches",
        "data",
        "task",
        "trainer",
    ),
    ("distributed",),
    ("tracking",),
    ("ownership",),
    ("delivery",),
    ("run",),
    ("signals", "pipeline", "project", "manager"),
    ("adapters",),
    ("commands",),
    ("pipelines",),
    ("testing",),
    ("cli", "__main__"),
)
"""From the ground up. A module imports its own floor and those below; no package shares its floor with another package."""

HEAVY = (
    *("mlflow", "torchvision", "torchmetrics", "monai", "matplotlib.pyplot", "boto3"),
    *("lightning", "pytorch_lightning", "ignite"),
)
"""Imported by no module of mltrain when it is imported, and by some when they are used."""


def floor(module: str) -> int:
    part = module.split(".")[1]
    found = [number for number, names in enumerate(FLOORS) if part in names]
    assert found, f"mltrain/{part} has no floor in the house: give it one here and in docs/architecture.md"
    return found[0]


def test_imports_point_downward() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, file in modules().items()
        if module != "mltrain"  # the facade names what is public, and imports it when it is used
        for target in imported(file)
        if target.startswith("mltrain.") and floor(target) > floor(module)
    ]
    assert wrong == []


def test_the_library_knows_nothing_of_the_projects() -> None:
    wrong = [
        name_of(file)
        for file in files("mltrain")
        for name in imported(file)
        if name.split(".")[0] in ("projects", "tests")
    ]
    assert wrong == []


def test_no_module_needs_itself_to_be_imported() -> None:
    known = modules()
    needs = {
        module: {target for target in imported(file, anywhere=False) if target in known and target != module}
        for module, file in known.items()
    }
    while True:
        free = {module for module, needed in needs.items() if not needed}
        if not free:
            break
        needs = {module: needed - free for module, needed in needs.items() if module not in free}
    assert needs == {}, "these import each other in a circle"


def test_only_these_packages_import_mlflow() -> None:
    allowed = tuple(f"mltrain/{package}/" for package in ("compat", "store", "tracking"))
    wrong = [
        name_of(file)
        for file in files("mltrain", "projects")
        for name in imported(file)
        if name.split(".")[0] == "mlflow" and not name_of(file).startswith(allowed)
    ]
    assert wrong == []


def test_one_package_imports_torch_distributed_and_only_several_processes_import_it() -> None:
    importing = {
        name_of(file)
        for file in files("mltrain", "projects")
        for name in imported(file)
        if name.startswith("torch.distributed")
    }
    assert importing
    assert all(file.startswith("mltrain/distributed/") for file in importing)
    users = {
        name_of(file)
        for file in files("mltrain")
        for name in imported(file, anywhere=False)
        if name.startswith("mltrain.distributed")
    }
    assert all(user.startswith("mltrain/distributed/") for user in users)


def test_torchvision_is_absent() -> None:
    importing = [
        name_of(file)
        for file in files("mltrain", "projects", "benchmarks")
        for name in imported(file)
        if name.split(".")[0] == "torchvision"
    ]
    assert importing == []
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *declared["dependencies"],
        *(line for lines in declared["optional-dependencies"].values() for line in lines),
    ]
    assert not [line for line in wanted if line.startswith("torchvision")]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in constraints if line.startswith("torchvision")]


EXECUTED = {
    "mltrain.__main__",
    *(f"mltrain.adapters.{name}" for name in ("huggingface", "accelerate", "position")),
}
"""What is not imported to find out what an import brings along: a program, and modules whose first lines import an engine."""


def test_importing_the_library_imports_nothing_heavy_that_it_does_not_need() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {sorted(module for module in modules() if module not in EXECUTED)!r}:\n"
        "    importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", files("mltrain"), ids=name_of)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(source(file)), f"{name_of(file)} has no docstring"


def test_no_module_is_a_drawer_for_everything() -> None:
    words = ("util", "helper", "misc", "common")
    wrong = [name_of(file) for file in files("mltrain", "projects") if any(word in file.stem for word in words)]
    assert wrong == []


def test_the_declaration_of_the_package_can_be_built_without_the_other_files() -> None:
    """``mlflow run --env-manager uv`` copies and builds pyproject.toml alone."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "readme" not in declared["project"] and "dynamic" not in declared["project"]
    assert declared["tool"]["uv"]["default-groups"] == ["projects"]
    assert declared["dependency-groups"]["projects"] == ["mltrain[projects]"]
