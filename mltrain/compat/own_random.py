"""Random numbers of their own for the libraries that talk to servers and stores.

Python's global generator belongs to the training, and is part of its checkpoints. s3transfer names its temporary files with it,
botocore, urllib3 and other clients spread their retries with it, MLflow makes up names of runs. They do so in threads of
mltrain, of their own, and in the training's. So in the modules of these packages the name ``random`` stands for a module whose
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
"""MLflow, and what its tracking and artifact stores are built on. None of them has a business with a training's numbers."""

_GLOBAL: Any = random.random.__self__  # type: ignore[attr-defined] # the functions of random are methods of one object
_OWN = random.SystemRandom()


def install() -> None:
    """Give modules of these packages random numbers of their own: those that are imported, and those to come."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES:
            _patch(module)


def _uses_global_generator(value: object) -> bool:
    # The types are asked for first: some values of these modules import something as soon as an attribute is looked up.
    return isinstance(value, BuiltinMethodType | MethodType) and value.__self__ is _GLOBAL


def _patch(holder: ModuleType | type) -> None:
    """Exchange what a module or class holds: the module ``random``, its functions, and these as defaults of arguments."""
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
    """Finds these packages' modules as the finders behind it do, and changes them once they have been executed."""

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
