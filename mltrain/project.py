"""Finding a project: a registered name, a ``.py`` file, or a folder with ``project.py``; and a pipeline likewise.

A pipeline is a registered name, a ``.py`` file with ``PIPELINE``, or a folder with ``pipeline.py``. A stage of it that is
trained is also a project: ``PIPELINE:STAGE``.

A run records the registered name, or the path relative to its git root. Code always comes from here, never from the
tracking store: a resume accepts a recorded word only if it is a registered name, or leads to a file below the working
directory or its git root. Anybody who can write to the tracking store can record any word, and the file is executed.
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
from collections.abc import Callable, Sequence
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
"""Makes this module a package: a project's file is imported as a module below it, also in processes started by spawn."""

GROUP = "mltrain.projects"
PIPELINES = "mltrain.pipelines"
_STORES = frozenset({"mlruns", "mlartifacts"})
"""Folders in which MLflow keeps artifacts; no code comes from there, although they often lie below the working directory."""


@dataclass(frozen=True)
class Project:
    """A project: what it is called in a run, its configuration class, and how it builds a task."""

    name: str
    config: type[Config]
    build: "Callable[[Config], Task]"
    place: Path
    """The folder, or the file, of its code."""

    @property
    def config_file(self) -> Path | None:
        """The project's own ``config.yaml``, if it has one."""
        folder = self.place if self.place.is_dir() else self.place.parent
        file = folder / "config.yaml"
        return file if file.is_file() and self.place.is_dir() else None


@dataclass(frozen=True)
class Located:
    """A pipeline, and the word by which it is found again."""

    word: str
    pipeline: Pipeline

    def project(self, name: str) -> Project:
        """Return a stage as a project of its own.

        Raises:
            UsageError: there is no such stage, or it makes files and is not trained.
        """
        stage = self.pipeline.stage(name)
        if stage.build is None:
            raise UsageError(
                f"The stage {name!r} makes files and is not trained: mltrain pipeline {self.word} --stage {name}"
            )
        return Project(f"{self.word}:{name}", stage.config, stage.build, source_of(stage.build))


def source_of(function: Callable[..., Any]) -> Path:
    """Return the file that a function stands in.

    Raises:
        UsageError: it stands in none.
    """
    inner = inspect.unwrap(getattr(function, "func", function))
    try:
        file = inspect.getsourcefile(inner if inspect.isroutine(inner) else type(inner))
    except TypeError:
        file = None
    if file is None:
        raise UsageError(f"{function!r:.80} has no file of Python code, so a change of it could not be noticed.")
    return Path(file).resolve()


def find_pipeline(word: str, *, recorded: bool = False) -> Located:
    """Return the pipeline that a word names.

    Args:
        word: a registered name, a file, or a folder with ``pipeline.py``.
        recorded: whether the word comes from a run; then it is looked for in the git root as well, and only below these.

    Raises:
        UsageError: there is no such pipeline, or it is not one, or what the run recorded is not to be executed.
    """
    registered = {entry.name: entry.value for entry in metadata.entry_points(group=PIPELINES)}
    if word in registered:
        return _pipeline_of(word, _imported(word, registered[word]))
    code = _code(word, "pipeline.py", recorded)
    if code is not None:
        return _pipeline_of(_recorded_name(code.place), _loaded(code.file))
    known = ", ".join(sorted(registered)) or "none"
    if recorded:
        raise UsageError(
            f"The run was made by the pipeline {word!r:.200}, which is not found here. Go to the checkout that has it, or "
            f"name it: mltrain pipeline PIPELINE --run ID. Registered here: {known}."
        )
    if _is_there(word, GROUP, "project.py"):
        raise UsageError(f"{word!r:.200} is a project. Try: mltrain train {word:.200}")
    raise UsageError(
        f"There is no pipeline {word!r:.200}: a registered name, a .py file or a folder with pipeline.py was expected."
        f"{nearest(word, registered)} Registered here: {known}."
    )


def _pipeline_of(word: str, module: ModuleType) -> Located:
    pipeline = getattr(module, "PIPELINE", None)
    if not isinstance(pipeline, Pipeline):
        raise UsageError(f"{module.__file__} has no PIPELINE that is an mltrain.Pipeline.")
    return Located(word, pipeline)


@dataclass(frozen=True)
class _Code:
    """The file or folder that a word names, and the Python file to load."""

    place: Path
    file: Path


def _code(word: str, script: str, recorded: bool) -> _Code | None:
    """Return the code that a word names, or ``None`` if there is no such file.

    Raises:
        UsageError: the word comes from a run, and is no path below the working directory or its git root.
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
        except (OSError, ValueError, RuntimeError):  # too long for a file system, with a NUL, a loop of links
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
    """Refuse a recorded word that could lead out of the folders in which recorded code is looked for."""
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
    """Return the project that a word names.

    Args:
        word: a registered name, a file, a folder, or ``PIPELINE:STAGE``.
        recorded: whether the word comes from a run; then it is looked for in the git root as well, and only below these.

    Raises:
        UsageError: there is no such project, or it is not one, or what the run recorded is not to be executed.
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
    known = ", ".join(sorted(registered)) or "none"
    if recorded:
        raise UsageError(
            f"The run was trained by the project {word!r:.200}, which is not found here. Go to the checkout that has it, or "
            f"name it: mltrain train PROJECT --resume-run …. Registered here: {known}."
        )
    if _is_there(word, PIPELINES, "pipeline.py"):
        raise UsageError(f"{word!r:.200} is a pipeline. Try: mltrain pipeline {word:.150}, or {word:.150}:STAGE")
    raise UsageError(
        f"There is no project {word!r:.200}: a registered name, a .py file or a folder with project.py was expected."
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
        # So that a project may import its neighbours, and a worker process finds the project: it is given this list.
        sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    return module


def _module_name(file: Path) -> str:
    readable = re.sub(r"\W", "_", f"{file.parent.name}_{file.stem}", flags=re.ASCII)
    return f"{__name__}.{readable}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"


class _ProjectFinder(importlib.abc.MetaPathFinder):
    """Finds a project's file by the name of its module, which a pickle holds, in a process that has not loaded it."""

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
        raise UsageError(f"Config in {module.__file__} has to derive from mltrain.Config.")
    return Project(name, config, build, place or Path(str(module.__file__)).parent)
