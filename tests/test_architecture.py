"""The house: who may import whom, and who may touch the disk, the tracking server and foreign bytes."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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

DURABLE, REMOVAL = (
    "mltrain/store/durable.py",
    {f"mltrain/store/{name}.py" for name in ("removal", "local", "remote", "server_artifacts")},
)


@cache
def source(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(file: Path, *, anywhere: bool = True) -> Iterator[str]:
    """Yield the full names of all modules, and of what is taken from them; ``anywhere``: inside of functions too."""
    nodes = ast.walk(source(file)) if anywhere else iter(source(file).body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)} imports relatively"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the name called, such as ``os.rename`` or ``….unlink``."""
    for node in ast.walk(source(file)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                yield function.id, node
            elif isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else "…"
                yield f"{owner}.{function.attr}", node


def floor(module: str) -> int:
    part = module.split(".")[1]
    found = [number for number, names in enumerate(FLOORS) if part in names]
    assert found, f"mltrain/{part} has no floor in the house: give it one here and in docs/architecture.md"
    return found[0]


def modules() -> dict[str, Path]:
    return {
        name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files("mltrain")
    }


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


def is_rename(name: str, call: ast.Call) -> bool:
    attribute = name.rpartition(".")[2]
    if attribute == "replace":  # of a path, which takes one argument; that of a text takes two
        return name == "os.replace" or ("." in name and len(call.args) == 1 and not call.keywords)
    return attribute in ("rename", "renames", "fsync", "fdatasync", "sync_file_range") or name == "shutil.move"


def test_only_durable_files_are_renamed_or_flushed() -> None:
    found = {name_of(file) for file in files("mltrain") for name, call in calls(file) if is_rename(name, call)}
    assert found == {DURABLE}


def is_deletion(name: str) -> bool:
    return name.rpartition(".")[2] in ("unlink", "rmdir", "rmtree", "removedirs", "delete_artifacts") or name in (
        "os.remove",
        "os.truncate",
    )


def test_only_the_store_deletes() -> None:
    found = {name_of(file) for file in files("mltrain") for name, _ in calls(file) if is_deletion(name)}
    assert found == REMOVAL


def test_nothing_foreign_is_unpickled() -> None:
    wrong = []
    for file in files("mltrain", "projects"):
        wrong += [
            f"{name_of(file)} imports {name}"
            for name in imported(file)
            if name.split(".")[0] in ("cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
            or name.startswith(("pickle.", "torch.serialization", "torch.package"))
        ]
        wrong += [
            f"{name_of(file)} uses pickle.{node.attr}"
            for node in ast.walk(source(file))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
            if node.attr != "UnpicklingError"  # to say what is wrong with a file that was refused
        ]
        for name, call in calls(file):
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            read_safely = name_of(file) == "mltrain/commands/foreign_file.py" and named.get("weights_only") == "True"
            handed_over = name_of(file) == "mltrain/adapters/huggingface_folder.py" and name == "torch.save"
            if name in ("torch.load", "torch.save") and not (read_safely or handed_over):
                wrong.append(f"{name_of(file)} calls {name}")
            if name in ("np.load", "numpy.load", "np.savez", "np.save") and named.get("allow_pickle") != "False":
                wrong.append(f"{name_of(file)} calls {name} without allow_pickle=False")
    assert wrong == []


def test_no_text_becomes_code() -> None:
    wrong = [
        f"{name_of(file)} calls {name}"
        for file in files("mltrain", "projects")
        for name, call in calls(file)
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path")
        or any(keyword.arg == "shell" for keyword in call.keywords)
    ]
    assert wrong == []


def test_modules_are_imported_by_name_in_three_places_only() -> None:
    found = {name_of(file) for file in files("mltrain") for name, _ in calls(file) if "import_module" in name}
    assert found == {"mltrain/__init__.py", "mltrain/cli/__init__.py", "mltrain/project.py"}


def test_yaml_is_read_by_one_strict_loader_only() -> None:
    readers = {
        (name_of(file), name, tuple(ast.unparse(keyword.value) for keyword in call.keywords))
        for file in files("mltrain", "projects")
        for name, call in calls(file)
        if name.startswith("yaml.") and name not in ("yaml.YAMLError", "yaml.safe_dump")
    }
    assert readers == {("mltrain/configuration/files.py", "yaml.load", ("PlainLoader",))}
    from yaml import SafeLoader

    from mltrain.configuration.files import PlainLoader

    assert issubclass(PlainLoader, SafeLoader)


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
    *(f"mltrain.adapters.{name}" for name in ("huggingface", "huggingface_parts", "accelerate", "position")),
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


def test_tags_are_spelled_in_one_module() -> None:
    from mltrain.tracking import tags

    names = {*modules(), "mltrain.projects", "mltrain.policies"}  # of modules and of groups of entry points
    spelled = tuple(value for name, value in vars(tags).items() if name.isupper() and name != "NAMESPACE")
    wrong = [
        f"{name_of(file)}:{node.lineno} spells {node.value!r}"
        for file in files("mltrain", "projects")
        if file != Path(tags.__file__)
        for node in ast.walk(source(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value in spelled
        or any(tag.endswith(".") and node.value.startswith(tag) for tag in spelled)
        or (re.fullmatch(r"mltrain\.[a-z_.]*[a-z_]", node.value) and node.value not in names)
    ]
    assert wrong == []


def test_the_declaration_of_the_package_can_be_built_without_the_other_files() -> None:
    """``mlflow run --env-manager uv`` copies pyproject.toml alone into the folder of its environment, and builds there."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "readme" not in declared["project"] and "dynamic" not in declared["project"]
    assert declared["tool"]["uv"]["default-groups"] == ["projects"]
    assert declared["dependency-groups"]["projects"] == ["mltrain[projects]"]
