"""Finds projects and pipelines by registered name, file or folder.

A project is a registered name, a ``.py`` file, or a folder with ``project.py``; a pipeline a registered name, a ``.py`` file
with ``PIPELINE``, or a folder with ``pipeline.py``. A training stage of a pipeline is also a project: ``PIPELINE:STAGE``.

A run records the registered name, or the path relative to its git root. Code always comes from this machine, never from the
tracking store: a resume accepts a recorded name only if it is registered, or the path of a file below the working directory
or its git root. Anybody who can write to the tracking store can record any path.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mltrain.config import Config
from mltrain.errors import UsageError, nearest
from mltrain.pipeline import Pipeline
from mltrain.provenance import fingerprint

if TYPE_CHECKING:
    from mltrain.task import Task

__path__: list[str] = []
"""Makes this module a package, below which project files are imported, also in spawned processes."""

GROUP = "mltrain.projects"
PIPELINES = "mltrain.pipelines"
_STORES = frozenset({"mlruns", "mlartifacts"})
"""MLflow's artifact folders, often below the working directory; mltrain loads no code from them."""


@dataclass(frozen=True)
class Project:
    """A project: its recorded name, configuration class and build function."""

    name: str
    config: type[Config]
    build: "Callable[[Config], Task]"
    place: Path
    """The folder, or the file, of its code."""

    @property
    def config_file(self) -> Path | None:
        """The project's own ``config.yaml``, if it has one."""
        file = self.place / "config.yaml"
        return file if file.is_file() else None


@dataclass(frozen=True)
class Located:
    """A pipeline, with the name that runs record."""

    word: str
    pipeline: Pipeline

    def project(self, name: str) -> Project:
        """Return a stage as a project of its own.

        Raises:
            UsageError: the stage does not exist, or makes files instead of training.
        """
        stage = self.pipeline.stage(name)
        if stage.build is None:
            raise UsageError(
                f"The stage {name!r} makes files and is not trained: mltrain pipeline {self.word} --stage {name}"
            )
        return Project(f"{self.word}:{name}", stage.config, stage.build, source_of(stage.build))


def source_of(function: Callable[..., Any]) -> Path:
    """Return the source file of a function.

    Raises:
        UsageError: the function has no source file.
    """
    inner = inspect.unwrap(getattr(function, "func", function))
    try:
        file = inspect.getsourcefile(inner if inspect.isroutine(inner) else type(inner))
    except TypeError:
        file = None
    if file is None:
        raise UsageError(f"{function!r:.80} has no Python source file. Expected one, to detect changes of its code.")
    return Path(file).resolve()


def find_pipeline(word: str, *, recorded: bool = False) -> Located:
    """Return a pipeline by name, file or folder.

    Args:
        word: a registered name, a file, or a folder with ``pipeline.py``.
        recorded: whether the word comes from a run; then it has to be below the working directory or its git root.

    Raises:
        UsageError: the pipeline does not exist, is not a pipeline, or mltrain does not execute the recorded path.
    """
    registered = {entry.name: entry.value for entry in metadata.entry_points(group=PIPELINES)}
    if word in registered:
        return _pipeline_of(word, _imported(word, registered[word]))
    code = _code(word, "pipeline.py", recorded)
    if code is not None:
        return _pipeline_of(_recorded_name(code.place), _loaded(code.file))
    if not recorded and _is_there(word, GROUP, "project.py"):
        raise UsageError(f"{word!r:.200} is a project. Try: mltrain train {word:.200}")
    raise _absent("pipeline", word, registered, "mltrain pipeline PIPELINE --run ID" if recorded else None)


def _pipeline_of(word: str, module: ModuleType) -> Located:
    pipeline = getattr(module, "PIPELINE", None)
    if not isinstance(pipeline, Pipeline):
        raise UsageError(f"{module.__file__} has no pipeline. Expected a variable PIPELINE, an mltrain.Pipeline.")
    return Located(word, pipeline)


@dataclass(frozen=True)
class _Code:
    """The named file or folder, with its Python file."""

    place: Path
    file: Path


def _code(word: str, script: str, recorded: bool) -> _Code | None:
    """Return the code at a path, or ``None`` without one.

    Raises:
        UsageError: the path comes from a run, and is not below the working directory or its git root.
    """
    roots = [Path.cwd().resolve()]
    if recorded:
        root = fingerprint.git_root(Path.cwd())
        roots += [root.resolve()] if root is not None else []
        _check_form(word)
    outside = False
    for base in roots:
        try:
            place = (base / word).resolve()
            file = place / script if place.is_dir() else place
            if file.suffix != ".py" or not file.is_file():
                continue
            real = file.resolve()
        except (OSError, ValueError, RuntimeError):  # a path that is too long, has a NUL, or a loop of links
            continue
        if not recorded or any(_is_below(real, root) for root in roots):
            return _Code(place, file)
        outside = True
    if outside:
        raise _refused(word, "a file outside of these folders, or one in an artifact store")
    return None


def _is_below(file: Path, root: Path) -> bool:
    return file.is_relative_to(root) and not _STORES & set(file.relative_to(root).parts)


def _check_form(word: str) -> None:
    """Refuse a recorded path that could leave the searched folders."""
    windows = PureWindowsPath(word)
    if not word:
        raise _refused(word, "no word at all")
    if PurePosixPath(word).is_absolute() or windows.drive or windows.root or "\\" in word:
        raise _refused(word, "an absolute path")
    if ".." in PurePosixPath(word).parts or word.startswith("~"):
        raise _refused(word, "a path that leads out of its folder")


def _refused(word: str, what: str) -> UsageError:
    return UsageError(
        f"The project or pipeline that the run recorded, {word!r:.200}, is not executed. Expected a registered name, or the "
        f"path of a file or folder below the working directory or its git root, got {what}. Name it yourself. Try: mltrain "
        "train PROJECT --resume-run ID, mltrain evaluate ID PROJECT, or mltrain pipeline PIPELINE --run ID"
    )


def find(word: str, *, recorded: bool = False) -> Project:
    """Return a project by name, file, folder or ``PIPELINE:STAGE``.

    Args:
        word: a registered name, a file, a folder, or ``PIPELINE:STAGE``.
        recorded: whether the word comes from a run; then it has to be below the working directory or its git root.

    Raises:
        UsageError: the project does not exist, is not a project, or mltrain does not execute the recorded path.
    """
    registered = {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}
    if word in registered:
        return _of_module(word, _imported(word, registered[word]))
    pipeline, colon, stage = word.rpartition(":")
    if colon and not set(stage) & set("./\\") and not os.path.exists(word):  # noqa: PTH110 - a word too long for a path is no error
        return find_pipeline(pipeline, recorded=recorded).project(stage)
    code = _code(word, "project.py", recorded)
    if code is not None:
        return _of_module(_recorded_name(code.place), _loaded(code.file), place=code.place)
    if not recorded and _is_there(word, PIPELINES, "pipeline.py"):
        raise UsageError(f"{word!r:.200} is a pipeline. Try: mltrain pipeline {word:.150}, or {word:.150}:STAGE")
    raise _absent("project", word, registered, "mltrain train PROJECT --resume-run …" if recorded else None)


def _absent(kind: str, word: str, registered: Collection[str], command: str | None) -> UsageError:
    """Return the error for an unknown project or pipeline; ``command`` names a recorded one."""
    known = ", ".join(sorted(registered)) or "none"
    if command is not None:
        return UsageError(
            f"The run was made by the {kind} {word!r:.200}, which is not found here. Go to the checkout that has it, or name it: "
            f"{command}. Registered here: {known}."
        )
    return UsageError(
        f"There is no {kind} {word!r:.200}: a registered name, a .py file or a folder with {kind}.py was expected."
        f"{nearest(word, registered)} Registered here: {known}."
    )


def _is_there(word: str, group: str, file: str) -> bool:
    return word in metadata.entry_points(group=group).names or Path(word[:200], file).is_file()


def _recorded_name(path: Path) -> str:
    root = fingerprint.git_root(path if path.is_dir() else path.parent) or Path.cwd()
    try:
        return path.relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.name


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"The project {name!r} cannot be imported: {error}. "
            "The systems under projects/ need: pip install 'mltrain[projects]'"
        ) from error


def _loaded(file: Path) -> ModuleType:
    name = _module_name(file)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        # So that a project can import its neighbours, and worker processes, which receive this list, find the project.
        sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    return module


def _module_name(file: Path) -> str:
    readable = re.sub(r"\W", "_", f"{file.parent.name}_{file.stem}", flags=re.ASCII)
    return f"{__name__}.{readable}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"


class _ProjectFinder(importlib.abc.MetaPathFinder):
    """Finds a project's file by module name, for unpickling."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        for folder in sys.path:
            with suppress(OSError):
                for file in Path(folder).glob("*.py"):
                    if _module_name(file) == fullname:
                        return importlib.util.spec_from_file_location(fullname, file)
        return None


sys.meta_path.append(_ProjectFinder())


def _of_module(name: str, module: ModuleType, place: Path | None = None) -> Project:
    build = getattr(module, "build", None)
    config = getattr(module, "Config", Config)
    if not callable(build) and isinstance(getattr(module, "PIPELINE", None), Pipeline):
        raise UsageError(f"{module.__file__} is a pipeline. Try: mltrain pipeline {name:.200}")
    if not callable(build):
        raise UsageError(f"{module.__file__} has no function build(config) that returns an mltrain.Task.")
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise UsageError(f"Config in {module.__file__} is invalid. Expected a subclass of mltrain.Config.")
    return Project(name, config, build, place or Path(str(module.__file__)).parent)
