"""The tensors of a flattened state: names, references, shared memory.

A tree refers to a tensor by its name, or describes it as a view of a shared storage or by the parts of a sparse tensor.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mltrain.errors import UnsupportedValue

STORED_AS_THEY_ARE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8}
)
"""The dtypes of safetensors; all others are stored as bytes."""
MAX_DEPTH = 100
"""Levels of nesting that a state may have."""

_COMPRESSED = {"csr": torch.sparse_csr, "csc": torch.sparse_csc, "bsr": torch.sparse_bsr, "bsc": torch.sparse_bsc}


def is_sharded(tensor: Any) -> bool:
    """Whether processes hold pieces of a tensor: whether it is a DTensor."""
    if type(tensor) is Tensor:  # nearly all tensors; training waits for this check
        return False
    return isinstance(tensor, Tensor) and is_traceable_wrapper_subclass(tensor) and hasattr(tensor, "placements")


def is_dense(tensor: Tensor) -> bool:
    """Whether elements fill their memory without gaps or overlaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's elements, in logical order, as flat uint8."""
    dense = tensor.contiguous()  # a single element may have any stride, so reshape(-1) would not do
    return dense.as_strided((dense.numel(),), (1,), dense.storage_offset()).view(torch.uint8)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return the key of equal tensors at one address."""
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


class TensorWriter:
    """Collects tensors by name and describes them.

    Args:
        shared: the addresses of the storages that several tensors share.
        sharded: whether sharded tensors are accepted.

    Attributes:
        tensors: name to tensor; each owns all of the memory that it refers to.
    """

    def __init__(self, shared: set[int], *, sharded: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._shared = shared
        self._takes_sharded = sharded
        self._in_weights = False
        self._reserved: str | None = None
        self._storages: dict[int, str] = {}
        self._seen: dict[int, list[tuple[Tensor, str]]] = {}
        """By address. It keeps temporary tensors (such as resolved conjugates) alive, so that no address is reused."""
        self._seen_sharded: dict[tuple[Any, ...], tuple[str, Tensor]] = {}

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """Mark this block's tensors as weights, reserving their prefix."""
        self._in_weights, self._reserved = True, f"{name}."
        yield
        self._in_weights = False

    def add(self, path: str, tensor: Tensor) -> str:
        """Add a tensor without reuse and return its name."""
        name = self._name(path)
        self.tensors[name] = tensor
        return name

    def reference(self, value: Tensor, path: str) -> Any:
        """Return the description of a tensor.

        Raises:
            UnsupportedValue: the tensor cannot be stored.
        """
        if is_lazy(value):
            raise UnsupportedValue(
                f"{path} is a parameter of a lazy module without a shape; call its forward once before."
            )
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
            return self._sparse("coo", value, {"indices": value.indices(), "values": value.values()}, path)
        layout = next((name for name, known in _COMPRESSED.items() if known is value.layout), None)
        if layout is not None:
            rows = layout in ("csr", "bsr")
            parts = {
                "compressed": value.crow_indices() if rows else value.ccol_indices(),
                "plain": value.col_indices() if rows else value.row_indices(),
                "values": value.values(),
            }
            return self._sparse(layout, value, parts, path)
        if value.layout is not torch.strided:
            raise UnsupportedValue(f"{path} is a tensor of layout {value.layout}; expected a strided or sparse one.")
        return self._strided(value.resolve_conj().resolve_neg(), path)  # of a subclass

    def _sparse(self, layout: str, value: Tensor, parts: Mapping[str, Tensor], path: str) -> Any:
        described = {name: self.reference(part, f"{path}.{name}" if path else name) for name, part in parts.items()}
        return {"$": "sparse", "layout": layout, "shape": list(value.shape), "of": described}

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
            raise UnsupportedValue(f"{path} is a sharded tensor of {value.dtype}; expected a dtype of safetensors.")
        own = value.to_local()
        place = (own.untyped_storage().data_ptr(), own.storage_offset()) if own.untyped_storage().nbytes() else id(own)
        identity = (value.device, place, value.dtype, tuple(value.shape), value.stride())
        if identity not in self._seen_sharded:
            self._seen_sharded[identity] = self.add(path, value), own
        return {"$": "tensor", "name": self._seen_sharded[identity][0]}

    def _view(self, value: Tensor, storage: torch.UntypedStorage, path: str) -> Any:
        name = self._storages.get(storage.data_ptr())
        if name is None:
            raw = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
            name = self._storages[storage.data_ptr()] = self.add(f"{path}.storage", raw)
        return {
            "$": "view",
            "storage": name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "stride": list(value.stride()),
            "offset": value.storage_offset(),
        }

    def _name(self, path: str) -> str:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UnsupportedValue(f"{path!r} cannot name a tensor: it holds half of a surrogate pair.") from None
        if self._reserved is not None and not self._in_weights and path.startswith(self._reserved):
            path = f"~{path}"
        name, number = path, 2
        # safetensors reserves "__metadata__".
        while name in self.tensors or (name.endswith("__metadata__") and name.rpartition(".")[2] == "__metadata__"):
            name, number = f"{path}~{number}", number + 1
        return name


class TensorReader:
    """Restores tensors from their descriptions.

    Args:
        tensors: name to tensor, as they were stored.
        device: receives the tensors. If ``None``, they stay where they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | None) -> None:
        self.stored = tensors
        self._device = device
        self._done: dict[str, Tensor] = {}
        self._storages: dict[str, torch.UntypedStorage] = {}

    def tensor(self, tree: Mapping[str, Any]) -> Tensor:
        """Return a reference's tensor, the same one each time."""
        name = tree["name"]
        if name in self._done:
            return self._done[name]
        tensor = self.stored[name]
        if tensor.is_meta:
            return tensor  # the caller fills it in
        if "dtype" in tree:
            tensor = tensor.view(dtype_named(tree["dtype"])).reshape(tree["shape"])
        if "stride" in tree:
            stride = tuple(int(step) for step in tree["stride"])
            restrided = torch.empty_like(tensor, device="meta").as_strided(tensor.shape, stride)
            if not is_dense(restrided):
                raise ValueError(f"{name!r} has strides that do not fit its shape")
            tensor = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
        self._done[name] = tensor = tensor.to(self._device)
        return tensor

    def view(self, tree: Mapping[str, Any]) -> Tensor:
        """Return a view of a shared storage."""
        dtype, name = dtype_named(tree["dtype"]), tree["storage"]
        if name not in self._storages:
            self._storages[name] = self.stored[name].to(self._device).untyped_storage()
        storage, shape, stride, offset = self._storages[name], tree["shape"], tree["stride"], tree["offset"]
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if min([offset, *shape, *stride]) < 0 or (last + 1) * dtype.itemsize > storage.nbytes():
            raise ValueError(f"a view reaches beyond its storage {name!r}")
        return torch.empty(0, dtype=dtype, device=self._device).set_(storage, offset, shape, stride)

    def sparse(self, tree: Mapping[str, Any]) -> Tensor:
        """Return a sparse tensor made from its parts."""
        parts = {
            name: self.view(part) if part["$"] == "view" else self.tensor(part) for name, part in tree["of"].items()
        }
        if tree["layout"] == "coo":
            at, values = parts["indices"], parts["values"]
            return torch.sparse_coo_tensor(at, values, tree["shape"], check_invariants=True).coalesce()
        return torch.sparse_compressed_tensor(
            parts["compressed"],
            parts["plain"],
            parts["values"],
            tree["shape"],
            layout=_COMPRESSED[tree["layout"]],
            check_invariants=True,
        )


def dtype_named(name: str) -> torch.dtype:
    """Return the torch dtype of a name.

    Raises:
        ValueError: torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r:.40}")
    return dtype


def shared_storages(value: Any) -> set[int]:
    """Return the addresses of storages that different nested tensors share."""
    first: dict[int, Tensor] = {}
    shared, visited = set[int](), set[int]()

    def view(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            plain = value.layout is torch.strided and not value.is_nested
            if type(value) is not Tensor:
                plain = plain and not (is_traceable_wrapper_subclass(value) or is_lazy(value))
            if plain and value.numel():
                address = value.untyped_storage().data_ptr()
                before = first.setdefault(address, value)
                if before is not value and view(before) != view(value):
                    shared.add(address)
        elif isinstance(value, (Mapping, list, tuple, deque)) and id(value) not in visited:
            visited.add(id(value))  # guards against cycles
            for item in (value.values() if isinstance(value, Mapping) else value) if depth < MAX_DEPTH else ():
                visit(item, depth + 1)

    visit(value, 0)
    return shared - {0}
