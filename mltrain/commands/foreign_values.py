"""Stand-ins for harmless objects in checkpoints of other programs.

Many loops save numbers of numpy (``np.mean(losses)``, ``np.random.get_state()``), an ``argparse.Namespace`` or a path beside
their weights. ``torch.load(weights_only=True)`` refuses them. Each name below is mapped to a function or class of this module,
so a file gets plain values and can call neither numpy nor any other code.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US]\d{1,4}")


class _Kind:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: object, *_flags: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(str(state[1]), "=")

    def values(self, raw: object) -> "np.ndarray[Any, Any] | None":
        """Return the values in some bytes.

        If they are neither numbers nor texts, returns ``None``.
        """
        if not isinstance(raw, bytes) or not _NUMBERS.fullmatch(self.code):
            return None
        return np.frombuffer(raw, np.dtype(self.code).newbyteorder(self.order))  # type: ignore[arg-type]


class _Array:
    """Stands in for ``numpy.ndarray``, filled by its state."""

    def __init__(self, *_of: object) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, raw = state
        values = kind.values(raw) if isinstance(kind, _Kind) else None
        if values is not None:
            self.value = values.reshape(shape, order="F" if by_columns else "C")


class _Object:
    """Stands in for an object that only has attributes."""


def _number(kind: object, raw: object = None) -> Any:
    values = kind.values(raw) if isinstance(kind, _Kind) else None
    return values[0].item() if values is not None and values.size else None


def _no_bytes(*_: object) -> bytes:
    return b""  # of an array without elements; pickle stores others as text


def _path(*parts: object) -> str:
    return "/".join(map(str, parts)).replace("//", "/", 1)


STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (_Kind, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_Object, "argparse.Namespace"),
    (_Object, "types.SimpleNamespace"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_no_bytes, f"{module}.bytes") for module in ("__builtin__", "builtins")),
    *(
        (_path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
]
"""What ``torch.serialization.safe_globals`` takes: the stand-in and the name in the file."""


def plain(value: Any) -> Any:
    """Return nested values without stand-ins; arrays become tensors.

    Dictionaries and lists are changed in place, each once: a file may hold one of them many times, or within itself.
    """
    return _plain(value, {})


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        return _tensor(value.value)
    if isinstance(value, (_Object, _Kind)):
        value = vars(value)
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, (dict, list)):
        seen[id(value)] = value
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            value[key] = _plain(member, seen)
    elif type(value) is tuple:
        seen[id(value)] = tuple(_plain(member, seen) for member in value)
        return seen[id(value)]
    return value


def _tensor(values: "np.ndarray[Any, Any] | None") -> Any:
    if values is None or values.dtype.kind in "US":
        return None if values is None else values.tolist()
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
