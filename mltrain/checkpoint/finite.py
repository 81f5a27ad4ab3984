"""Checks that a snapshot's weights and optimizer state are finite.

A training can diverge while its loss is still finite. A checkpoint of such a state would supersede the last good one, so the
writing thread checks each snapshot first. It sees names and tensors but no modules, and a false alarm would cost every
checkpoint, so it checks only parts that it recognizes: weights and optimizer state.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mltrain.checkpoint.flat_tensors import is_dense
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.snapshot import WEIGHTS_NAMES, Snapshot
from mltrain.errors import NonFiniteLoss, counted, shortened

_PIECE = 2**22
_OF_PARAMETERS = ("weight", "bias")
"""Names that torch modules give to their parameters."""

_WORDS: dict[torch.dtype, tuple[Any, Any, int, int]] = {
    torch.float64: (np.int64, np.uint64, 0x7FF << 52, 0xFFF << 52),
    torch.float32: (np.int32, np.uint32, 0x7F8 << 20, 0xFF8 << 20),
    torch.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80, 0xFF80),
    torch.float8_e5m2: (np.int8, np.uint8, 0x7C, 0xFC),
    torch.float8_e4m3fn: (np.int8, np.uint8, 0x7F, 0xFF),
    torch.complex128: (np.int64, np.uint64, 0x7FF << 52, 0xFFF << 52),
    torch.complex64: (np.int32, np.uint32, 0x7F8 << 20, 0xFF8 << 20),
    torch.complex32: (np.int16, np.uint16, 0x7C00, 0xFC00),
}
"""Signed and unsigned integer types of a dtype's width, and the bits of plus and minus infinity. Only NaN lies beyond."""


def nonfinite(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of non-finite weights and optimizer state.

    NaN counts everywhere. Infinity counts in optimizer state, in tensors called ``weight`` or ``bias``, and in other weights
    that hold a finite number other than zero. A mask of zeros and minus infinity therefore passes, and so does a running
    minimum that starts at infinity. Hyperparameters of optimizers are not checked.

    Args:
        tree: a state as :func:`mltrain.checkpoint.pytree.flatten` describes it.
        tensors: its tensors, on the CPU.
    """
    return list(_found(tree, "", tensors))


def refuse_nonfinite(snapshot: Snapshot, draft: Manifest) -> None:
    """Raise an error for a snapshot with non-finite state.

    The previous checkpoint stays the newest.

    Raises:
        NonFiniteLoss: its weights or optimizer state are not finite.
    """
    wrong = nonfinite(snapshot.tree, snapshot.held)
    if wrong:
        raise NonFiniteLoss(
            f"{draft.title} ({draft.name}) is not a checkpoint: NaN or infinity in {counted(len(wrong), 'tensor')} of weights or "
            f"optimizer state. Expected finite numbers, got: {shortened(wrong, 5)}. The last finite checkpoint stays the "
            "newest. Try: resume from it with a lower learning rate or gradient clipping; register a buffer that is meant "
            "to hold infinity with persistent=False."
        )


def _found(tree: Any, path: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    entries = dict(_entries(tree))
    if {"state", "param_groups"} <= entries.keys():
        for place, tensor in _numbers(entries["state"], f"{path}.state", tensors):
            if not _is_finite(tensor):
                yield place
    elif _are_weights(path, entries, tensors):
        for place, tensor in _numbers(tree, path, tensors):
            if not _is_finite(tensor) and (place.rpartition(".")[2] in _OF_PARAMETERS or not _is_mask(tensor)):
                yield place
    else:
        for key, entry in entries.items():
            yield from _found(entry, f"{path}.{key}" if path else key, tensors)


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield a tree node's children that may hold tensors.

    Each comes with its key or index.
    """
    if isinstance(tree, list):
        yield from ((str(number), item) for number, item in enumerate(tree) if isinstance(item, (dict, list)))
    elif isinstance(tree, Mapping) and "$" not in tree:
        yield from tree.items()
    elif isinstance(tree, Mapping) and isinstance(tree.get("of"), (list, dict)):
        if tree["$"] in ("dict", "ordered", "counter", "defaultdict"):
            yield from ((str(key), item) for key, item in tree["of"])
        else:
            yield from _entries(tree["of"])


def _are_weights(path: str, entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a mapping is a model's weights.

    Running means of metrics also have a ``weight``, but it is a single number.
    """
    if path in WEIGHTS_NAMES and any(_is_tensor(entry) for entry in entries.values()):
        return True
    return any(
        key.rpartition(".")[2] == "weight" and _is_tensor(entry) and _row(entry, tensors).numel() > 1
        for key, entry in entries.items()
    )


def _is_tensor(tree: Any) -> bool:
    return isinstance(tree, Mapping) and tree.get("$") in ("tensor", "view")


def _numbers(tree: Any, path: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point and complex tensors below a node, flattened."""
    if _is_tensor(tree):
        row = _row(tree, tensors)
        if row.dtype in _WORDS:
            yield path, row
    for key, entry in _entries(tree):
        yield from _numbers(entry, f"{path}.{key}", tensors)


def _row(reference: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a described tensor as one row.

    A dense tensor keeps the order of its memory, which avoids a copy.
    """
    if reference["$"] == "view":
        empty = torch.empty(0, dtype=getattr(torch, reference["dtype"]))
        storage = tensors[reference["storage"]].untyped_storage()
        return empty.set_(storage, reference["offset"], reference["shape"], reference["stride"]).reshape(-1)
    stored = tensors[reference["name"]]
    row = stored.as_strided((stored.numel(),), (1,)) if is_dense(stored) else stored.reshape(-1)
    return row.view(getattr(torch, reference["dtype"])) if "dtype" in reference else row


def _is_finite(row: Tensor) -> bool:
    """Whether no number is NaN or infinite.

    Read as integers, NaN and infinity are the largest values of either sign, so two maxima decide.
    """
    signed, unsigned, infinity, minus_infinity = _WORDS[row.dtype]
    words = row.contiguous().view(torch.uint8).numpy()
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        if piece.view(signed).max() >= infinity or piece.view(unsigned).max() >= minus_infinity:
            return False
    return True


def _is_mask(row: Tensor) -> bool:
    """Whether a row holds only zeros and infinities."""
    numbers = torch.view_as_real(row).reshape(-1) if row.is_complex() else row
    numbers = numbers.double()
    return not bool(numbers.isnan().any()) and not bool(numbers[numbers.isfinite()].any())
