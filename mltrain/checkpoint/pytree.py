"""Nested state as JSON plus flat tensors, and back.

:func:`flatten` turns any nesting of tensors and plain values into a tree of JSON values in which every tensor is a
reference, and a flat mapping from names to tensors. :func:`unflatten` puts it together again: equal values, equal
types, and tensors that shared memory share it again. Nothing is pickled, nothing is imported by name.

What JSON cannot say is an object with the key ``$``, which names the type: ``{"$": "tuple", "of": [...]}``.
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
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mltrain.errors import DamagedCheckpoint, UnsupportedValue

STORED_AS_THEY_ARE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8}
)
"""The dtypes that safetensors has a name for; all others are flattened to bytes."""

_INLINE_BYTES = 1024
_LONGEST_INT = 1024
_MAX_DEPTH = 100
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


def is_sharded(tensor: Any) -> bool:
    """Whether each of several processes holds a piece of a tensor: whether it is a DTensor."""
    if type(tensor) is Tensor:  # nearly all of them, while the training waits
        return False
    return isinstance(tensor, Tensor) and is_traceable_wrapper_subclass(tensor) and hasattr(tensor, "placements")


def flatten(state: Mapping[str, Any], weights: str | None = None, *, sharded: bool = False) -> Flat:
    """Flatten a state. The tensors are the live ones, not copies, except where only a copy can be stored.

    Args:
        state: names to states.
        weights: the name of a part whose tensors keep names and shapes of their own even where they are pieces of one
            storage (as cuDNN lays out an LSTM), so that others can read them.
        sharded: whether the caller takes tensors that are sharded, which are among the tensors as they are then.

    Raises:
        UnsupportedValue: something is neither a tensor nor a plain value; the message names the path to it.
    """
    others = {name: part for name, part in state.items() if name != weights}
    writer = _Writer(_shared_storages(others), sharded)
    # The weights come first, so that what shares a tensor with them refers to them and not the other way round.
    first = {weights: writer.weights(state[weights], weights)} if weights is not None else {}
    rest = writer.encoded(others, "")
    if "$" in rest:
        pairs = iter(rest["of"])
        return Flat(
            {**rest, "of": [[name, first[name]] if name in first else next(pairs) for name in state]}, writer.tensors
        )
    return Flat({name: first[name] if name in first else rest[name] for name in state}, writer.tensors)


def unflatten(tree: Any, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Any:
    """Return the state that :func:`flatten` took apart, its tensors on ``device`` (where they are if ``None``).

    Raises:
        DamagedCheckpoint: the tree is not one that :func:`flatten` makes, or refers to tensors that are not there.
    """
    try:
        return _Reader(tensors, device).decoded(tree)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise DamagedCheckpoint(
            f"The state's description is not as it was written: {type(error).__name__}: {error}"
        ) from None


class _Writer:
    def __init__(self, shared: set[int], sharded: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._shared = shared
        self._takes_sharded = sharded
        self._in_weights = False
        self._reserved: str | None = None
        self._storages: dict[int, str] = {}
        self._seen: dict[int, list[tuple[Tensor, str]]] = {}
        """By address. What was made here, from a conjugate say, is kept in it, so that the next one is not made there."""
        self._seen_sharded: dict[tuple[Any, ...], tuple[str, Tensor]] = {}

    def weights(self, part: Any, name: str) -> Any:
        """Encode the weights; no other tensor may get a name that begins like theirs."""
        self._in_weights, self._reserved = True, f"{name}."
        tree = self.encoded(part, name)
        self._in_weights = False
        return tree

    def encoded(self, value: Any, path: str, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise UnsupportedValue(
                f"{path or 'The state'} is nested more than {_MAX_DEPTH} deep; is it part of itself?"
            )
        kind = type(value)
        if kind is Tensor:
            return self._tensor(value, path, depth)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            # Python neither writes nor reads decimal numbers of thousands of digits.
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
            return self._tensor(value, path, depth)
        if isinstance(value, np.generic) and not value.dtype.hasobject and value.dtype.names is None:
            one = np.array([value])  # in which even an empty text takes up bytes
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

    def _name(self, path: str) -> str:
        try:
            if not path.isascii():
                path.encode()
        except UnicodeEncodeError:
            raise UnsupportedValue(f"{path!r} cannot name a tensor: it holds half of a surrogate pair.") from None
        if self._reserved is not None and not self._in_weights and path.startswith(self._reserved):
            path = f"~{path}"
        name, number = path, 2
        # "__metadata__" safetensors keeps for itself.
        while name in self.tensors or (name.endswith("__metadata__") and name.rpartition(".")[2] == "__metadata__"):
            name, number = f"{path}~{number}", number + 1
        return name

    def bytes_(self, value: bytes | bytearray, path: str) -> Any:
        if len(value) <= _INLINE_BYTES:
            return {"$": "bytes", "of": _base64(bytes(value))}
        name = self._name(path)
        self.tensors[name] = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        return {"$": "bytes", "tensor": name}

    def array(self, value: np.ndarray[Any, Any], path: str) -> Any:
        if value.dtype.hasobject:
            raise UnsupportedValue(f"{path} is a NumPy array of Python objects; only arrays of numbers are stored.")
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        name = self._name(path)
        self.tensors[name] = torch.from_numpy(raw.copy())
        if value.dtype.names is not None:
            raise UnsupportedValue(f"{path} is a structured NumPy array; store its fields one by one.")
        return {"$": "array", "tensor": name, "dtype": value.dtype.str, "shape": list(value.shape)}

    def _tensor(self, value: Tensor, path: str, depth: int) -> Any:
        if type(value) is not Tensor or value.requires_grad:
            value = value.detach()
        if self._takes_sharded and is_sharded(value):
            return self._sharded(value, path)
        if (
            type(value) is Tensor
            and value.layout is torch.strided
            and not (value.is_quantized or value.is_nested or value.is_meta)
        ):
            if value.is_complex():
                value = value.resolve_conj()
            return self._strided(value.resolve_neg(), path)
        for wrong, what in (
            (value.is_quantized, "quantized"),
            (value.is_nested, "nested"),
            (value.is_meta, "without data (device meta)"),
            (is_traceable_wrapper_subclass(value), f"wrapped in a {type(value).__name__}"),
        ):
            if wrong:
                raise UnsupportedValue(f"{path} is a tensor that is {what}; store its parts, or a plain tensor.")
        if value.layout is torch.sparse_coo:
            value = value.coalesce()
            parts = {"indices": value.indices(), "values": value.values()}
            return {
                "$": "sparse",
                "layout": "coo",
                "shape": list(value.shape),
                "of": self.encoded(parts, path, depth + 1),
            }
        if value.layout in _COMPRESSED.values():
            layout = next(name for name, known in _COMPRESSED.items() if known is value.layout)
            rows = layout in ("csr", "bsr")
            parts = {
                "compressed": value.crow_indices() if rows else value.ccol_indices(),
                "plain": value.col_indices() if rows else value.row_indices(),
                "values": value.values(),
            }
            return {
                "$": "sparse",
                "layout": layout,
                "shape": list(value.shape),
                "of": self.encoded(parts, path, depth + 1),
            }
        if value.layout is not torch.strided:
            raise UnsupportedValue(
                f"{path} is a tensor of layout {value.layout}; only strided and sparse ones are stored."
            )
        return self._strided(value.resolve_conj().resolve_neg(), path)  # of a subclass

    def _strided(self, value: Tensor, path: str) -> Any:
        seen = self._seen.setdefault(value.data_ptr(), [])
        if seen and value.numel():
            identity = _identity(value)
            for before, name in seen:
                if _identity(before) == identity:
                    return {"$": "tensor", "name": name}
        if self._shared and not self._in_weights and value.numel():
            storage = value.untyped_storage()
            if storage.data_ptr() in self._shared:
                return self._view(value, storage, path)
        name = self._name(path)
        seen.append((value, name))
        reference: dict[str, Any] = {"$": "tensor", "name": name}
        if value.dtype not in STORED_AS_THEY_ARE:
            self.tensors[name] = as_bytes(value)
            return {**reference, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        self.tensors[name] = value
        if not value.is_contiguous() and is_dense(value):
            reference["stride"] = list(value.stride())
        return reference

    def _sharded(self, value: Any, path: str) -> Any:
        if value.dtype not in STORED_AS_THEY_ARE:
            raise UnsupportedValue(
                f"{path} is a sharded tensor of {value.dtype}; only dtypes of safetensors are stored."
            )
        own = value.to_local()
        place = (own.untyped_storage().data_ptr(), own.storage_offset()) if own.untyped_storage().nbytes() else id(own)
        identity = (value.device, place, value.dtype, tuple(value.shape), value.stride())
        name, _ = self._seen_sharded.get(identity, (None, own))
        if name is None:
            name = self._name(path)
            self._seen_sharded[identity] = name, own
            self.tensors[name] = value
        return {"$": "tensor", "name": name}

    def _view(self, value: Tensor, storage: torch.UntypedStorage, path: str) -> Any:
        name = self._storages.get(storage.data_ptr())
        if name is None:
            name = self._name(f"{path}.storage")
            self._storages[storage.data_ptr()] = name
            self.tensors[name] = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
        return {
            "$": "view",
            "storage": name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "stride": list(value.stride()),
            "offset": value.storage_offset(),
        }


_COMPRESSED = {"csr": torch.sparse_csr, "csc": torch.sparse_csc, "bsr": torch.sparse_bsr, "bsc": torch.sparse_bsc}

_ENCODERS: dict[type, Callable[[_Writer, Any, str, int], Any]] = {
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


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | None) -> None:
        self._tensors = tensors
        self._device = device
        self._done: dict[str, Tensor] = {}
        self._storages: dict[str, torch.UntypedStorage] = {}

    def decoded(self, tree: Any, depth: int = 0) -> Any:
        if depth > 2 * _MAX_DEPTH + 8:  # a tuple is an object and a list in it
            raise ValueError("it is nested too deep")
        if isinstance(tree, list):
            return [self.decoded(item, depth + 1) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "$" not in tree:
            return {key: self.decoded(item, depth + 1) for key, item in tree.items()}
        decode = _DECODERS.get(tree["$"])
        if decode is None:
            raise ValueError(f"there is no type {tree['$']!r:.40}")
        return decode(self, tree, depth + 1)

    def pairs(self, tree: dict[str, Any], depth: int) -> list[tuple[Any, Any]]:
        return [(self.decoded(key, depth), self.decoded(item, depth)) for key, item in tree["of"]]

    def tensor(self, tree: dict[str, Any]) -> Tensor:
        name = tree["name"]
        if name in self._done:
            return self._done[name]
        tensor = self._tensors[name]
        if tensor.is_meta:
            return tensor  # which the caller fills in elsewhere
        if "dtype" in tree:
            tensor = tensor.view(_dtype(tree["dtype"])).reshape(tree["shape"])
        if "stride" in tree:
            stride = tuple(int(step) for step in tree["stride"])
            restrided = torch.empty_like(tensor, device="meta").as_strided(tensor.shape, stride)
            if not is_dense(restrided):
                raise ValueError(f"{name!r} has strides that do not fit its shape")
            tensor = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
        self._done[name] = tensor = tensor.to(self._device)
        return tensor

    def view(self, tree: dict[str, Any]) -> Tensor:
        dtype = _dtype(tree["dtype"])
        name = tree["storage"]
        if name not in self._storages:
            self._storages[name] = self._tensors[name].to(self._device).untyped_storage()
        storage = self._storages[name]
        shape, stride, offset = tree["shape"], tree["stride"], tree["offset"]
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if min([offset, *shape, *stride]) < 0 or (last + 1) * dtype.itemsize > storage.nbytes():
            raise ValueError(f"a view reaches beyond its storage {name!r}")
        return torch.empty(0, dtype=dtype, device=self._device).set_(storage, offset, shape, stride)

    def bytes_(self, tree: dict[str, Any]) -> bytes:
        if "tensor" in tree:
            return self._tensors[tree["tensor"]].numpy().tobytes()
        return base64.b64decode(tree["of"], validate=True)

    def array(self, tree: dict[str, Any]) -> np.ndarray[Any, Any]:
        raw = self._tensors[tree["tensor"]].numpy()
        return np.frombuffer(bytearray(raw.tobytes()), dtype=_numpy_dtype(tree["dtype"])).reshape(tree["shape"])

    def sparse(self, tree: dict[str, Any], depth: int) -> Tensor:
        parts, shape = self.decoded(tree["of"], depth), tree["shape"]
        if tree["layout"] == "coo":
            return torch.sparse_coo_tensor(parts["indices"], parts["values"], shape, check_invariants=True).coalesce()
        return torch.sparse_compressed_tensor(
            parts["compressed"],
            parts["plain"],
            parts["values"],
            shape,
            layout=_COMPRESSED[tree["layout"]],
            check_invariants=True,
        )


_DECODERS: dict[Any, Callable[[_Reader, dict[str, Any], int], Any]] = {
    "tensor": lambda r, t, depth: r.tensor(t),
    "view": lambda r, t, depth: r.view(t),
    "sparse": lambda r, t, depth: r.sparse(t, depth),
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
    "dtype": lambda r, t, depth: _dtype(t["of"]),
    "device": lambda r, t, depth: torch.device(t["of"]),
    "datetime": lambda r, t, depth: datetime.datetime.fromisoformat(t["of"]).replace(fold=t["fold"]),
    "date": lambda r, t, depth: datetime.date.fromisoformat(t["of"]),
    "timedelta": lambda r, t, depth: datetime.timedelta(*t["of"]),
    "path": lambda r, t, depth: Path(t["of"]),
}


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor, in the order of its dimensions, as a flat tensor of uint8."""
    dense = tensor.contiguous()  # of which a single element may still have any stride, so reshape(-1) would not do
    return dense.as_strided((dense.numel(),), (1,), dense.storage_offset()).view(torch.uint8)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors at one address have in common if they are the same."""
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _joined(path: str, key: object) -> str:
    if type(key) is str:
        return f"{path}.{key}" if path else key
    spelled = hex(key) if type(key) is int and key.bit_length() > _LONGEST_INT else str(key)
    return f"{path}.{spelled}" if path else spelled


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _ordered(values: Any) -> list[Any]:
    """Order the members of a set the same way in every process, so that equal states are equal bytes."""
    return sorted(values, key=lambda value: (type(value).__name__, repr(value)))


def _factory_name(value: "collections.defaultdict[Any, Any]", path: str) -> str | None:
    factory: Any = value.default_factory
    if factory is None:
        return None
    if factory not in _FACTORIES.values():
        raise UnsupportedValue(f"{path} is a defaultdict whose default is made by code ({factory!r}); make it a dict.")
    return str(factory.__name__)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r:.40}")
    return dtype


def _numpy_dtype(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError(f"{name!r:.40} is not a dtype of numbers")
    return dtype


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps and overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _shared_storages(value: Any) -> set[int]:
    """Return the addresses of storages that several different tensors of a nesting look into."""
    first: dict[int, Tensor] = {}
    shared: set[int] = set()
    visited: set[int] = set()

    def view(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            plain = value.layout is torch.strided and not value.is_nested
            if type(value) is not Tensor:
                plain = plain and not is_traceable_wrapper_subclass(value)
            if plain and value.numel():
                address = value.untyped_storage().data_ptr()
                before = first.setdefault(address, value)
                if before is not value and view(before) != view(value):
                    shared.add(address)
        elif isinstance(value, (Mapping, list, tuple, collections.deque)) and id(value) not in visited:
            visited.add(id(value))  # what is part of itself several times over would take for ever
            for item in (value.values() if isinstance(value, Mapping) else value) if depth < _MAX_DEPTH else ():
                visit(item, depth + 1)

    visit(value, 0)
    return shared - {0}
