"""Nested state as JSON plus flat tensors, and back.

:func:`flatten` turns nested tensors and plain values into a tree of JSON values with references to tensors, and a flat mapping
of names to tensors. :func:`unflatten` restores equal values of equal types, and tensors that shared memory share it again.
Nothing is pickled, and nothing is imported by name.

A value without a JSON type becomes an object with the key ``$``, which names its type: ``{"$": "tuple", "of": [...]}``.
"""

import base64
import collections
import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mltrain.checkpoint.flat_tensors import MAX_DEPTH, TensorReader, TensorWriter, dtype_named, shared_storages
from mltrain.errors import DamagedCheckpoint, UnsupportedValue

_INLINE_BYTES = 1024
_LONGEST_INT = 1024
_ONLY_TEXT = frozenset({str})
_FACTORIES: dict[str, Callable[[], Any]] = {kind.__name__: kind for kind in (list, dict, set, int, float, str)}


@dataclass
class Flat:
    """A flattened state.

    Attributes:
        tree: JSON values; every tensor is a reference to an entry of ``tensors``.
        tensors: name to tensor; each owns all of the memory that it refers to.
    """

    tree: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)


def flatten(state: Mapping[str, Any], weights: str | None = None, *, sharded: bool = False) -> Flat:
    """Flatten a state into a tree and its live tensors.

    A tensor is copied only if it cannot be stored as it is.

    Args:
        state: names to states.
        weights: the name of a part whose tensors are stored separately even if they share a storage (as cuDNN lays out
            an LSTM), so that other programs can read them.
        sharded: whether sharded tensors are accepted; they are returned unchanged.

    Raises:
        UnsupportedValue: a value is neither a tensor nor a plain value; the message names the path to it.
    """
    others = {name: part for name, part in state.items() if name != weights}
    tensors = TensorWriter(shared_storages(others), sharded=sharded)
    encoder, first = _Encoder(tensors), {}
    if weights is not None:  # they come first, so that other parts refer to their tensors and not the other way round
        with tensors.weights(weights):
            first[weights] = encoder.encoded(state[weights], weights)
    rest = encoder.encoded(others, "")
    if "$" in rest:
        pairs = iter(rest["of"])
        rows = [[name, first[name]] if name in first else next(pairs) for name in state]
        return Flat({**rest, "of": rows}, tensors.tensors)
    return Flat({name: first[name] if name in first else rest[name] for name in state}, tensors.tensors)


def unflatten(tree: Any, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Any:
    """Restore a flattened state.

    Its tensors go to ``device``, or stay where they are if it is ``None``.

    Raises:
        DamagedCheckpoint: the tree is not of :func:`flatten`, or refers to missing tensors.
    """
    try:
        return _Decoder(TensorReader(tensors, device)).decoded(tree)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise DamagedCheckpoint(
            f"The state's description is not as it was written: {type(error).__name__}: {error}"
        ) from None


class _Encoder:
    def __init__(self, tensors: TensorWriter) -> None:
        self._tensors, self._reference = tensors, tensors.reference

    def encoded(self, value: Any, path: str, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise UnsupportedValue(
                f"{path or 'The state'} is nested more than {MAX_DEPTH} levels deep; does it contain itself?"
            )
        kind = type(value)
        if kind is Tensor:
            return self._reference(value, path)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            # Python refuses decimal numbers of thousands of digits.
            return value if value.bit_length() <= _LONGEST_INT else {"$": "int", "of": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "of": repr(value)}
        if kind is dict:
            if "$" not in value and _ONLY_TEXT.issuperset(map(type, value)):
                return {key: self.encoded(item, _joined(path, key), depth + 1) for key, item in value.items()}
            return {"$": "dict", "of": self._pairs(value, path, depth)}
        if kind is list:
            return self._items(value, path, depth)
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return encode(self, value, path, depth)
        if isinstance(value, Tensor):
            return self._reference(value, path)
        if isinstance(value, np.generic) and not value.dtype.hasobject and value.dtype.names is None:
            one = np.array([value])  # as an array, even an empty string has bytes
            return {"$": "numpy", "dtype": one.dtype.str, "of": _base64(one.tobytes())}
        if isinstance(value, PurePath):
            return {"$": "path", "of": str(value)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {
                "$": "namedtuple",
                "name": kind.__name__,
                "fields": list(value._fields),
                "of": self._items(value, path, depth),
            }
        raise UnsupportedValue(
            f"{path or 'The state'} is a {kind.__module__}.{kind.__qualname__}, which cannot be stored without running "
            "code when it is read. Put its state_dict(), or plain values, in its place: dict, list, tuple, set, None, "
            "bool, int, float, complex, str, bytes, tensors, NumPy arrays, torch.Size, dtype, device, datetime, Path."
        )

    def _items(self, values: Any, path: str, depth: int) -> list[Any]:
        return [self.encoded(item, _joined(path, index), depth + 1) for index, item in enumerate(values)]

    def _pairs(self, mapping: Mapping[Any, Any], path: str, depth: int) -> list[list[Any]]:
        return [
            [self.encoded(key, f"{path}.<key>", depth + 1), self.encoded(item, _joined(path, key), depth + 1)]
            for key, item in mapping.items()
        ]

    def bytes_(self, value: bytes | bytearray, path: str) -> Any:
        if len(value) <= _INLINE_BYTES:
            return {"$": "bytes", "of": _base64(bytes(value))}
        return {"$": "bytes", "tensor": self._tensors.add(path, torch.frombuffer(bytearray(value), dtype=torch.uint8))}

    def array(self, value: np.ndarray[Any, Any], path: str) -> Any:
        if value.dtype.hasobject:
            raise UnsupportedValue(f"{path} is a NumPy array of Python objects; only arrays of numbers are stored.")
        if value.dtype.names is not None:
            raise UnsupportedValue(f"{path} is a structured NumPy array; store its fields one by one.")
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        name = self._tensors.add(path, torch.from_numpy(raw.copy()))
        return {"$": "array", "tensor": name, "dtype": value.dtype.str, "shape": list(value.shape)}


_ENCODERS: dict[type, Callable[[_Encoder, Any, str, int], Any]] = {
    tuple: lambda w, v, path, depth: {"$": "tuple", "of": w._items(v, path, depth)},
    set: lambda w, v, path, depth: {"$": "set", "of": w._items(_ordered(v), path, depth)},
    frozenset: lambda w, v, path, depth: {"$": "frozenset", "of": w._items(_ordered(v), path, depth)},
    collections.OrderedDict: lambda w, v, path, depth: {"$": "ordered", "of": w._pairs(v, path, depth)},
    collections.Counter: lambda w, v, path, depth: {"$": "counter", "of": w._pairs(v, path, depth)},
    collections.deque: lambda w, v, path, depth: {"$": "deque", "most": v.maxlen, "of": w._items(v, path, depth)},
    collections.defaultdict: lambda w, v, path, depth: {
        "$": "defaultdict",
        "factory": _factory_name(v, path),
        "of": w._pairs(v, path, depth),
    },
    complex: lambda w, v, path, depth: {"$": "complex", "of": [repr(v.real), repr(v.imag)]},
    bytes: lambda w, v, path, depth: w.bytes_(v, path),
    bytearray: lambda w, v, path, depth: {"$": "bytearray", "of": w.bytes_(v, path)},
    np.ndarray: lambda w, v, path, depth: w.array(v, path),
    torch.Size: lambda w, v, path, depth: {"$": "size", "of": list(v)},
    torch.dtype: lambda w, v, path, depth: {"$": "dtype", "of": str(v).removeprefix("torch.")},
    torch.device: lambda w, v, path, depth: {"$": "device", "of": str(v)},
    datetime.datetime: lambda w, v, path, depth: {"$": "datetime", "of": v.isoformat(), "fold": v.fold},
    datetime.date: lambda w, v, path, depth: {"$": "date", "of": v.isoformat()},
    datetime.timedelta: lambda w, v, path, depth: {"$": "timedelta", "of": [v.days, v.seconds, v.microseconds]},
}


class _Decoder:
    def __init__(self, tensors: TensorReader) -> None:
        self.tensors = tensors

    def decoded(self, tree: Any, depth: int = 0) -> Any:
        if depth > 2 * MAX_DEPTH + 8:  # a tuple is a list within an object
            raise ValueError("it is nested too deep")
        if isinstance(tree, list):
            return [self.decoded(item, depth + 1) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "$" not in tree:
            return {key: self.decoded(item, depth + 1) for key, item in tree.items()}
        decode = _DECODERS.get(tree["$"])
        if decode is None:
            raise ValueError(f"unknown type {tree['$']!r:.40}")
        return decode(self, tree, depth + 1)

    def pairs(self, tree: dict[str, Any], depth: int) -> list[tuple[Any, Any]]:
        return [(self.decoded(key, depth), self.decoded(item, depth)) for key, item in tree["of"]]

    def bytes_(self, tree: dict[str, Any]) -> bytes:
        if "tensor" in tree:
            return self.tensors.stored[tree["tensor"]].numpy().tobytes()
        return base64.b64decode(tree["of"], validate=True)

    def array(self, tree: dict[str, Any]) -> np.ndarray[Any, Any]:
        raw = self.tensors.stored[tree["tensor"]].numpy()
        return np.frombuffer(bytearray(raw.tobytes()), dtype=_numpy_dtype(tree["dtype"])).reshape(tree["shape"])


_DECODERS: dict[Any, Callable[[_Decoder, dict[str, Any], int], Any]] = {
    "tensor": lambda r, t, depth: r.tensors.tensor(t),
    "view": lambda r, t, depth: r.tensors.view(t),
    "sparse": lambda r, t, depth: r.tensors.sparse(t),
    "array": lambda r, t, depth: r.array(t),
    "numpy": lambda r, t, depth: np.frombuffer(base64.b64decode(t["of"]), dtype=_numpy_dtype(t["dtype"]))[0],
    "int": lambda r, t, depth: int(t["of"], 16),
    "float": lambda r, t, depth: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[t["of"]],
    "complex": lambda r, t, depth: complex(float(t["of"][0]), float(t["of"][1])),
    "dict": lambda r, t, depth: dict(r.pairs(t, depth)),
    "ordered": lambda r, t, depth: collections.OrderedDict(r.pairs(t, depth)),
    "counter": lambda r, t, depth: collections.Counter(dict(r.pairs(t, depth))),
    "defaultdict": lambda r, t, depth: collections.defaultdict(
        None if t["factory"] is None else _FACTORIES[t["factory"]], r.pairs(t, depth)
    ),
    "deque": lambda r, t, depth: collections.deque(r.decoded(t["of"], depth), t["most"]),
    "tuple": lambda r, t, depth: tuple(r.decoded(t["of"], depth)),
    "namedtuple": lambda r, t, depth: collections.namedtuple(t["name"], t["fields"])(*r.decoded(t["of"], depth)),
    "set": lambda r, t, depth: set(r.decoded(t["of"], depth)),
    "frozenset": lambda r, t, depth: frozenset(r.decoded(t["of"], depth)),
    "bytes": lambda r, t, depth: r.bytes_(t),
    "bytearray": lambda r, t, depth: bytearray(r.bytes_(t["of"])),
    "size": lambda r, t, depth: torch.Size(t["of"]),
    "dtype": lambda r, t, depth: dtype_named(t["of"]),
    "device": lambda r, t, depth: torch.device(t["of"]),
    "datetime": lambda r, t, depth: datetime.datetime.fromisoformat(t["of"]).replace(fold=t["fold"]),
    "date": lambda r, t, depth: datetime.date.fromisoformat(t["of"]),
    "timedelta": lambda r, t, depth: datetime.timedelta(*t["of"]),
    "path": lambda r, t, depth: Path(t["of"]),
}


def _joined(path: str, key: object) -> str:
    if type(key) is str:
        return f"{path}.{key}" if path else key
    spelled = hex(key) if type(key) is int and key.bit_length() > _LONGEST_INT else str(key)
    return f"{path}.{spelled}" if path else spelled


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _ordered(values: Any) -> list[Any]:
    """Sort a set, so that equal states have equal bytes."""
    return sorted(values, key=lambda value: (type(value).__name__, repr(value)))


def _factory_name(value: "collections.defaultdict[Any, Any]", path: str) -> str | None:
    factory: Any = value.default_factory
    if factory is None:
        return None
    if factory not in _FACTORIES.values():
        raise UnsupportedValue(
            f"{path} is a defaultdict whose default factory ({factory!r}) is not a plain type; make it a dict."
        )
    return str(factory.__name__)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError(f"{name!r:.40} is not a dtype of numbers")
    return dtype
