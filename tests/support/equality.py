"""Whether two values are equal, bit by bit."""

import collections
import datetime
from typing import Any

import numpy as np
import torch


def bits(tensor: torch.Tensor) -> bytes:
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()).reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes()


def identical(a: Any, b: Any) -> bool:
    """Whether two values have the same types and bits. The order of keys and the sign of 0 count."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape, a.layout) != (b.dtype, b.shape, b.layout):
            return False
        if a.layout is not torch.strided:
            return bits(a.to_dense()) == bits(b.to_dense())
        return bits(a) == bits(b)
    if isinstance(a, tuple) and hasattr(a, "_fields"):
        names = (type(a).__name__, a._fields)
        return names == (type(b).__name__, b._fields) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype.str, a.shape, a.tobytes()) == (b.dtype.str, b.shape, b.tobytes())
    if isinstance(a, dict):
        if isinstance(a, collections.defaultdict) and a.default_factory is not b.default_factory:
            return False
        return identical(list(a.items()), list(b.items()))
    if isinstance(a, collections.deque) and a.maxlen != b.maxlen:
        return False
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | complex | set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b)) if isinstance(a, set | frozenset) else repr(a) == repr(b)
    if isinstance(a, datetime.datetime):
        return (a, a.isoformat(), a.fold) == (b, b.isoformat(), b.fold)
    return bool(a == b)
