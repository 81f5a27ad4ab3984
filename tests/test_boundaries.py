"""Few modules touch disk, foreign bytes, code or tag names."""

import ast
import re
from pathlib import Path

from tests.support.sources import calls, files, imported, modules, name_of, source

DURABLE, REMOVAL = (
    "mltrain/store/durable.py",
    {f"mltrain/store/{name}.py" for name in ("removal", "local", "remote", "server_artifacts")},
)


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


def test_modules_are_imported_by_name_in_four_places_only() -> None:
    found = {name_of(file) for file in files("mltrain") for name, _ in calls(file) if "import_module" in name}
    lightning = "mltrain/adapters/lightning_parts.py"  # from a constant table
    assert found == {"mltrain/__init__.py", "mltrain/cli/__init__.py", "mltrain/project.py", lightning}


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
