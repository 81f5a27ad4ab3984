"""Separate random generators for libraries that talk to servers.

Python's global generator belongs to the training and is part of its checkpoints. s3transfer names temporary files with it,
botocore, urllib3 and other clients draw their backoff from it, and MLflow generates run names. They do so on mltrain's threads,
on their own and on the training's. In the modules of these packages, ``random`` is therefore replaced by a module whose
functions draw from the operating system.
"""

import importlib.abc
import importlib.machinery
import random
import sys
from collections.abc import Sequence
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

PACKAGES = frozenset(
    {
        "aiohttp",
        "alembic",
        "azure",
        "b2sdk",
        "boto3",
        "botocore",
        "databricks",
        "filelock",
        "fsspec",
        "google",
        "httpcore",
        "httpx",
        "mlflow",
        "opentelemetry",
        "oss2",
        "paramiko",
        "pysftp",
        "requests",
        "s3transfer",
        "sqlalchemy",
        "tenacity",
        "urllib3",
    }
)
"""MLflow and the libraries below its stores. None of them may draw from the training's generator."""

_GLOBAL: Any = random.random.__self__  # type: ignore[attr-defined] # the functions of random are methods of one object
_OWN = random.SystemRandom()


def install() -> None:
    """Replace ``random`` in imported and future modules of these packages."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES:
            _patch(module)


def _uses_global_generator(value: object) -> bool:
    # The type check comes first: some module attributes are lazy, and looking into them triggers imports.
    return isinstance(value, BuiltinMethodType | MethodType) and value.__self__ is _GLOBAL


def _patch(holder: ModuleType | type) -> None:
    """Replace ``random`` in a module or class.

    This covers the module itself, its functions, and default arguments.
    """
    for name, value in list(vars(holder).items()):
        if value is random:
            setattr(holder, name, _OWN_MODULE)
        elif _uses_global_generator(value):
            setattr(holder, name, _own(value))
        elif isinstance(value, FunctionType):
            value.__defaults__ = value.__defaults__ and tuple(_own(default) for default in value.__defaults__)
            value.__kwdefaults__ = value.__kwdefaults__ and {k: _own(v) for k, v in value.__kwdefaults__.items()}
        elif isinstance(value, type) and value.__module__ == getattr(holder, "__name__", None):
            _patch(value)


def _own(value: Any) -> Any:
    return getattr(_OWN, value.__name__) if _uses_global_generator(value) else value


def _own_module() -> ModuleType:
    module = ModuleType("random", random.__doc__)
    for name, value in vars(random).items():
        setattr(module, name, _own(value))
    return module


_OWN_MODULE = _own_module()


class _Finder(importlib.abc.MetaPathFinder):
    """Patches modules of these packages after they are executed.

    It finds them through the other finders.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if isinstance(loader, importlib.machinery.SourceFileLoader):
            execute = loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                _patch(module)

            loader.exec_module = execute_and_patch  # type: ignore[method-assign] # each module has a loader of its own
        return spec
