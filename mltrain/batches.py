"""Batches by number: their items, their seeds, fetching and cutting them."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mltrain.errors import UsageError
from mltrain.rng import seed_cheaply

_MASK = 2**64 - 1
_CHUNK = 2**20


def mixed(*numbers: int, state: int = 0) -> int:
    """Mix integers into 64 well-spread bits.

    This is the chained finalizer of SplitMix64 (Steele et al., OOPSLA 2014).

    ``mixed(a, b, c)`` is ``mixed(c, state=mixed(a, b))``.
    """
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def checked_size(batch_size: Any) -> int:
    """Return a batch size as a Python integer.

    Raises:
        UsageError: it is no whole number, or below 1.
    """
    try:
        size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise UsageError(f"batch_size={batch_size!r:.80} is invalid. Expected a whole number of at least 1.")
    return size


@dataclass(frozen=True)
class Requests:
    """Seed and item numbers of each batch, made on demand."""

    order: torch.Tensor
    batch_size: int
    state: int
    batches: range
    part: Callable[[Sequence[int]], Sequence[int]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        size = self.batch_size
        for batch in self.batches:
            items = self.order[batch * size : (batch + 1) * size].tolist()
            # A process without an item of the last batch computes one anyway, with weight 0.
            yield mixed(batch, state=self.state), list(self.part(items) or items[:1])


def drawn_by_sums(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw items with replacement in proportion to weights.

    The running sums of the weights are bisected in 64-bit numbers.
    """
    sums = weights.cumsum(0)
    drawn = torch.empty(count, dtype=torch.int64)
    for begin in range(0, count, _CHUNK):
        part = drawn[begin : begin + _CHUNK]
        uniform = torch.rand(len(part), dtype=torch.float64, generator=generator)
        # right=True skips equal sums, so that an item of weight 0 is never drawn.
        torch.searchsorted(sums, uniform.mul_(sums[-1]), right=True, out=part)
    return drawn


class Fetch(Dataset[Any]):
    """Fetches a batch with its seed, perhaps in a worker."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], seed_samples: bool) -> None:
        self._dataset = dataset
        self._collate = collate
        self._seed_samples = seed_samples

    def __getitem__(self, request: tuple[int, list[int]]) -> Any:
        seed, indices = request
        seed_cheaply(seed)
        if self._seed_samples:
            items = []
            for index in indices:
                seed_cheaply(mixed(seed, index))
                items.append(self._dataset[index])
        elif hasattr(self._dataset, "__getitems__"):
            items = self._dataset.__getitems__(indices)
        else:
            dataset = self._dataset
            items = [dataset[index] for index in indices]
        return self._collate(items)


def length(tree: Any) -> int:
    """Return the number of items of nested tensors."""
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, Mapping) else tree))
    return tree.shape[0]


def cut(tree: Any, pieces: int) -> list[Any]:
    """Cut nested tensors along dimension 0 into ``pieces`` or fewer."""
    if pieces == 1:
        return [tree]
    if isinstance(tree, Tensor):
        return list(tree.chunk(pieces))
    if isinstance(tree, Mapping):
        parts = [cut(item, pieces) for item in tree.values()]
        return [dict(zip(tree, items, strict=True)) for items in zip(*parts, strict=True)]
    parts = [cut(item, pieces) for item in tree]
    return [type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items) for items in zip(*parts, strict=True)]
