"""Turns users' names into names that MLflow accepts.

Each rejected character becomes ``_``; so do ``..`` and anything else that makes a path resolve to another one, such as a
doubled slash. Long names are cut. If two names become equal, the later one ends in a hash of its original.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")

LONGEST_PARAMETER = 6000
"""Most characters of a parameter that MLflow accepts; the artifacts have the full configuration."""
_LONGEST_KEY = 250
_LONGEST_PICTURE = 100
_HASH = 8
# As in mlflow.utils.validation; colons only on systems whose file names allow them.
_REFUSED_IN_KEYS = re.compile(r"[^/\w.\- ]" if os.name == "nt" else r"[^/\w.\- :]")
_REFUSED_IN_PICTURES = re.compile(r"[^/A-Za-z0-9_.\- ]")


def key(name: str) -> str:
    """Return a valid key for a metric or parameter.

    A valid ``name`` is returned unchanged.
    """
    parts = [part for part in _REFUSED_IN_KEYS.sub("_", name).split("/") if part not in ("", ".")]
    path = "/".join("__" if part == ".." else part for part in parts)
    return _cut(f"__{path[2:]}" if path.startswith("..") else path or "_", name, _LONGEST_KEY)


def picture_name(name: str) -> str:
    """Return a valid name for a picture.

    A name that is valid for files and artifacts is returned unchanged.
    """
    parts = [part for part in _REFUSED_IN_PICTURES.sub("_", name).split("/") if part not in ("", ".")]
    return _cut("/".join(re.sub(r"^[.\- ]", "_", part) for part in parts) or "_", name, _LONGEST_PICTURE)


class Names:
    """Maps names of one kind to valid, distinct MLflow names.

    Args:
        kind: the kind of named thing, for the warning.
        rule: turns a name into one that MLflow accepts.
    """

    def __init__(self, kind: str, rule: Callable[[str], str]) -> None:
        self._kind = kind
        self._rule = rule
        self._given: dict[Any, str] = {}
        self._taken: set[str] = set()
        self._all_unchanged = True

    def translated(self, values: Mapping[Any, _T]) -> Mapping[str, _T]:
        """Return the values under valid MLflow names."""
        if not values.keys() <= self._given.keys():
            unknown = [name for name in values if name not in self._given]
            for name in sorted(unknown, key=lambda name: self._rule(str(name)) != name):  # valid names come first
                self._add(name)
        return values if self._all_unchanged else {self._given[name]: value for name, value in values.items()}

    def _add(self, name: Any) -> None:
        made = self._rule(str(name))
        if made in self._taken:
            made = self._rule(f"{made[: _LONGEST_PICTURE - _HASH - 1]}-{_hash(str(name))}")
        self._given[name] = made
        self._taken.add(made)
        if made != name:
            self._all_unchanged = False
            log.warning("MLflow rejects the %s name %.300r; the run has it as %r.", self._kind, name, made)


def _cut(made: str, name: str, longest: int) -> str:
    return made if len(made) <= longest else f"{made[: longest - _HASH - 1]}-{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:_HASH]
